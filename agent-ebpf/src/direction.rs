//! Directions of flows: who has opened them, as the socket says it.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_listener_sock, bpf_sk_fullsock},
};
use trefoil_ebpf::abi::*;

use crate::{maps::SOCKETS, socket::is_tcp};

const TCP_LISTEN: u32 = 10;

/// Direction of the flow that a packet belongs to, one of [`direction`], as its socket says it.
///
/// A function of its own, so that what comes after it is not verified once for each that it can be.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn direction_of(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return direction::UNKNOWN.into();
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return direction::UNKNOWN.into();
    }
    match SOCKETS.get(socket) {
        Some(tag) => direction_by(socket, tag).into(),
        None => direction::UNKNOWN.into(),
    }
}

/// As [`direction_of`].
#[inline(always)]
pub fn direction_by(socket: *const bpf_sock, tag: *const Socket) -> u8 {
    const SOCK_DGRAM: u32 = 2;
    // SAFETY: a socket and a map value; the verifier checks the access.
    let (kind, state, flags, direction) = unsafe {
        (
            (*socket).type_,
            (*socket).state,
            (*tag).flags,
            (*tag).tracked.flow.direction,
        )
    };
    if kind == SOCK_DGRAM {
        return direction::OUTBOUND;
    }
    match flags & (SOCKET_HAS_PEER | SOCKET_LISTENS) {
        _ if !is_tcp(socket) => direction::UNKNOWN,
        _ if state == TCP_LISTEN => accepted_by(flags),
        SOCKET_HAS_PEER => direction,
        _ => direction::UNKNOWN,
    }
}

/// Direction of a session that a socket of this tag has accepted. In a network namespace that
/// is somebody's own, whoever is root there can make up that a peer has asked for it.
#[inline(always)]
pub const fn accepted_by(flags: u32) -> u8 {
    match flags & SOCKET_OWN_NAMESPACE {
        0 => direction::CLAIMED,
        _ => direction::ACCEPTED,
    }
}

/// Direction of a packet that no socket's hook has seen. It is known of an answer to a connection request,
/// which older kernels show to no hook by IPv6: its socket is one that the kernel made for the request.
///
/// A global function, as [`direction_of`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn direction_of_answer(skb: *mut __sk_buff) -> u32 {
    let direction = || {
        // SAFETY: a field of the context; the verifier checks the access. So below.
        let socket = unsafe { (*skb).__bindgen_anon_2.sk };
        if socket.is_null() || !unsafe { bpf_sk_fullsock(socket) }.is_null() {
            return None;
        }
        let listener = unsafe { bpf_get_listener_sock(socket) };
        if listener.is_null() {
            return None;
        }
        let tag = SOCKETS.get(listener)?;
        Some(accepted_by(unsafe { (*tag).flags }))
    };
    direction().unwrap_or(direction::UNKNOWN).into()
}

/// Notes in the flow of a packet that it answers a connection request, if it does.
#[inline(always)]
pub fn note_answer(tracked: *mut Tracked, skb: *mut __sk_buff) {
    let direction = direction_of_answer(skb) as u8;
    if direction != direction::UNKNOWN {
        // SAFETY: a map value; the verifier checks the access.
        unsafe { (*tracked).flow.direction = direction };
    }
}
