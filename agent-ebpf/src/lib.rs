//! Definitions that the kernel programs and the agent share.
//!
//! This library is `no_std` and has no dependency: it is compiled once for the
//! BPF target, into the programs, and once for the host, into the agent. It
//! owns layouts, numbers and a hash, and must not do anything else.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod siphash;
