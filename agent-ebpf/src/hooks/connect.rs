//! A process names the one peer of a socket: judged, and refused before a packet
//! exists.
//!
//! `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`, 4.17, in process
//! context: TCP, connected UDP and (6.1) ping sockets. A socket that has no such
//! hook, or sends with the connection request (TCP Fast Open), is judged by
//! `egress`.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use super::sock_addr::{peer_v4, peer_v6};
use crate::naming::{PASS, Purpose, name};

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    name(&ctx, peer_v4(&ctx), Purpose::Connection).unwrap_or(PASS)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    name(&ctx, peer_v6(&ctx), Purpose::Connection).unwrap_or(PASS)
}
