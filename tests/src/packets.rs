//! Packets and frames, byte by byte, as a sender may write them that does not keep to
//! anything: lists of destinations, tags, other names for IP.

use std::net::{IpAddr, SocketAddr};

/// IPv4, as frames call it.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// IPv6, as frames call it.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// A tag of 802.1Q.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// A tag of 802.1ad.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// A stack of labels.
pub const ETHERTYPE_MPLS: u16 = 0x8847;
/// A session of PPP over Ethernet.
pub const ETHERTYPE_PPPOE: u16 = 0x8864;
/// Routing header of IPv6.
pub const ROUTING: u8 = 43;
/// Control messages of IPv4.
pub const ICMP: u8 = 1;
/// Control messages of IPv6.
pub const ICMPV6: u8 = 58;
/// Connections.
pub const TCP: u8 = 6;
/// User datagrams.
pub const UDP: u8 = 17;
/// Loose source route of IPv4.
pub const LOOSE: u8 = 131;
/// Strict source route of IPv4.
pub const STRICT: u8 = 137;

/// The ethertype of packets to such an address.
#[must_use]
pub fn ethertype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A header of UDP and `size` bytes. Without a checksum: IPv4 takes it, and IPv6 is only to
/// be counted.
#[must_use]
pub fn datagram(from: u16, to: u16, size: usize) -> Vec<u8> {
    let mut packet = from.to_be_bytes().to_vec();
    packet.extend(to.to_be_bytes());
    packet.extend((8 + size as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(8 + size, b'x');
    packet
}

/// An IPv4 packet with options, which end on a word.
#[must_use]
pub fn ipv4(from: IpAddr, to: IpAddr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len().div_ceil(4);
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(((words * 4 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend(options);
    packet.resize(words * 4, 0);
    set_checksum(&mut packet);
    packet.extend(payload);
    packet
}

/// A later fragment of the datagram with this identification: `payload` is behind its first 1,480
/// bytes, and not its last.
#[must_use]
pub fn later_fragment(from: IpAddr, to: IpAddr, identification: u16, payload: &[u8]) -> Vec<u8> {
    const MORE: u16 = 0x2000;
    let mut packet = ipv4(from, to, UDP, &[], payload);
    if let Some(fields) = packet.get_mut(4..8) {
        let [a, b] = identification.to_be_bytes();
        let [c, d] = (MORE | (1480 / 8)).to_be_bytes();
        fields.copy_from_slice(&[a, b, c, d]);
    }
    set_checksum(&mut packet);
    packet
}

/// An IPv6 packet whose first header after its own is `next`.
#[must_use]
pub fn ipv6(from: IpAddr, to: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend(payload);
    packet
}

/// A datagram in a packet of IP.
#[must_use]
pub fn udp(from: SocketAddr, to: SocketAddr, size: usize) -> Vec<u8> {
    let content = datagram(from.port(), to.port(), size);
    if to.is_ipv4() {
        ipv4(from.ip(), to.ip(), UDP, &[], &content)
    } else {
        ipv6(from.ip(), to.ip(), UDP, &content)
    }
}

/// A request for an echo with `size` bytes, in a packet of IPv4.
#[must_use]
pub fn echo(from: IpAddr, to: IpAddr, size: usize) -> Vec<u8> {
    const ECHO: u8 = 8;
    let mut request = vec![ECHO, 0, 0, 0, 0, 1, 0, 1];
    request.resize(8 + size, b'x');
    let sum = checksum(&request).to_be_bytes();
    if let Some(field) = request.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    ipv4(from, to, ICMP, &[], &request)
}

/// A routing header of IPv6 in which all of `hops` are left, in the order in which they
/// are gone to. Segments of type 4 stand in the opposite order.
#[must_use]
pub fn routing_header(kind: u8, next: u8, hops: &[IpAddr]) -> Vec<u8> {
    let left = hops.len() as u8;
    let last = if kind == 4 { left.saturating_sub(1) } else { 0 };
    let mut header = vec![next, 2 * left, kind, left, last, 0, 0, 0];
    let mut list: Vec<&IpAddr> = hops.iter().collect();
    if kind == 4 {
        list.reverse();
    }
    list.into_iter().for_each(|hop| header.extend(octets(*hop)));
    header
}

/// The same as an option of a socket takes it for type 4: the kernel puts the named
/// destination into the first place, and goes to `hops` before.
#[must_use]
pub fn routing_option(hops: &[IpAddr]) -> Vec<u8> {
    let left = hops.len() as u8;
    let mut header = vec![0, 2 * (left + 1), 4, left, left, 0, 0, 0];
    header.extend([0; 16]);
    hops.iter()
        .rev()
        .for_each(|hop| header.extend(octets(*hop)));
    header
}

/// A source route of IPv4, [`LOOSE`] or [`STRICT`], of which all is left; ends on a word.
#[must_use]
pub fn source_route(kind: u8, hops: &[IpAddr]) -> Vec<u8> {
    let mut option = vec![kind, 3 + 4 * hops.len() as u8, 4];
    hops.iter().for_each(|hop| option.extend(octets(*hop)));
    option.push(1);
    option
}

/// Sets the checksum of the IPv4 header that a packet begins with.
pub fn set_checksum(packet: &mut [u8]) {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    if let Some(field) = packet.get_mut(10..12) {
        field.fill(0);
    }
    let sum = checksum(packet.get(..header).unwrap_or_default()).to_be_bytes();
    if let Some(field) = packet.get_mut(10..12) {
        field.copy_from_slice(&sum);
    }
}

/// RFC 1071.
#[must_use]
pub fn checksum(packet: &[u8]) -> u16 {
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| {
            let byte = |index| u32::from(pair.get(index).copied().unwrap_or(0));
            byte(0) << 8 | byte(1)
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Sets the checksum of what a packet of IP without options carries: datagrams of UDP, segments of
/// TCP, messages of ICMPv6.
pub fn set_inner_checksum(packet: &mut [u8]) {
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let (start, addresses, protocol) = match is_v6 {
        true => (40, 8..40, packet.get(6)),
        false => (20, 12..20, packet.get(9)),
    };
    let (protocol, offset) = match protocol {
        Some(&UDP) => (UDP, 6),
        Some(&TCP) => (TCP, 16),
        Some(&ICMPV6) if is_v6 => (ICMPV6, 2),
        _ => return,
    };
    let at = start + offset;
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.fill(0);
    }
    let content = packet.get(start..).unwrap_or_default();
    let pseudo = [
        packet.get(addresses).unwrap_or_default(),
        &(content.len() as u32).to_be_bytes(),
        &u32::from(protocol).to_be_bytes(),
        content,
    ]
    .concat();
    let sum = checksum(&pseudo).to_be_bytes();
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&sum);
    }
}

/// A packet of IP without options or extensions in two fragments; the first carries `cut` bytes, a
/// multiple of eight.
#[must_use]
pub fn in_pieces(packet: &[u8], identification: u16, cut: usize) -> [Vec<u8>; 2] {
    const MORE_V4: u16 = 0x2000;
    const FRAGMENT: u8 = 44;
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let (header, content) = packet.split_at(if is_v6 { 40 } else { 20 }.min(packet.len()));
    let (first, rest) = content.split_at(cut.min(content.len()));
    [(first, 0_u16, true), (rest, cut as u16, false)].map(|(content, offset, more)| {
        let mut piece = header.to_vec();
        if is_v6 {
            let next = piece.get(6).copied().unwrap_or_default();
            let place = (offset | u16::from(more)).to_be_bytes();
            let [a, b] = identification.to_be_bytes();
            let extension = [next, 0, place[0], place[1], 0, 0, a, b];
            let len = ((extension.len() + content.len()) as u16).to_be_bytes();
            if let Some(fields) = piece.get_mut(4..7) {
                fields.copy_from_slice(&[len[0], len[1], FRAGMENT]);
            }
            return [&piece[..], &extension, content].concat();
        }
        let [a, b] = ((piece.len() + content.len()) as u16).to_be_bytes();
        let [c, d] = identification.to_be_bytes();
        let place = (offset / 8) | if more { MORE_V4 } else { 0 };
        let [e, f] = place.to_be_bytes();
        if let Some(fields) = piece.get_mut(2..8) {
            fields.copy_from_slice(&[a, b, c, d, e, f]);
        }
        set_checksum(&mut piece);
        [&piece[..], content].concat()
    })
}

/// A frame behind a `struct virtio_net_hdr`, which says where the kernel is to put a checksum of all from `start` on:
/// two bytes at the end make that come out as `word`.
#[must_use]
pub fn with_checksum(mut frame: Vec<u8>, start: usize, at: usize, word: u16) -> Vec<u8> {
    const NEEDS_CHECKSUM: u8 = 1;
    frame.extend([0, 0]);
    let rest = checksum(frame.get(start..).unwrap_or_default());
    // In one's complement: what is missing from the sum of all to that of the word.
    let missing = match u32::from(!word) {
        wanted if wanted >= u32::from(!rest) => wanted - u32::from(!rest),
        wanted => wanted + 0xffff - u32::from(!rest),
    };
    let end = frame.len() - 2;
    if let Some(free) = frame.get_mut(end..) {
        free.copy_from_slice(&(missing as u16).to_be_bytes());
    }
    // struct virtio_net_hdr
    let mut whole = vec![NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
    whole.extend((start as u16).to_le_bytes());
    whole.extend(((at - start) as u16).to_le_bytes());
    whole.extend(frame);
    whole
}

/// Between the addresses of a frame and a packet of IP: the packet's own ethertype.
#[must_use]
pub fn plain(packet: &[u8]) -> Vec<u8> {
    let own = match packet.first().map(|byte| byte >> 4) {
        Some(6) => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    };
    own.to_be_bytes().to_vec()
}

/// Something that a frame has between its addresses and the packet of IP. None if nothing
/// is called so.
#[must_use]
pub fn wrapped(how: &str, packet: &[u8]) -> Option<Vec<u8>> {
    let tags = |ethertype: u16, count: u16| {
        (1..=count).flat_map(move |id| [ethertype.to_be_bytes(), id.to_be_bytes()].concat())
    };
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let mut between = Vec::new();
    match how {
        "vlan-9" => between.extend(tags(ETHERTYPE_VLAN, 9)),
        "qinq" => {
            between.extend(tags(ETHERTYPE_QINQ, 1));
            between.extend(tags(ETHERTYPE_VLAN, 1));
        }
        "qinq-9" => between.extend(tags(ETHERTYPE_QINQ, 9)),
        "mpls" => {
            between.extend(ETHERTYPE_MPLS.to_be_bytes());
            // Two labels, of which the second is the last.
            between.extend([0, 1, 0, 64, 0, 2, 1, 64]);
            return Some([&between, packet].concat());
        }
        "pppoe" => {
            between.extend(ETHERTYPE_PPPOE.to_be_bytes());
            between.extend([0x11, 0, 0, 7]);
            between.extend((packet.len() as u16 + 2).to_be_bytes());
            between.extend(if is_v6 { [0, 0x57] } else { [0, 0x21] });
            return Some([&between, packet].concat());
        }
        "snap" => {
            between.extend((packet.len() as u16 + 8).to_be_bytes());
            between.extend([0xaa, 0xaa, 3, 0, 0, 0]);
        }
        "lie" => {
            // The other family's.
            let other = if is_v6 {
                ETHERTYPE_IPV4
            } else {
                ETHERTYPE_IPV6
            };
            between.extend(other.to_be_bytes());
            return Some([&between, packet].concat());
        }
        "experiment" | "arp" | "lldp" => {
            let ethertype: u16 = match how {
                "arp" => 0x0806,
                "lldp" => 0x88cc,
                _ => 0x88b5,
            };
            between.extend(ethertype.to_be_bytes());
            return Some([&between, packet].concat());
        }
        _ => return None,
    }
    between.extend(plain(packet));
    Some([&between, packet].concat())
}

/// The packet of IP in what follows the addresses of a frame, as someone unwraps it who
/// tries everything.
#[must_use]
pub fn unwrapped(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (ethertype, content) = rest.split_first_chunk()?;
        rest = match u16::from_be_bytes(*ethertype) {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ | 0x9100 => content.get(2..)?,
            ETHERTYPE_MPLS | 0x8848 => {
                let mut labels = content;
                loop {
                    let (label, after) = labels.split_first_chunk::<4>()?;
                    labels = after;
                    if label[2] & 1 == 1 {
                        break;
                    }
                }
                return is_ip(labels).then_some(labels);
            }
            ETHERTYPE_PPPOE => return content.get(8..).filter(|packet| is_ip(packet)),
            0..=1500 => content.get(6..)?,
            _ => return is_ip(content).then_some(content),
        };
    }
}

/// True if it begins as a packet of IP does.
fn is_ip(packet: &[u8]) -> bool {
    let len = |at: usize| {
        let field = packet.get(at..at + 2);
        field.map_or(0, |field| u16::from_be_bytes([field[0], field[1]]).into())
    };
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => (20..=packet.len()).contains(&len(2)),
        Some(6) => packet.len() >= 40 + len(4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_can_be_unwrapped() {
        for to in ["203.0.113.9:9", "[2001:db8:3::9]:9"] {
            let to: SocketAddr = to.parse().unwrap();
            let packet = udp(to, to, 64);
            let ways = [
                "vlan-9",
                "qinq",
                "qinq-9",
                "mpls",
                "pppoe",
                "snap",
                "lie",
                "experiment",
                "arp",
                "lldp",
            ];
            for how in ways {
                let rest = wrapped(how, &packet).unwrap();
                assert_eq!(unwrapped(&rest), Some(&packet[..]), "{how}");
            }
            assert_eq!(
                unwrapped(&[plain(&packet), packet.clone()].concat()),
                Some(&packet[..])
            );
        }
    }
}
