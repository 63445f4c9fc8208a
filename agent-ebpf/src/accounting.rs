//! Flows in the kernel: beginning, counting, ending, and handing them over.
//!
//! Records are cumulative and a flow is marked as handed over only after it
//! was, so that a full ring buffer delays numbers and never loses them.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_ktime_get_boot_ns};
use trefoil_ebpf::abi::*;

use crate::{
    atomic,
    globals::tcp_state_seen,
    maps::{CHANGING, ENDED, EVENTS, TOTALS, lose, lose_traffic},
    owner::{set_acting, set_nobody},
    packet::Ends,
    remembered::remember_ended,
    words::{copy, set_bit, zero},
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
    fill(entry.as_mut_ptr(), reason, tracked);
    entry.submit(BPF_RB_NO_WAKEUP.into());
    true
}

#[inline(always)]
fn fill(event: *mut Event, reason: u32, tracked: *const Tracked) {
    // SAFETY: reserved memory of this size; the verifier checks `tracked`.
    unsafe {
        (*event).time_ns = now_ns();
        (*event).reason = reason;
        (*event).pad = 0;
        copy(tracked, &raw mut (*event).tracked);
    }
}

/// Writes the decision about a flow as one word: who reads it at that moment reads one or the other.
#[inline(always)]
pub fn set_decision(tracked: *mut Tracked, decision: Decision) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (&raw mut (*tracked).flow.decision)
            .cast::<u64>()
            .write_volatile(decision.to_word());
    }
}

/// The decision about a flow, read as one word.
#[inline(always)]
pub fn decision_of(tracked: *const Tracked) -> Decision {
    // SAFETY: a map value; the verifier checks the access.
    let word = unsafe {
        (&raw const (*tracked).flow.decision)
            .cast::<u64>()
            .read_volatile()
    };
    Decision::from_word(word)
}

/// Sets one of the `FLOW_*` bits of a flow.
#[inline(always)]
pub fn set_state(tracked: *mut Tracked, bit: u16) {
    // SAFETY: a map value; the verifier checks the access.
    set_bit(unsafe { &raw mut (*tracked).flow.state }, bit.into());
}

