//! What the kernel programs and the agent agree on.
//!
//! This library is `no_std` and has no dependency: it is compiled once for the
//! BPF target, into the programs, and once for the host, into the agent. It
//! owns layouts and numbers, and must not do anything.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
