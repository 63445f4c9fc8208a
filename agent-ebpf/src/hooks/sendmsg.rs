//! A process names the peer of one datagram: judged, and refused before it exists.
//!
//! `BPF_CGROUP_UDP4_SENDMSG` and `BPF_CGROUP_UDP6_SENDMSG`, 4.18, in process
//! context, for UDP without a connection. Everything else is judged by `egress`.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use trefoil_ebpf::abi::*;

use super::sock_addr::{PASS, REFUSE, peer_v4, peer_v6};
use crate::{
    accounting::refuse,
    flows,
    judge::judge,
    maps::{SOCKETS, in_force},
    source::Source,
    translation::may_translate,
};

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, peer_v4(&ctx)).unwrap_or(PASS)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, peer_v6(&ctx)).unwrap_or(PASS)
}

/// `None` as in `connect`.
#[inline(always)]
fn send(ctx: &SockAddrContext, peer: Peer) -> Option<i32> {
    // By which interface it goes is not known yet.
    let in_force = in_force()?.may_stay();
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let tag = SOCKETS.get_or_create(socket)?;
    // A connected socket comes here too when its peer is an IPv4-mapped address;
    // its flow is in the tag, and judged by `egress`.
    if unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0 && unsafe { (*tag).tracked.flow.peer == peer }
    {
        return Some(PASS);
    }
    flows::set_running(tag);
    let owner = unsafe { &raw mut (*tag).tracked.owner };
    let key = FlowKey { cookie, peer };
    let known = flows::find_for_sender(&key, owner);
    let decision = match known {
        Some(tracked)
            if in_force.made(unsafe { &(*tracked).flow.decision })
                && unsafe { (*tracked).flow.state } & FLOW_SHARED == 0 =>
        unsafe { (*tracked).flow.decision },
        _ => judge(in_force, &Source::of(owner), &peer, 0),
    };
    if unsafe { (*tag).flags } & SOCKET_HAS_PEER == 0 {
        // For `egress`, which sees where it goes.
        unsafe {
            (*tag).tracked.flow.cookie = cookie;
            (*tag).tracked.flow.named = peer.address;
            (*tag).tracked.flow.named_port = peer.port;
        }
    }
    if decision.blocks() && may_translate(&peer.address) {
        return Some(PASS);
    }
    if decision.blocks() {
        refuse(owner, cookie, &peer, decision);
        return Some(REFUSE);
    }
    // What stays on the host is not a flow.
    if decision.verdict == verdict::LOCAL {
        return Some(PASS);
    }
    if known.is_none() {
        flows::create(&key, owner, decision);
    }
    unsafe { (*tag).flags |= SOCKET_HAS_FLOWS };
    Some(PASS)
}
