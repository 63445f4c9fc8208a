//! The real sender: a socket may be used by another process than the one that opened it
//! (accepted and handed on, inherited, passed over a UNIX socket), and the process may have
//! changed its user, group, control group or executable.
//!
//! `int security_socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`, fentry,
//! 5.11 (`bpf_sk_storage_get` for such programs), x86-64. It runs before the data is sent, in
//! the sender's context; for what is spliced since 6.5, and from there on nothing else is needed.
//! Without it, `sock_send_length` and `tcp_sendmsg_locked` say what they can.

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use trefoil_ebpf::abi::SOCKET_OF_FRAMES;

use crate::{
    globals::offset,
    maps::{SOCKETS, active},
    sender::{Call, begins, sends},
};

const AF_PACKET: u16 = 17;
const TCP_LISTEN: u8 = 10;

#[fentry(function = "security_socket_sendmsg")]
fn security_socket_sendmsg(ctx: FEntryContext) -> i32 {
    notice(&ctx);
    0
}

#[inline(always)]
fn notice(ctx: &FEntryContext) -> Option<()> {
    active()?;
    let socket = ctx.arg::<*mut u8>(0);
    // SAFETY: loads through pointers that the verifier knows the type of.
    let sock: *mut u8 = unsafe { socket.add(offset!(socket_sk)).cast::<*mut u8>().read() };
    if sock.is_null() {
        return None;
    }
    // SAFETY: as above.
    let (family, state) = unsafe {
        (
            sock.add(offset!(sock_family)).cast::<u16>().read(),
            sock.add(offset!(sock_state)).read(),
        )
    };
    if let Some(tag) = SOCKETS.get(sock) {
        let call = Call::by(sock);
        if call.is_by_stream() {
            if state == TCP_LISTEN {
                return None; // Nobody can send on it.
            }
            begins(tag);
        }
        sends(tag, call);
        return Some(());
    }
    if family != AF_PACKET {
        return None;
    }
    // No other hook sees it before its first frame is on its way.
    let tag = SOCKETS.get_or_create(sock)?;
    // SAFETY: a map value; the verifier checks the access.
    unsafe { (*tag).flags = SOCKET_OF_FRAMES };
    sends(tag, Call::ANY);
    Some(())
}
