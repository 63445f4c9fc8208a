//! Ways out that no hook judges and that were open before there was one to see it.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use trefoil_ebpf::abi::{self, Owner, unseen};

use super::{
    HookStatus, Kernel, KernelError, LoadSettings, cgroups, hooks::DEV_DIRECT_XMIT, iterators,
};

/// A way out that a process has had open since before the hooks.
#[derive(Clone, Copy, Debug)]
pub struct WayOut {
    /// Process that has it open.
    pub owner: Owner,
    /// One of [`unseen`].
    pub way: u16,
    /// True if all that leaves by it is judged from now on; of AF_XDP, the frames that the
    /// kernel copies.
    pub is_covered: bool,
}

impl Kernel {
    /// Ways out that were open before the hooks were in force, of processes in the watched
    /// control group: those in another are somebody else's business. Sockets that can be
    /// judged are judged from now on.
    ///
    /// To be asked once this instance is in force, as nobody else opens one unnoticed then.
    pub fn ways_out(&self, load: &LoadSettings) -> Result<Vec<WayOut>, KernelError> {
        const NAME: &str = "iter_task_file";
        let Some(program) = self.iterator(NAME) else {
            return Ok(Vec::new());
        };
        let found = iterators::ways_out(program, NAME)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut watched = HashSet::new();
        cgroups::visit(&load.cgroup, u32::MAX, |id, _| {
            watched.insert(id);
            Ok::<_, KernelError>(true)
        })?;
        let is_wanted = |way: &&abi::WayOut| {
            // Frames that nobody looks at may skip what they like.
            let is_looked_at = way.way != unseen::QUEUE || load.watches_uplinks;
            is_looked_at && watched.contains(&way.owner.cgroup_id)
        };
        let judges_direct = self.judges_direct(load);
        let found = found.iter().filter(is_wanted);
        Ok(found
            .filter_map(|found| WayOut::settle(found, judges_direct))
            .collect())
    }

    /// Sockets of families that no hook judges and that are open now, of everybody.
    pub fn unjudged_sockets(&self) -> Result<Vec<WayOut>, KernelError> {
        const NAME: &str = "iter_task_file";
        let Some(program) = self.iterator(NAME) else {
            return Ok(Vec::new());
        };
        let found = iterators::ways_out(program, NAME)?;
        let found = found.iter().filter(|found| found.way >= unseen::FAMILY);
        let way_out = |found: &abi::WayOut| WayOut {
            owner: found.owner,
            way: found.way,
            is_covered: false,
        };
        Ok(found.map(way_out).collect())
    }

    /// True if frames are judged that go to a driver past traffic control.
    pub fn judges_direct(&self, load: &LoadSettings) -> bool {
        let is_it = |hook: &HookStatus| hook.name == DEV_DIRECT_XMIT && hook.attached;
        load.watches_uplinks && self.hooks().iter().any(is_it)
    }
}

impl WayOut {
    /// Has judged what can be. `None` if it is no such way, or not any more.
    fn settle(found: &abi::WayOut, judges_direct: bool) -> Option<Self> {
        let is_covered = match found.way {
            unseen::QUEUE => match go_through_queue(found.owner.pid, found.fd) {
                Ok(true) => true,
                Ok(false) => return None,
                Err(error) if is_gone(&error) => return None,
                Err(error) => {
                    tracing::warn!(
                        "ask whether the packet socket {} of process {} skips the queue: {error}",
                        found.fd,
                        found.owner.pid
                    );
                    false
                }
            },
            unseen::XDP => judges_direct,
            _ => false,
        };
        Some(Self {
            owner: found.owner,
            way: found.way,
            is_covered,
        })
    }
}

/// The process has ended meanwhile, or closed the socket and opened something else.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::EBADF | libc::ENOTSOCK | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}

/// Has a packet socket of another process send through traffic control. Returns whether it
/// did not. Needs CAP_SYS_PTRACE.
fn go_through_queue(pid: u32, fd: u32) -> io::Result<bool> {
    let process = call(libc::SYS_pidfd_open, [pid, 0, 0])?;
    let socket = call(libc::SYS_pidfd_getfd, [process.as_raw_fd() as u32, fd, 0])?;
    let (mut skips, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
    let value = (&raw mut skips).cast();
    // SAFETY: a number and its size, both alive.
    let read = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            value,
            &raw mut len,
        )
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    if skips == 0 {
        return Ok(false);
    }
    skips = 0;
    // SAFETY: as above.
    let written = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const skips).cast(),
            len,
        )
    };
    match written {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A system call that makes a descriptor out of numbers.
fn call(number: libc::c_long, arguments: [u32; 3]) -> io::Result<OwnedFd> {
    let [first, second, third] = arguments;
    // SAFETY: the calls of this file take numbers and read no memory.
    let fd = unsafe { libc::syscall(number, first, second, third) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
