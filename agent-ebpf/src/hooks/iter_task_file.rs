//! Sockets that are older than the agent: tagged with their holder, in the kernel, without
//! scanning /proc. Output is a sequence of [`WayOut`]: the sockets that may send past every
//! hook.
//!
//! Iterator `task_file`, 5.8, with `bpf_sock_from_file`, 5.11. Without it such
//! sockets are tagged at their next packet, with no process.

use aya_ebpf::{
    bindings::{file, socket},
    helpers::generated::bpf_sock_from_file,
};
use trefoil_ebpf::abi::{SOCKET_IS_OLDER, SOCKET_LISTENS, SOCKET_OWN_NAMESPACE, WayOut, unseen};

use crate::{
    device, family,
    globals::{self, offset},
    iterator::{self, Meta},
    kernel_memory::{Kernel, follow, read},
    maps::SOCKETS,
    owner::set_holder,
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: u16 = 17;
const AF_XDP: u16 = 44;
const TCP_LISTEN: u8 = 10;

/// `struct bpf_iter__task_file`
#[repr(C)]
pub struct Context {
    pub meta: *const Meta,
    pub task: Kernel,
    pub fd: u32,
    pad: u32,
    pub file: *mut file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn iter_task_file(ctx: *const Context) -> i32 {
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
        return write(ctx, task, device_of(file as Kernel)?);
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
    if family == AF_XDP {
        return write(ctx, task, unseen::XDP);
    }
    if family == AF_PACKET {
        write(ctx, task, unseen::QUEUE)?;
    }
    if let Some(way) = family::way_out(family) {
        return write(ctx, task, way);
    }
    let is_watched = matches!(family, AF_INET | AF_INET6 | AF_PACKET);
    if !is_watched || SOCKETS.get(sock).is_some() {
        return None;
    }
    let tag = SOCKETS.get_or_create(sock)?;
    unsafe {
        (*tag).flags = match state == TCP_LISTEN && family != AF_PACKET {
            true => SOCKET_LISTENS,
            false => SOCKET_IS_OLDER,
        };
        if namespace_of(sock as Kernel) == Some(globals::namespace_inode()) {
            (*tag).flags |= SOCKET_OWN_NAMESPACE;
        }
        set_holder(&raw mut (*tag).tracked.owner, task);
    }
    Some(())
}

/// Number of the network namespace that a socket belongs to.
#[inline(always)]
fn namespace_of(sock: Kernel) -> Option<u32> {
    let net = follow(sock, offset!(sock_net))?;
    read(net, offset!(net_ns_inum))
}

/// Which way out an open file is, if it is a device.
#[inline(always)]
fn device_of(file: Kernel) -> Option<u16> {
    const S_IFMT: u16 = 0o170_000;
    const S_IFCHR: u16 = 0o020_000;
    /// It is only named, and its driver knows nothing of that.
    const FMODE_PATH: u32 = 0x4000;
    let inode = follow(file, offset!(file_inode))?;
    if read::<u16>(inode, offset!(inode_mode))? & S_IFMT != S_IFCHR {
        return None;
    }
    let device = read::<u32>(inode, offset!(inode_rdev))?;
    let way = device::way_out(device >> 20, device & 0xf_ffff)?;
    let is_open = read::<u32>(file, offset!(file_mode))? & FMODE_PATH == 0;
    is_open.then_some(way)
}

/// Writes to whoever reads the iterator that a task has this open; `None` if there is no
/// room for it.
#[inline(always)]
fn write(ctx: *const Context, task: Kernel, way: u16) -> Option<()> {
    let mut open = WayOut {
        way,
        ..WayOut::default()
    };
    // SAFETY: the iterator's context; the verifier checks the access.
    let meta = unsafe {
        open.fd = (*ctx).fd;
        (*ctx).meta
    };
    set_holder(&raw mut open.owner, task);
    iterator::write(meta, &raw const open)
}
