//! A frame that is handed to an interface's driver past traffic control: counted and judged,
//! and never kept from leaving.
//!
//! `int __dev_direct_xmit(struct sk_buff *skb, u16 queue_id)`, fentry, 5.12
//! (`bpf_get_socket_cookie` for such programs), x86-64. By it leave frames of AF_XDP that the
//! kernel copies, and those of packet sockets that skip the queue; it runs in the context of
//! whoever sends. Without it they are what the interface's own counter has more than the
//! books, as are those that a driver takes from the process's memory itself.

use core::ptr;

use aya_ebpf::{
    helpers::generated::bpf_get_socket_cookie, macros::fentry, programs::FEntryContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    books::{Size, count, judged, not_ip},
    flows::set_sender,
    frame::{Frame, frame},
    globals::{namespace_inode, offset},
    judge::{judge, undetermined},
    kernel_memory::{Kernel, follow, read},
    maps::{DIRECT, DirectFrame, InForce, SOCKETS, UPLINKS, active, lose},
    owner::set_nobody,
    packet::{Piece, Route, ends_at},
    sender::{Call, sends},
    settle::{decide, decide_as, record},
    source::Source,
    uplink_flows::{Who, slot, tell},
    words::{copy, set_bit},
};

#[fentry(function = "__dev_direct_xmit")]
fn __dev_direct_xmit(ctx: FEntryContext) -> i32 {
    watch(ctx.arg::<*mut u8>(0));
    0
}

#[inline(always)]
fn watch(skb: *mut u8) -> Option<()> {
    let generation = active()?.generation;
    let buffer = skb as Kernel;
    let device = follow(buffer, offset!(sk_buff_dev))?;
    let interface = read::<u32>(device, offset!(net_device_ifindex))?;
    // SAFETY: an entry is removed only when its interface is gone.
    let uplink = unsafe { UPLINKS.get(&interface) }.filter(|uplink| !uplink.is_tunnel())?;
    // Another namespace has other interfaces of the same number.
    let namespace = follow(device, offset!(net_device_nd_net))?;
    if read::<u32>(namespace, offset!(net_ns_inum))? != namespace_inode() {
        return None;
    }
    let bytes = read::<u32>(buffer, offset!(sk_buff_len))?;
    let size = Size {
        interface,
        bytes,
        wire_bytes: bytes,
    };
    // Bytes beyond the linear part are in pages that have no address here.
    let data = follow(buffer, offset!(sk_buff_data))?;
    let len = bytes.saturating_sub(read::<u32>(buffer, offset!(sk_buff_data_len))?);
    let start = ip_start(data, len, uplink.header_bytes);
    if start & NOT_IP != 0 && len >= uplink.header_bytes {
        count(size, not_ip(start as u16));
    } else if read_ends(data, len, start) != 0 {
        let direct = DIRECT.get_ptr_mut(0)?;
        set_owner(direct, tag(skb));
        let verdict = judge_direct(generation, bytes, start);
        count(size, judged(sender::PACKET, verdict as u8));
    } else {
        lose(LOSS_PACKETS_UNPARSED, 1);
        count(size, judged(sender::PACKET, verdict::UNDETERMINED));
    }
    Some(())
}

/// Set in the result of [`ip_start`].
const NOT_IP: u32 = 1 << 16;

/// Where the IP header of a frame is, or [`NOT_IP`] and its ethertype.
///
/// This and the functions below that take numbers alone are global functions to the kernel:
/// what one has found is one number to the other, or is in [`DIRECT`], and not one for each
/// frame that there could be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ip_start(data: u64, len: u32, header_bytes: u32) -> u32 {
    match frame(&Piece { start: data, len }, header_bytes) {
        Frame::Ip(start) => start,
        Frame::Other(ethertype) => NOT_IP | u32::from(ethertype),
    }
}

/// Reads the ends of a packet whose IP header is at `start`; 0 if that cannot be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_ends(data: u64, len: u32, start: u32) -> u32 {
    let Some(direct) = DIRECT.get_ptr_mut(0) else {
        return 0;
    };
    match ends_at(&Piece { start: data, len }, start) {
        Some(ends) => {
            // SAFETY: a map value; the verifier checks the access.
            unsafe { (*direct).ends = ends };
            1
        }
        None => 0,
    }
}

/// The tag of the socket that sends, with the running process as its owner; null if there is
/// no memory for one. No other hook sees such a socket when it is opened.
#[inline(always)]
fn tag(skb: *mut u8) -> *mut Socket {
    const NONE: *mut Socket = ptr::null_mut();
    // SAFETY: a load through a pointer that the verifier knows the type of.
    let socket: *mut u8 = unsafe { skb.add(offset!(sk_buff_sk)).cast::<*mut u8>().read() };
    if socket.is_null() {
        return NONE;
    }
    let Some(tag) = SOCKETS.get_or_create(socket) else {
        return NONE;
    };
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        set_bit(&raw mut (*tag).flags, SOCKET_OF_FRAMES);
        set_bit(&raw mut (*tag).flags, SOCKET_HAS_FLOWS);
        (*tag).tracked.flow.cookie = bpf_get_socket_cookie(socket.cast());
    }
    sends(tag, Call::ANY);
    tag
}

/// Notes whose a frame is.
#[inline(always)]
fn set_owner(direct: *mut DirectFrame, tag: *const Socket) {
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        if tag.is_null() {
            (*direct).cookie = 0;
            set_nobody(&raw mut (*direct).owner);
        } else {
            (*direct).cookie = (*tag).tracked.flow.cookie;
            copy(&raw const (*tag).tracked.owner, &raw mut (*direct).owner);
        }
    }
}

/// Judges the packet whose ends and owner are noted, of `bytes` with its link header, counts it
/// in its flow, and returns the verdict.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_direct(generation: u32, bytes: u32, start: u32) -> u32 {
    const NOBODY: *mut Socket = ptr::null_mut();
    let in_force = InForce {
        generation,
        // Nothing is blocked here, whatever the policy says.
        flags: 0,
    };
    let Some(direct) = DIRECT.get_ptr_mut(0) else {
        return verdict::UNDETERMINED.into();
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (ends, owner) = unsafe { (&(*direct).ends, &raw const (*direct).owner) };
    let is_known = unsafe { (*owner).pid } != 0;
    let who = Who {
        cookie: unsafe { (*direct).cookie },
        sender: sender::PACKET,
        came_in_by: 0,
        quality: match is_known {
            true => quality::DIRECT,
            false => quality::NONE,
        },
    };
    let ip_bytes = bytes.saturating_sub(start);
    let tracked = slot(generation, NOBODY, &who, ends);
    if tracked.is_null() {
        let near = ends.near(direction::UNKNOWN);
        let decision = judge(in_force, &Source::of(owner), near, &ends.destination, bytes);
        if decision.verdict != verdict::LOCAL {
            tell(NOBODY, owner, &who, ends, decision, ip_bytes);
        }
        return decision.verdict.into();
    }
    if is_known {
        set_sender(tracked, owner, who.quality);
    }
    let decision = match ends.route {
        Route::Direct => decide(in_force, tracked, ends, bytes),
        // Which other addresses it lists cannot be judged here.
        _ => {
            let unknown = undetermined(in_force);
            decide_as(tracked, ends, unknown);
            unknown
        }
    };
    record(tracked, &decision, u64::from(ip_bytes), false);
    decision.verdict.into()
}
