//! Kind of a socket: TCP, raw, the kernel's own; and the tag of a packet's.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_sk_fullsock,
};
use trefoil_ebpf::abi::{SOCKET_OWN_NAMESPACE, Socket};

use crate::{
    globals::{namespace_inode, offset},
    kernel_memory::{Kernel, follow, read, read_or_zero},
    maps::SOCKETS,
    packet::protocol,
};

/// True for a TCP socket, and not for one that only sends packets of TCP.
#[inline(always)]
pub fn is_tcp(socket: *const bpf_sock) -> bool {
    const SOCK_STREAM: u32 = 1;
    // SAFETY: the verifier checks the access. So below.
    unsafe { (*socket).type_ == SOCK_STREAM && (*socket).protocol == u32::from(protocol::TCP) }
}

/// True for a raw socket, of whatever protocol.
#[inline(always)]
pub fn is_raw(socket: *const bpf_sock) -> bool {
    const SOCK_RAW: u32 = 3;
    unsafe { (*socket).type_ == SOCK_RAW }
}

/// True if the kernel has made the socket of a packet for itself, and no process has it. To be
/// asked of a whole socket.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn is_kernels(skb: *mut __sk_buff) -> bool {
    // Unknown, it is a process's.
    let Some(socket) = follow(skb as Kernel, offset!(sk_buff_sk)) else {
        return false;
    };
    match read::<u8>(socket, offset!(sock_kern_sock)) {
        Some(byte) => byte >> (offset!(sock_kern_sock_shift) & 7) & 1 != 0,
        None => false,
    }
}

/// True if a `struct sock` is of the agent's own network namespace.
#[inline(always)]
pub fn is_of_own_namespace(socket: Kernel) -> bool {
    let Some(network) = follow(socket, offset!(sock_net)) else {
        return false;
    };
    match read::<u32>(network, offset!(net_ns_inum)) {
        Some(inode) => inode == namespace_inode(),
        None => false,
    }
}

/// The `struct sock` of a packet; 0 if it cannot be read.
#[inline(always)]
pub fn socket_of_packet(skb: *mut __sk_buff) -> Kernel {
    read_or_zero(skb as Kernel, offset!(sk_buff_sk))
}

/// True if another user has made the socket of a packet than this one, who sends by it, and that was not
/// root: he may have chosen where it goes, or from where.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn is_made_by_another(skb: *mut __sk_buff, sender: u32) -> bool {
    let maker = read::<u32>(socket_of_packet(skb), offset!(sock_uid)).unwrap_or(u32::MAX);
    maker != 0 && maker != sender
}

/// Index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// The tag of a packet's socket; null if there is none.
#[inline(always)]
pub fn tag_of(skb: *mut __sk_buff) -> *mut Socket {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return ptr::null_mut();
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return ptr::null_mut();
    }
    SOCKETS.get(socket).unwrap_or(ptr::null_mut())
}

/// True for a packet of another network namespace: what it sends to an address of this host may
/// stay on it. If it leaves nevertheless, that is by an uplink, where it is judged anew.
#[inline(always)]
pub fn may_stay(skb: *mut __sk_buff) -> bool {
    let tag = tag_of(skb);
    // SAFETY: a map value; the verifier checks the access.
    !tag.is_null() && unsafe { (*tag).flags } & SOCKET_OWN_NAMESPACE == 0
}
