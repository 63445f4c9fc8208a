//! A process opens a socket: the socket is tagged with its owner.
//!
//! `BPF_CGROUP_INET_SOCK_CREATE`, 4.10 (with socket storage 5.6), in process
//! context, for IPv4 and IPv6 sockets that are not the kernel's own. A socket
//! without a tag gets one at its first packet, with less known about it.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock,
    programs::SockContext,
};
use trefoil_ebpf::abi::SOCKET_OWN_NAMESPACE;

use crate::{globals, maps::SOCKETS, owner::set_current};

/// Every path lets the socket be made.
const PASS: i32 = 1;

#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    tag(&ctx);
    PASS
}

#[inline(always)]
fn tag(ctx: &SockContext) -> Option<()> {
    let tag = SOCKETS.get_or_create(ctx.sock)?;
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*tag).tracked.flow.cookie = bpf_get_socket_cookie(ctx.as_ptr());
        // The helper is there since 5.7.
        if bpf_get_netns_cookie(ctx.as_ptr()) == globals::namespace() {
            (*tag).flags |= SOCKET_OWN_NAMESPACE;
        }
        set_current(&raw mut (*tag).tracked.owner);
    }
    Some(())
}
