//! Every IP packet of every socket: counted, judged, and dropped if the policy
//! says so.
//!
//! `BPF_CGROUP_INET_EGRESS`, 4.10 (with socket storage 5.6). It runs before
//! fragmentation and segmentation, for what has a full socket; acknowledgements
//! of sockets in TIME_WAIT and resets come from a socket of the kernel's own.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::{
        Alone, NOT_JUDGED, SENDERS, begin_after, count, count_total, decision_of, forget_senders,
        has_untold, set_state, tell_alone, tell_rest,
    },
    control_packet::{is_bare_acknowledgement, is_bare_reset, keeps_link},
    direction::{accepted_by, direction_by, direction_of},
    flows,
    globals::{local_flows, tcp_state_seen},
    in_flight,
    judge::{judge, undetermined},
    loopback::{TO_BOTH, TO_ITS_SOURCE, WHERE_IT_GOES, answers, goes_to_its_source},
    maps::{CUTS, FLOWS, InForce, SOCKETS, in_force, is_uplink, lose},
    named::{ESTABLISHED, is_without_name, note_translated},
    packet::{Ends, Route, ends, is_same_peer, plain_ends_at, protocol},
    remembered::{ended, keep_large},
    route::{address_at, judge_listed},
    seal::seal,
    sender::{is_current, refresh},
    settle::{decide, decide_as, record},
    socket::{
        LOOPBACK, is_kernels, is_made_by_another, is_of_own_namespace, is_raw, is_tcp, may_stay,
        socket_of_packet, tag_of,
    },
    source::Source,
    subflow::{follow, inherit, mark},
    words::{copy, forget, set_bit, zero},
};

const PASS: i32 = 1;
const DROP: i32 = 0;

const TCP_SYN_SENT: u32 = 2;
const TCP_LISTEN: u32 = 10;

#[cgroup_skb(egress)]
fn egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(in_force) = in_force() else {
        return PASS;
    };
    if let Some(ends) = plain_ends_at(skb, 0)
        && pass_known(in_force, skb, &ends)
    {
        return PASS;
    }
    judge_packet(in_force, skb)
}

/// Counts a packet of a flow that goes on as it has: to where its socket has sent, under the policy
/// that has approved of it. False for any other packet.
///
/// One call to the kernel, for the tag, if that has the flow; else another, for the flow.
#[inline(always)]
fn pass_known(in_force: InForce, skb: *mut __sk_buff, ends: &Ends) -> bool {
    const GOES_ON: u16 = FLOW_ANNOUNCED;
    const IS_SPECIAL: u16 = FLOW_ENDED | FLOW_EMBRYONIC | FLOW_CUT;
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let (bytes, interface, socket) = unsafe {
        (
            u64::from((*skb).len),
            (*skb).ifindex,
            (*skb).__bindgen_anon_2.sk,
        )
    };
    if interface == LOOPBACK || socket.is_null() {
        return false;
    }
    let Some(tag) = SOCKETS.get(socket) else {
        return false;
    };
    let is_connected = unsafe { (*socket).state } == ESTABLISHED;
    let Some(tracked) = flows::known(tag, is_connected, ends) else {
        return false;
    };
    let flow = unsafe { &raw const (*tracked).flow };
    let (state, decision) = (unsafe { (*flow).state }, decision_of(tracked));
    let goes_on = state & (GOES_ON | IS_SPECIAL) == GOES_ON
        && in_force.made(&decision)
        && !decision.blocks()
        && is_current(tracked);
    if !goes_on {
        return false;
    }
    keep(skb, tag, ends, decision);
    count_total(&decision, bytes, false);
    count(tracked, bytes, false);
    // Where a connection ends without its lock, it may have ended since.
    if !tcp_state_seen() && unsafe { (*flow).state } & FLOW_ENDED != 0 {
        tell_rest(tracked);
    }
    true
}

/// Keeps for the uplink what was decided about a packet. Its socket may be lost where the uplink
/// is not the next interface.
#[inline(always)]
fn keep(skb: *mut __sk_buff, tag: *const Socket, ends: &Ends, decision: Decision) {
    // SAFETY: the context and a map value; the verifier checks the access.
    let (interface, flags) = unsafe { ((*skb).ifindex, (*tag).flags) };
    if flags & SOCKET_OWN_NAMESPACE != 0 && is_uplink(interface) {
        in_flight::keep(skb, ptr::null(), &ends.destination, decision);
    } else {
        in_flight::keep(skb, tag, &ends.destination, decision);
        keep_large(skb, tag, ends, decision);
    }
}

