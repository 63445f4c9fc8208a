//! Every frame on its way out of an interface that leads out of the host: counted, and
//! judged unless the hooks of its socket have done so.
//!
//! `BPF_TCX_EGRESS` (6.6), before that a filter of the clsact qdisc. What comes here
//! without having been judged: forwarded traffic, tunnels, the kernel's own packets,
//! packet sockets. Frames of AF_XDP do not come here; they are what the interface's own
//! counter has more than the books.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_listener_sock, bpf_get_socket_cookie, bpf_sk_fullsock},
    macros::classifier,
    programs::TcContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::NOT_JUDGED,
    books::{Size, count, dropped, judged, not_ip},
    flows::{self, set_sender},
    judge::{judge, undetermined},
    maps::{InForce, SOCKETS, UPLINKS, WRITERS, in_force, is_new, lose},
    packet::{Ends, Frame, Part, ends_at, frame, is_empty_wireguard, protocol},
    remembered::{ended, remember, remembered, rest_of, without_room},
    settle::{decide, record},
    source::Source,
    staged::{Staged, stage, staged},
    uplink_flows::{Who, slot, tell},
};

/// On to the next program on this interface, which may be somebody else's: this one
/// never says that a frame may leave, only that it may not. `TCX_NEXT`, which is
/// `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
const DROP: i32 = 2;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[classifier]
fn uplink_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(in_force) = in_force() else {
        return NEXT;
    };
    let size = size(skb);
    // SAFETY: an entry is removed only when its interface is gone.
    let header_bytes = match unsafe { UPLINKS.get(&size.interface) } {
        Some(uplink) if uplink.is_tunnel() => {
            stage(skb);
            return NEXT;
        }
        Some(uplink) => uplink.header_bytes,
        None => ETHERNET_HEADER,
    };
    match frame(skb, header_bytes) {
        Frame::Ip(start) => packet(in_force, skb, start),
        Frame::Other(ethertype) => {
            count(size, not_ip(ethertype));
            NEXT
        }
    }
}

#[inline(always)]
fn size(skb: *mut __sk_buff) -> Size {
    // SAFETY: fields of the context; the verifier checks the access.
    unsafe {
        Size {
            interface: (*skb).ifindex,
            bytes: (*skb).len,
            wire_bytes: (*skb).wire_len,
        }
    }
}

/// A packet whose IP header is at `start`.
#[inline(always)]
fn packet(in_force: InForce, skb: *mut __sk_buff, start: u32) -> i32 {
    let mut known = Decision::from_word(count_known(skb, start, in_force.generation));
    match known.verdict {
        verdict::NONE => known.generation = in_force.generation,
        _ if known.flags & DECISION_AT_UPLINK == 0 => return NEXT,
        _ => {}
    }
    let (flags, known) = (in_force.flags.into(), known.to_word());
    match judge_frame(skb, start, flags, known) {
        WITHOUT_SLOT => judge_frame_without_slot(skb, start, flags, known),
        outcome => outcome,
    }
}

/// What is decided already about a packet, a `Decision` of verdict `NONE` if nothing is: it
/// is counted, unless it was decided here about the beginning of its datagram.
///
/// A global function to the kernel, as [`judge_frame`] and those of the judge: the verifier
/// goes through each of them once. What they need to know of the packet they read themselves:
/// before 5.13 such functions take numbers and the context alone.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_known(skb: *mut __sk_buff, start: u32, generation: u32) -> u64 {
    let sender = sender(skb);
    let Some(ends) = ends_at(skb, start) else {
        return NOT_JUDGED.to_word();
    };
    let tag = tag(skb, sender);
    let known = known(generation, tag, sender, &ends);
    if known.verdict != verdict::NONE && known.flags & DECISION_AT_UPLINK == 0 {
        if ends.part == Part::First {
            // Also if it is of the policy before: it holds for this datagram as a whole.
            let for_rest = Decision {
                generation,
                ..known
            };
            remember(&rest(&ends.destination, tag), for_rest);
        }
        let sender = match sender {
            sender::KERNEL if tag.is_null() => sender::KERNEL,
            _ => sender::SOCKET,
        };
        count(size(skb), judged(sender, known.verdict));
    }
    known.to_word()
}

