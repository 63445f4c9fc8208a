//! Flows in the kernel: beginning, counting, ending, and handing them over.
//!
//! Records are cumulative and a flow is marked as handed over only after it
//! was, so that a full ring buffer delays numbers and never loses them.

use core::ptr;

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_ktime_get_boot_ns};
use trefoil_ebpf::abi::*;

use crate::{
    atomic,
    maps::{EMPTY, ENDED, EVENTS, TOTALS, lose},
    owner::{set_acting, set_nobody},
    packet::Ends,
    remembered::remember_ended,
    words::copy_words,
};

/// Nanoseconds since boot, suspend included.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// When a flow begins that has a slot.
#[inline(always)]
fn start_ns() -> u64 {
    now_ns() & !1
}

/// Sends an event; false, and counted, if the ring buffer has no room.
///
/// The agent polls on a timer: waking it for each event costs ten times as much
/// as the event.
#[inline(never)]
fn hand_over(reason: u32, tracked: *const Tracked) -> bool {
    let Some(mut entry) = EVENTS.reserve(0) else {
        lose(LOSS_EVENTS_FULL, 1);
        return false;
    };
    let event: *mut Event = entry.as_mut_ptr();
    // SAFETY: reserved memory of this size; the verifier checks `tracked`.
    unsafe {
        (*event).time_ns = now_ns();
        (*event).reason = reason;
        (*event).pad = 0;
        copy_words::<{ size_of::<Tracked>() / 8 }>(
            tracked.cast(),
            (&raw mut (*event).tracked).cast(),
        );
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
    true
}

/// Announces a flow, once; tried again with the next packet if it fails.
#[inline(always)]
pub fn announce(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ANNOUNCED == 0 && hand_over(reason::OPENED, tracked) {
        unsafe { (*tracked).flow.state |= FLOW_ANNOUNCED };
    }
}

/// Tells that an open flow has another owner than was announced.
#[inline(always)]
pub fn announce_owner(tracked: *const Tracked) {
    // A failure is counted; the next sweep brings the owner.
    hand_over(reason::OWNER, tracked);
}

/// Tells that no packet will come any more for the socket's flows in `FLOWS`.
#[inline(always)]
pub fn announce_socket_gone(tracked: *const Tracked) {
    // A failure is counted; the agent finds idle flows by itself.
    hand_over(reason::SOCKET_GONE, tracked);
}

/// Tells that the running process opens a way out that no hook judges, one of [`unseen`].
#[inline(always)]
pub fn announce_unseen(way: u16, refused: bool) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        lose(LOSS_EVENTS_FULL, 1);
        return;
    };
    let event: *mut Event = entry.as_mut_ptr();
    // SAFETY: reserved memory of this size.
    unsafe {
        ptr::write_bytes(event, 0, 1);
        (*event).time_ns = now_ns();
        (*event).reason = reason::UNSEEN;
        (*event).tracked.flow.local_port = way;
        (*event).tracked.flow.counters.refused = u64::from(refused);
        set_acting(&raw mut (*event).tracked.owner);
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
}

/// A packet for whose flow there is no room.
pub struct Alone {
    pub cookie: u64,
    pub decision: Decision,
    /// Of the IP packet.
    pub bytes: u32,
    pub direction: u8,
    /// Of its owner.
    pub quality: u8,
}

