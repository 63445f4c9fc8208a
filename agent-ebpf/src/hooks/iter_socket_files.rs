//! In the place of [`super::iter_sockets`] where the kernel refuses that: the tag of every open
//! socket.
//!
//! Iterator `task_file`, 5.8, with `bpf_sock_from_file`, 5.11. Its output is a sequence of
//! `Tracked`; a socket that several processes hold is in it several times, and one that none
//! holds any more, whose last data the kernel still sends, is not.

use aya_ebpf::{bindings::socket, helpers::generated::bpf_sock_from_file};

use super::iter_task_file::Context;
use crate::{globals::offset, iterator::write, maps::SOCKETS};

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn iter_socket_files(ctx: *const Context) -> i32 {
    look(ctx);
    0
}

#[inline(always)]
fn look(ctx: *const Context) -> Option<()> {
    // SAFETY: the iterator's context; the verifier checks the access. So below.
    let (task, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task == 0 || file.is_null() {
        return None;
    }
    let socket: *mut socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return None;
    }
    // A load through a pointer that the verifier knows the type of.
    let sock: *mut u8 = unsafe {
        socket
            .cast::<u8>()
            .add(offset!(socket_sk))
            .cast::<*mut u8>()
            .read()
    };
    if sock.is_null() {
        return None;
    }
    let tag = SOCKETS.get(sock)?;
    write(unsafe { (*ctx).meta }, unsafe { &raw const (*tag).tracked })
}