/// Judges and counts a packet, whatever it is.
#[inline(always)]
fn judge_packet(in_force: InForce, skb: *mut __sk_buff) -> i32 {
    // SAFETY: fields of the context; the verifier checks the access.
    let (bytes, interface) = unsafe { (u64::from((*skb).len), (*skb).ifindex) };
    let answers = answers(skb, in_force.generation, interface);
    let is_near = interface == LOOPBACK && answers == WHERE_IT_GOES;
    if is_near {
        let local = local(in_force);
        count_total(&local, bytes, false);
        if local_flows()
            && let Some(ends) = ends(skb)
        {
            let tracked = slot(skb, &ends);
            if !tracked.is_null() {
                decide_as(tracked, &ends, local);
                record(tracked, &local, bytes, false);
            }
        }
        return PASS;
    }
    if answers == TO_BOTH {
        tell_of_packet(skb, undetermined(in_force).to_word());
        return without_flow(&undetermined(in_force), bytes);
    }
    let Some(mut ends) = ends(skb) else {
        lose(LOSS_PACKETS_UNPARSED, 1);
        return without_flow(&undetermined(in_force), bytes);
    };
    if answers == TO_ITS_SOURCE {
        goes_to_its_source(&mut ends);
    }
    // SAFETY: a field of the context.
    forget(&mut ends, unsafe { (*skb).hash });
    if may_be_the_kernels(ends.destination.protocol) && is_control_packet(skb) {
        let known = if ends.destination.protocol == protocol::TCP && is_bare_acknowledgement(skb, 0)
        {
            Decision::from_word(ended(in_force.generation, &ends))
        } else if keeps_link(in_force.generation, skb, 0, &ends) {
            local(in_force)
        } else {
            NOT_JUDGED
        };
        if known.verdict != verdict::NONE {
            // An uplink looks itself whether it still keeps the link.
            if known.verdict != verdict::LOCAL {
                in_flight::keep(skb, ptr::null(), &ends.destination, known);
            }
            count_total(&known, bytes, false);
            return PASS;
        }
    }
    let mut listed = NOT_JUDGED;
    if ends.route != Route::Direct {
        listed = judge_tagged(in_force, skb, &mut ends);
    }
    let tracked = slot(skb, &ends);
    let in_force = match may_stay(skb) {
        true => in_force.may_stay(),
        false => in_force,
    };
    if tracked.is_null() {
        return without_slot(in_force, skb, &ends, bytes);
    }
    settle(in_force, tracked, skb, &ends, listed)
}

/// Judges a packet that does not go straight to its destination, of a socket that has a tag. Its
/// flow is that to the address which the verdict is about.
#[inline(always)]
fn judge_tagged(in_force: InForce, skb: *mut __sk_buff, ends: &mut Ends) -> Decision {
    let tag = tag_of(skb);
    let source = match tag.is_null() {
        true => Source::NOBODY,
        // SAFETY: a map value; the verifier checks the access.
        false => Source::of(unsafe { &raw const (*tag).tracked.owner }),
    };
    let source = match is_made_by_another(skb, source.uid) {
        true => Source::NOBODY,
        false => source,
    };
    let near = ends.near(direction_of(skb) as u8);
    let mut farthest = 0;
    let mut decision = judge_listed(in_force, &source, near, skb, 0, ends, &mut farthest);
    // The next packet may go straight there.
    decision.flags |= DECISION_LIMITED;
    if let Some(address) = address_at(skb, farthest) {
        ends.destination.address = address;
    }
    decision
}

/// As [`keep`], of a packet that lists addresses: uplinks know it by the last of them.
#[inline(never)]
fn keep_listed(skb: *mut __sk_buff, tag: *const Socket, decision: u64) -> u32 {
    if let Some(ends) = ends(skb) {
        keep(skb, tag, &ends, Decision::from_word(decision));
    }
    0
}

/// The decision about what never leaves the host or the link.
#[inline(always)]
fn local(in_force: InForce) -> Decision {
    Decision {
        verdict: verdict::LOCAL,
        ..undetermined(in_force)
    }
}

/// True for protocols that the kernel itself sends by sockets of its own.
#[inline(always)]
const fn may_be_the_kernels(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::ICMPV6)
}

