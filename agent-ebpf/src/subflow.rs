//! Subflows of MPTCP: connections of TCP for a socket that a process uses. The process uses that
//! socket and none of its subflows, so the sender is known of the socket. Some subflows the
//! kernel opens by itself, in a thread of its own.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skc_to_mptcp_sock},
};
use trefoil_ebpf::abi::*;

use crate::{
    flows::set_sender,
    globals::subflows_known,
    maps::SOCKETS,
    socket::is_tcp,
    words::{copy, set_bit},
};

/// The tag of the socket that a subflow belongs to; `None` if it is no subflow, or if nothing is
/// known about that one either.
///
/// `bpf_skc_to_mptcp_sock`, 5.19; before, nobody owns what the kernel opens.
#[inline(always)]
fn of_connection(socket: *mut bpf_sock) -> Option<*mut Socket> {
    // The kernel takes for a connection of TCP what is of that protocol, and reads behind the
    // end of a raw socket, such as the one by which it sends resets: some kernels then follow
    // a pointer to nowhere.
    if !subflows_known() || !is_tcp(socket) {
        return None;
    }
    // SAFETY: the verifier checks the socket and the pointer that comes back.
    let whole = unsafe { bpf_skc_to_mptcp_sock(socket.cast()) };
    if whole.is_null() {
        return None;
    }
    SOCKETS.get(whole)
}

/// Gives the tag of a subflow the owner of the socket that it belongs to. False if that is not
/// known.
#[inline(always)]
pub fn inherit(tag: *mut Socket, socket: *mut bpf_sock) -> bool {
    let Some(of) = of_connection(socket) else {
        return false;
    };
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        copy(
            &raw const (*of).tracked.owner,
            &raw mut (*tag).tracked.owner,
        );
        set_bit(&raw mut (*tag).flags, SOCKET_OF_MPTCP);
        (*tag).flags |= (*of).flags & SOCKET_OWN_NAMESPACE;
        (*tag).tracked.owner.pid != 0
    }
}

/// Notes in the tag of a connection whether it is a subflow. One that the far end has opened belongs
/// to a session that this host has opened, unless its socket was made by a listener.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn mark(tag: *mut Socket, socket: *mut bpf_sock) -> u32 {
    if let Some(of) = of_connection(socket) {
        // SAFETY: map values; the verifier checks the access. So below.
        set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_OF_MPTCP);
        let flow = unsafe { &raw mut (*tag).tracked.flow };
        if unsafe { (*of).flags & SOCKET_LISTENS == 0 && (*flow).direction == direction::ACCEPTED }
        {
            unsafe { (*flow).direction = direction::CLAIMED };
        }
    }
    0
}

/// Takes in who sends by the socket that the subflow of a packet belongs to.
///
/// A function of its own, as [`mark`].
#[inline(never)]
pub fn follow(skb: *mut __sk_buff, tracked: *mut Tracked) -> u32 {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 0;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return 0;
    }
    if let Some(of) = of_connection(socket) {
        let owner = unsafe { &raw const (*of).tracked.owner };
        if unsafe { (*owner).pid } != 0 {
            set_sender(tracked, owner, quality::DIRECT);
        }
    }
    0
}