/// Hands over a packet for whose flow there is no room, as a flow that begins and ends with
/// it. `owner` is null if nobody is known. What the ring buffer cannot take is counted, and
/// does not wait in `ENDED`: many such packets would take the room of the last numbers of
/// whole flows.
#[inline(never)]
pub fn tell_alone(owner: *const Owner, ends: &Ends, packet: &Alone) -> u32 {
    lose(LOSS_FLOWS_FULL, 1);
    let (bytes, blocked) = (u64::from(packet.bytes), packet.decision.blocks());
    let Some(mut entry) = EVENTS.reserve(0) else {
        lose(LOSS_PACKETS_UNTOLD, 1);
        if !blocked {
            lose(LOSS_UNTOLD_BYTES, bytes);
        }
        return 0;
    };
    let event: *mut Event = entry.as_mut_ptr();
    let time_ns = now_ns();
    // SAFETY: reserved memory of this size; the verifier checks `owner`.
    unsafe {
        ptr::write_bytes(event, 0, 1);
        (*event).time_ns = time_ns;
        (*event).reason = reason::ALONE;
        let tracked = &raw mut (*event).tracked;
        if owner.is_null() {
            set_nobody(&raw mut (*tracked).owner);
        } else {
            (*tracked).owner = *owner;
        }
        (*tracked).owner.quality = packet.quality;
        let flow = &raw mut (*tracked).flow;
        (*flow).cookie = packet.cookie;
        (*flow).started_ns = time_ns | 1;
        (*flow).peer = ends.destination;
        (*flow).local = ends.source;
        (*flow).local_port = ends.source_port;
        (*flow).state = FLOW_ENDED;
        (*flow).direction = packet.direction;
        (*flow).decision = packet.decision;
        if blocked {
            (*flow).counters.blocked_bytes = bytes;
            (*flow).counters.blocked_packets = 1;
        } else {
            (*flow).counters.bytes_out = bytes;
            (*flow).counters.packets_out = 1;
        }
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
    0
}

/// Hands over final numbers; what the ring buffer cannot take waits in `ENDED`.
#[inline(never)]
pub fn finish(reason: u32, tracked: *const Tracked) -> u32 {
    if hand_over(reason, tracked) {
        return 0;
    }
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &(*tracked).flow };
    let key = EndedKey {
        cookie: flow.cookie,
        started_ns: flow.started_ns,
    };
    if ENDED.insert(&key, unsafe { &*tracked }, 0).is_err() {
        lose(LOSS_ENDED_FULL, 1);
        lose(
            LOSS_ENDED_BYTES,
            flow.counters.bytes_out.wrapping_sub(flow.base.bytes_out),
        );
    }
    0
}

/// Generation 0 is never in force, so the first packet asks the judge.
pub const NOT_JUDGED: Decision = Decision {
    generation: 0,
    rule: NO_RULE,
    verdict: verdict::NONE,
    flags: 0,
};

/// Starts a flow in a slot whose owner is set already.
#[inline(always)]
pub fn begin(tracked: *mut Tracked, cookie: u64, peer: &Peer, direction: u8, decision: Decision) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let flow = &raw mut (*tracked).flow;
        (*flow).cookie = cookie;
        (*flow).started_ns = start_ns();
        (*flow).peer = *peer;
        (*flow).local = Address([0; 16]);
        (*flow).local_port = 0;
        (*flow).named = Address([0; 16]);
        (*flow).named_port = 0;
        (*flow).state = 0;
        (*flow).direction = direction;
        (*flow).decision = decision;
        (*flow).base = (*flow).counters;
    }
}

/// Ends the flow of a slot, if there is anything to tell of it.
#[inline(always)]
pub fn end(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ENDED != 0 {
        return;
    }
    let happened = state & FLOW_ANNOUNCED != 0
        || unsafe {
            let flow = &(*tracked).flow;
            flow.counters.packets_out != flow.base.packets_out
                || flow.counters.blocked_packets != flow.base.blocked_packets
        };
    if happened {
        finish(reason::CLOSED, tracked);
    }
    unsafe { (*tracked).flow.state = state | FLOW_ENDED };
}

/// Ends the flow of a connection of TCP. Acknowledgements and resets that the kernel sends
/// in its name from now on are judged as it was.
#[inline(always)]
pub fn end_connection(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access.
    remember_ended(unsafe { &raw const (*tracked).flow });
    end(tracked);
}

/// Continues the slot as a new flow with the same ends: the policy changed its
/// mind, or a packet came after the end.
#[inline(always)]
pub fn begin_again(tracked: *mut Tracked, decision: Decision, state: u16) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let flow = &raw mut (*tracked).flow;
        (*flow).base = (*flow).counters;
        (*flow).started_ns = start_ns();
        (*flow).decision = decision;
        (*flow).state = state;
    }
}

