//! Reading the ends of an IP packet.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use core::{ffi::c_void, mem::MaybeUninit, ptr};
use trefoil_ebpf::abi::{Address, ETHERNET_HEADER, Peer};

use crate::kernel_memory::{Kernel, read_into};

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// IPv6 extension headers that are followed.
const MAX_EXTENSIONS: usize = 8;

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The beginning, with the ports.
    First,
    /// Another, without ports.
    Later,
}

/// What a packet says about where it comes from and goes to.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source: Address,
    pub source_port: u16,
    /// `address` and `port` are the destination's.
    pub destination: Peer,
    /// Of a datagram that was cut into fragments.
    pub part: Part,
    /// Its socket belongs to another network namespace, as far as that is known: this
    /// one forwards it. Not for this file to find out.
    pub is_forwarded: bool,
}

/// Something that has the bytes of a packet.
pub trait Bytes: Copy {
    /// Reads what is at `offset` from where the packet begins: its IP header in a control
    /// group's hook, its link header on an interface. `None` if it does not reach so far.
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()>;

    /// As [`Self::load_into`].
    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        self.load_into(offset, &mut value)?;
        // SAFETY: it was filled.
        Some(unsafe { value.assume_init() })
    }
}

/// The context of a program that is given packets.
impl Bytes for *mut __sk_buff {
    #[inline(always)]
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()> {
        // SAFETY: the helper checks the packet's length; the destination is ours.
        let error = unsafe {
            bpf_skb_load_bytes(
                self.cast::<c_void>(),
                offset,
                ptr::from_mut(value).cast::<c_void>(),
                size_of::<T>() as u32,
            )
        };
        (error == 0).then_some(())
    }
}

/// The part of a packet that is in one piece, where a program has no more of it than its
/// address.
pub struct Piece {
    /// Where it begins.
    pub start: Kernel,
    /// How long it is.
    pub len: u32,
}

impl Bytes for &Piece {
    #[inline(always)]
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()> {
        if offset + size_of::<T>() as u32 > self.len {
            return None;
        }
        read_into(self.start, offset as usize, value)
    }
}

/// Reads the IP header and, where there are any, the ports.
///
/// `None` if not even the addresses can be read. A header that ends early, a
/// later fragment, or more extension headers than are followed leave the ports
/// 0: such a packet is judged by address and protocol, and no rule that names a
/// port approves it.
#[inline(always)]
pub fn ends(skb: *mut __sk_buff) -> Option<Ends> {
    ends_at(skb, 0)
}

/// As [`ends`], of a packet whose IP header is at `start`.
#[inline(always)]
pub fn ends_at(packet: impl Bytes, start: u32) -> Option<Ends> {
    let mut ends = Ends {
        source: Address([0; 16]),
        source_port: 0,
        destination: Peer {
            address: Address([0; 16]),
            port: 0,
            protocol: 0,
            pad: [0; 5],
        },
        part: Part::Whole,
        is_forwarded: false,
    };
    if fill(packet, start, &mut ends) {
        Some(ends)
    } else {
        None
    }
}

/// What a frame carries.
pub enum Frame {
    /// A packet whose IP header is at this offset.
    Ip(u32),
    /// Something else: its ethertype.
    Other(u16),
}

/// Reads the link header of a frame, of `header_bytes`.
///
/// The frame itself is asked, and not what the kernel remembers about it: whoever sends
/// on a packet socket may say that a frame is something else than it is.
#[inline(always)]
pub fn frame(packet: impl Bytes, header_bytes: u32) -> Frame {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    const VLAN: u16 = 0x8100;
    const SERVICE_VLAN: u16 = 0x88a8;
    /// Tags within the frame that are followed; the kernel itself follows as many.
    const MAX_TAGS: usize = 8;

    if header_bytes != ETHERNET_HEADER {
        return match packet.load::<u8>(0) {
            Some(first) if matches!(first >> 4, 4 | 6) => Frame::Ip(0),
            _ => Frame::Other(0),
        };
    }
    let mut offset = ETHERNET_HEADER;
    for _ in 0..=MAX_TAGS {
        let ethertype = match packet.load::<[u8; 2]>(offset - 2) {
            Some(bytes) => u16::from_be_bytes(bytes),
            None => 0,
        };
        match ethertype {
            IPV4 | IPV6 => return Frame::Ip(offset),
            VLAN | SERVICE_VLAN => offset += 4,
            _ => return Frame::Other(ethertype),
        }
    }
    Frame::Other(VLAN)
}

