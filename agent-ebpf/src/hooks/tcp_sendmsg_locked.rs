//! The sender that is about to send by TCP, where `security_socket_sendmsg` cannot be watched: a process that has changed its user, group, control group or
//! executable since it sent last is known before its first byte.
//!
//! `void tcp_sendmsg_locked(const struct sock *sk, const struct msghdr *msg, const struct sk_buff
//! *skb, int size_goal)`, tp_btf, 6.16. It runs in the sender's context before data is copied,
//! also for what is spliced. Without it, `egress` knows who has called exec, and the rest is
//! known once the first call has sent.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    maps::{SOCKETS, active},
    sender::{Call, begins, sends},
};

#[btf_tracepoint(function = "tcp_sendmsg_locked")]
fn tcp_sendmsg_locked(ctx: BtfTracePointContext) -> i32 {
    notice(&ctx);
    0
}

#[inline(always)]
fn notice(ctx: &BtfTracePointContext) -> Option<()> {
    active()?;
    let socket = ctx.arg::<*mut u8>(0);
    let tag = SOCKETS.get(socket)?;
    begins(tag);
    sends(tag, Call::by(socket));
    Some(())
}
