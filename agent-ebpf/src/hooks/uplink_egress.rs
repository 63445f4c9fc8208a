//! Every frame on its way out of an interface that leads out of the host: counted, and
//! judged unless the hooks of its socket have done so.
//!
//! `BPF_TCX_EGRESS` (6.6), before that a filter of the clsact qdisc. Packets that come here without
//! having been judged: forwarded traffic, tunnels, the kernel's own packets, packet sockets. Frames
//! of AF_XDP do not come here; they are the difference between the interface's own counter and the
//! books.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_get_hash_recalc, bpf_get_listener_sock, bpf_sk_fullsock, bpf_skb_pull_data,
    },
    programs::TcContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::{NOT_JUDGED, decision_of},
    books::{book, dropped, judged, length, not_ip},
    checksum::{ANOTHER, SAME, changes_headers, is_changed},
    control_packet::{is_bare_acknowledgement, keeps_link},
    direction::{direction_of_answer, note_answer},
    flows::{self, set_sender},
    frame::{Frame, NOT_IP, frame, frame_ends, is_plain_ethernet},
    frame_owner::{AF_INET, AF_INET6, owner, sender, sent, tag, who_sent},
    globals::ONLY_LOOKS,
    in_flight::{self, Found, NOWHERE},
    judge::{is_local, undetermined},
    maps::{FRAME_ENDS, InForce, SOCKETS, in_force, is_new, lose, uplink},
    packet::{
        Bytes, Ends, MAX_EXTENSIONS, Part, Route, ends_at, is_same_peer, plain_ends_at, protocol,
    },
    remembered::{MOST_BYTES, decision_of_beginning, ended, large, passes, remember_beginning},
    route::{address_at, judge_listed},
    settle::{decide_as, record},
    socket::is_kernels,
    source::Source,
    uplink_flows::{Who, known_flow, slot, tell},
};

/// On to the next program on this interface, which may be somebody else's: this one
/// never says that a frame may leave, only that it may not. `TCX_NEXT`, which is
/// `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
const DROP: i32 = 2;

#[cfg_attr(not(feature = "trace"), aya_ebpf::macros::classifier)]
fn uplink_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(in_force) = in_force() else {
        return NEXT;
    };
    // SAFETY: a field of the context.
    let header_bytes = match uplink(unsafe { (*skb).ifindex }) {
        Some(uplink) if u32::from(uplink.flags) & UPLINK_IS_TUNNEL != 0 => {
            stage(skb);
            return NEXT;
        }
        Some(uplink) => uplink.header_bytes.into(),
        None => ETHERNET_HEADER,
    };
    if header_bytes == ETHERNET_HEADER
        && is_plain_ethernet(skb)
        && let Some(ends) = plain_ends_at(skb, ETHERNET_HEADER)
        && let Some(found) = in_flight::find(skb, ETHERNET_HEADER)
        && (!found.has_owner() || is_changed(skb, ETHERNET_HEADER) == SAME)
    {
        let known = let_pass(in_force.generation, &found, &ends);
        if known.verdict != verdict::NONE {
            in_flight::forget(skb);
            book(skb, judged(sender::SOCKET, known.verdict));
            return NEXT;
        }
    } else if header_bytes == ETHERNET_HEADER && pass_again(in_force, skb) {
        return NEXT;
    }
    if hold_headers(skb, header_bytes) != 0 {
        lose(LOSS_HEADERS_UNHELD, 1);
        return settle(sender(skb), undetermined(in_force), skb);
    }
    match Frame::from_number(carried(skb, header_bytes)) {
        Frame::Ip(start) => packet(in_force, skb, start),
        Frame::Other(kind) => other_frame(in_force, skb, kind),
    }
}

