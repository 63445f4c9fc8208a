//! One packet of a flow: judged, unless it was under the policy in force, and counted.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce, begin_again, count, end, finish},
    globals::local_flows,
    judge::judge,
    maps::InForce,
    packet::Ends,
    source::Source,
};

/// What the policy in force says about a packet that goes straight to its destination. Another
/// verdict than the flow has had is another flow, of the same senders; so is what comes after its
/// end.
#[inline(always)]
pub fn decide(in_force: InForce, tracked: *mut Tracked, ends: &Ends, bytes: u32) -> Decision {
    // SAFETY: map values; the verifier checks the access. So below.
    let mut decision = unsafe { (*tracked).flow.decision };
    if !in_force.made(&decision) {
        let source = Source::of(unsafe { &raw const (*tracked).owner });
        decision = judge(in_force, &source, &ends.destination, bytes);
        take_in(tracked, decision);
    }
    go_on(tracked, ends, decision);
    decision
}

/// As [`decide`], of a packet about which this is decided already.
#[inline(always)]
pub fn decide_as(tracked: *mut Tracked, ends: &Ends, decision: Decision) {
    take_in(tracked, decision);
    go_on(tracked, ends, decision);
}

#[inline(always)]
fn take_in(tracked: *mut Tracked, anew: Decision) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    let decision = unsafe { (*flow).decision };
    if decision.verdict != verdict::NONE && !decision.agrees(&anew) {
        let kept = FLOW_EMBRYONIC | FLOW_SENT | FLOW_SHARED;
        let state = unsafe { (*flow).state } & kept;
        end(tracked);
        begin_again(tracked, anew, state);
    } else {
        unsafe { (*flow).decision = anew };
    }
}

#[inline(always)]
fn go_on(tracked: *mut Tracked, ends: &Ends, decision: Decision) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let flow = unsafe { &raw mut (*tracked).flow };
    if unsafe { (*flow).local.is_unspecified() } {
        unsafe {
            (*flow).local = ends.source;
            (*flow).local_port = ends.source_port;
        }
    }
    if unsafe { (*flow).state } & FLOW_ENDED != 0 {
        begin_again(tracked, decision, FLOW_ENDED);
    }
}

/// Counts the packet, and tells the agent of its flow if it has not heard of it.
#[inline(always)]
pub fn record(tracked: *mut Tracked, decision: &Decision, bytes: u64, blocked: bool) {
    count(tracked, bytes, blocked);
    // SAFETY: a map value; the verifier checks the access.
    let state = unsafe { (*tracked).flow.state };
    if state & FLOW_ENDED != 0 {
        finish(reason::CLOSED, tracked);
    } else if decision.verdict != verdict::LOCAL || local_flows() {
        // An answer that is blocked will not become a session that could be announced.
        let is_embryo = state & FLOW_EMBRYONIC != 0;
        if blocked || !is_embryo {
            announce(tracked);
        }
    }
}
