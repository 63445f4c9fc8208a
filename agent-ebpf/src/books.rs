//! The books of an uplink: which of its sums a frame belongs to.

use aya_ebpf::bindings::__sk_buff;
use trefoil_ebpf::abi::*;

use crate::{
    atomic,
    checksum::is_cut_by_kernel,
    maps::{UPLINK_BOOKS, lose},
};

/// Interface and bytes of one frame, as the books count them.
#[derive(Clone, Copy)]
pub struct Size {
    pub interface: u32,
    pub bytes: u32,
    /// As they are on the wire, where each segment has headers of its own.
    pub wire_bytes: u32,
}

const UNJUDGED: u32 = sender::N as u32 * verdict::N as u32;
const DROPPED: u32 = UNJUDGED + unjudged::N as u32;
const N_TOTALS: u32 = DROPPED + verdict::N as u32;

/// Index of the sum that a judged frame belongs to.
#[inline(always)]
pub fn judged(sender: u8, verdict: u8) -> u32 {
    u32::from(sender) * u32::from(verdict::N) + u32::from(verdict)
}

/// Index of the sum of what was dropped at the uplink.
#[inline(always)]
pub fn dropped(verdict: u8) -> u32 {
    DROPPED + u32::from(verdict)
}

/// Index of the sum that a frame belongs to which is no IP.
#[inline(always)]
pub fn not_ip(ethertype: u16) -> u32 {
    const ARP: u16 = 0x0806;
    const LLDP: u16 = 0x88cc;
    let kind = match ethertype {
        ARP => unjudged::ARP,
        LLDP => unjudged::LLDP,
        _ => unjudged::OTHER,
    };
    UNJUDGED + u32::from(kind)
}

/// Bytes of a frame, as it came here.
#[inline(always)]
pub fn length(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a field of the context; the verifier checks the access.
    unsafe { (*skb).len }
}

/// Counts a frame in the books of its interface.
#[inline(always)]
pub fn book(skb: *mut __sk_buff, index: u32) {
    // SAFETY: fields of the context; the verifier checks the access.
    let (interface, wire_bytes) = unsafe { ((*skb).ifindex, (*skb).wire_len) };
    let bytes = match length(skb) {
        bytes if wire_bytes > bytes => bytes_at_link(skb, wire_bytes),
        bytes => bytes,
    };
    let size = Size {
        interface,
        bytes,
        wire_bytes,
    };
    count(size, index);
}

/// Bytes of a frame of several segments as its interface gets it: all of theirs, where the kernel itself cuts it.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bytes_at_link(skb: *mut __sk_buff, wire_bytes: u32) -> u32 {
    match is_cut_by_kernel(skb) {
        true => wire_bytes,
        false => length(skb),
    }
}

/// Adds a frame to one of the sums of its interface.
#[inline(always)]
pub fn count(size: Size, index: u32) {
    count_frame(size.interface, size.bytes, size.wire_bytes, index);
}

/// Adds to one of the sums of an interface, which follow each other in [`UplinkBooks`].
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_frame(interface: u32, bytes: u32, wire_bytes: u32, index: u32) -> u32 {
    let Some(books) = UPLINK_BOOKS.get_ptr_mut(&interface) else {
        lose(LOSS_UPLINKS_UNKNOWN, 1);
        return 0;
    };
    if index >= N_TOTALS {
        return 0;
    }
    // SAFETY: within the value, as has just been seen.
    let totals = unsafe { books.cast::<UplinkTotals>().add(index as usize) };
    unsafe {
        atomic::add(&raw mut (*totals).bytes, u64::from(bytes));
        atomic::add(&raw mut (*totals).wire_bytes, u64::from(wire_bytes));
        atomic::add(&raw mut (*totals).frames, 1);
    }
    0
}