/// Counts an ordinary packet that no socket's hook has seen, of a flow that goes on as it was judged
/// here: of a process without a tag, or forwarded. False for any other: what the kernel itself sends has
/// exceptions, and what a packet socket sends is somebody's.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn pass_again(in_force: InForce, skb: *mut __sk_buff) -> bool {
    const SOCK_RAW: u32 = 3;
    const GOES_ON: u16 = FLOW_ANNOUNCED;
    if !is_plain_ethernet(skb) {
        return false;
    }
    let Some(ends) = plain_ends_at(skb, ETHERNET_HEADER) else {
        return false;
    };
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let (came_in_by, socket) = unsafe { ((*skb).ingress_ifindex, (*skb).__bindgen_anon_2.sk) };
    let mut who = Who {
        cookie: 0,
        sender: sender::FORWARDED,
        quality: quality::FORWARDED,
        came_in_by,
    };
    if came_in_by == 0 || !socket.is_null() {
        let has_end = matches!(ends.destination.protocol, protocol::UDP | protocol::TCP);
        if came_in_by != 0 || socket.is_null() || !has_end {
            return false;
        }
        let whole = unsafe { bpf_sk_fullsock(socket) };
        if whole.is_null()
            || !matches!(unsafe { (*whole).family }, AF_INET | AF_INET6)
            || unsafe { (*whole).type_ } == SOCK_RAW
            || SOCKETS.get(whole).is_some()
        {
            return false;
        }
        (who.sender, who.quality) = (sender::KERNEL, quality::NONE);
    }
    let Some(tracked) = known_flow(&who, &ends) else {
        return false;
    };
    // SAFETY: a map value; the verifier checks the access.
    let (state, decision) = (unsafe { (*tracked).flow.state }, decision_of(tracked));
    let goes_on = state & (GOES_ON | FLOW_ENDED) == GOES_ON
        && in_force.made(&decision)
        && !decision.blocks()
        && changes_headers(skb, ETHERNET_HEADER) == 0;
    if !goes_on {
        return false;
    }
    in_flight::forget(skb);
    record(
        tracked,
        &decision,
        u64::from(length(skb)) - u64::from(ETHERNET_HEADER),
        false,
    );
    book(skb, judged(who.sender, decision.verdict));
    true
}

/// Has the kernel copy the headers of a frame, where they may be in memory that its sender can
/// still write: in the ring of a packet socket. The headers that are judged are then those that
/// leave. Not 0 if the kernel had no memory for that.
///
/// Not of an ordinary packet whose headers are where no process writes.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn hold_headers(skb: *mut __sk_buff, header_bytes: u32) -> i64 {
    /// All that is followed: headers of the link, those of IP and TCP, and extensions of IPv6, of
    /// 2 KiB at the most each.
    const LONGEST: u32 = 512 + MAX_EXTENSIONS as u32 * 2048;
    let is_ordinary = header_bytes != ETHERNET_HEADER || is_plain_ethernet(skb);
    if is_ordinary && plain_ends_at(skb, header_bytes).is_some() {
        return 0;
    }
    // SAFETY: fields of the context and a helper that takes it; the verifier checks the access.
    unsafe {
        let (data, end) = ((*skb).data, (*skb).data_end);
        let wanted = (*skb).len.min(LONGEST);
        match end - data < wanted {
            true => bpf_skb_pull_data(skb, wanted),
            false => 0,
        }
    }
}

/// Returns the kind of packet that a frame carries, as a number; its headers are then read into
/// `FRAME_ENDS`.
///
/// A global function to the kernel, as [`judge_frame`] and those of the judge: the verifier
/// goes through each of them once. Before 5.13 such functions take numbers and the context alone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn carried(skb: *mut __sk_buff, header_bytes: u32) -> u32 {
    frame(skb, header_bytes).number()
}

/// Reads what the headers of a frame say; 0 if that cannot be done. A global function likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_frame_ends(skb: *mut __sk_buff, start: u32) -> u32 {
    let Some(room) = FRAME_ENDS.get_ptr_mut(0) else {
        return 0;
    };
    let ends = match start & NOT_IP {
        0 => ends_at(skb, start),
        _ => Some(Ends::of_frame((start >> 16) as u16)),
    };
    match ends {
        Some(ends) => {
            // SAFETY: a map value; the verifier checks the access.
            unsafe { *room = ends };
            1
        }
        None => 0,
    }
}