/// True for what the kernel sends by a socket of its own: to keep the link, and, before 6.13, in
/// the name of a connection that is over.
#[inline(always)]
fn is_control_packet(skb: *mut __sk_buff) -> bool {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return false;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() || !is_raw(socket) {
        return false;
    }
    // Without a tag, it may be a process's all the same.
    is_kernels(skb)
}

/// Judges and counts a packet that has no slot: for want of room in the table of its flow,
/// and then it is told of by itself, or of memory for a tag.
#[inline(always)]
fn without_slot(in_force: InForce, skb: *mut __sk_buff, ends: &Ends, bytes: u64) -> i32 {
    let tag = tag_of(skb);
    let source = if tag.is_null() {
        Source {
            cgroup_id: cgroup_of(skb),
            ..Source::NOBODY
        }
    } else {
        // SAFETY: a map value; the verifier checks the access.
        Source::of(unsafe { &raw const (*tag).tracked.owner })
    };
    let near = ends.near(direction_of(skb) as u8);
    let decision = match ends.route {
        Route::Direct => judge(in_force, &source, near, &ends.destination, bytes as u32),
        _ => judge_listed(in_force, &source, near, skb, 0, ends, &mut 0),
    };
    tell_of_packet(skb, decision.to_word());
    without_flow(&decision, bytes)
}

/// Tells of a packet by itself, and has uplinks know that it was judged. A packet that goes no
/// farther than the link is in the sums alone, as is one without a tag.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of_packet(skb: *mut __sk_buff, decision: u64) -> u32 {
    let decision = Decision::from_word(decision);
    let tag = tag_of(skb);
    if tag.is_null() || decision.verdict == verdict::LOCAL {
        return 0;
    }
    let Some(ends) = ends(skb) else { return 0 };
    let cookie = cookie_of(skb);
    keep(skb, tag, &ends, decision);
    // SAFETY: the context and a map value; the verifier checks the access. So below.
    let (bytes, flags) = unsafe { ((*skb).len, (*tag).flags) };
    let owner = unsafe { &raw const (*tag).tracked.owner };
    let is_shared = unsafe { (*tag).tracked.flow.state } & FLOW_SHARED != 0;
    let is_answer = ends.destination.protocol == protocol::TCP && flags & SOCKET_LISTENS != 0;
    let packet = Alone {
        cookie,
        decision,
        bytes,
        direction: direction_of(skb) as u8,
        // As of a slot, see `find` and `flows::set_sender`.
        quality: match unsafe { (*owner).quality } {
            quality::DIRECT if is_answer || is_shared => quality::INFERRED,
            quality => quality,
        },
    };
    tell_alone(owner, &ends, &packet);
    0
}

/// Counts a packet that belongs to no flow in a table.
#[inline(always)]
fn without_flow(decision: &Decision, bytes: u64) -> i32 {
    let blocked = decision.blocks();
    count_total(decision, bytes, blocked);
    if blocked { DROP } else { PASS }
}

/// Finds or makes the flow that a packet belongs to; null if there is none.
///
/// A function of its own, so that what it needs of the stack is free again when the
/// judge is asked.
#[inline(never)]
fn slot(skb: *mut __sk_buff, ends: &Ends) -> *mut Tracked {
    find(skb, ends).unwrap_or(ptr::null_mut())
}

