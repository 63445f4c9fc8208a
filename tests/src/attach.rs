//! Programs that can be attached and taken away again: those of an agent after it has
//! ended, and others to compare them with.
//!
//! An attachment holds its program, not its place: an agent that was killed and whose pins
//! are removed leaves nothing attached, and what it had attached can be attached again,
//! within a moment and as often as one likes. Safety: places are control groups and
//! interfaces of the lab, and tracepoints for programs that drop nothing.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::kernel::{Objects, ProgramInfo, bpf, info, open_link, open_program, owned};
use crate::namespace::Namespace;

const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_LINK_CREATE: libc::c_int = 28;

/// `enum bpf_link_type`
const RAW_TRACEPOINT: u32 = 1;
const TRACING: u32 = 2;
const CGROUP: u32 = 3;
const TCX: u32 = 11;

/// `enum bpf_attach_type`
const BPF_TCX_EGRESS: u32 = 47;
/// An iterator runs when it is read and is attached nowhere.
const BPF_TRACE_ITER: u32 = 28;

/// Where a program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a control group, at one of `enum bpf_attach_type`.
    Cgroup(u32),
    /// To the tracepoint or the function that it was loaded for.
    Kernel,
    /// To the exit of the interface with this index.
    Exit(u32),
}

/// `BPF_CGROUP_INET_INGRESS`
pub const CGROUP_INGRESS: Place = Place::Cgroup(0);
/// `BPF_CGROUP_INET_EGRESS`
pub const CGROUP_EGRESS: Place = Place::Cgroup(1);
/// `BPF_CGROUP_INET_SOCK_CREATE`
pub const SOCK_CREATE: Place = Place::Cgroup(2);

/// A program and its place.
#[derive(Debug)]
pub struct Attachment {
    program: OwnedFd,
    place: Place,
}

impl Attachment {
    /// One of a program that the caller has loaded.
    pub fn new(program: BorrowedFd<'_>, place: Place) -> Result<Self> {
        let program = program.try_clone_to_owned().context("copy a descriptor")?;
        Ok(Self { program, place })
    }

    /// Those that these links hold.
    pub fn of(objects: &Objects) -> Result<Vec<Self>> {
        let mut attachments = Vec::new();
        for id in &objects.links {
            let Some(link) = open_link(*id)? else {
                continue;
            };
            // struct bpf_link_info: kind, id, program, padding, and what the kind has.
            let info = info::<32>(&link)?;
            let word = |at: usize| {
                let bytes = info.get(at..).and_then(|rest| rest.first_chunk()).copied();
                bytes.map(u32::from_ne_bytes).unwrap_or_default()
            };
            let place = match word(0) {
                RAW_TRACEPOINT => Place::Kernel,
                TRACING if word(16) == BPF_TRACE_ITER => continue,
                TRACING => Place::Kernel,
                CGROUP => Place::Cgroup(word(24)),
                TCX => Place::Exit(word(16)),
                // An iterator's.
                4 => continue,
                other => bail!("a link of kind {other} cannot be attached again"),
            };
            let program = open_program(word(8))?.context("a link without a program")?;
            attachments.push(Self { program, place });
        }
        Ok(attachments)
    }

    /// The same once more.
    pub fn again(&self) -> Result<Self> {
        let program = self.program.try_clone().context("copy a descriptor")?;
        Ok(Self {
            program,
            place: self.place,
        })
    }

    /// Returns the kernel's information about its program.
    pub fn info(&self) -> Result<ProgramInfo> {
        ProgramInfo::read(&self.program)
    }

    /// Where it goes.
    pub fn place(&self) -> Place {
        self.place
    }

    fn attach(&self, cgroup: &File) -> Result<OwnedFd> {
        let program = self.program.as_raw_fd() as u32;
        let link = match self.place {
            Place::Kernel => bpf(BPF_RAW_TRACEPOINT_OPEN, &mut [0, 0, program, 0]),
            Place::Cgroup(kind) => {
                let target = cgroup.as_raw_fd() as u32;
                bpf(BPF_LINK_CREATE, &mut [program, target, kind, 0])
            }
            Place::Exit(interface) => {
                // Relative to no other program, and whatever the revision.
                let mut attributes = [program, interface, BPF_TCX_EGRESS, 0, 0, 0, 0, 0];
                bpf(BPF_LINK_CREATE, &mut attributes)
            }
        };
        let link = link.with_context(|| format!("attach to {:?}", self.place))?;
        Ok(owned(link))
    }
}

/// Attaches all of them, in this order, until what it returns is dropped.
pub fn attach(attachments: &[Attachment], cgroup: &Path, host: &Namespace) -> Result<Vec<OwnedFd>> {
    let name = cgroup.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with("trefoillab") {
        bail!("refusing to attach to {}: that is no lab", cgroup.display());
    }
    let cgroup = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    // Interfaces have their indexes in the namespace of who attaches.
    host.enter(|| {
        attachments
            .iter()
            .map(|attachment| attachment.attach(&cgroup))
            .collect()
    })
}
