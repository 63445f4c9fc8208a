//! Packets that the kernel sends by itself: what ends connections, keeps links and sessions.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    judge::{is_local, is_own},
    packet::{Bytes, Ends, HOP_BY_HOP, protocol},
    socket::{is_of_own_namespace, socket_of_packet},
};

const RST: u8 = 4;

/// True for a packet of TCP that acknowledges and carries no data. One with IPv6 extension headers
/// is none: the kernel answers without them. Nor is a reset, whose numbers are those of the packet
/// that it answers.
#[inline(always)]
pub fn is_bare_acknowledgement(skb: *mut __sk_buff, start: u32) -> bool {
    // SAFETY: a field of the context. Short frames are padded later.
    let bytes = unsafe { (*skb).len };
    tcp_header(skb, start).is_some_and(|(flags, len)| flags & RST == 0 && start + len == bytes)
}

/// True for a packet with which the kernel keeps the link: neighbour discovery of IPv6, and reports
/// of groups, which no router forwards. Asked only of what no process sends.
#[inline(never)]
pub fn keeps_link(generation: u32, skb: *mut __sk_buff, start: u32, ends: &Ends) -> bool {
    const IGMP: u8 = 2;
    /// Router solicitation, neighbour solicitation and advertisement: what the kernel sends.
    const NEIGHBOUR_DISCOVERY: [u8; 3] = [133, 135, 136];
    /// Query, report and done of MLD, and the report of its second version.
    const REPORTS: [u8; 4] = [130, 131, 132, 143];
    /// The kernel says no more than that to a neighbour.
    const LONGEST: u32 = 128;
    let Some(first) = skb.load::<u8>(start) else {
        return false;
    };
    if skb.bytes().saturating_sub(start) > LONGEST {
        return false;
    }
    if first >> 4 == 4 {
        if !is_multicast(ends) {
            return false;
        }
        let header = skb.load::<[u8; 2]>(start + 8);
        return header == Some([1, IGMP]);
    }
    let Some([next, hop_limit]) = skb.load::<[u8; 2]>(start + 6) else {
        return false;
    };
    // Reports have an option for routers, in a header of eight bytes.
    let at = match next {
        HOP_BY_HOP => 48,
        protocol::ICMPV6 => 40,
        _ => return false,
    };
    if next == HOP_BY_HOP && skb.load::<[u8; 2]>(start + 40) != Some([protocol::ICMPV6, 0]) {
        return false;
    }
    match skb.load::<u8>(start + at) {
        // A router forwards it as any other, to whom it is no such thing. The kernel sends it by a
        // socket of its own, and a copy of somebody's has none.
        // SAFETY: a field of the context.
        Some(kind) if NEIGHBOUR_DISCOVERY.contains(&kind) => {
            hop_limit == 255
                && !unsafe { (*skb).__bindgen_anon_2.sk }.is_null()
                && is_of_neighbours(generation, skb, ends)
        }
        Some(kind) if REPORTS.contains(&kind) => hop_limit == 1 && is_multicast(ends),
        _ => false,
    }
}

/// True if a packet goes to a group.
#[inline(always)]
fn is_multicast(ends: &Ends) -> bool {
    let first = match ends.destination.address.as_v4() {
        Some(v4) => return v4 >> 28 == 0xe,
        None => ends.destination.address.halves().0 >> 56,
    };
    first == 0xff
}

/// True if neighbour discovery goes to a neighbour: to the link's scope, or from an address of this
/// host's to one of the same network. Whoever asks the kernel says where it answers to, and what of;
/// and whoever is root of another network namespace gives himself the host's address.
#[inline(always)]
fn is_of_neighbours(generation: u32, skb: *mut __sk_buff, ends: &Ends) -> bool {
    /// `fe80::/10`
    const LINK_SCOPE: u64 = 0xfe80 >> 6;
    let (network, _) = ends.destination.address.halves();
    if network >> 54 == LINK_SCOPE || is_local(generation, &ends.destination) {
        return true;
    }
    let (own_network, own_rest) = ends.source.halves();
    own_network == network
        && is_own(generation, own_network, own_rest)
        && is_of_own_namespace(socket_of_packet(skb))
}

/// True for a packet of TCP that resets a connection and carries nothing else.
#[inline(never)]
pub fn is_bare_reset(skb: *mut __sk_buff) -> bool {
    match tcp_header(skb, 0) {
        Some((flags, len)) => flags & RST != 0 && len == unsafe { (*skb).len },
        None => false,
    }
}

/// Flags of a packet whose last header is that of TCP, and the length of its headers. None if it
/// has IPv6 extension headers: the kernel resets and acknowledges without them, unless a process
/// set some.
#[inline(always)]
fn tcp_header(skb: *mut __sk_buff, start: u32) -> Option<(u8, u32)> {
    let first = skb.load::<u8>(start)?;
    let (protocol, offset) = match first >> 4 {
        4 => (skb.load::<u8>(start + 9)?, u32::from(first & 0x0f) * 4),
        6 => (skb.load::<u8>(start + 6)?, 40),
        _ => return None,
    };
    let [data_offset, flags] = skb.load::<[u8; 2]>(start + offset + 12)?;
    (protocol == protocol::TCP).then_some((flags, offset + u32::from(data_offset >> 4) * 4))
}

/// True for a message of WireGuard's that has nothing of anybody's in it: one that makes a
/// session, or keeps it. The packet of UDP has its IP header at `start`.
#[inline(never)]
pub fn is_empty_wireguard(skb: *mut __sk_buff, start: u32) -> bool {
    let offset = match skb.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => u32::from(first & 0x0f) * 4,
        _ => 40,
    };
    // Length and checksum of UDP, and what kind of message it is.
    let Some([a, b, _, _, kind, zeros @ ..]) = skb.load::<[u8; 8]>(start + offset + 4) else {
        return false;
    };
    let of_this_length = match kind {
        1 => 148,
        2 => 92,
        3 => 64,
        4 => 32,
        _ => return false,
    };
    zeros == [0; 3] && u16::from_be_bytes([a, b]) == 8 + of_this_length
}
