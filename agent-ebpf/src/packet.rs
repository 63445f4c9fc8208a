//! Reading the ends of an IP packet.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use core::{ffi::c_void, mem::MaybeUninit};
use trefoil_ebpf::abi::{Address, Peer};

/// IP protocol numbers.
pub mod protocol {
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
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

/// What a packet says about where it comes from and goes to.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source: Address,
    pub source_port: u16,
    /// `address` and `port` are the destination's.
    pub destination: Peer,
}

/// Loads bytes at `offset` from the IP header on.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the packet's length; the destination is ours.
    let error = unsafe {
        bpf_skb_load_bytes(
            skb.cast::<c_void>(),
            offset,
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
        )
    };
    if error != 0 {
        return None;
    }
    // SAFETY: the helper filled it.
    Some(unsafe { value.assume_init() })
}

/// Reads the IP header and, where there are any, the ports.
///
/// `None` if not even the addresses can be read. A header that ends early, a
/// later fragment, or more extension headers than are followed leave the ports
/// 0: such a packet is judged by address and protocol, and no rule that names a
/// port approves it.
#[inline(always)]
pub fn ends(skb: *mut __sk_buff) -> Option<Ends> {
    let first = load::<u8>(skb, 0)?;
    match first >> 4 {
        4 => ends_v4(skb),
        6 => ends_v6(skb),
        _ => None,
    }
}

#[inline(always)]
fn ends_v4(skb: *mut __sk_buff) -> Option<Ends> {
    let header = load::<[u8; 20]>(skb, 0)?;
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let protocol = header[9];
    let payload = u32::from(header[0] & 0x0f) * 4;
    let ports = if fragment_offset == 0 {
        ports(skb, protocol, payload)
    } else {
        (0, 0)
    };
    Some(Ends {
        source: Address::v4(source),
        source_port: ports.0,
        destination: Peer {
            address: Address::v4(destination),
            port: ports.1,
            protocol,
            pad: [0; 5],
        },
    })
}

#[inline(always)]
fn ends_v6(skb: *mut __sk_buff) -> Option<Ends> {
    let source = load::<[u8; 16]>(skb, 8)?;
    let destination = load::<[u8; 16]>(skb, 24)?;
    let mut protocol = load::<u8>(skb, 6)?;
    let mut offset = 40u32;
    let mut is_first = true;
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY => {
                let Some([next, len]) = load::<[u8; 2]>(skb, offset) else {
                    break;
                };
                protocol = next;
                offset += (u32::from(len) + 1) * 8;
            }
            AUTHENTICATION => {
                let Some([next, len]) = load::<[u8; 2]>(skb, offset) else {
                    break;
                };
                protocol = next;
                offset += (u32::from(len) + 2) * 4;
            }
            FRAGMENT => {
                let Some([next, _, high, low]) = load::<[u8; 4]>(skb, offset) else {
                    break;
                };
                protocol = next;
                offset += 8;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    is_first = false;
                    break;
                }
            }
            _ => break,
        }
    }
    let ports = if is_first {
        ports(skb, protocol, offset)
    } else {
        (0, 0)
    };
    Some(Ends {
        source: Address(source),
        source_port: ports.0,
        destination: Peer {
            address: Address(destination),
            port: ports.1,
            protocol,
            pad: [0; 5],
        },
    })
}

/// Source and destination port, in host byte order.
#[inline(always)]
fn ports(skb: *mut __sk_buff, protocol: u8, offset: u32) -> (u16, u16) {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE => {
            match load::<[u8; 4]>(skb, offset) {
                Some([a, b, c, d]) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
                None => (0, 0),
            }
        }
        _ => (0, 0),
    }
}