/// Announces a flow, once; tried again with the next packet if it fails.
#[inline(always)]
pub fn announce(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ANNOUNCED == 0 && hand_over(reason::OPENED, tracked) {
        set_state(tracked, FLOW_ANNOUNCED);
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
        zero(event);
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

/// Hands over a packet for whose flow there is no room, as a flow that begins and ends with it.
/// `owner` is null if nobody is known. A packet that the ring buffer cannot take is counted, and
/// does not wait in `ENDED`: many such packets would take the room of the last numbers of whole
/// flows.
#[inline(never)]
pub fn tell_alone(owner: *const Owner, ends: &Ends, packet: &Alone) -> u32 {
    let (bytes, blocked) = (u64::from(packet.bytes), packet.decision.blocks());
    let Some(mut entry) = EVENTS.reserve(0) else {
        lose(LOSS_PACKETS_UNTOLD, 1);
        if !blocked {
            lose(LOSS_UNTOLD_BYTES, bytes);
            lose_traffic(packet.decision.verdict, bytes, 1);
        }
        return 0;
    };
    let event: *mut Event = entry.as_mut_ptr();
    let time_ns = now_ns();
    // SAFETY: reserved memory of this size; the verifier checks `owner`.
    unsafe {
        zero(event);
        (*event).time_ns = time_ns;
        (*event).reason = reason::ALONE;
        let tracked = &raw mut (*event).tracked;
        if owner.is_null() {
            set_nobody(&raw mut (*tracked).owner);
        } else {
            copy(owner, &raw mut (*tracked).owner);
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

/// Hands over final numbers, as of this owner, and has what comes next in the slot begin with
/// these; what the ring buffer cannot take waits in `ENDED`.
#[inline(never)]
fn finish(tracked: *mut Tracked, owner: *const Owner) -> u32 {
    // SAFETY: a map value; the verifier checks the access. So below.
    let started = unsafe { &raw mut (*tracked).flow.started_ns };
    let started_ns = unsafe { started.read_volatile() };
    if started_ns == 0 {
        return 0; // Another is at it.
    }
    // Till the next begins, this is no flow: whoever reads it now would add to one what is the
    // other's.
    unsafe { started.write_volatile(0) };
    if let Some(mut entry) = EVENTS.reserve(0) {
        let event: *mut Event = entry.as_mut_ptr();
        fill(event, reason::CLOSED, tracked);
        unsafe { (*event).tracked.flow.started_ns = started_ns };
        copy(owner, unsafe { &raw mut (*event).tracked.owner });
        go_on_from(tracked, unsafe {
            &raw const (*event).tracked.flow.counters
        });
        entry.submit(BPF_RB_NO_WAKEUP.into());
    } else {
        lose(LOSS_EVENTS_FULL, 1);
        finish_later(tracked, owner, started_ns);
    }
    unsafe { started.write_volatile(start_ns()) };
    0
}

#[inline(always)]
fn finish_later(tracked: *mut Tracked, owner: *const Owner, started_ns: u64) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    let key = EndedKey {
        cookie: unsafe { (*flow).cookie },
        started_ns,
    };
    if ENDED.insert(&key, unsafe { &*tracked }, 0).is_ok() {
        // If the agent has taken it already, what was counted meanwhile is not told.
        let Some(handed_over) = ENDED.get_ptr_mut(&key) else {
            return go_on_from(tracked, unsafe { &raw const (*flow).counters });
        };
        unsafe { (*handed_over).flow.started_ns = started_ns };
        copy(owner, unsafe { &raw mut (*handed_over).owner });
        return go_on_from(tracked, unsafe { &raw const (*handed_over).flow.counters });
    }
    let before = unsafe { ((*flow).base.bytes_out, (*flow).base.packets_out) };
    go_on_from(tracked, unsafe { &raw const (*flow).counters });
    let bytes = unsafe { (*flow).base.bytes_out }.wrapping_sub(before.0);
    let packets = unsafe { (*flow).base.packets_out }.wrapping_sub(before.1);
    lose(LOSS_ENDED_FULL, 1);
    lose(LOSS_ENDED_BYTES, bytes);
    lose_traffic(decision_of(tracked).verdict, bytes, packets);
}

/// Has what comes next in a slot begin with these numbers.
#[inline(always)]
fn go_on_from(tracked: *mut Tracked, counters: *const Counters) {
    // SAFETY: a map value; the verifier checks the access.
    copy(counters, unsafe { &raw mut (*tracked).flow.base });
}

/// True if packets have left or were dropped that no final numbers tell of.
#[inline(always)]
pub fn has_untold(tracked: *const Tracked) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let flow = &raw const (*tracked).flow;
        // Bytes are counted first.
        (*flow).counters.bytes_out != (*flow).base.bytes_out
            || (*flow).counters.packets_out != (*flow).base.packets_out
            || (*flow).counters.blocked_packets != (*flow).base.blocked_packets
    }
}

/// Generation 0 is never in force, so the first packet asks the judge.
pub const NOT_JUDGED: Decision = Decision {
    generation: 0,
    rule: NO_RULE,
    verdict: verdict::NONE,
    flags: 0,
};

/// Starts a flow in a slot whose owner is set already. When it started is written last: by then it
/// is complete.
#[inline(always)]
pub fn begin(tracked: *mut Tracked, cookie: u64, peer: &Peer, direction: u8, decision: Decision) {
    begin_after(0, tracked, cookie, peer, direction, decision);
}

/// As [`begin`], of a connection whose socket may have been handed data before: of what the slot says
/// about senders, these bits stay.
#[inline(always)]
pub fn begin_after(
    senders: u16,
    tracked: *mut Tracked,
    cookie: u64,
    peer: &Peer,
    direction: u8,
    decision: Decision,
) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let flow = &raw mut (*tracked).flow;
        (*flow).cookie = cookie;
        (*flow).peer = *peer;
        (*flow).local = Address([0; 16]);
        (*flow).local_port = 0;
        (*flow).named = Address([0; 16]);
        (*flow).named_port = 0;
        (*flow).state &= senders;
        (*flow).direction = direction;
        (*flow).decision = decision;
        copy(&raw const (*flow).counters, &raw mut (*flow).base);
        (&raw mut (*flow).started_ns).write_volatile(start_ns());
    }
}

