//! Reading what iterator programs write.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd},
};

use aya::programs::Iter;
use trefoil_ebpf::abi::{Tracked, WayOut};

use super::{
    KernelError, bpf_syscall,
    wire::{Plain, value_of},
};

/// Runs an iterator to its end for what it does in the kernel.
pub fn run(program: &Iter, name: &str) -> Result<(), KernelError> {
    read_all(fd_of(program, name)?, name, None).map(drop)
}

/// Runs the iterator over open files, which tags sockets, and returns what may be a way out
/// that no hook judges.
pub fn ways_out(program: &Iter, name: &str) -> Result<Vec<WayOut>, KernelError> {
    read_all(fd_of(program, name)?, name, None).map(|bytes| values_of(&bytes))
}

/// Runs the iterator over socket tags and returns the flows in them.
///
/// `sockets` is the map of tags, for the iterator over it; none for the one over open files.
pub fn flows(
    program: &Iter,
    name: &str,
    sockets: Option<BorrowedFd<'_>>,
) -> Result<Vec<Tracked>, KernelError> {
    flows_of(fd_of(program, name)?, name, sockets)
}

/// As [`flows`], for a program that somebody else loaded.
pub fn flows_of(
    program: BorrowedFd<'_>,
    name: &str,
    sockets: Option<BorrowedFd<'_>>,
) -> Result<Vec<Tracked>, KernelError> {
    read_all(program, name, sockets).map(|bytes| values_of(&bytes))
}

fn values_of<T: Plain>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .filter_map(value_of)
        .collect()
}

fn fd_of<'a>(program: &'a Iter, name: &str) -> Result<BorrowedFd<'a>, KernelError> {
    let fd = program.fd().map_err(|error| failed(name, error))?;
    Ok(fd.as_fd())
}

fn read_all(
    program: BorrowedFd<'_>,
    name: &str,
    map: Option<BorrowedFd<'_>>,
) -> Result<Vec<u8>, KernelError> {
    let mut file = bpf_syscall::iterate(program, map).map_err(|error| failed(name, error))?;
    let mut bytes = Vec::new();
    // The kernel hands out at most a few pages at a time.
    file.read_to_end(&mut bytes)
        .map_err(|error| failed(name, error))?;
    Ok(bytes)
}

fn failed(name: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> KernelError {
    KernelError::failed(format!("run iterator {name}"), error)
}
