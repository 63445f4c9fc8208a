//! Whether a packet goes to what a call has named last on its socket. Only such a call says who sends
//! there; all else is taken to be of whoever sent last.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_sk_fullsock,
};
use trefoil_ebpf::abi::*;

use crate::{
    packet::{Ends, Route, is_same_peer, protocol},
    socket::{is_raw, tag_of},
};

/// State of a socket that is connected, of whatever protocol.
pub const ESTABLISHED: u32 = 1;

/// True if this is what a process named last on a socket for datagrams, or where that is translated.
#[inline(always)]
pub fn is_named(tag: *const Socket, destination: &Peer) -> bool {
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        is_same_peer(&raw const (*tag).named, destination)
            || is_same_peer(&raw const (*tag).translated, destination)
    }
}

/// Notes where the host translates to what a process has named last, if a packet that goes straight to
/// its destination does not go there.
#[inline(always)]
pub fn note_translated(tag: *mut Socket, ends: &Ends) {
    let peer = &ends.destination;
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        let is_elsewhere = (*tag).named.protocol != 0 && !is_named(tag, peer);
        if is_elsewhere && ends.route == Route::Direct {
            (*tag).translated = *peer;
        }
    }
}

/// True for a packet whose destination no call has named, or none since another was: its socket is
/// connected, the host translates it, or there is no such hook for its protocol. A connection of TCP is
/// its socket's alone.
///
/// A function of its own for the sake of the verifier.
#[inline(never)]
pub fn is_without_name(skb: *mut __sk_buff, ends: &Ends) -> bool {
    // SAFETY: fields of the context and of the socket; the verifier checks the access.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return false;
    }
    match ends.destination.protocol {
        protocol::TCP => is_of_raw(socket),
        protocol::UDP | protocol::UDPLITE => {
            let tag = tag_of(skb);
            let is_connected = unsafe { (*socket).state } == ESTABLISHED;
            is_connected
                || tag.is_null()
                || !is_same_peer(
                    unsafe { &raw const (*tag).named },
                    &raw const ends.destination,
                )
        }
        _ => true,
    }
}

/// True if a packet is of a raw socket, whatever its protocol.
#[inline(always)]
fn is_of_raw(socket: *mut bpf_sock) -> bool {
    // SAFETY: a field of the context, which the verifier checks.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    !socket.is_null() && is_raw(socket)
}
