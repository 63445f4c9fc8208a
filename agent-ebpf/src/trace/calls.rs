//! Calls that name a peer, beside `connect` and `sendmsg`: see [`crate::naming`].

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_retval, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use trefoil_ebpf::abi::{
    FlowKey, Peer, SOCKET_HAS_PEER, Socket,
    trace::{hook, known, outcome},
};

use super::{filter, story};
use crate::{
    flows,
    judge::judge,
    maps::{SOCKETS, in_force},
    naming::{PASS, is_of_running, near_end},
    packet::is_same_peer,
    source::Source,
    translation::may_translate,
};

#[path = "../hooks/sock_addr.rs"]
mod sock_addr;

use sock_addr::{peer_v4, peer_v6};

#[cgroup_sock_addr(connect4)]
fn trace_connect4(ctx: SockAddrContext) -> i32 {
    look(&ctx, peer_v4(&ctx), hook::CONNECT);
    PASS
}

#[cgroup_sock_addr(connect6)]
fn trace_connect6(ctx: SockAddrContext) -> i32 {
    look(&ctx, peer_v6(&ctx), hook::CONNECT);
    PASS
}

#[cgroup_sock_addr(sendmsg4)]
fn trace_sendmsg4(ctx: SockAddrContext) -> i32 {
    look(&ctx, peer_v4(&ctx), hook::SENDMSG);
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
fn trace_sendmsg6(ctx: SockAddrContext) -> i32 {
    look(&ctx, peer_v6(&ctx), hook::SENDMSG);
    PASS
}

#[inline(always)]
fn look(ctx: &SockAddrContext, peer: Peer, hook: u8) -> Option<()> {
    const SOCK_DGRAM: u32 = 2;
    let in_force = in_force()?.may_stay();
    // SAFETY: fields of the context and map values; the verifier checks the access. So below.
    let (socket, kind) = unsafe { ((*ctx.sock_addr).__bindgen_anon_1.sk, (*ctx.sock_addr).type_) };
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let connects = hook == hook::CONNECT;
    if peer.port == 0 && !connects {
        return None; // A connected socket, and a message with options.
    }
    let tag = SOCKETS.get(socket)?;
    let owner = unsafe { &raw const (*tag).tracked.owner };
    let story = story::begin(hook)?;
    story.peer = peer;
    story.set_owner(owner);
    story.flow = flow(tag, &FlowKey { cookie, peer });
    let mut source = Source::of(owner);
    if !(connects && kind != SOCK_DGRAM || is_of_running(owner, &source)) {
        source = Source::NOBODY;
    }
    let decision = judge(in_force, &source, near_end(socket, &peer), &peer, 0);
    story.decision = decision;
    let leaves_it = decision.blocks() && may_translate(ctx.sock_addr as u64, &peer.address);
    story.outcome = match decision.blocks() {
        true if leaves_it => outcome::LEFT_TO_EGRESS,
        true => outcome::REFUSED,
        false => outcome::PASSED,
    };
    if filter::knows_answers() {
        // SAFETY: a helper without arguments, which this kernel has.
        let is_refused = unsafe { bpf_get_retval() } != 0;
        story.outcome = match (is_refused, story.outcome) {
            (true, outcome::REFUSED) | (false, outcome::LEFT_TO_EGRESS | outcome::PASSED) => {
                story.outcome
            }
            (true, _) => outcome::REFUSED_BY_OTHER,
            // The policy has become another since, or who sends has.
            (false, _) => outcome::PASSED,
        };
    }
    story::tell();
    Some(())
}

/// Whether something has left for this peer before.
#[inline(always)]
fn flow(tag: *mut Socket, key: &FlowKey) -> u8 {
    // SAFETY: a map value; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let is_its = unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0
        && is_same_peer(
            unsafe { &raw const (*tracked).flow.peer },
            &raw const key.peer,
        );
    let found = match is_its {
        true => Some(tracked),
        false => flows::find(key),
    };
    match found {
        None => known::NONE,
        Some(tracked) => story::age(tracked, 0),
    }
}
