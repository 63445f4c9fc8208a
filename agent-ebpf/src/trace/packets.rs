//! Packets of sockets, beside `egress`: what was decided is in the packet's flow by then.

use core::ptr;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use trefoil_ebpf::abi::{
    Decision, FLOW_CUT, FlowKey, SOCKET_HAS_PEER, SOCKET_OWN_NAMESPACE, Socket, Tracked,
    trace::{basis, hook, outcome},
    verdict,
};

use super::{story, uplink_egress::read_frame_ends};
use crate::{
    accounting::decision_of,
    control_packet::is_bare_reset,
    direction::direction_of,
    flows,
    frame::frame_ends,
    in_flight,
    judge::{judge, undetermined},
    maps::{InForce, SOCKETS, in_force},
    packet::{Ends, Route, is_same_peer},
    route::judge_listed,
    source::Source,
};

const PASS: i32 = 1;
/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

#[cgroup_skb]
fn trace_egress(ctx: SkBuffContext) -> i32 {
    look(ctx.skb.skb);
    PASS
}

#[inline(always)]
fn look(skb: *mut __sk_buff) -> Option<()> {
    let in_force = in_force()?;
    let story = story::begin(hook::EGRESS)?;
    // SAFETY: fields of the context; the verifier checks the access.
    unsafe {
        story.bytes = (*skb).len;
        story.interface = (*skb).ifindex;
    }
    if read_frame_ends(skb, 0) == 0 {
        story.basis = basis::UNREADABLE;
        story.decision = undetermined(in_force);
    } else {
        look_at_flow(skb, in_force.generation, in_force.flags.into());
    }
    if story.decision.blocks() && story.outcome == outcome::PASSED {
        story.outcome = outcome::DROPPED;
    }
    story::tell();
    Some(())
}

/// Takes in owner, flow and decision of a packet.
///
/// A global function to the kernel, so that its stack is free again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_at_flow(skb: *mut __sk_buff, generation: u32, flags: u32) -> u32 {
    let in_force = InForce {
        generation,
        flags: flags as u8,
    };
    if let Some(story) = story::open()
        && let Some(ends) = frame_ends()
    {
        story.set_peer(ends);
        let (tag, tracked) = found(skb, ends);
        // SAFETY: map values; the verifier checks the access. So below.
        let mut source = Source::NOBODY;
        if !tracked.is_null() {
            story.set_owner(unsafe { &raw const (*tracked).owner });
            story.flow = story::age(tracked, 1);
            source = Source::of(unsafe { &raw const (*tracked).owner });
        } else if !tag.is_null() {
            story.set_owner(unsafe { &raw const (*tag).tracked.owner });
            source = Source::of(unsafe { &raw const (*tag).tracked.owner });
        } else {
            source.cgroup_id = unsafe { bpf_skb_cgroup_id(skb) };
            story.owner.cgroup_id = source.cgroup_id;
        }
        if story.interface == LOOPBACK {
            story.basis = basis::LOOPBACK;
            story.decision = Decision {
                verdict: verdict::LOCAL,
                ..undetermined(in_force)
            };
            return 0;
        }
        let of_flow = match tracked.is_null() {
            true => crate::accounting::NOT_JUDGED,
            false => decision_of(tracked),
        };
        if of_flow.verdict != verdict::NONE && ends.route == Route::Direct {
            story.basis = basis::FLOW;
            story.decision = of_flow;
            let is_cut = unsafe { (*tracked).flow.state } & FLOW_CUT != 0;
            if of_flow.blocks() && is_cut && is_bare_reset(skb) {
                story.outcome = outcome::CUT;
            }
            return 0;
        }
        story.decision = judged(in_force, skb, ends, &source, tag);
    }
    0
}

/// Returns the decision about a packet without a flow.
#[inline(always)]
fn judged(
    in_force: InForce,
    skb: *mut __sk_buff,
    ends: &Ends,
    source: &Source,
    tag: *const Socket,
) -> Decision {
    if let Some(found) = in_flight::find(skb, 0) {
        let passed = found.decision_about(ends);
        if passed.verdict != verdict::NONE {
            return passed;
        }
    }
    // SAFETY: the context and a map value; the verifier checks the access.
    let (bytes, may_stay) = unsafe {
        (
            (*skb).len,
            !tag.is_null() && (*tag).flags & SOCKET_OWN_NAMESPACE == 0,
        )
    };
    let near = ends.near(direction_of(skb) as u8);
    match ends.route {
        Route::Direct => {
            let in_force = match may_stay {
                true => in_force.may_stay(),
                false => in_force,
            };
            judge(in_force, source, near, &ends.destination, bytes)
        }
        _ => judge_listed(in_force, source, near, skb, 0, ends, &mut 0),
    }
}

/// The tag of a packet's socket and the flow that it belongs to; null what there is not.
#[inline(always)]
fn found(skb: *mut __sk_buff, ends: &Ends) -> (*const Socket, *const Tracked) {
    const NOTHING: (*const Socket, *const Tracked) = (ptr::null(), ptr::null());
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return NOTHING;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return NOTHING;
    }
    let Some(tag) = SOCKETS.get(socket) else {
        return NOTHING;
    };
    let tracked = unsafe { &raw const (*tag).tracked };
    let peer = &raw const ends.destination;
    if unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0
        && is_same_peer(unsafe { &raw const (*tracked).flow.peer }, peer)
    {
        return (tag, tracked);
    }
    let key = FlowKey {
        // SAFETY: the helper takes the context.
        cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
        peer: ends.destination,
    };
    match flows::find(&key) {
        Some(tracked) => (tag, tracked),
        None => (tag, ptr::null()),
    }
}