/// Of the state of a slot, those bits that are about who sent on its socket.
pub const SENDERS: u16 = FLOW_SENT | FLOW_SHARED;

/// Has a slot say nothing about senders: its socket listens, and what is cloned from it has its own.
#[inline(always)]
pub fn forget_senders(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        let state = (&raw mut (*tracked).flow.state).cast::<u8>();
        state.add(1).write_volatile(0);
    }
}

/// Ends the flow of a slot, if there is anything to tell of it.
#[inline(always)]
pub fn end(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ENDED != 0 {
        return;
    }
    set_state(tracked, FLOW_ENDED);
    if state & FLOW_ANNOUNCED != 0 || has_untold(tracked) {
        tell_rest(tracked);
    }
}

/// Hands over what is counted in a slot whose flow has ended.
///
/// A packet that was counted at the same moment is either in these numbers or sees that the flow
/// has ended, and then comes here itself: see [`record`](crate::settle::record).
#[inline(never)]
pub fn tell_rest(tracked: *mut Tracked) -> u32 {
    // SAFETY: a map value; the verifier checks the access. So below.
    let barrier = || atomic::barrier(unsafe { &raw mut (*tracked).flow.counters.refused });
    if tcp_state_seen() {
        // Whoever ends a flow has it for itself: holds the lock of a connection, or lets go of
        // the socket.
        barrier();
        return finish(tracked, unsafe { &raw const (*tracked).owner });
    }
    // Or a packet of the connection leaves meanwhile.
    for _ in 0..4 {
        let Some(change) = Change::begin(tracked) else {
            break; // Whoever has begun looks again when that is done.
        };
        barrier();
        if has_untold(tracked) {
            finish(tracked, unsafe { &raw const (*tracked).owner });
        }
        change.end();
        barrier();
        if !has_untold(tracked) {
            break;
        }
    }
    0
}

/// Whoever has one may change which flow a slot holds; nobody else has one for the same.
struct Change(FlowKey);

impl Change {
    #[inline(always)]
    fn begin(tracked: *const Tracked) -> Option<Self> {
        const BPF_NOEXIST: u64 = 1;
        // SAFETY: a map value; the verifier checks the access.
        let key = unsafe {
            FlowKey {
                cookie: (*tracked).flow.cookie,
                peer: (*tracked).flow.peer,
            }
        };
        CHANGING.insert(&key, &0, BPF_NOEXIST).ok()?;
        Some(Self(key))
    }

    #[inline(always)]
    fn end(self) {
        let _ = CHANGING.remove(&self.0);
    }
}

/// Ends the flow of a connection of TCP. Acknowledgements and resets that the kernel sends
/// in its name from now on are judged as it was.
#[inline(always)]
pub fn end_connection(tracked: *mut Tracked) {
    // SAFETY: a map value; the verifier checks the access.
    remember_ended(unsafe { &raw const (*tracked).flow });
    end(tracked);
}

/// Continues the slot as a new flow with the same ends: the policy changed its mind. Of packets of
/// one flow that leave at the same moment, one does so.
#[inline(never)]
pub fn change(tracked: *mut Tracked, decision: u64) -> u32 {
    let Some(change) = Change::begin(tracked) else {
        return 0;
    };
    // SAFETY: a map value; the verifier checks the access.
    tell_end(tracked, unsafe { &raw const (*tracked).owner });
    set_decision(tracked, Decision::from_word(decision));
    change.end();
    0
}

/// The same where its sender, which was this, is another from here on.
#[inline(never)]
pub fn succeed(tracked: *mut Tracked, before: *const Owner) -> u32 {
    if let Some(change) = Change::begin(tracked) {
        tell_end(tracked, before);
        change.end();
    }
    0
}

/// Hands over what a flow has come to, if anything, and has another begin in its place.
#[inline(always)]
fn tell_end(tracked: *mut Tracked, owner: *const Owner) {
    /// Of the byte that packets set; senders set the other.
    const KEPT: u16 = FLOW_ENDED | FLOW_EMBRYONIC;
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    let state = unsafe { (*flow).state };
    if state & FLOW_ANNOUNCED != 0 || has_untold(tracked) {
        finish(tracked, owner);
    }
    unsafe {
        (&raw mut (*flow).state)
            .cast::<u8>()
            .write_volatile((state & KEPT) as u8);
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
