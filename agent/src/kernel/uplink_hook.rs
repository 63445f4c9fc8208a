//! Attaching the program for uplinks to interfaces, one by one, as they come and go.
//!
//! Can be given to a thread: it holds the program alone, and not what it was loaded from.
//! Which interfaces these are is not for this file to say.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use trefoil_ebpf::abi::{UPLINK_IS_TUNNEL, UPLINK_MADE_QDISC, Uplink};

use super::{
    KernelError, Others, RouteSocket, UplinkTable, bpf_syscall, clsact, former,
    hooks::UPLINK_EGRESS, pins::PinDir,
};
use crate::{clock, uplinks::Link};

/// Attaches the program to interfaces.
pub struct UplinkHook {
    program: OwnedFd,
    pins: PinDir,
    instance: u32,
    replaces: bool,
    table: UplinkTable,
    routes: RouteSocket,
}

impl UplinkHook {
    /// `replaces` says whether the program may be put in the place of that of an
    /// instance before.
    pub(super) fn new(
        program: OwnedFd,
        pins: PinDir,
        instance: u32,
        replaces: bool,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            table: UplinkTable::open(&pins)?,
            routes: RouteSocket::open()?,
            program,
            pins,
            instance,
            replaces,
        })
    }

    /// Attaches the program to an interface of the network namespace that this was made in,
    /// and opens books for it unless it has some; those of a tunnel stay empty. The
    /// attachment is pinned. True if its books go on from an agent before.
    pub fn attach(&mut self, link: &Link, is_tunnel: bool) -> Result<bool, KernelError> {
        let failed = |error: io::Error| {
            KernelError::failed(format!("attach {UPLINK_EGRESS} to {}", link.name), error)
        };
        let header_bytes = link.header_bytes().ok_or_else(|| {
            failed(io::Error::other(format!(
                "link headers of hardware type {} are not known",
                link.hardware
            )))
        })?;
        let known = self.table.get(link.index)?;
        let known = known.filter(|uplink| uplink.is_tunnel() == is_tunnel);
        let uplink = match known {
            Some(uplink) => uplink,
            None => {
                let room = self.table.room();
                let others = self.table.all()?;
                let others = others.iter().filter(|(index, _)| *index != link.index);
                if others.count() >= room as usize {
                    let full = format!(
                        "{room} interfaces are watched, and no more can be; see `uplinks` of \
                         [tables] in the settings"
                    );
                    return Err(failed(io::Error::other(full)));
                }
                let uplink = Uplink {
                    attached_ns: clock::since_boot_ns(),
                    before_bytes: self.sent(link)?,
                    after_bytes: NOT_KNOWN,
                    name: padded(&link.name),
                    header_bytes,
                    flags: if is_tunnel { UPLINK_IS_TUNNEL } else { 0 },
                };
                self.table.begin(link.index, &uplink)?;
                uplink
            }
        };
        let made_qdisc = match self.attach_program(link) {
            Ok(made_qdisc) => made_qdisc,
            Err(error) => {
                if known.is_none() {
                    self.table.end(link.index)?;
                }
                return Err(error);
            }
        };
        if made_qdisc {
            let flags = uplink.flags | UPLINK_MADE_QDISC;
            self.table.set(link.index, &Uplink { flags, ..uplink })?;
        }
        Ok(uplink.after_bytes != NOT_KNOWN)
    }

    /// Notes that the program counts by now what an interface sends: what is missing in its
    /// books from then on left past the hook. Before a first policy is in force the program
    /// is attached and counts nothing.
    pub fn counts(&mut self, index: u32) -> Result<(), KernelError> {
        let Some(uplink) = self.table.get(index)? else {
            return Ok(());
        };
        // One that is gone by now has sent nothing more.
        let after_bytes = self
            .routes
            .counters(index)?
            .map_or(uplink.before_bytes, |counters| counters.bytes);
        let uplink = Uplink {
            after_bytes,
            ..uplink
        };
        self.table.set(index, &uplink)
    }

    /// Attaches and pins. True if a qdisc was made for it.
    fn attach_program(&mut self, link: &Link) -> Result<bool, KernelError> {
        let failed = |error: io::Error| {
            KernelError::failed(format!("attach {UPLINK_EGRESS} to {}", link.name), error)
        };
        if self.replaces && self.replace(link)? {
            return Ok(false);
        }
        let program = self.program.as_fd();
        match bpf_syscall::attach_tcx_egress(program, link.index) {
            Ok(tcx) => {
                let path = self.pins.link(self.instance, &uplink_pin(link.index));
                bpf_syscall::pin(tcx.as_fd(), &path).map_err(failed)?;
                Ok(false)
            }
            // This kernel does not know the place.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // First the pin, which says that there is a filter to be removed.
                let pin = FilterPin {
                    interface: link.index,
                    handle: self.instance,
                };
                let path = self.pins.link(self.instance, &pin.to_string());
                bpf_syscall::pin(program, &path).map_err(failed)?;
                clsact::attach(
                    &mut self.routes,
                    program,
                    UPLINK_EGRESS,
                    link.index,
                    self.instance,
                )
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Puts the program in the place of that of an instance before, if there is one.
    fn replace(&mut self, link: &Link) -> Result<bool, KernelError> {
        let program = self.program.as_fd();
        if former::replace(&self.pins, self.instance, &uplink_pin(link.index), program)? {
            return Ok(true);
        }
        let links = self.pins.pinned_links();
        let filter = links
            .iter()
            .filter(|(of, _)| *of != self.instance)
            .filter_map(|(_, name)| FilterPin::parse(name))
            .find(|filter| filter.interface == link.index);
        let Some(filter) = filter else {
            return Ok(false);
        };
        let routes = &mut self.routes;
        if !clsact::replace(routes, program, UPLINK_EGRESS, link.index, filter.handle)? {
            return Ok(false);
        }
        let path = self.pins.link(self.instance, &filter.to_string());
        bpf_syscall::pin(program, &path).map_err(|error| {
            KernelError::failed(format!("pin the program of {}", link.name), error)
        })?;
        Ok(true)
    }

    /// Others at the exit of an interface.
    pub fn others(&mut self, index: u32) -> Result<Others, KernelError> {
        Others::look(&mut self.routes, &self.pins, index)
    }

    /// Forgets an interface that is gone.
    pub fn forget(&mut self, index: u32) -> Result<(), KernelError> {
        for (of, hook) in self.pins.pinned_links() {
            if of == self.instance && is_uplink_pin(&hook, index) {
                self.pins.remove_link(of, &hook)?;
            }
        }
        self.table.end(index)
    }

    /// The tables that it writes.
    pub fn table(&self) -> &UplinkTable {
        &self.table
    }

    fn sent(&mut self, link: &Link) -> Result<u64, KernelError> {
        let counters = self.routes.counters(link.index)?;
        counters.map(|counters| counters.bytes).ok_or_else(|| {
            let gone = io::Error::from_raw_os_error(libc::ENODEV);
            KernelError::failed(format!("read the counters of {}", link.name), gone)
        })
    }
}

/// `Uplink::after_bytes` until it is known: nothing is missing in books before that.
const NOT_KNOWN: u64 = u64::MAX;

/// Before the index in the name of the pin of a link to an interface.
pub(super) const UPLINK_PIN: &str = "uplink_egress-";

fn uplink_pin(index: u32) -> String {
    format!("{UPLINK_PIN}{index}")
}

/// True if a pin of this name says that the interface is watched.
pub fn is_uplink_pin(name: &str, index: u32) -> bool {
    let is_filter = |filter: FilterPin| filter.interface == index;
    name == uplink_pin(index) || FilterPin::parse(name).is_some_and(is_filter)
}

/// Name of a pin of the program, parsed, where a filter holds the program: there is no link
/// to pin, and removing the pin alone removes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilterPin {
    pub(super) interface: u32,
    /// Of the filter: the number of the instance that made it, whosever program it holds.
    pub(super) handle: u32,
}

impl FilterPin {
    const PREFIX: &str = "uplink_filter-";

    /// `None` if it is the name of something else.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (interface, handle) = name.strip_prefix(Self::PREFIX)?.split_once('-')?;
        Some(Self {
            interface: interface.parse().ok()?,
            handle: handle.parse().ok()?,
        })
    }

    /// Returns the part of the name that all filters of the interface have in common.
    pub(super) fn interface_pin(self) -> String {
        format!("{}{}", Self::PREFIX, self.interface)
    }
}

impl std::fmt::Display for FilterPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.interface_pin(), self.handle)
    }
}

/// A name of at most 15 bytes, padded with zeros.
fn padded(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    padded
}
