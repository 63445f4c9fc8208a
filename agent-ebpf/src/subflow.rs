//! Subflows of MPTCP: connections that the kernel opens by itself, in a thread of its own,
//! for a socket that a process has opened.

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_skc_to_mptcp_sock};
use trefoil_ebpf::abi::*;

use crate::{globals::subflows_known, maps::SOCKETS};

/// Gives the tag of a subflow the owner of the socket that it belongs to. False if it is
/// no subflow, or if nothing is known about that one either.
///
/// `bpf_skc_to_mptcp_sock`, 5.19; before, nobody owns what the kernel opens.
#[inline(always)]
pub fn inherit(tag: *mut Socket, socket: *mut bpf_sock) -> bool {
    if !subflows_known() {
        return false;
    }
    // SAFETY: the verifier checks the socket and the pointer that comes back.
    let whole = unsafe { bpf_skc_to_mptcp_sock(socket.cast()) };
    if whole.is_null() {
        return false;
    }
    let Some(of) = SOCKETS.get(whole) else {
        return false;
    };
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        (*tag).tracked.owner = (*of).tracked.owner;
        (*tag).flags |= (*of).flags & SOCKET_OWN_NAMESPACE;
        (*tag).tracked.owner.pid != 0
    }
}