/// Counts one packet of a flow. Atomic, since UDP sends without a lock.
#[inline(always)]
pub fn count(tracked: *mut Tracked, bytes: u64, blocked: bool) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let counters = unsafe { &raw mut (*tracked).flow.counters };
    let (byte_counter, packet_counter) = unsafe {
        if blocked {
            (
                &raw mut (*counters).blocked_bytes,
                &raw mut (*counters).blocked_packets,
            )
        } else {
            (
                &raw mut (*counters).bytes_out,
                &raw mut (*counters).packets_out,
            )
        }
    };
    atomic::add(byte_counter, bytes);
    atomic::add(packet_counter, 1);
}

/// Counts one packet in the sums of its verdict.
///
/// Atomic, since a program may be preempted by another on the same CPU.
#[inline(always)]
pub fn count_total(decision: &Decision, bytes: u64, blocked: bool) {
    let Some(totals) = TOTALS.get_ptr_mut(u32::from(decision.verdict)) else {
        return;
    };
    // SAFETY: a map value; the verifier checks the access.
    let (byte_counter, packet_counter) = unsafe {
        if blocked {
            (
                &raw mut (*totals).blocked_bytes,
                &raw mut (*totals).blocked_packets,
            )
        } else {
            (&raw mut (*totals).bytes_out, &raw mut (*totals).packets_out)
        }
    };
    atomic::add(byte_counter, bytes);
    atomic::add(packet_counter, 1);
}

/// Records a call that was refused. Each is an event of its own.
///
/// `owner` is only read. What the ring buffer cannot take waits in `ENDED`.
#[inline(always)]
pub fn refuse(owner: *const Owner, cookie: u64, peer: &Peer, decision: Decision) {
    if let Some(totals) = TOTALS.get_ptr_mut(u32::from(decision.verdict)) {
        // SAFETY: a map value; the verifier checks the access.
        atomic::add(unsafe { &raw mut (*totals).refused }, 1);
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        lose(LOSS_EVENTS_FULL, 1);
        return refuse_later(owner, cookie, peer, decision);
    };
    let event: *mut Event = entry.as_mut_ptr();
    let time_ns = now_ns();
    // SAFETY: reserved memory of this size; the verifier checks `owner`.
    unsafe {
        ptr::write_bytes(event, 0, 1);
        (*event).time_ns = time_ns;
        (*event).reason = reason::REFUSED;
        fill_refusal(
            &raw mut (*event).tracked,
            owner,
            cookie,
            peer,
            decision,
            time_ns,
        );
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
}

/// A refusal that the ring buffer had no room for waits in `ENDED`.
#[inline(never)]
fn refuse_later(owner: *const Owner, cookie: u64, peer: &Peer, decision: Decision) {
    let started_ns = now_ns();
    let key = EndedKey { cookie, started_ns };
    let Some(empty) = EMPTY.get(0) else { return };
    if ENDED.insert(&key, empty, 0).is_err() {
        lose(LOSS_ENDED_FULL, 1);
        return;
    }
    if let Some(tracked) = ENDED.get_ptr_mut(&key) {
        fill_refusal(tracked, owner, cookie, peer, decision, started_ns);
    }
}

#[inline(always)]
fn fill_refusal(
    tracked: *mut Tracked,
    owner: *const Owner,
    cookie: u64,
    peer: &Peer,
    decision: Decision,
    started_ns: u64,
) {
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe {
        (*tracked).owner = *owner;
        (*tracked).flow.cookie = cookie;
        (*tracked).flow.started_ns = started_ns;
        (*tracked).flow.peer = *peer;
        (*tracked).flow.direction = direction::OUTBOUND;
        (*tracked).flow.state = FLOW_ENDED;
        (*tracked).flow.decision = decision;
        (*tracked).flow.counters.refused = 1;
    }
}