/// The decision by which the hook of its socket let this very packet pass; of verdict `NONE` if
/// there is none, or if the packet is another by now: a tunnel's, or translated.
#[inline(always)]
fn let_pass(generation: u32, found: &Found, ends: &Ends) -> Decision {
    let decision = found.decision_about(ends);
    // Stays on the host as far as its socket's hook knew; and here it leaves.
    let is_wrong = decision.verdict == verdict::LOCAL && found.has_owner();
    let is_old = decision.generation != generation && !may_be_older(generation);
    // Known by the last of the addresses that it lists; who had it on the way may have changed the
    // others.
    let is_another = ends.route != Route::Direct && found.has_owner();
    // An exception may be over since, or a budget spent.
    let may_be_over = decision.flags & DECISION_LIMITED != 0 && found.is_late();
    if is_wrong || is_old || is_another || may_be_over {
        return NOT_JUDGED;
    }
    decision
}

/// Result of [`judge_anew`]: the packet passes, and is counted already.
const COUNTED: u64 = u64::MAX;

/// Not 0 if a packet was counted at its socket by a decision with an end, and was held back since.
///
/// A global function, as [`carried`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn was_held_back(skb: *mut __sk_buff, start: u32) -> u32 {
    u32::from(held_back(skb, start).verdict != verdict::NONE)
}

/// The decision by which a packet that was held back was counted as going where it goes.
#[inline(always)]
fn held_back(skb: *mut __sk_buff, start: u32) -> Decision {
    if let Some(ends) = frame_ends()
        && ends.route == Route::Direct
        && let Some(found) = in_flight::find(skb, start)
        && found.is_late()
        && !in_flight::is_longer(skb, start)
    {
        let decision = found.decision_about(ends);
        if decision.flags & DECISION_LIMITED != 0 && decision.verdict != verdict::LOCAL {
            return decision;
        }
    }
    NOT_JUDGED
}

/// Returns the decision about a packet that was judged; [`COUNTED`] if it was counted at its socket by the
/// same, and held back since: then it passes, and no flow of the uplink's has it.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn unless_counted(skb: *mut __sk_buff, start: u32, decision: u64) -> u64 {
    let (before, now) = (held_back(skb, start), Decision::from_word(decision));
    if ONLY_LOOKS || (now.verdict, now.rule) != (before.verdict, before.rule) || now.blocks() {
        return decision;
    }
    if let Some(ends) = frame_ends()
        && ends.part == Part::First
    {
        remember_beginning(skb, ends, decision, rest_bytes(skb, start));
    }
    book(skb, judged(sender::SOCKET, now.verdict));
    COUNTED
}

/// Keeps whose a packet is that goes into a tunnel which takes it from its socket while it waits.
#[inline(always)]
fn stage(skb: *mut __sk_buff) {
    let tag = tag(skb, sender::KERNEL);
    if !tag.is_null() {
        // WireGuard asks for the hash next, and keeps it: it sends with that of what is inside.
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_hash_recalc(skb) };
        in_flight::keep(skb, tag, &NOWHERE, NOT_JUDGED);
    }
}

/// A frame that carries no IP: in enforce mode it passes if the link needs it. All others have a
/// flow, to no address: that it has no socket does not make it the kernel's own.
///
/// A global function to the kernel would take the policy as numbers; this is one way through.
#[inline(always)]
fn other_frame(in_force: InForce, skb: *mut __sk_buff, kind: u16) -> i32 {
    if is_needed_by_link(skb, kind) {
        book(skb, not_ip(kind));
        return NEXT;
    }
    let start = Frame::Other(kind).number();
    read_frame_ends(skb, start);
    judged_here(in_force, skb, start, NOT_JUDGED)
}

/// True for what keeps a link and is not forwarded by anybody there: address resolution, and
/// protocols of the link itself, by their ethertype or the group that bridges never forward.
#[inline(always)]
pub fn is_needed_by_link(skb: *mut __sk_buff, kind: u16) -> bool {
    const ARP: u16 = 0x0806;
    /// EAPOL, LLDP, LACP and others of IEEE 802.3, time (802.1AS).
    const OF_LINK: [u16; 4] = [0x888e, 0x88cc, 0x8809, 0x88f7];
    const OF_BRIDGES: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];
    /// Of addresses of IPv4 on Ethernet.
    const ARP_HEADER: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
    /// The shortest frame, to which short ones are padded.
    const ARP_BYTES: u32 = 60;
    if kind == ARP {
        let is_whole = length(skb) <= ARP_BYTES;
        return is_whole && skb.load::<[u8; 6]>(ETHERNET_HEADER) == Some(ARP_HEADER);
    }
    match skb.load::<[u8; 6]>(0) {
        Some([a, b, c, d, e, last]) if [a, b, c, d, e] == OF_BRIDGES && last < 0x10 => {
            kind < 0x0600 || OF_LINK.contains(&kind)
        }
        _ => false,
    }
}

