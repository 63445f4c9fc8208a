//! What kind of socket it is.

use aya_ebpf::bindings::bpf_sock;

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
