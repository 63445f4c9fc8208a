//! Every frame on its way out of an interface that leads out of the host: counted, and
//! judged unless the hooks of its socket have done so.
//!
//! `BPF_TCX_EGRESS` (6.6), before that a filter of the clsact qdisc. What comes here
//! without having been judged: forwarded traffic, tunnels, the kernel's own packets,
//! packet sockets. Frames that skip traffic control (`PACKET_QDISC_BYPASS`, AF_XDP) do
//! not come here; they are what the interface's own counter has more than the books.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_listener_sock, bpf_sk_fullsock},
    macros::classifier,
    programs::TcContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    atomic, flows,
    judge::{judge, undetermined},
    maps::{FORWARDED, InForce, SOCKETS, UPLINK_BOOKS, UPLINKS, in_force, lose},
    packet::{Frame, Part, ends_at, frame},
    source::Source,
};

/// On to the next program on this interface, which may be somebody else's: this one
/// never says that a frame may leave, only that it may not. `TCX_NEXT`, which is
/// `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
const DROP: i32 = 2;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// What is counted about one frame.
#[derive(Clone, Copy)]
struct Size {
    interface: u32,
    bytes: u32,
    wire_bytes: u32,
}

#[classifier]
fn uplink_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(in_force) = in_force() else {
        return NEXT;
    };
    // SAFETY: fields of the context; the verifier checks the access.
    let size = unsafe {
        Size {
            interface: (*skb).ifindex,
            bytes: (*skb).len,
            wire_bytes: (*skb).wire_len,
        }
    };
    // SAFETY: an entry is removed only when its interface is gone.
    let header_bytes = match unsafe { UPLINKS.get(&size.interface) } {
        Some(uplink) => uplink.header_bytes,
        None => ETHERNET_HEADER,
    };
    match frame(skb, header_bytes) {
        Frame::Ip(start) => packet(in_force, skb, start, size),
        Frame::Other(ethertype) => {
            const ARP: u16 = 0x0806;
            const LLDP: u16 = 0x88cc;
            let kind = match ethertype {
                ARP => unjudged::ARP,
                LLDP => unjudged::LLDP,
                _ => unjudged::OTHER,
            };
            count(size, UNJUDGED + u32::from(kind));
            NEXT
        }
    }
}

#[inline(always)]
fn packet(in_force: InForce, skb: *mut __sk_buff, start: u32, size: Size) -> i32 {
    let Some(ends) = ends_at(skb, start) else {
        lose(LOSS_PACKETS_UNPARSED, 1);
        return settle(sender_without_flow(skb), undetermined(in_force), size);
    };
    let peer = &ends.destination;
    let tag = tag(skb);
    if ends.part == Part::Later {
        // It has no ports: what holds for the beginning of the datagram holds for it.
        let known = remembered(in_force, &rest_of(peer, tag));
        if known != verdict::NONE {
            let sender = match tag.is_null() {
                true => sender_without_flow(skb),
                false => sender::SOCKET,
            };
            count(size, judged(sender, known));
            return NEXT;
        }
    }
    let mut known = verdict::NONE;
    if !tag.is_null() {
        known = judged_by_socket(tag, peer);
    }
    let sender = sender_without_flow(skb);
    if known == verdict::NONE && sender == sender::FORWARDED {
        known = remembered(in_force, peer);
    }
    if known != verdict::NONE {
        if ends.part == Part::First {
            remember_rest(in_force, peer, tag, known);
        }
        count(size, judged(sender::SOCKET, known));
        return NEXT;
    }
    // A tunnel's packet may still have the socket whose data is in it, and a flow may
    // have found no room in its table: then it is known whose it is.
    let source = if tag.is_null() {
        Source {
            exe_id: 0,
            cgroup_id: 0,
            uid: u32::MAX,
            gid: u32::MAX,
            session: 0,
        }
    } else {
        // SAFETY: a map value; the verifier checks the access.
        Source::of(unsafe { &raw const (*tag).tracked.owner })
    };
    let decision = judge(in_force, &source, peer, size.bytes);
    if ends.part == Part::First {
        remember_rest(in_force, peer, tag, decision.verdict);
    }
    settle(sender, decision, size)
}

/// Counts a frame that was judged here, and says what becomes of it.
#[inline(always)]
fn settle(sender: u8, decision: Decision, size: Size) -> i32 {
    if decision.blocks() {
        count(size, DROPPED + u32::from(decision.verdict));
        DROP
    } else {
        count(size, judged(sender, decision.verdict));
        NEXT
    }
}