#[inline(always)]
fn find(skb: *mut __sk_buff, ends: &Ends) -> Option<*mut Tracked> {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return None;
    }
    let tag = match SOCKETS.get(socket) {
        Some(tag) => tag,
        None => tag_late(skb, socket)?,
    };
    let tracked = unsafe { &raw mut (*tag).tracked };
    let peer = &ends.destination;
    let mut flags = unsafe { (*tag).flags };
    let mut embryonic = 0;

    if is_tcp(socket) {
        let state = unsafe { (*socket).state };
        if state == TCP_LISTEN {
            if flags & SOCKET_LISTENS == 0 {
                flags |= SOCKET_LISTENS;
                set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_LISTENS);
                forget_senders(tracked);
            }
            embryonic = FLOW_EMBRYONIC;
        } else if flags & SOCKET_LISTENS != 0 && state != TCP_SYN_SENT {
            let direction = accepted_by(flags);
            flags = flags & SOCKET_OWN_NAMESPACE | SOCKET_HAS_PEER;
            accept(skb, tracked, peer, direction);
            unsafe { (*tag).flags = flags };
            mark(tag, socket);
        } else if flags & SOCKET_HAS_PEER == 0 {
            // Older than the agent, or it sends with the connection request.
            flags |= SOCKET_HAS_PEER;
            let direction = if state == TCP_SYN_SENT {
                direction::OUTBOUND
            } else {
                direction::UNKNOWN
            };
            let cookie = cookie_of(skb);
            begin_after(SENDERS, tracked, cookie, peer, direction, NOT_JUDGED);
            flags &= !SOCKET_LISTENS;
            unsafe { (*tag).flags = flags };
            mark(tag, socket);
        }
    }
    if flags & SOCKET_HAS_PEER != 0
        && is_same_peer(unsafe { &raw const (*tracked).flow.peer }, peer)
    {
        return Some(tracked);
    }
    let key = FlowKey {
        cookie: cookie_of(skb),
        peer: *peer,
    };
    let owner = unsafe { &raw const (*tracked).owner };
    let direction = direction_by(socket, tag);
    note_translated(tag, ends);
    if let Some(tracked) = flows::find(&key) {
        // The socket has done something else there before: listened, or connected.
        unsafe {
            if (*tracked).flow.direction != direction {
                (*tracked).flow.direction = direction;
                (*tracked).flow.decision.generation = 0;
            }
        }
        return Some(tracked);
    }
    // The host has rewritten what the process has connected to. A datagram socket may be connected
    // to another at the same moment, so its slot stays as it is.
    let is_rewritten = is_tcp(socket) && embryonic == 0 && !has_untold(tracked);
    if flags & SOCKET_HAS_PEER != 0 && is_rewritten && ends.route == Route::Direct {
        unsafe {
            let flow = &raw mut (*tracked).flow;
            (*flow).named = (*flow).peer.address;
            (*flow).named_port = (*flow).peer.port;
            (*flow).peer = *peer;
            (*flow).decision = NOT_JUDGED;
        }
        return Some(tracked);
    }
    if flags & SOCKET_HAS_FLOWS == 0 {
        // A tag that was made late has no cookie yet, and it is how the agent
        // finds out whether the socket still lives.
        if flags & SOCKET_HAS_PEER == 0 {
            unsafe { (*tracked).flow.cookie = key.cookie };
        }
        set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_HAS_FLOWS);
    }
    let Some(created) = flows::create(&key, owner, direction, NOT_JUDGED) else {
        if FLOWS.get_ptr(&key).is_none() {
            lose(LOSS_FLOWS_FULL, 1);
        }
        return None;
    };
    if ends.route == Route::Direct {
        // The peer that the process has named last, if that was another.
        let named = unsafe { &raw const (*tag).named };
        if unsafe { (*named).protocol } != 0 && !is_same_peer(named, peer) {
            unsafe {
                (*created).flow.named = (*named).address;
                (*created).flow.named_port = (*named).port;
            }
        }
    }
    if embryonic != 0 {
        set_state(created, FLOW_EMBRYONIC);
        unsafe {
            // The session will be somebody's; so far it is only the listener's.
            if (*created).owner.quality == quality::DIRECT {
                (*created).owner.quality = quality::INFERRED;
            }
        }
    }
    Some(created)
}

/// Takes in who sends, where no call has named the destination: then the tag alone says so.
///
/// A function of its own, so that what comes after it is not verified once for each that it can be.
#[inline(never)]
fn follow_sender(skb: *mut __sk_buff, tracked: *mut Tracked) -> u32 {
    let tag = tag_of(skb);
    // SAFETY: a map value; the verifier checks the access.
    if !tag.is_null() && unsafe { (*tag).flags } & SOCKET_HAS_FLOWS != 0 {
        let owner = unsafe { &raw const (*tag).tracked.owner };
        flows::set_sender(tracked, owner, quality::DIRECT);
    }
    0
}

/// True for a packet of a subflow.
#[inline(always)]
fn is_of_mptcp(skb: *mut __sk_buff) -> bool {
    let tag = tag_of(skb);
    // SAFETY: a map value; the verifier checks the access.
    !tag.is_null() && unsafe { (*tag).flags } & SOCKET_OF_MPTCP != 0
}

