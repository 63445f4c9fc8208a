//! A process names the peer of one datagram: judged, and refused before it exists.
//!
//! `BPF_CGROUP_UDP4_SENDMSG` and `BPF_CGROUP_UDP6_SENDMSG`, 4.18, in process
//! context, for UDP without a connection. A connected socket comes here too when its
//! peer is an IPv4-mapped address. Everything else is judged by `egress`.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use super::sock_addr::{peer_v4, peer_v6};
use crate::naming::{PASS, Purpose, name};

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    name(&ctx, peer_v4(&ctx), Purpose::Datagram).unwrap_or(PASS)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    name(&ctx, peer_v6(&ctx), Purpose::Datagram).unwrap_or(PASS)
}
