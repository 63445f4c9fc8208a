//! Every socket's tag: the cumulative state of the flow that it holds, whether or not anything
//! happens on it, which sockets with flows in `FLOWS` there still are, and which executables and
//! control groups tags refer to. For the agent's sweep and for `trefoil flows`.
//!
//! Iterator `bpf_sk_storage_map`, 5.9, over `SOCKETS`. Its output is a sequence
//! of `Tracked`. Without it a silent flow's last numbers come with its end.

use core::ffi::c_void;

use trefoil_ebpf::abi::Socket;

use crate::iterator::{Meta, write};

/// `struct bpf_iter__bpf_sk_storage_map`
#[repr(C)]
struct Context {
    meta: *const Meta,
    map: *const c_void,
    sk: *const c_void,
    value: *const Socket,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
extern "C" fn iter_sockets(ctx: *const Context) -> i32 {
    // SAFETY: the iterator's context; the verifier checks the access. So below.
    let (meta, socket) = unsafe { ((*ctx).meta, (*ctx).value) };
    if !socket.is_null() {
        write(meta, unsafe { &raw const (*socket).tracked });
    }
    0
}
