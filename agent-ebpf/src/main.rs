//! The kernel programs.
//!
//! One file per hook in `hooks/`, in data order; what hooks share is beside
//! them. A hook reads, looks up, counts or hands over, and returns; it never
//! waits for user space.

//! Nearly every line here is an unsafe access through a pointer that the kernel
//! gave: to a context, a map value, reserved memory. The verifier checks each,
//! or the program does not load. This is the reason of every unsafe block that
//! states no other.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "the verifier checks every access, see above"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    feature = "trace",
    allow(dead_code, reason = "the programs of `trefoil trace` write nothing")
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "passed by value, a map's value would be copied onto a stack of 512 bytes"
)]

#[cfg(target_arch = "bpf")]
mod accounting;
#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod books;
#[cfg(target_arch = "bpf")]
mod bounds;
#[cfg(target_arch = "bpf")]
mod budget;
#[cfg(target_arch = "bpf")]
mod checksum;
#[cfg(target_arch = "bpf")]
mod control_packet;
#[cfg(target_arch = "bpf")]
mod deeds;
#[cfg(target_arch = "bpf")]
mod device;
#[cfg(target_arch = "bpf")]
mod direction;
#[cfg(target_arch = "bpf")]
mod family;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod frame_owner;
#[cfg(target_arch = "bpf")]
mod globals;
#[cfg(all(target_arch = "bpf", not(feature = "trace")))]
mod hooks;
#[cfg(target_arch = "bpf")]
mod in_flight;
#[cfg(target_arch = "bpf")]
mod iterator;
#[cfg(target_arch = "bpf")]
mod judge;
#[cfg(target_arch = "bpf")]
mod kernel_memory;
#[cfg(target_arch = "bpf")]
mod loopback;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod named;
#[cfg(target_arch = "bpf")]
mod naming;
#[cfg(target_arch = "bpf")]
mod owner;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod refusals;
#[cfg(target_arch = "bpf")]
mod remembered;
#[cfg(target_arch = "bpf")]
mod room;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod running;
#[cfg(target_arch = "bpf")]
mod seal;
#[cfg(target_arch = "bpf")]
mod sender;
#[cfg(target_arch = "bpf")]
mod session;
#[cfg(target_arch = "bpf")]
mod settle;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod source;
#[cfg(target_arch = "bpf")]
mod subflow;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(all(target_arch = "bpf", feature = "trace"))]
mod trace;
#[cfg(target_arch = "bpf")]
mod translation;
#[cfg(target_arch = "bpf")]
mod tree;
#[cfg(target_arch = "bpf")]
mod uplink_flows;
#[cfg(target_arch = "bpf")]
mod words;

/// The kernel lends helpers such as `bpf_probe_read_kernel` to programs under a
/// GPL-compatible licence only. The sources are (MIT OR Apache-2.0) as well.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Loops, so that the verifier rejects a program in which a panic is reachable.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a BPF object; build it with `cargo xtask build`");
}
