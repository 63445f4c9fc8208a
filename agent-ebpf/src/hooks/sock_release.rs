//! The last file descriptor of a socket is closed: flows end, except those of
//! TCP, which goes on sending.
//!
//! `BPF_CGROUP_INET_SOCK_RELEASE`, 5.9, in process context. Without it, flows end
//! when the agent finds their socket gone.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use trefoil_ebpf::abi::{SOCKET_HAS_FLOWS, SOCKET_HAS_PEER};

use crate::{
    accounting::{announce_socket_gone, end, end_connection},
    globals::tcp_state_seen,
    maps::{SOCKETS, in_place},
    remembered::remember_ended,
    socket::is_tcp,
};

/// Every path lets the socket go.
const PASS: i32 = 1;

#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    release(&ctx);
    PASS
}

#[inline(always)]
fn release(ctx: &SockContext) -> Option<()> {
    in_place()?;
    let tag = SOCKETS.get(ctx.sock)?;
    // SAFETY: fields of the context and a map value; the verifier checks the
    // access. So below.
    let flags = unsafe { (*tag).flags };
    let tracked = unsafe { &raw mut (*tag).tracked };
    if flags & SOCKET_HAS_PEER != 0 {
        match is_tcp(ctx.sock) {
            // It ends later, in the kernel's hands: by then that must not be news.
            true if tcp_state_seen() => {
                remember_ended(unsafe { &raw const (*tracked).flow });
            }
            true => end_connection(tracked),
            false => end(tracked),
        }
    }
    if flags & SOCKET_HAS_FLOWS != 0 {
        announce_socket_gone(tracked);
    }
    Some(())
}
