//! Sockets that are older than the agent: tagged with their holder, in the
//! kernel, without scanning /proc.
//!
//! Iterator `task_file`, 5.8, with `bpf_sock_from_file`, 5.11. Without it such
//! sockets are tagged at their next packet, with no process.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{file, socket},
    helpers::generated::bpf_sock_from_file,
};
use trefoil_ebpf::abi::SOCKET_LISTENS;

use crate::{globals::offset, kernel_memory::Kernel, maps::SOCKETS, owner::set_holder};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: u16 = 17;
const TCP_LISTEN: u8 = 10;

/// `struct bpf_iter__task_file`
#[repr(C)]
struct Context {
    meta: *const c_void,
    task: Kernel,
    fd: u32,
    pad: u32,
    file: *mut file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn iter_task_file(ctx: *const Context) -> i32 {
    tag(ctx);
    0
}

#[inline(always)]
fn tag(ctx: *const Context) -> Option<()> {
    // SAFETY: the iterator's context; the verifier checks the access. So below.
    let (task, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task == 0 || file.is_null() {
        return None;
    }
    let socket: *mut socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return None;
    }
    // Loads through pointers that the verifier knows the type of.
    let (sock, family, state) = unsafe {
        let sock: *mut u8 = socket
            .cast::<u8>()
            .add(offset!(socket_sk))
            .cast::<*mut u8>()
            .read();
        if sock.is_null() {
            return None;
        }
        (
            sock,
            sock.add(offset!(sock_family)).cast::<u16>().read(),
            sock.add(offset!(sock_state)).read(),
        )
    };
    let is_watched = matches!(family, AF_INET | AF_INET6 | AF_PACKET);
    if !is_watched || SOCKETS.get(sock).is_some() {
        return None;
    }
    let tag = SOCKETS.get_or_create(sock)?;
    unsafe {
        if state == TCP_LISTEN && family != AF_PACKET {
            (*tag).flags = SOCKET_LISTENS;
        }
        set_holder(&raw mut (*tag).tracked.owner, task);
    }
    Some(())
}
