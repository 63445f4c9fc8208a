//! One packet of a flow: judged, unless it was under the policy in force, and counted.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce, change, count, decision_of, set_decision, tell_rest},
    atomic,
    globals::local_flows,
    judge::judge,
    maps::InForce,
    packet::Ends,
    source::Source,
};

/// Asks the policy in force about a packet that goes straight to its destination. Another verdict
/// than the flow has had makes another flow, of the same senders.
#[inline(always)]
pub fn decide(in_force: InForce, tracked: *mut Tracked, ends: &Ends, bytes: u32) -> Decision {
    let mut decision = decision_of(tracked);
    let has_moved = has_moved(tracked, ends);
    if has_moved || !in_force.made(&decision) {
        // SAFETY: a map value; the verifier checks the access. So below.
        let source = Source::of(unsafe { &raw const (*tracked).owner });
        let near = ends.near(unsafe { (*tracked).flow.direction });
        decision = judge(in_force, &source, near, &ends.destination, bytes);
        take_in(tracked, decision);
        check(tracked, &source);
    }
    set_local(tracked, ends);
    decision
}

/// True if the packets before were from another port of this host, as raw ones may be: what was
/// decided about these says nothing of it.
#[inline(always)]
fn has_moved(tracked: *mut Tracked, ends: &Ends) -> bool {
    // SAFETY: a map value; the verifier checks the access. So below.
    let port = unsafe { &raw mut (*tracked).flow.local_port };
    let before = unsafe { *port };
    if before == 0 || before == ends.source_port {
        return false;
    }
    unsafe { *port = ends.source_port };
    true
}

/// Forgets what was decided about a flow if another than this has begun to send meanwhile.
///
/// A function of its own, so that what comes after it is not verified once for each difference.
#[inline(never)]
pub fn check(tracked: *mut Tracked, source: &Source) -> u32 {
    // SAFETY: a map value; the verifier checks the access. So below.
    atomic::barrier(unsafe { &raw mut (*tracked).flow.counters.refused });
    if !Source::of(unsafe { &raw const (*tracked).owner }).is_same(source) {
        unsafe { (*tracked).flow.decision.generation = 0 };
    }
    0
}

/// As [`decide`], of a packet about which this is decided already.
#[inline(always)]
pub fn decide_as(tracked: *mut Tracked, ends: &Ends, decision: Decision) {
    take_in(tracked, decision);
    set_local(tracked, ends);
}

#[inline(always)]
fn take_in(tracked: *mut Tracked, anew: Decision) {
    let decision = decision_of(tracked);
    if decision.verdict != verdict::NONE && !decision.agrees(&anew) {
        change(tracked, anew.to_word());
    } else {
        set_decision(tracked, anew);
    }
}

#[inline(always)]
fn set_local(tracked: *mut Tracked, ends: &Ends) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    if unsafe { (*flow).local.is_unspecified() } {
        unsafe {
            (*flow).local = ends.source;
            (*flow).local_port = ends.source_port;
        }
    }
}

/// Counts the packet, and tells the agent of its flow if it has not heard of it. A packet after
/// the end is a flow of its own.
#[inline(always)]
pub fn record(tracked: *mut Tracked, decision: &Decision, bytes: u64, blocked: bool) {
    count(tracked, bytes, blocked);
    // SAFETY: a map value; the verifier checks the access.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ENDED != 0 {
        tell_rest(tracked);
    } else if decision.verdict != verdict::LOCAL || local_flows() {
        // An answer that is blocked will not become a session that could be announced.
        let is_embryo = state & FLOW_EMBRYONIC != 0;
        if blocked || !is_embryo {
            announce(tracked);
        }
    }
}
