//! A process asks for a way out that no hook judges: a packet socket that skips traffic
//! control, or a ring to send by of an AF_XDP socket.
//!
//! `BPF_CGROUP_SETSOCKOPT`, 5.3, in process context. Where uplinks are watched, a packet
//! socket goes on to send through traffic control, also in report mode: the call succeeds and
//! has no effect. Its frames are the same, and could not be seen otherwise. There is no such
//! other way for AF_XDP, which is refused in enforce mode.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::announce_unseen,
    globals::uplinks_watched,
    maps::{InForce, SOCKETS, in_force, in_place},
    owner::set_acting,
};

const PASS: i32 = 1;
/// The call fails with EPERM.
const REFUSE: i32 = 0;

const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;
const XDP_TX_RING: i32 = 3;

/// As [`bpf_sockopt::optlen`]: the kernel does nothing more about this call.
const DONE: i32 = -1;
/// As above: the kernel takes the value from the caller.
const AS_CALLED: i32 = 0;
/// Most bytes of a value that a program is shown. The kernel refuses a call with a longer value
/// unless it is told where to take the value from.
const SHOWN_BYTES: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
fn setsockopt(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    // SAFETY: fields of the context; the verifier checks the access.
    let (level, name, len) = unsafe { ((*option).level, (*option).optname, (*option).optlen) };
    match (level, name) {
        (SOL_PACKET, PACKET_QDISC_BYPASS) => skip_queue(option),
        (SOL_XDP, XDP_TX_RING) => send_by_xdp(in_force()),
        _ => {
            if len > SHOWN_BYTES {
                unsafe { (*option).optlen = AS_CALLED };
            }
            PASS
        }
    }
}

#[inline(always)]
fn skip_queue(option: *mut bpf_sockopt) -> i32 {
    // Without a number the kernel will say what is wrong.
    if in_place().is_none() || number(option).is_none_or(|number| number == 0) {
        return PASS;
    }
    // Traffic control sees none of its frames either if nobody watches there.
    let is_kept = uplinks_watched();
    announce_unseen(unseen::QUEUE, is_kept);
    if is_kept {
        tag(option);
        // SAFETY: a field of the context that programs may write.
        unsafe { (*option).optlen = DONE };
    }
    PASS
}

#[inline(always)]
fn send_by_xdp(in_force: Option<InForce>) -> i32 {
    let Some(in_force) = in_force else {
        return PASS;
    };
    let is_enforced = in_force.flags & DECISION_ENFORCED != 0;
    announce_unseen(unseen::XDP, is_enforced);
    if is_enforced { REFUSE } else { PASS }
}

/// The value, if it is one number.
#[inline(always)]
fn number(option: *mut bpf_sockopt) -> Option<i32> {
    // SAFETY: fields of the context; the verifier checks that the value ends there.
    unsafe {
        let value = (*option).__bindgen_anon_2.optval.cast::<i32>();
        let end = (*option).__bindgen_anon_3.optval_end.cast::<i32>();
        if value.add(1) > end {
            return None;
        }
        Some(*value)
    }
}

/// Tags the socket with whose it is.
#[inline(always)]
fn tag(option: *mut bpf_sockopt) {
    // SAFETY: a field of the context; the verifier checks the access. So below.
    let socket = unsafe { (*option).__bindgen_anon_1.sk };
    if let Some(tag) = SOCKETS.get_or_create(socket) {
        unsafe { set_acting(&raw mut (*tag).tracked.owner) };
    }
}
