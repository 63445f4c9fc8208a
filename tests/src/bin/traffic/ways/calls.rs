//! System calls whose answers do not matter.

use std::os::fd::RawFd;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// How long an answer is waited for that may never come.
const LONGEST_MS: u32 = 20;

pub fn part(payload: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    }
}

pub fn empty_message() -> libc::msghdr {
    // SAFETY: all zeros is a message without anything.
    unsafe { std::mem::zeroed() }
}

pub fn set(fd: RawFd, level: i32, name: i32, value: &[u8]) {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `value`, of this length.
    unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) };
}

pub fn sendto(fd: RawFd, payload: &[u8], to: &SockaddrStorage, flags: i32) {
    // SAFETY: the kernel reads the payload and the address, of these lengths.
    unsafe {
        libc::sendto(
            fd,
            payload.as_ptr().cast(),
            payload.len(),
            flags,
            to.as_ptr().cast(),
            to.len(),
        )
    };
}

pub fn disconnect(fd: RawFd) {
    // SAFETY: all zeros is an address of that family.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads the address, of this length.
    unsafe { libc::connect(fd, &raw const nobody, size_of_val(&nobody) as u32) };
}

/// Has each done after the one before. Not all end while this waits: what the kernel does not copy
/// at once stays as long as this process.
pub fn submit(entries: &[squeue::Entry]) {
    let Ok(mut ring) = IoUring::new(4) else {
        return;
    };
    let longest = Timespec::new().nsec(LONGEST_MS * 1_000_000);
    let arguments = SubmitArgs::new().timespec(&longest);
    for entry in entries {
        // SAFETY: what the entry points to stays, or is copied.
        let pushed = unsafe { ring.submission().push(entry) };
        if pushed.is_err() || ring.submitter().submit_with_args(1, &arguments).is_err() {
            return;
        }
        ring.completion().for_each(drop);
    }
}