/// True for a packet of TCP that resets a connection and carries nothing else.
#[inline(never)]
pub fn is_bare_reset(skb: *mut __sk_buff) -> bool {
    reset_len(skb) == Some(unsafe { (*skb).len })
}

/// Length of a packet whose last header is that of a TCP reset. One with IPv6 extension
/// headers is none: the kernel resets without them, unless a process set some.
#[inline(always)]
fn reset_len(skb: *mut __sk_buff) -> Option<u32> {
    const RST: u8 = 4;
    let first = skb.load::<u8>(0)?;
    let (protocol, offset) = match first >> 4 {
        4 => (skb.load::<u8>(9)?, u32::from(first & 0x0f) * 4),
        6 => (skb.load::<u8>(6)?, 40),
        _ => return None,
    };
    let [data_offset, flags] = skb.load::<[u8; 2]>(offset + 12)?;
    (protocol == protocol::TCP && flags & RST != 0)
        .then_some(offset + u32::from(data_offset >> 4) * 4)
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

/// Not inlined, so that its share of the stack is free again when the judge needs
/// some: there are 512 bytes for both, and kernels before 6.9 count those of each
/// function in steps of 32.
#[inline(never)]
fn fill(packet: impl Bytes, start: u32, ends: &mut Ends) -> bool {
    let filled = match packet.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => fill_v4(packet, start, ends),
        Some(first) if first >> 4 == 6 => fill_v6(packet, start, ends),
        _ => None,
    };
    filled.is_some()
}

#[inline(always)]
fn fill_v4(packet: impl Bytes, start: u32, ends: &mut Ends) -> Option<()> {
    let header = packet.load::<[u8; 20]>(start)?;
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    ends.part = part(fragment & 0x1fff, fragment & 0x2000);
    ends.source = Address::v4(source);
    ends.destination.address = Address::v4(destination);
    ends.destination.protocol = header[9];
    if ends.part != Part::Later {
        fill_ports(packet, start + u32::from(header[0] & 0x0f) * 4, ends);
    }
    Some(())
}

#[inline(always)]
fn fill_v6(packet: impl Bytes, start: u32, ends: &mut Ends) -> Option<()> {
    packet.load_into(start + 8, &mut ends.source.0)?;
    packet.load_into(start + 24, &mut ends.destination.address.0)?;
    let mut protocol = packet.load::<u8>(start + 6)?;
    let mut offset = start + 40;
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY => {
                let Some([next, len]) = packet.load::<[u8; 2]>(offset) else {
                    break;
                };
                protocol = next;
                offset += (u32::from(len) + 1) * 8;
            }
            AUTHENTICATION => {
                let Some([next, len]) = packet.load::<[u8; 2]>(offset) else {
                    break;
                };
                protocol = next;
                offset += (u32::from(len) + 2) * 4;
            }
            FRAGMENT => {
                let Some([next, _, high, low]) = packet.load::<[u8; 4]>(offset) else {
                    break;
                };
                protocol = next;
                offset += 8;
                let fragment = u16::from_be_bytes([high, low]);
                ends.part = part(fragment & 0xfff8, fragment & 1);
                if ends.part == Part::Later {
                    break;
                }
            }
            _ => break,
        }
    }
    ends.destination.protocol = protocol;
    if ends.part != Part::Later {
        fill_ports(packet, offset, ends);
    }
    Some(())
}

/// By where a fragment is in its datagram, and whether there are more behind it.
#[inline(always)]
fn part(offset: u16, more: u16) -> Part {
    match (offset, more) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    }
}

/// Source and destination port, in host byte order; 0 where there are none.
#[inline(always)]
fn fill_ports(packet: impl Bytes, offset: u32, ends: &mut Ends) {
    match ends.destination.protocol {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE => {
            if let Some([a, b, c, d]) = packet.load::<[u8; 4]>(offset) {
                ends.source_port = u16::from_be_bytes([a, b]);
                ends.destination.port = u16::from_be_bytes([c, d]);
            }
        }
        _ => {}
    }
}
