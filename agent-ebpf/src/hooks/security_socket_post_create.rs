//! A process has opened a socket of a family that no hook judges, such as AF_VSOCK.
//!
//! `int security_socket_post_create(struct socket *sock, int family, int type, int protocol,
//! int kern)`, fentry, 5.5, x86-64, in process context. Without it such sockets are found by the
//! iterator over open files, with each heartbeat.

use aya_ebpf::{macros::fentry, programs::FEntryContext};

use crate::{accounting::announce_unseen, family::way_out, maps::active};

#[fentry(function = "security_socket_post_create")]
fn security_socket_post_create(ctx: FEntryContext) -> i32 {
    let (family, is_of_kernel) = (ctx.arg::<u32>(1), ctx.arg::<u32>(4));
    if is_of_kernel == 0
        && let Some(way) = way_out(family as u16)
        && active().is_some()
    {
        announce_unseen(way, false);
    }
    0
}
