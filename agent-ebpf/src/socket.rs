//! What kind of socket it is.

use aya_ebpf::bindings::bpf_sock;
use trefoil_ebpf::abi::Socket;

use crate::packet::protocol;

/// True for a TCP socket, and not for one that only sends packets of TCP.
#[inline(always)]
pub fn is_tcp(socket: *const bpf_sock) -> bool {
    const SOCK_STREAM: u32 = 1;
    // SAFETY: the verifier checks the access. So below.
    unsafe { (*socket).type_ == SOCK_STREAM && (*socket).protocol == u32::from(protocol::TCP) }
}

/// True for a raw socket, of whatever protocol.
#[inline(always)]
pub fn is_raw(socket: *const bpf_sock) -> bool {
    const SOCK_RAW: u32 = 3;
    unsafe { (*socket).type_ == SOCK_RAW }
}

/// Sets one of the flags of a tag by its byte: what others set in other bytes at the same moment
/// stays. Where a byte may be written by several at once, it has one flag alone.
#[inline(always)]
pub fn set_flag(tag: *mut Socket, flag: u32) {
    let byte = (flag.trailing_zeros() / 8) as usize;
    // SAFETY: a map value; the verifier checks the access. Of the target, the first byte is the low
    // one.
    unsafe {
        let flags = (&raw mut (*tag).flags).cast::<u8>().add(byte);
        flags.write_volatile(flags.read_volatile() | (flag >> (8 * byte)) as u8);
    }
}