/// A packet whose IP header is at `start`.
#[inline(always)]
fn packet(in_force: InForce, skb: *mut __sk_buff, start: u32) -> i32 {
    if read_frame_ends(skb, start) == 0 {
        lose(LOSS_PACKETS_UNPARSED, 1);
        return settle(sender(skb), undetermined(in_force), skb);
    }
    let known = match is_changed(skb, start) {
        SAME | ANOTHER => Decision::from_word(count_known(skb, start, in_force.generation)),
        _ => at_uplink(undetermined(in_force)),
    };
    let outcome = match known.verdict != verdict::NONE && known.flags & DECISION_AT_UPLINK == 0 {
        true => NEXT,
        false => judged_here(in_force, skb, start, known),
    };
    in_flight::forget(skb);
    outcome
}

/// A frame that no socket's hooks have judged, and what becomes of it. `known` is the decision about
/// it, or about the beginning of its datagram; of verdict `NONE` if there is none.
#[inline(always)]
fn judged_here(in_force: InForce, skb: *mut __sk_buff, start: u32, known: Decision) -> i32 {
    let known = Decision {
        generation: in_force.generation,
        ..known
    };
    let (flags, mut known) = (in_force.flags.into(), known.to_word());
    // Which flow it belongs to is known once it is judged, if it lists addresses.
    let lists = frame_ends().is_some_and(|ends| ends.route != Route::Direct);
    let is_judged = Decision::from_word(known).verdict != verdict::NONE;
    if !is_judged && (lists || was_held_back(skb, start) != 0) {
        known = judge_anew(skb, start, in_force.generation, flags);
        if known == COUNTED {
            return NEXT;
        }
    }
    // Judged in the middle, so that not all of it is on the stack at once.
    let mut outcome = judge_frame(skb, start, flags, known);
    if outcome == TO_BE_JUDGED || outcome == TO_BE_JUDGED | WITHOUT_SLOT {
        known = judge_anew(skb, start, in_force.generation, flags);
    }
    if outcome == TO_BE_JUDGED {
        outcome = judge_frame(skb, start, flags, known);
    }
    match outcome {
        NEXT | DROP => outcome,
        _ => settle_without_slot(skb, start, known),
    }
}

/// Returns the decision that exists already about a packet, a `Decision` of verdict `NONE` if there
/// is none: the packet is counted, unless it was decided here about the beginning of its datagram.
///
/// A global function, as [`carried`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_known(skb: *mut __sk_buff, start: u32, generation: u32) -> u64 {
    let sender = sender(skb);
    let Some(ends) = frame_ends() else {
        return NOT_JUDGED.to_word();
    };
    let tag = tag(skb, sender);
    let known = Decision::from_word(known(generation, skb, start, ends));
    if known.verdict != verdict::NONE && known.flags & DECISION_AT_UPLINK == 0 {
        if ends.part == Part::First {
            // Also if it is of the policy before: it holds for this datagram as a whole.
            let for_rest = Decision {
                generation,
                ..known
            };
            let rest = rest_bytes(skb, start);
            remember_beginning(skb, ends, for_rest.to_word(), rest);
        }
        let sender = match sender {
            sender::KERNEL if tag.is_null() => sender::KERNEL,
            _ => sender::SOCKET,
        };
        book(skb, judged(sender, known.verdict));
    }
    known.to_word()
}

/// Most bytes of a datagram that are behind its first fragment: what was counted at its socket, and
/// has not left with this.
#[inline(always)]
fn rest_bytes(skb: *mut __sk_buff, start: u32) -> u32 {
    /// Of IPv6: the extension that a fragment has more than the datagram.
    const EXTENSION: u32 = 8;
    match in_flight::find(skb, start) {
        // SAFETY: a field of the context.
        Some(found) => (found.bytes() + start + EXTENSION).saturating_sub(unsafe { (*skb).len }),
        // A socket's fragments are made by the kernel alone. Others are known by their flow.
        None if unsafe { (*skb).__bindgen_anon_2.sk }.is_null() => 0,
        None => MOST_BYTES,
    }
}

