//! The real sender once it has sent, where `security_socket_sendmsg` cannot be watched or does not see all.
//!
//! `void sock_send_length(struct sock *sk, int ret, int flags)`, tp_btf, 6.3. It
//! runs after the data was sent, in the sender's context.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::SOCKET_OF_FRAMES;

use crate::{
    maps::{SOCKETS, active},
    sender::{Call, sends},
};

#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    notice(&ctx);
    0
}

#[inline(always)]
fn notice(ctx: &BtfTracePointContext) -> Option<()> {
    active()?;
    let socket = ctx.arg::<*mut u8>(0);
    let tag = SOCKETS.get(socket)?;
    const EPERM: i32 = 1;
    let sent = ctx.arg::<i32>(1);
    // A frame that was dropped at the uplink is somebody's as well, and so is a packet that was
    // dropped here, as another's: the next is judged as whose it is.
    // SAFETY: a map value; the verifier checks the access.
    if sent < 0 && sent != -EPERM && unsafe { (*tag).flags } & SOCKET_OF_FRAMES == 0 {
        return None; // Nothing was sent.
    }
    sends(tag, Call::by(socket).sent());
    Some(())
}
