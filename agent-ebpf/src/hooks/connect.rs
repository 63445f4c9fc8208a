//! A process names the one peer of a socket: judged, and refused before a packet
//! exists.
//!
//! `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`, 4.17, in process
//! context: TCP, connected UDP and (6.1) ping sockets. What has no such hook, or
//! sends with the connection request (TCP Fast Open), is judged by `egress`.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use trefoil_ebpf::abi::*;

use super::sock_addr::{PASS, REFUSE, peer_v4, peer_v6};
use crate::{
    accounting::{NOT_JUDGED, begin, end, refuse},
    judge::judge,
    maps::{SOCKETS, in_force},
    owner::set_current,
    source::Source,
    subflow::inherit,
    translation::may_translate,
};

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, peer_v4(&ctx)).unwrap_or(PASS)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, peer_v6(&ctx)).unwrap_or(PASS)
}

/// `None`: another instance judges, or there is no memory for a tag, and then
/// `egress` judges every packet by itself.
#[inline(always)]
fn connect(ctx: &SockAddrContext, peer: Peer) -> Option<i32> {
    // By which interface it goes is not known yet.
    let in_force = in_force()?.may_stay();
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let tag = SOCKETS.get_or_create(socket)?;
    let tracked = unsafe { &raw mut (*tag).tracked };
    // A connected UDP socket may be connected again, by somebody else.
    if unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0 {
        end(tracked);
        unsafe { (*tag).flags &= !SOCKET_HAS_PEER };
    }
    let owner = unsafe { &raw mut (*tracked).owner };
    set_current(owner);
    if unsafe { (*owner).pid } == 0 {
        inherit(tag, socket);
    }
    let decision = judge(in_force, &Source::of(owner), &peer, 0);
    let is_translated = decision.blocks() && may_translate(&peer.address);
    if decision.blocks() && !is_translated {
        refuse(owner, cookie, &peer, decision);
        return Some(REFUSE);
    }
    // Local is only what goes by the loopback interface, and that is known when it goes.
    let kept = match decision.verdict {
        verdict::LOCAL => NOT_JUDGED,
        // Where it goes to is judged when it goes.
        _ if is_translated => NOT_JUDGED,
        _ => decision,
    };
    begin(tracked, cookie, &peer, direction::OUTBOUND, kept);
    unsafe { (*tag).flags |= SOCKET_HAS_PEER };
    Some(PASS)
}