/// Judges a frame by all addresses that it names, see [`crate::route`].
///
/// A global function, as [`carried`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_anew(skb: *mut __sk_buff, start: u32, generation: u32, flags: u32) -> u64 {
    let in_force = InForce {
        generation,
        flags: flags as u8,
    };
    let Some(ends) = frame_ends() else {
        return undetermined(in_force).to_word();
    };
    if start & NOT_IP != 0 {
        return undetermined(in_force).to_word();
    }
    if ends.route == Route::Direct && is_local(generation, &ends.destination) {
        let local = Decision {
            verdict: verdict::LOCAL,
            ..undetermined(in_force)
        };
        return local.to_word();
    }
    let tag = tag(skb, sender(skb));
    let owner = owner(tag, sent(skb, start, tag));
    let source = source(owner);
    let near = ends.near(direction_of_answer(skb) as u8);
    let mut farthest = 0;
    let mut decision = judge_listed(in_force, &source, near, skb, start, ends, &mut farthest);
    if ends.route != Route::Direct {
        // The next packet may go straight there.
        decision.flags |= DECISION_LIMITED;
        name_farthest(skb, farthest);
    }
    unless_counted(skb, start, decision.to_word())
}

/// Has the record of a packet that lists addresses be about the one that its verdict is about.
#[inline(always)]
fn name_farthest(skb: *mut __sk_buff, farthest: u64) {
    if let Some(address) = address_at(skb, farthest)
        && let Some(ends) = FRAME_ENDS.get_ptr_mut(0)
    {
        // SAFETY: a map value; the verifier checks the access.
        unsafe { (*ends).destination.address = address };
    }
}

/// Flag of [`judge_frame`]'s result: the packet has no slot.
const WITHOUT_SLOT: i32 = 1 << 16;
/// Flag of [`judge_frame`]'s result, alone or beside [`WITHOUT_SLOT`]: the packet is to be judged
/// first.
const TO_BE_JUDGED: i32 = 1 << 17;

/// Counts a packet that no socket's hooks have judged in the flow that it belongs to, and says what
/// becomes of it. `flags` are those in force. `known` is what is decided about it, or about the
/// beginning of its datagram; of verdict `NONE` if nothing is, and of the generation in force.
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
    let Some(ends) = frame_ends() else {
        return settle(sender, undetermined(in_force), skb);
    };
    let tag = tag(skb, sender);
    let tracked = slot(in_force.generation, tag, &who, ends);
    let is_unknown = known.verdict == verdict::NONE;
    if tracked.is_null() {
        return match is_unknown {
            true => WITHOUT_SLOT | TO_BE_JUDGED,
            false => WITHOUT_SLOT,
        };
    }
    let sent = sent(skb, start, tag);
    let owner = owner(tag, sent);
    set_named(tracked, sent, ends);
    note_answer(tracked, skb);
    // SAFETY: a map value; the verifier checks the access. So below.
    if !owner.is_null() && unsafe { (*owner).pid } != 0 {
        let certainty = match who.quality {
            // Packets that have left before were somebody's.
            quality::FORWARDED if unsafe { (*tracked).flow.counters.packets_out } != 0 => {
                quality::INFERRED
            }
            quality::FORWARDED => unsafe { (*owner).quality },
            quality => quality,
        };
        set_sender(tracked, owner, certainty);
    }
    let bytes = length(skb);
    // SAFETY: a map value; the verifier checks the access.
    let kept = unsafe { (*tracked).flow.decision };
    if is_unknown && !in_force.made(&kept) {
        return TO_BE_JUDGED;
    }
    let decision = match is_unknown {
        true => kept,
        false => as_the_beginning(known),
    };
    decide_as(tracked, ends, decision);
    let packet_bytes = bytes.saturating_sub(start_bytes(start));
    record(tracked, &decision, packet_bytes.into(), decision.blocks());
    if ends.part == Part::First {
        remember_beginning(skb, ends, at_uplink(decision).to_word(), MOST_BYTES);
    }
    settle(sender, decision, skb)
}

