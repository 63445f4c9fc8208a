//! TCP sockets that begin to listen, and TCP flows that end: after the last
//! packet, which may be long after the process closed the socket.
//!
//! `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`,
//! tp_btf, with socket storage 5.11 or later. Without it, `egress` notices
//! listeners and `sock_release` ends flows; what is sent after that is a flow of
//! its own.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::{SOCKET_HAS_PEER, SOCKET_LISTENS};

use crate::{
    accounting::{end_connection, forget_senders},
    maps::{SOCKETS, active},
    owner::acts,
};

const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    notice(&ctx);
    0
}

#[inline(always)]
fn notice(ctx: &BtfTracePointContext) -> Option<()> {
    let state = ctx.arg::<i32>(2);
    if state != TCP_CLOSE && state != TCP_LISTEN {
        return None;
    }
    active()?;
    let tag = SOCKETS.get(ctx.arg::<*mut u8>(0))?;
    // SAFETY: a map value; the verifier checks the access. So below.
    let flags = unsafe { (*tag).flags };
    if state == TCP_LISTEN {
        unsafe { (*tag).flags = (flags | SOCKET_LISTENS) & !SOCKET_HAS_PEER };
        forget_senders(unsafe { &raw mut (*tag).tracked });
        // Whoever has it listen accepts, whoever tried to send before. It is the caller who runs.
        acts(unsafe { &raw mut (*tag).tracked.owner });
    } else if flags & SOCKET_LISTENS != 0 {
        unsafe { (*tag).flags = flags & !SOCKET_LISTENS };
    } else if flags & SOCKET_HAS_PEER != 0 {
        end_connection(unsafe { &raw mut (*tag).tracked });
    }
    Some(())
}
