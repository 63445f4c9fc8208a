//! Packets that leave as another than was decided about: the kernel has still to write a checksum into
//! their headers, or somebody has made them longer.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    globals::offset,
    in_flight,
    kernel_memory::{Kernel, read, read_two},
    packet::{Bytes, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, is_extension, protocol},
};

/// Result of [`is_changed`]: a packet leaves as it is, as far as its headers are concerned.
pub const SAME: u32 = 0;
/// Likewise, but its decision was not about all of it.
pub const ANOTHER: u32 = 2;

/// Says whether whoever had a packet on its way to the uplink has changed what was decided about it.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_changed(skb: *mut __sk_buff, start: u32) -> u32 {
    match changes_headers(skb, start) {
        SAME if in_flight::is_longer(skb, start) => ANOTHER,
        changes => changes,
    }
}

/// `ip_summed` of a packet, see [`Kernel`].
#[inline(always)]
fn summed(packet: Kernel) -> u8 {
    let bits = read::<u8>(packet, offset!(sk_buff_ip_summed)).unwrap_or(0);
    bits >> (offset!(sk_buff_ip_summed_shift) & 7) & 3
}

/// True if the kernel itself cuts a packet of several segments, whatever its device can do: checksums are not
/// left to that, as of a socket whose route led to a device that writes none.
#[inline(always)]
pub fn is_cut_by_kernel(skb: *mut __sk_buff) -> bool {
    /// Of `ip_summed`: `CHECKSUM_UNNECESSARY` and `CHECKSUM_PARTIAL` have it.
    const IS_LEFT: u8 = 1;
    summed(skb as Kernel) & IS_LEFT == 0
}

/// Not 0 if the kernel is still to write a checksum into what a packet is judged by: whoever hands in
/// a whole frame says where, and what comes out.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn changes_headers(skb: *mut __sk_buff, start: u32) -> u32 {
    /// Of `ip_summed`: a checksum is missing.
    const CHECKSUM_PARTIAL: u8 = 3;
    let packet = skb as Kernel;
    if summed(packet) != CHECKSUM_PARTIAL {
        return 0;
    }
    let Some(at) = place_of_checksum(packet) else {
        return 1;
    };
    let Some(first) = skb.load::<[u8; 10]>(start) else {
        return 1;
    };
    let (headers, protocol) = match first[0] >> 4 {
        4 => (u32::from(first[0] & 0x0f) * 4, first[9]),
        6 if is_extension(first[6]) => match behind_extensions(skb, start, first[6]) {
            Some(last) => last,
            None => return 1,
        },
        _ => (40, first[6]),
    };
    // Of ICMP it comes after the type, of all others after the ports.
    let judged = match protocol {
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => 4,
    };
    u32::from(at < u64::from(start + headers + judged))
}

/// Bytes of a packet's headers before the last one, and the protocol of that. `None` behind headers that the
/// kernel does not make before a checksum: those have no such packets.
#[inline(always)]
fn behind_extensions(skb: *mut __sk_buff, start: u32, first: u8) -> Option<(u32, u8)> {
    /// Options before and behind a routing header, and that.
    const MOST: usize = 4;
    let (mut kind, mut at) = (first, 40);
    for _ in 0..MOST {
        if !is_extension(kind) {
            return Some((at, kind));
        }
        if !matches!(kind, HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING) {
            return None;
        }
        let [next, words] = skb.load::<[u8; 2]>(start + at)?;
        at += 8 + u32::from(words) * 8;
        kind = next;
    }
    (!is_extension(kind)).then_some((at, kind))
}

/// Where the kernel writes the missing checksum, from the beginning of the frame on.
#[inline(always)]
fn place_of_checksum(packet: Kernel) -> Option<u64> {
    let [head, data] = read_two::<u64>(packet, offset!(sk_buff_head), offset!(sk_buff_data))?;
    let places = (offset!(sk_buff_csum_start), offset!(sk_buff_csum_offset));
    let [from, behind] = read_two::<u16>(packet, places.0, places.1)?;
    // Before the frame is nowhere in it.
    (head + u64::from(from) + u64::from(behind)).checked_sub(data)
}
