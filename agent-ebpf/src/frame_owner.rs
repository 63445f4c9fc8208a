//! The owner of a frame that leaves by an interface: the process whose socket it has or had, the kernel, a packet
//! socket, or somebody whom the host forwards for.

use core::ptr;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_listener_sock, bpf_get_socket_cookie, bpf_sk_fullsock},
};
use trefoil_ebpf::abi::*;

use crate::{
    control_packet::is_empty_wireguard,
    frame::{NOT_IP, frame_ends},
    globals::ONLY_LOOKS,
    in_flight,
    maps::SOCKETS,
    packet::protocol,
    remembered::large,
    translation::is_translated_here,
    uplink_flows::Who,
    words::set_bit,
};

/// Families of addresses.
pub const AF_INET: u32 = 2;
/// See [`AF_INET`].
pub const AF_INET6: u32 = 10;

/// The tag of the socket that a frame has; null if there is none. An answer to a
/// connection request has its listener's. A packet socket, which no other hook sees when
/// it is opened, gets one.
#[inline(always)]
pub fn tag(skb: *mut __sk_buff, sender: u8) -> *mut Socket {
    const NONE: *mut Socket = ptr::null_mut();
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return NONE;
    }
    let whole = unsafe { bpf_sk_fullsock(socket) };
    if !whole.is_null() {
        if sender != sender::PACKET || ONLY_LOOKS {
            return SOCKETS.get(whole).unwrap_or(NONE);
        }
        let Some(tag) = SOCKETS.get_or_create(whole) else {
            return NONE;
        };
        unsafe {
            set_bit(&raw mut (*tag).flags, SOCKET_OF_FRAMES);
            set_bit(&raw mut (*tag).flags, SOCKET_HAS_FLOWS);
            (*tag).tracked.flow.cookie = bpf_get_socket_cookie(skb.cast());
        }
        return tag;
    }
    let listener = unsafe { bpf_get_listener_sock(socket) };
    if listener.is_null() {
        return NONE;
    }
    SOCKETS.get(listener).unwrap_or(NONE)
}

/// Finds the sender of a packet, and how much is known of the owner.
#[inline(always)]
pub fn who_sent(skb: *mut __sk_buff, start: u32) -> Who {
    let who = who(skb, start);
    Who {
        // SAFETY: a field of the context.
        came_in_by: unsafe { (*skb).ingress_ifindex },
        cookie: cookie(skb, start),
        sender: (who >> 8) as u8,
        quality: who as u8,
    }
}

/// See [`who_sent`]. A global function to the kernel, so that what comes after it is not
/// verified once for each that it can be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn who(skb: *mut __sk_buff, start: u32) -> u32 {
    let sender = sender(skb);
    let quality = quality(skb, start, sender, tag(skb, sender));
    u32::from(sender) << 8 | u32::from(quality)
}

/// The cookie of the socket that a frame has or had; 0 if none is known.
///
/// A global function to the kernel, for the reason that [`who`] has.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cookie(skb: *mut __sk_buff, start: u32) -> u64 {
    let tag = tag(skb, sender(skb));
    let sent = sent(skb, start, tag);
    if sent.is_null() {
        return 0;
    }
    // SAFETY: a map value; the verifier checks the access.
    unsafe { (*sent).flow.cookie }
}

/// Finds the facts known from its socket about a packet that has one, or had it before it was
/// forwarded or waited in a tunnel: owner, cookie, and destination. Null if there are none.
#[inline(always)]
pub fn sent(skb: *mut __sk_buff, start: u32, tag: *const Socket) -> *const Tracked {
    if !tag.is_null() {
        // SAFETY: a map value; the verifier checks the access.
        return unsafe { &raw const (*tag).tracked };
    }
    if start & NOT_IP != 0 {
        return ptr::null();
    }
    if let Some(found) = in_flight::find(skb, start)
        && found.has_owner()
        && (frame_ends().is_some_and(|ends| found.is_to(ends))
            || is_translated_here(skb, start) != 0)
    {
        return found.sent();
    }
    match frame_ends() {
        Some(ends) => large(skb, ends),
        None => ptr::null(),
    }
}

/// Owner of a frame: whoever uses its socket, or did before it lost it; for a tunnel's packet, the
/// sender of the data in it; for one that came out of a tun device, whoever wrote it there. Null if
/// unknown.
#[inline(always)]
pub fn owner(tag: *const Socket, sent: *const Tracked) -> *const Owner {
    if !tag.is_null() {
        // SAFETY: a map value; the verifier checks the access. So below.
        return unsafe { &raw const (*tag).tracked.owner };
    }
    if !sent.is_null() {
        return unsafe { &raw const (*sent).owner };
    }
    ptr::null()
}

/// How much is known of the owner of a packet.
#[inline(always)]
fn quality(skb: *mut __sk_buff, start: u32, sender: u8, tag: *const Socket) -> u8 {
    const TCP_TIME_WAIT: u32 = 6;
    const SOCK_RAW: u32 = 3;
    // SAFETY: a map value; the verifier checks the access.
    if !tag.is_null() && unsafe { (*tag).tracked.owner.pid } != 0 {
        // The sender on a socket has sent every packet in its name, and the packets that wrap
        // these. In a listener's name the kernel answers.
        let socket = unsafe { (*skb).__bindgen_anon_2.sk };
        if !socket.is_null() && !unsafe { bpf_sk_fullsock(socket) }.is_null() {
            return quality::DIRECT;
        }
        return quality::INFERRED;
    }
    match sender {
        sender::FORWARDED => return quality::FORWARDED,
        sender::PACKET => return quality::NONE,
        _ => {}
    }
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        if !sent(skb, start, tag).is_null() {
            return quality::DIRECT;
        }
        // With these the kernel answers. All else is a tunnel's, and what is inside may be
        // somebody's and have lost its socket: it was forwarded, or waited for a session.
        let protocol = frame_ends().map_or(0, |ends| ends.destination.protocol);
        return match protocol {
            protocol::TCP | protocol::ICMP | protocol::ICMPV6 => quality::KERNEL,
            protocol::UDP if is_empty_wireguard(skb, start) => quality::KERNEL,
            _ => quality::NONE,
        };
    }
    if unsafe { (*socket).state } == TCP_TIME_WAIT {
        return quality::KERNEL;
    }
    // The sockets with which the kernel resets connections and answers pings are raw.
    // Any other that is not tagged is of a process that is not watched, or the kernel's.
    let whole = unsafe { bpf_sk_fullsock(socket) };
    if whole.is_null() || unsafe { (*whole).type_ } != SOCK_RAW {
        return quality::NONE;
    }
    match unsafe { (*whole).protocol } as u8 {
        protocol::TCP | protocol::ICMP | protocol::ICMPV6 => quality::KERNEL,
        _ => quality::NONE,
    }
}

/// Reads the sender of a frame that the hooks of its socket have not judged.
#[inline(always)]
pub fn sender(skb: *mut __sk_buff) -> u8 {
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let (came_in_by, socket) = unsafe { ((*skb).ingress_ifindex, (*skb).__bindgen_anon_2.sk) };
    if came_in_by != 0 {
        return sender::FORWARDED;
    }
    if socket.is_null() {
        return sender::KERNEL;
    }
    match unsafe { (*socket).family } {
        AF_INET | AF_INET6 => sender::KERNEL,
        _ => sender::PACKET,
    }
}
