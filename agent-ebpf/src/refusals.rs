//! Refused calls: so many of each sender are events, all others are counted by sender.
//!
//! Neither the ring buffer nor `ENDED` holds more of one sender than that, whatever he varies and
//! however long no agent looks.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_task},
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::now_ns,
    atomic,
    maps::{EMPTY_REFUSALS, EVENTS, REFUSALS, REFUSALS_TURN, TOTALS, lose},
    room::{BPF_NOEXIST, payer},
    words::{copy, zero},
};

/// Records a call that was refused. `owner` is only read.
///
/// A call that finds no room in the ring buffer is counted with those that are not told one by
/// one.
#[inline(never)]
pub fn refuse(owner: *const Owner, cookie: u64, peer: &Peer, decision: u64) -> u32 {
    let decision = Decision::from_word(decision);
    if let Some(totals) = TOTALS.get_ptr_mut(u32::from(decision.verdict)) {
        // SAFETY: a map value; the verifier checks the access.
        atomic::add(unsafe { &raw mut (*totals).refused }, 1);
    }
    let Some(refusals) = of_sender(decision.verdict) else {
        lose(LOSS_ENDED_FULL, 1);
        return 0;
    };
    if has_turn(refusals) {
        if let Some(mut entry) = EVENTS.reserve(0) {
            let event: *mut Event = entry.as_mut_ptr();
            let time_ns = now_ns();
            // SAFETY: reserved memory of this size; the verifier checks `owner`.
            unsafe {
                zero(event);
                (*event).time_ns = time_ns;
                (*event).reason = reason::REFUSED;
                let tracked = &raw mut (*event).tracked;
                (*tracked).flow.started_ns = time_ns;
                (*tracked).flow.counters.refused = 1;
                describe(tracked, owner, cookie, peer, decision);
            }
            entry.submit(BPF_RB_NO_WAKEUP.into());
            return 0;
        }
        lose(LOSS_EVENTS_FULL, 1);
    }
    // SAFETY: a map value; the verifier checks the access.
    let tracked = unsafe { &raw mut (*refusals).tracked };
    describe(tracked, owner, cookie, peer, decision);
    atomic::add(unsafe { &raw mut (*tracked).flow.counters.refused }, 1);
    0
}

/// Entry of the running process's user or, if he is root, control group.
#[inline(always)]
fn of_sender(verdict: u8) -> Option<*mut Refusals> {
    // SAFETY: the helper has no conditions.
    let user = payer(unsafe { bpf_get_current_task() });
    let mut key = RefusedSender {
        user,
        verdict: verdict.into(),
        cgroup_id: 0,
    };
    if user == ROOT {
        // SAFETY: the helper has no conditions.
        key.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    }
    if let Some(known) = REFUSALS.get_ptr_mut(&key) {
        return Some(known);
    }
    let is_mine = EMPTY_REFUSALS
        .get(0)
        .is_some_and(|empty| REFUSALS.insert(&key, empty, BPF_NOEXIST).is_ok());
    if let Some(new) = REFUSALS.get_ptr_mut(&key) {
        if is_mine {
            // SAFETY: a map value; the verifier checks the access.
            unsafe { (*new).tracked.flow.started_ns = now_ns() };
        }
        return Some(new);
    }
    (key.user, key.cgroup_id) = (NOBODY_CHARGED, 0);
    REFUSALS.get_ptr_mut(&key)
}

/// Takes one of the calls that a sender has told one by one until the agent looks again.
#[inline(always)]
fn has_turn(refusals: *mut Refusals) -> bool {
    let turn = REFUSALS_TURN.get(0).copied().unwrap_or(0);
    // SAFETY: a map value; the verifier checks the access. Of calls at the same moment some may
    // take one more.
    unsafe {
        if (*refusals).turn != turn {
            (*refusals).turn = turn;
            (*refusals).n_told = 0;
        }
        let has_turn = (*refusals).n_told < REFUSALS_A_TURN;
        if has_turn {
            atomic::add(&raw mut (*refusals).n_told, 1);
        }
        has_turn
    }
}

#[inline(always)]
fn describe(
    tracked: *mut Tracked,
    owner: *const Owner,
    cookie: u64,
    peer: &Peer,
    decision: Decision,
) {
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe {
        copy(owner, &raw mut (*tracked).owner);
        (*tracked).flow.cookie = cookie;
        (*tracked).flow.peer = *peer;
        (*tracked).flow.direction = direction::OUTBOUND;
        (*tracked).flow.state = FLOW_ENDED;
        (*tracked).flow.decision = decision;
    }
}