/// Returns the decision for the rest of a datagram whose beginning was judged here.
#[inline(always)]
fn at_uplink(decision: Decision) -> Decision {
    Decision {
        flags: decision.flags | DECISION_AT_UPLINK,
        ..decision
    }
}

/// Notes that a packet goes elsewhere than its socket's hook saw: it was translated.
#[inline(always)]
fn set_named(tracked: *mut Tracked, sent: *const Tracked, ends: &Ends) {
    if sent.is_null() {
        return;
    }
    // SAFETY: map values; the verifier checks the access. So below.
    let named = unsafe { &(*sent).flow.peer };
    if named.protocol != 0 && !is_same_peer(named, &raw const ends.destination) {
        unsafe {
            (*tracked).flow.named = named.address;
            (*tracked).flow.named_port = named.port;
        }
    }
}

/// Bytes of a frame before what it carries.
#[inline(always)]
fn start_bytes(start: u32) -> u32 {
    match start & NOT_IP {
        0 => start,
        _ => ETHERNET_HEADER,
    }
}

/// As [`judge_frame`], of a packet that has no slot: it goes no farther than the link, or
/// there is no room for its flow, and then it is told of by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_without_slot(skb: *mut __sk_buff, start: u32, known: u64) -> i32 {
    let decision = as_the_beginning(Decision::from_word(known));
    let sender = sender(skb);
    let Some(ends) = frame_ends() else {
        return settle(sender, decision, skb);
    };
    if decision.verdict != verdict::LOCAL {
        tell_of_frame(skb, start, decision.to_word());
    }
    if ends.part == Part::First {
        remember_beginning(skb, ends, at_uplink(decision).to_word(), MOST_BYTES);
    }
    settle(sender, decision, skb)
}

/// Tells of a packet by itself for whose flow there is no room.
///
/// A global function to the kernel, for the reason that [`who`] has.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of_frame(skb: *mut __sk_buff, start: u32, decision: u64) -> u32 {
    let who = who_sent(skb, start);
    let Some(ends) = frame_ends() else {
        return 0;
    };
    let packet_bytes = length(skb).saturating_sub(start_bytes(start));
    let decision = Decision::from_word(decision);
    let tag = tag(skb, who.sender);
    let owner = owner(tag, sent(skb, start, tag));
    tell(tag, owner, &who, ends, decision, packet_bytes);
    0
}

/// Counts a frame that was judged here, and says what becomes of it.
#[inline(always)]
fn settle(sender: u8, decision: Decision, skb: *mut __sk_buff) -> i32 {
    if decision.blocks() {
        book(skb, dropped(decision.verdict));
        DROP
    } else {
        book(skb, judged(sender, decision.verdict));
        NEXT
    }
}

/// Returns the decision that exists already about a packet; of verdict `NONE` if there is none. A
/// decision that was made here, about the beginning of this datagram, says so.
///
/// A function of its own, so that what it needs of the stack is free again afterwards.
#[inline(never)]
pub fn known(generation: u32, skb: *mut __sk_buff, start: u32, ends: &Ends) -> u64 {
    let found = in_flight::find(skb, start).or_else(|| find_of_listener(skb, start));
    if let Some(found) = found
        && !in_flight::is_longer(skb, start)
    {
        let decision = let_pass(generation, &found, ends);
        if decision.verdict != verdict::NONE {
            return decision.to_word();
        }
    }
    if ends.part != Part::Whole && ends.route == Route::Direct {
        let known = known_of_datagram(generation, skb, start, ends);
        if known.verdict != verdict::NONE {
            return known.to_word();
        }
    }
    let sender = sender(skb);
    let tag = tag(skb, sender);
    if sender != sender::PACKET && !tag.is_null() && ends.route == Route::Direct {
        let decision = judged_by_socket(generation, tag, &ends.destination);
        if decision.verdict != verdict::NONE {
            return decision.to_word();
        }
    }
    if sender == sender::KERNEL && is_nobodys(tag) && is_no_process(skb) {
        if ends.destination.protocol == protocol::TCP && is_bare_acknowledgement(skb, start) {
            return ended(generation, ends);
        }
        if keeps_link(generation, skb, start, ends) {
            let local = Decision {
                generation,
                verdict: verdict::LOCAL,
                ..NOT_JUDGED
            };
            return local.to_word();
        }
    }
    NOT_JUDGED.to_word()
}

