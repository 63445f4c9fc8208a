//! TCP sockets that begin to listen, and TCP flows that end: after the last
//! packet, which may be long after the process closed the socket. While it runs for one socket on a
//! processor, the kernel leaves it out for others that a timer ends there: `tcp_destroy_sock` ends these.
//!
//! `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`,
//! tp_btf, with socket storage 5.11 or later. Without it, `egress` notices
//! listeners and `sock_release` ends flows; what is sent after that is a flow of
//! its own.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::{SOCKET_HAS_PEER, SOCKET_LISTENS};

use crate::{
    accounting::{end_connection, forget_senders},
    globals::offset,
    kernel_memory::{Kernel, read},
    maps::{SOCKETS, active},
    owner::acts,
};

const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_MPTCP: u16 = 262;

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
    let socket = ctx.arg::<*mut u8>(0);
    // One of SCTP that listens sends where it likes.
    if state == TCP_LISTEN {
        let protocol = read::<u16>(socket as Kernel, offset!(sock_protocol))?;
        if !matches!(protocol, IPPROTO_TCP | IPPROTO_MPTCP) {
            return None;
        }
    }
    let tag = SOCKETS.get(socket)?;
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
