//! What of the agent is in the kernel, found from outside: the BPF objects that
//! its descriptors name, and whether they still exist.
//!
//! Ids are asked for one by one and never compared as sets, so that other
//! programs on the same machine do not matter.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use crate::wait::wait_for;

/// Commands of bpf(2) that open an object by its id.
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;

/// Ids of BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What process `pid` holds descriptors of.
    pub fn held_by(pid: u32) -> Result<Self> {
        let mut objects = Self::default();
        let directory = format!("/proc/{pid}/fdinfo");
        for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
            // A descriptor that was closed meanwhile is of no interest.
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| -> Option<u32> {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            // The descriptor of a link names its program, too.
            objects.links.extend(field("link_id:"));
            objects.programs.extend(field("prog_id:"));
            objects.maps.extend(field("map_id:"));
        }
        Ok(objects)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those of them that are in the kernel now.
    pub fn alive(&self) -> Result<Self> {
        let filter = |ids: &BTreeSet<u32>, command| -> Result<BTreeSet<u32>> {
            let mut alive = BTreeSet::new();
            for id in ids {
                if exists(command, *id)? {
                    alive.insert(*id);
                }
            }
            Ok(alive)
        };
        Ok(Self {
            programs: filter(&self.programs, BPF_PROG_GET_FD_BY_ID)?,
            maps: filter(&self.maps, BPF_MAP_GET_FD_BY_ID)?,
            links: filter(&self.links, BPF_LINK_GET_FD_BY_ID)?,
        })
    }

    /// Waits until none of them is left. The kernel frees them after a grace
    /// period, not at once.
    pub fn wait_until_gone(&self) -> Result<()> {
        let mut left = self.clone();
        wait_for("BPF objects are freed", || {
            left = left.alive()?;
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("left in the kernel: {left:?}"))
    }
}

fn exists(command: libc::c_int, id: u32) -> Result<bool> {
    // The part of union bpf_attr that these commands read: id, next id, flags.
    let attributes: [u32; 4] = [id, 0, 0, 0];
    // SAFETY: the kernel reads `attributes`, whose size is passed, and nothing else.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(&attributes) as libc::c_uint,
        )
    };
    if answer >= 0 {
        // SAFETY: the call returned a new descriptor that nobody else owns.
        drop(unsafe { OwnedFd::from_raw_fd(answer as i32) });
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error).with_context(|| format!("open BPF object {id}")),
    }
}