/// What [`judge_frame`] returns about a packet that has no slot.
const WITHOUT_SLOT: i32 = 1 << 16;

/// Judges a packet that no socket's hooks have judged, counts it in the flow that it belongs
/// to, and says what becomes of it. `flags` are those in force. `known` is what was decided
/// about the beginning of its datagram; of verdict `NONE` if nothing was, and of the
/// generation in force.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_frame(skb: *mut __sk_buff, start: u32, flags: u32, known: u64) -> i32 {
    let known = Decision::from_word(known);
    let in_force = InForce {
        generation: known.generation,
        flags: flags as u8,
    };
    let who = who_sent(skb, start);
    let sender = who.sender;
    let Some(ends) = ends_at(skb, start) else {
        lose(LOSS_PACKETS_UNPARSED, 1);
        return settle(sender, undetermined(in_force), size(skb));
    };
    let tag = tag(skb, sender);
    let tracked = slot(in_force.generation, tag, &who, &ends);
    if tracked.is_null() {
        return WITHOUT_SLOT;
    }
    let owner = owner(skb, sender, tag);
    // SAFETY: a map value; the verifier checks the access. So below.
    if !owner.is_null() && unsafe { (*owner).pid } != 0 {
        let certainty = match who.quality {
            quality::FORWARDED => unsafe { (*owner).quality },
            quality => quality,
        };
        set_sender(tracked, owner, certainty);
    }
    let bytes = size(skb).bytes;
    let decision = match known.verdict {
        verdict::NONE => decide(in_force, tracked, &ends, bytes),
        _ => begin_as(tracked, &ends, known),
    };
    let ip_bytes = bytes.saturating_sub(start);
    record(tracked, &decision, u64::from(ip_bytes), decision.blocks());
    remember_beginning(tag, &ends, decision.to_word());
    settle(sender, decision, size(skb))
}

/// As [`judge_frame`], of a packet that has no slot: it goes no farther than the link, or
/// there is no room for its flow, and then it is told of by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_frame_without_slot(
    skb: *mut __sk_buff,
    start: u32,
    flags: u32,
    known: u64,
) -> i32 {
    let known = Decision::from_word(known);
    let in_force = InForce {
        generation: known.generation,
        flags: flags as u8,
    };
    let sender = sender(skb);
    let Some(ends) = ends_at(skb, start) else {
        return settle(sender, undetermined(in_force), size(skb));
    };
    let tag = tag(skb, sender);
    let bytes = size(skb).bytes;
    let decision = match known.verdict {
        verdict::NONE => {
            let owner = owner(skb, sender, tag);
            let source = match owner.is_null() {
                true => Source::NOBODY,
                false => Source::of(owner),
            };
            judge(in_force, &source, &ends.destination, bytes)
        }
        _ => as_the_beginning(known),
    };
    if decision.verdict != verdict::LOCAL {
        tell_of_frame(skb, start, decision.to_word());
    }
    remember_beginning(tag, &ends, decision.to_word());
    settle(sender, decision, size(skb))
}

/// Tells of a packet by itself for whose flow there is no room.
///
/// A global function to the kernel, for the reason that [`who`] has.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of_frame(skb: *mut __sk_buff, start: u32, decision: u64) -> u32 {
    let who = who_sent(skb, start);
    let Some(ends) = ends_at(skb, start) else {
        return 0;
    };
    let ip_bytes = size(skb).bytes.saturating_sub(start);
    let decision = Decision::from_word(decision);
    let tag = tag(skb, who.sender);
    let owner = owner(skb, who.sender, tag);
    tell(tag, owner, &who, &ends, decision, ip_bytes);
    0
}

/// Remembers for the rest of a datagram what was decided here about its beginning.
///
/// A function of its own, or the ends would be on the caller's stack once more, byte by byte.
#[inline(never)]
fn remember_beginning(tag: *const Socket, ends: &Ends, decision: u64) -> u32 {
    if ends.part == Part::First {
        let decision = Decision::from_word(decision);
        let here = Decision {
            flags: decision.flags | DECISION_AT_UPLINK,
            ..decision
        };
        remember(&rest(&ends.destination, tag), here);
    }
    0
}

