//! TCP sockets that are gone: flows that have not ended by then, end.
//!
//! `void tcp_destroy_sock(struct sock *sk)`, tp_btf, with socket storage 5.11 or later. The kernel runs no program
//! of a tracepoint within itself on one processor, and a user can have `inet_sock_set_state` run there while a timer
//! ends connections. Here interrupts that send and receive are off, so that nothing comes in between.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::{FLOW_ENDED, SOCKET_HAS_PEER, SOCKET_LISTENS};

use crate::{
    accounting::end_connection,
    maps::{SOCKETS, active},
};

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    notice(&ctx);
    0
}

#[inline(always)]
fn notice(ctx: &BtfTracePointContext) -> Option<()> {
    active()?;
    let tag = SOCKETS.get(ctx.arg::<*mut u8>(0))?;
    // SAFETY: map values; the verifier checks the access. So below.
    let (flags, state) = unsafe { ((*tag).flags, (*tag).tracked.flow.state) };
    if flags & (SOCKET_HAS_PEER | SOCKET_LISTENS) == SOCKET_HAS_PEER && state & FLOW_ENDED == 0 {
        end_connection(unsafe { &raw mut (*tag).tracked });
    }
    Some(())
}