/// Tags a socket that was not tagged when it was made. The running task is
/// anybody's: only what the socket itself says is known.
#[inline(always)]
fn tag_late(skb: *mut __sk_buff, socket: *mut bpf_sock) -> Option<*mut Socket> {
    let tag = SOCKETS.get_or_create(socket)?;
    if inherit(tag, socket) {
        return Some(tag);
    }
    if is_of_own_namespace(socket_of_packet(skb)) {
        // SAFETY: a map value; the verifier checks the access.
        unsafe { (*tag).flags |= SOCKET_OWN_NAMESPACE };
    }
    lose(LOSS_SOCKETS_UNTAGGED, 1);
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let owner = &raw mut (*tag).tracked.owner;
        (*owner).cgroup_id = cgroup_of(skb);
        // A socket says who its user is in the user namespace of whoever made it.
        (*owner).uid = u32::MAX;
        (*owner).gid = u32::MAX;
        (*owner).loginuid = NOBODY_LOGGED_IN;
        (*owner).session = NOBODY_LOGGED_IN;
        seal(owner);
    }
    Some(tag)
}

/// Turns the tag that was cloned from a listener into that of the accepted
/// session. Its owner is the listener's until a process of its own acts.
#[inline(always)]
fn accept(skb: *mut __sk_buff, tracked: *mut Tracked, peer: &Peer, direction: u8) {
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        let listener = (*tracked).flow.cookie;
        // Where one is named before it sends, it has acted already.
        let has_sent = (*tracked).flow.state & FLOW_SENT != 0;
        if !has_sent && (*tracked).owner.quality == quality::DIRECT {
            (*tracked).owner.quality = quality::INFERRED;
        }
        zero(&raw mut (*tracked).flow.counters);
        let cookie = cookie_of(skb);
        begin_after(SENDERS, tracked, cookie, peer, direction, NOT_JUDGED);
        let key = FlowKey {
            cookie: listener,
            peer: *peer,
        };
        if let Some(embryo) = flows::find(&key) {
            (*tracked).flow.started_ns = (*embryo).flow.started_ns;
            copy(
                &raw const (*embryo).flow.counters,
                &raw mut (*tracked).flow.counters,
            );
            copy(
                &raw const (*embryo).flow.base,
                &raw mut (*tracked).flow.base,
            );
            let _ = FLOWS.remove(&key);
        }
    }
}

/// Judges and counts a packet of a flow.
#[inline(always)]
fn settle(
    in_force: InForce,
    tracked: *mut Tracked,
    skb: *mut __sk_buff,
    ends: &Ends,
    listed: Decision,
) -> i32 {
    // SAFETY: a field of the context; the verifier checks the access.
    let bytes = u64::from(unsafe { (*skb).len });
    if is_without_name(skb, ends) {
        follow_sender(skb, tracked);
    } else if ends.destination.protocol == protocol::TCP && is_of_mptcp(skb) {
        follow(skb, tracked);
    }
    if !is_current(tracked) {
        refresh(tracked);
    }
    let decision = match ends.route {
        Route::Direct => decide(in_force, tracked, ends, bytes as u32),
        _ => {
            decide_as(tracked, ends, listed);
            listed
        }
    };
    let mut blocked = decision.blocks();
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    if blocked && is_farewell(skb, unsafe { &(*flow).cookie }) {
        blocked = false;
        set_state(tracked, FLOW_CUT);
    }
    if !blocked {
        let tag = tag_of(skb);
        match ends.route {
            _ if tag.is_null() => {}
            Route::Direct => keep(skb, tag, ends, decision),
            _ => {
                keep_listed(skb, tag, decision.to_word());
            }
        }
    }
    count_total(&decision, bytes, blocked);
    record(tracked, &decision, bytes, blocked);
    if blocked { DROP } else { PASS }
}

/// True for the one packet that leaves although the policy does not approve it: the
/// reset with which the agent cuts a connection. It carries nothing, and without it the
/// far end would wait for an answer until it gives up.
#[inline(always)]
fn is_farewell(skb: *mut __sk_buff, cookie: &u64) -> bool {
    CUTS.get_ptr(cookie).is_some() && is_bare_reset(skb)
}

#[inline(always)]
fn cookie_of(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_socket_cookie(skb.cast()) }
}

/// Control group of the process that made a packet's socket; 0 for the kernel's own, which have that
/// of whoever made their network namespace. Connections that the kernel opens for a process, such as
/// those of SMC, are that process's.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn cgroup_of(skb: *mut __sk_buff) -> u64 {
    // SAFETY: a field of the context; the verifier checks the access.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 0;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() || !is_tcp(socket) && is_kernels(skb) {
        return 0;
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_skb_cgroup_id(skb) }
}