/// Counts a frame that was judged here, and says what becomes of it.
#[inline(always)]
fn settle(sender: u8, decision: Decision, size: Size) -> i32 {
    if decision.blocks() {
        count(size, dropped(decision.verdict));
        DROP
    } else {
        count(size, judged(sender, decision.verdict));
        NEXT
    }
}

/// The tag of the socket that a frame has; null if there is none. An answer to a
/// connection request has its listener's. A packet socket, which no other hook sees when
/// it is opened, gets one.
#[inline(always)]
fn tag(skb: *mut __sk_buff, sender: u8) -> *mut Socket {
    const NONE: *mut Socket = core::ptr::null_mut();
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return NONE;
    }
    let whole = unsafe { bpf_sk_fullsock(socket) };
    if !whole.is_null() {
        if sender != sender::PACKET {
            return SOCKETS.get(whole).unwrap_or(NONE);
        }
        let Some(tag) = SOCKETS.get_or_create(whole) else {
            return NONE;
        };
        unsafe {
            (*tag).flags |= SOCKET_OF_FRAMES | SOCKET_HAS_FLOWS;
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

/// What is decided already about a packet; of verdict `NONE` if nothing is. A decision
/// that was made here, about the beginning of this datagram, says so.
#[inline(always)]
fn known(generation: u32, tag: *const Socket, sender: u8, ends: &Ends) -> Decision {
    let peer = &ends.destination;
    if ends.part == Part::Later {
        // It has no ports: what holds for the beginning of the datagram holds for it.
        let known = remembered(generation, &rest(peer, tag));
        if known.verdict != verdict::NONE {
            return known;
        }
    }
    if sender != sender::PACKET && !tag.is_null() {
        let decision = judged_by_socket(generation, tag, peer);
        if decision.verdict != verdict::NONE {
            return decision;
        }
    }
    match sender {
        sender::FORWARDED => remembered(generation, peer),
        sender::KERNEL if peer.protocol == protocol::TCP => {
            ended(generation, peer, ends.source_port)
        }
        _ => NOT_JUDGED,
    }
}

/// What the hooks of a socket have decided about this destination. `NONE` if they have
/// not: the kernel sends it elsewhere than the process that uses the socket, or they do
/// not watch it.
#[inline(always)]
fn judged_by_socket(generation: u32, tag: *const Socket, peer: &Peer) -> Decision {
    // SAFETY: map values; the verifier checks the access. So below.
    let (flags, flow) = unsafe { ((*tag).flags, &raw const (*tag).tracked.flow) };
    if flags & SOCKET_HAS_PEER != 0 && unsafe { (*flow).peer == *peer } {
        return let_pass(generation, flow);
    }
    if flags & SOCKET_HAS_FLOWS == 0 {
        return NOT_JUDGED;
    }
    let key = FlowKey {
        cookie: unsafe { (*flow).cookie },
        peer: *peer,
    };
    match flows::find(&key) {
        Some(tracked) => let_pass(generation, unsafe { &raw const (*tracked).flow }),
        None => remembered(generation, &without_room(peer, key.cookie)),
    }
}

/// The decision by which the hooks of a socket let a packet of this flow pass. `NONE` if they
/// drop what is in it, or would have judged it anew: then the packet is not of the flow, but
/// a tunnel's that leads there.
#[inline(always)]
fn let_pass(generation: u32, flow: *const Flow) -> Decision {
    // SAFETY: a map value; the verifier checks the access.
    let (decision, state) = unsafe { ((*flow).decision, (*flow).state) };
    let is_its = state & FLOW_CUT != 0
        || !decision.blocks() && (decision.generation == generation || may_be_older(generation));
    match is_its {
        true => decision,
        false => NOT_JUDGED,
    }
}

/// True if a packet may be on its way from its socket to here since before the policy of
/// this generation came into force.
#[inline(always)]
fn may_be_older(generation: u32) -> bool {
    /// The kernel gives up a neighbour that does not answer after three seconds, and with it
    /// the packets that wait.
    const LONGEST_WAY_NS: u64 = 5_000_000_000;
    is_new(generation, LONGEST_WAY_NS)
}

/// The key under which the decision about the rest of a datagram is remembered.
#[inline(always)]
fn rest(peer: &Peer, tag: *const Socket) -> Peer {
    let cookie = match tag.is_null() {
        true => 0,
        // SAFETY: a map value; the verifier checks the access.
        false => unsafe { (*tag).tracked.flow.cookie },
    };
    rest_of(peer, cookie)
}

/// Who sent a packet, and how much is known of the owner.
#[inline(always)]
fn who_sent(skb: *mut __sk_buff, start: u32) -> Who {
    let who = who(skb, start);
    Who {
        cookie: cookie(skb),
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
extern "C" fn cookie(skb: *mut __sk_buff) -> u64 {
    let tag = tag(skb, sender(skb));
    if !tag.is_null() {
        // SAFETY: a map value; the verifier checks the access. So below.
        return unsafe { (*tag).tracked.flow.cookie };
    }
    has_waited(skb).map_or(0, |staged| unsafe { (*staged).cookie })
}

/// What was kept of a packet that had a socket before it waited in a tunnel.
#[inline(always)]
fn has_waited(skb: *mut __sk_buff) -> Option<*const Staged> {
    // SAFETY: fields of the context.
    let (came_in_by, socket) = unsafe { ((*skb).ingress_ifindex, (*skb).__bindgen_anon_2.sk) };
    if came_in_by == 0 && socket.is_null() {
        staged(skb)
    } else {
        None
    }
}

/// Whose a frame is: of whoever uses its socket, which of a tunnel's packet is that whose
/// data is in it, or did before it waited there, or of whoever writes into the device that it
/// came out of. Null if there is neither.
#[inline(always)]
fn owner(skb: *mut __sk_buff, sender: u8, tag: *const Socket) -> *const Owner {
    if !tag.is_null() {
        // SAFETY: a map value; the verifier checks the access. So below.
        return unsafe { &raw const (*tag).tracked.owner };
    }
    let known = if sender == sender::FORWARDED {
        // SAFETY: a field of the context.
        let came_in_by = unsafe { (*skb).ingress_ifindex };
        WRITERS.get_ptr(&came_in_by)
    } else {
        has_waited(skb).map(|staged| unsafe { &raw const (*staged).owner })
    };
    known.unwrap_or(core::ptr::null())
}

/// How much is known of the owner of a packet.
#[inline(always)]
fn quality(skb: *mut __sk_buff, start: u32, sender: u8, tag: *const Socket) -> u8 {
    const TCP_TIME_WAIT: u32 = 6;
    const SOCK_RAW: u32 = 3;
    // SAFETY: a map value; the verifier checks the access.
    if !tag.is_null() && unsafe { (*tag).tracked.owner.pid } != 0 {
        // Who sends on a socket has sent what is in its name, and so what is around that. In
        // a listener's name the kernel answers.
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
        if staged(skb).is_some() {
            return quality::DIRECT;
        }
        // With these the kernel answers. All else is a tunnel's, and what is inside may be
        // somebody's and have lost its socket: it was forwarded, or waited for a session.
        let protocol = ends_at(skb, start).map_or(0, |ends| ends.destination.protocol);
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

/// Takes over for a flow what was decided about the beginning of a datagram.
#[inline(always)]
fn begin_as(tracked: *mut Tracked, ends: &Ends, decision: Decision) -> Decision {
    let decision = as_the_beginning(decision);
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let flow = &raw mut (*tracked).flow;
        (*flow).decision = decision;
        (*flow).local = ends.source;
    }
    decision
}

/// The decision about the rest of a datagram, as it was remembered of the beginning.
#[inline(always)]
fn as_the_beginning(known: Decision) -> Decision {
    Decision {
        flags: known.flags & !DECISION_AT_UPLINK,
        ..known
    }
}

/// Who sent a frame that the hooks of its socket have not judged.
#[inline(always)]
fn sender(skb: *mut __sk_buff) -> u8 {
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