/// As [`in_flight::find`], of an answer to a connection request: its socket's hook has seen it as
/// the listener's.
#[inline(always)]
fn find_of_listener(skb: *mut __sk_buff, start: u32) -> Option<Found> {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let listener = unsafe { bpf_get_listener_sock(socket) };
    if listener.is_null() {
        return None;
    }
    in_flight::find_of(skb, start, listener)
}

/// True if no process is known to use the socket, or if there is none.
#[inline(always)]
fn is_nobodys(tag: *const Socket) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    tag.is_null() || unsafe { (*tag).tracked.owner.pid } == 0
}

/// True for a packet without a socket, of one that is no whole socket, or of the kernel's own.
#[inline(always)]
fn is_no_process(skb: *mut __sk_buff) -> bool {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    socket.is_null() || unsafe { bpf_sk_fullsock(socket) }.is_null() || is_kernels(skb)
}

/// Returns the decision about the datagram that a fragment belongs to.
#[inline(always)]
fn known_of_datagram(generation: u32, skb: *mut __sk_buff, start: u32, ends: &Ends) -> Decision {
    if ends.part == Part::Later {
        // It has no ports: what holds for the beginning of the datagram holds for it.
        let known = Decision::from_word(decision_of_beginning(skb, start, ends, generation));
        if known.verdict != verdict::NONE {
            return known;
        }
    }
    let large = large(skb, ends);
    if large.is_null() {
        return NOT_JUDGED;
    }
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw const (*large).flow };
    let is_same = ends.part == Part::Later
        || is_same_peer(
            unsafe { &raw const (*flow).peer },
            &raw const ends.destination,
        );
    let decision = unsafe { (*flow).decision };
    let holds = is_same && !decision.blocks() && decision.generation == generation;
    match holds && passes(large, skb, start, ends) {
        true => decision,
        false => NOT_JUDGED,
    }
}

/// Returns the decision of a socket's hooks about this destination. `NONE` if they have made none:
/// the kernel sends it elsewhere than the process that uses the socket, or they do not watch it.
#[inline(always)]
fn judged_by_socket(generation: u32, tag: *const Socket, peer: &Peer) -> Decision {
    // SAFETY: map values; the verifier checks the access. So below.
    let (flags, flow) = unsafe { ((*tag).flags, &raw const (*tag).tracked.flow) };
    // Root of its network namespace may have sent a packet past the socket's hook.
    if flags & SOCKET_OWN_NAMESPACE == 0 {
        return NOT_JUDGED;
    }
    if flags & SOCKET_HAS_PEER != 0 && is_same_peer(unsafe { &raw const (*flow).peer }, peer) {
        return let_flow_pass(generation, flow);
    }
    if flags & SOCKET_HAS_FLOWS == 0 {
        return NOT_JUDGED;
    }
    let key = FlowKey {
        cookie: unsafe { (*flow).cookie },
        peer: *peer,
    };
    match flows::find(&key) {
        Some(tracked) => let_flow_pass(generation, unsafe { &raw const (*tracked).flow }),
        None => NOT_JUDGED,
    }
}

/// The decision by which the hooks of a socket let a packet of this flow pass. `NONE` if they
/// drop what is in it, or would have judged it anew: then the packet is not of the flow, but
/// a tunnel's that leads there.
#[inline(always)]
fn let_flow_pass(generation: u32, flow: *const Flow) -> Decision {
    // SAFETY: a map value; the verifier checks the access.
    let (decision, state) = unsafe { ((*flow).decision, (*flow).state) };
    let is_its = state & FLOW_CUT != 0
        || !decision.blocks() && (decision.generation == generation || may_be_older(generation));
    // Its socket's hook took it for local, and here it leaves.
    match is_its && decision.verdict != verdict::LOCAL {
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

/// Where a frame of this owner comes from, which is null if unknown.
#[inline(always)]
fn source(owner: *const Owner) -> Source {
    match owner.is_null() {
        false => Source::of(owner),
        true => Source::NOBODY,
    }
}

/// The decision about the rest of a datagram, as it was remembered of the beginning.
#[inline(always)]
fn as_the_beginning(known: Decision) -> Decision {
    Decision {
        flags: known.flags & !DECISION_AT_UPLINK,
        ..known
    }
}
