//! Packets that wait in a tunnel: whose they are, though they have lost their socket.
//!
//! WireGuard takes a packet from its socket while there is no session to send it by. What
//! comes out of the tunnel is the same `sk_buff`, with the hash of the flow that it belonged
//! to at the entrance: by both it is found again. The address alone would not do: that of a
//! packet which never left is soon another's.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_hash_recalc, bpf_sk_fullsock},
};
use trefoil_ebpf::abi::Owner;

use crate::maps::{SOCKETS, STAGED, STAGED_SCRATCH};

/// Names a packet as long as it exists.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StagedKey {
    /// Address of its `sk_buff`.
    packet: u64,
    /// Of its flow, with a secret of the kernel's.
    hash: u32,
    /// Zero.
    pad: u32,
}

/// Whose a packet is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Staged {
    /// Of its socket.
    pub cookie: u64,
    /// Who used the socket then.
    pub owner: Owner,
}

/// See [`STAGED_SCRATCH`].
#[repr(C)]
pub struct StagedScratch {
    key: StagedKey,
    staged: Staged,
}

/// Keeps whose a packet is that goes into a tunnel.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stage(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 0;
    }
    // In a listener's name the kernel answers.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return 0;
    }
    let Some(tag) = SOCKETS.get(socket) else {
        return 0;
    };
    // What WireGuard asks for next: it sends with the hash of what is inside.
    let hash = unsafe { bpf_get_hash_recalc(skb) };
    let Some(scratch) = STAGED_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        (*scratch).key = StagedKey {
            packet: skb as u64,
            hash,
            pad: 0,
        };
        (*scratch).staged.cookie = (*tag).tracked.flow.cookie;
        (*scratch).staged.owner = (*tag).tracked.owner;
        // Without room nobody is known, as if it had not passed here.
        let _ = STAGED.insert(&(*scratch).key, &(*scratch).staged, 0);
    }
    0
}

/// Whose a packet is that comes out of a tunnel without a socket; `None` if that is not
/// known, or if it is the tunnel's own.
#[inline(always)]
pub fn staged(skb: *mut __sk_buff) -> Option<*const Staged> {
    // SAFETY: a field of the context.
    let hash = unsafe { (*skb).hash };
    let scratch = STAGED_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*scratch).key = StagedKey {
            packet: skb as u64,
            hash,
            pad: 0,
        };
        STAGED.get_ptr(&(*scratch).key)
    }
}
