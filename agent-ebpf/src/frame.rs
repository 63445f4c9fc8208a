//! Reading the link header of a frame, as far as a packet of IP, and what was read behind it.

use aya_ebpf::bindings::__sk_buff;
use trefoil_ebpf::abi::ETHERNET_HEADER;

use crate::{
    maps::FRAME_ENDS,
    packet::{Bytes, Ends},
    words::load_u16,
};

/// The content of a frame.
pub enum Frame {
    /// A packet whose IP header is at this offset.
    Ip(u32),
    /// Something else: its ethertype, or a number below 0x0600 if it has none.
    Other(u16),
}

/// Set in a [`Frame`]'s number if it carries no IP: what it carries is then in the upper half.
pub const NOT_IP: u32 = 1 << 15;

impl Frame {
    /// As one number: where its packet begins, or [`NOT_IP`].
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        match self {
            Self::Ip(start) => *start,
            Self::Other(kind) => (*kind as u32) << 16 | NOT_IP,
        }
    }

    /// From what [`number`](Self::number) has made.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number & NOT_IP {
            0 => Self::Ip(number),
            _ => Self::Other((number >> 16) as u16),
        }
    }
}

/// Reads the link header of a frame, of `header_bytes`.
///
/// The frame itself is asked, and not what the kernel remembers about it: whoever sends
/// on a packet socket may say that a frame is something else than it is. Tags of VLANs, labels of
/// MPLS, sessions of PPPoE and headers of IEEE 802.2 are followed.
#[inline(always)]
pub fn frame(packet: impl Bytes, header_bytes: u32) -> Frame {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    const VLAN: u16 = 0x8100;
    const SERVICE_VLAN: u16 = 0x88a8;
    const OLD_SERVICE_VLANS: [u16; 3] = [0x9100, 0x9200, 0x9300];
    const MPLS: u16 = 0x8847;
    const MPLS_MULTICAST: u16 = 0x8848;
    const PPPOE_SESSION: u16 = 0x8864;
    const FIRST_ETHERTYPE: u16 = 0x0600;
    /// Headers within the frame that are followed.
    const MAX_HEADERS: usize = 12;

    if header_bytes != ETHERNET_HEADER {
        return match packet.load::<u8>(0) {
            Some(first) if matches!(first >> 4, 4 | 6) => Frame::Ip(0),
            _ => Frame::Other(0),
        };
    }
    let mut offset = ETHERNET_HEADER;
    let mut kind = match packet.load::<[u8; 2]>(offset - 2) {
        Some(bytes) => u16::from_be_bytes(bytes),
        None => 0,
    };
    for _ in 0..MAX_HEADERS {
        if matches!(kind, IPV4 | IPV6) {
            return Frame::Ip(offset);
        }
        let Some([a, b, c, d, e, f, g, h]) = packet.load::<[u8; 8]>(offset) else {
            return Frame::Other(kind);
        };
        let in_vlan = matches!(kind, VLAN | SERVICE_VLAN) || OLD_SERVICE_VLANS.contains(&kind);
        if in_vlan {
            kind = u16::from_be_bytes([c, d]);
            offset += 4;
        } else if matches!(kind, MPLS | MPLS_MULTICAST) {
            offset += 4;
            // The last label: the packet itself says what it is.
            if c & 1 != 0 {
                kind = match e >> 4 {
                    4 => IPV4,
                    6 => IPV6,
                    _ => return Frame::Other(kind),
                };
            }
        } else if kind == PPPOE_SESSION {
            offset += 8;
            kind = match [g, h] {
                [0x00, 0x21] => IPV4,
                [0x00, 0x57] => IPV6,
                _ => return Frame::Other(kind),
            };
        } else if kind < FIRST_ETHERTYPE && [a, b, c, d, e, f] == [0xaa, 0xaa, 3, 0, 0, 0] {
            kind = u16::from_be_bytes([g, h]);
            offset += 8;
        } else {
            return unless_ip(packet, offset, kind, [a, b, c, d]);
        }
    }
    Frame::Other(kind)
}

/// Returns the content of a frame at `offset` whose type is not that of IP. If it begins as an IP
/// packet does, and is as long as that says, it is one: somebody on the link may take it for one.
#[inline(always)]
fn unless_ip(packet: impl Bytes, offset: u32, kind: u16, begins: [u8; 4]) -> Frame {
    let [first, _, c, d] = begins;
    let rest = packet.bytes().saturating_sub(offset);
    let is_ip = match first >> 4 {
        4 => {
            let len = u32::from(u16::from_be_bytes([c, d]));
            first & 0x0f >= 5 && len >= 20 && len <= rest
        }
        6 => match packet.load::<[u8; 2]>(offset + 4) {
            Some(len) => u32::from(u16::from_be_bytes(len)) + 40 <= rest,
            None => false,
        },
        _ => false,
    };
    match is_ip {
        true => Frame::Ip(offset),
        false => Frame::Other(kind),
    }
}

/// Where the IP header of an ordinary Ethernet frame is, without tags of VLANs. `None` for
/// any other: see [`frame`].
#[inline(always)]
pub fn is_plain_ethernet(skb: *mut __sk_buff) -> bool {
    const HEADER: usize = ETHERNET_HEADER as usize;
    // SAFETY: fields of the context; the verifier checks the access.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if data + HEADER > end {
        return false;
    }
    let ethertype = load_u16::<12>(data as *const u8);
    ethertype == 0x0800_u16.to_be() || ethertype == 0x86dd_u16.to_be()
}

/// Returns the endpoints that `read_frame_ends` has read.
#[inline(always)]
pub fn frame_ends() -> Option<&'static Ends> {
    // SAFETY: the entry of an array stays where it is while a program runs.
    FRAME_ENDS.get_ptr(0).map(|ends| unsafe { &*ends })
}