/// The tag of the socket that a frame has; null if there is none. An answer to a
/// connection request has its listener's.
#[inline(always)]
fn tag(skb: *mut __sk_buff) -> *mut Socket {
    const NONE: *mut Socket = core::ptr::null_mut();
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return NONE;
    }
    let whole = unsafe { bpf_sk_fullsock(socket) };
    if !whole.is_null() {
        return SOCKETS.get(whole).unwrap_or(NONE);
    }
    let listener = unsafe { bpf_get_listener_sock(socket) };
    if listener.is_null() {
        return NONE;
    }
    SOCKETS.get(listener).unwrap_or(NONE)
}

/// What the hooks of a socket have decided about this destination. `NONE` if they have
/// not: the kernel sends it elsewhere than the process that uses the socket, or they do
/// not watch it.
#[inline(never)]
fn judged_by_socket(tag: *const Socket, peer: &Peer) -> u8 {
    // SAFETY: map values; the verifier checks the access. So below.
    let (flags, flow) = unsafe { ((*tag).flags, &raw const (*tag).tracked.flow) };
    if flags & SOCKET_HAS_PEER != 0 && unsafe { (*flow).peer == *peer } {
        return unsafe { (*flow).decision.verdict };
    }
    if flags & SOCKET_HAS_FLOWS == 0 {
        return verdict::NONE;
    }
    let key = FlowKey {
        cookie: unsafe { (*flow).cookie },
        peer: *peer,
    };
    match flows::find(&key) {
        Some(tracked) => unsafe { (*tracked).flow.decision.verdict },
        None => verdict::NONE,
    }
}

/// What was decided about this destination where its socket was to be seen, or about the
/// beginning of this datagram, under the policy that is in force. `NONE` if nothing, or
/// that it may not leave.
#[inline(never)]
fn remembered(in_force: InForce, peer: &Peer) -> u8 {
    // SAFETY: eight bytes that are written as one.
    match unsafe { FORWARDED.get(peer) } {
        Some(decision) if decision.generation == in_force.generation && !decision.blocks() => {
            decision.verdict
        }
        _ => verdict::NONE,
    }
}

/// Under what the decision about the rest of a datagram is remembered: the destination
/// without a port, and the socket where there is one.
#[inline(always)]
fn rest_of(peer: &Peer, tag: *const Socket) -> Peer {
    let mut key = *peer;
    key.port = 0;
    if !tag.is_null() {
        // SAFETY: a map value; the verifier checks the access.
        let cookie = unsafe { (*tag).tracked.flow.cookie };
        let [a, b, c, d, e, ..] = cookie.to_le_bytes();
        key.pad = [a, b, c, d, e];
    }
    key
}

/// Lets the rest of a datagram go the way of its beginning.
#[inline(never)]
fn remember_rest(in_force: InForce, peer: &Peer, tag: *const Socket, verdict: u8) -> u32 {
    let decision = Decision {
        generation: in_force.generation,
        rule: NO_RULE,
        verdict,
        flags: in_force.flags,
    };
    if FORWARDED.insert(&rest_of(peer, tag), &decision, 0).is_err() {
        lose(LOSS_FORWARDED_FULL, 1);
    }
    0
}

/// Who sent a frame that the hooks of its socket have not judged.
#[inline(always)]
fn sender_without_flow(skb: *mut __sk_buff) -> u8 {
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

const UNJUDGED: u32 = sender::N as u32 * verdict::N as u32;
const DROPPED: u32 = UNJUDGED + unjudged::N as u32;
const N_TOTALS: u32 = DROPPED + verdict::N as u32;

/// Index of the sum that a judged frame belongs to.
#[inline(always)]
fn judged(sender: u8, verdict: u8) -> u32 {
    u32::from(sender) * u32::from(verdict::N) + u32::from(verdict)
}

/// Adds a frame to one of the sums of its interface, which follow each other in
/// [`UplinkBooks`].
#[inline(never)]
fn count(size: Size, index: u32) -> u32 {
    let Some(books) = UPLINK_BOOKS.get_ptr_mut(&size.interface) else {
        lose(LOSS_UPLINKS_UNKNOWN, 1);
        return 0;
    };
    if index >= N_TOTALS {
        return 0;
    }
    // SAFETY: within the value, as has just been seen.
    let totals = unsafe { books.cast::<UplinkTotals>().add(index as usize) };
    unsafe {
        atomic::add(&raw mut (*totals).bytes, u64::from(size.bytes));
        atomic::add(&raw mut (*totals).wire_bytes, u64::from(size.wire_bytes));
        atomic::add(&raw mut (*totals).frames, 1);
    }
    0
}
