//! Subflows of MPTCP: connections that the kernel opens by itself, in a thread of its own,
//! for a socket that a process has opened.

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_skc_to_mptcp_sock};
use trefoil_ebpf::abi::*;

use crate::{globals::subflows_known, maps::SOCKETS, socket::is_tcp, words::copy};

/// Gives the tag of a subflow the owner of the socket that it belongs to. False if it is
/// no subflow, or if nothing is known about that one either.
///
/// `bpf_skc_to_mptcp_sock`, 5.19; before, nobody owns what the kernel opens.
#[inline(always)]
pub fn inherit(tag: *mut Socket, socket: *mut bpf_sock) -> bool {
    // The kernel takes for a connection of TCP what is of that protocol, and reads behind the
    // end of a raw socket, such as the one by which it sends resets: some kernels then follow
    // a pointer to nowhere.
    if !subflows_known() || !is_tcp(socket) {
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
        copy(
            &raw const (*of).tracked.owner,
            &raw mut (*tag).tracked.owner,
        );
        (*tag).flags |= (*of).flags & SOCKET_OWN_NAMESPACE;
        (*tag).tracked.owner.pid != 0
    }
}
