//! Packets as they look on arrival at a far place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;

use crate::namespace::Namespace;
use crate::sink::Arrived;
use crate::watch::{ETHERNET_HEADER, Watch};

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// How the link addresses begin that frames come from.
const HOSTS_OWN: [u8; 5] = [0x02, 0, 0, 0, 0x01];

/// Fields of an IP header that do not depend on timing: no identification, no
/// flow label, no checksum, and no length either, since a stream may be cut
/// into packets at any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header {
    /// 4 or 6.
    pub version: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// Time to live or hop limit.
    pub hops: u8,
    /// Protocol or next header.
    pub protocol: u8,
}

#[derive(Debug, Default)]
struct Seen {
    frames: u64,
    packets: u64,
    headers: BTreeSet<Header>,
    by_destination: BTreeMap<IpAddr, Arrived>,
    as_sent: BTreeMap<IpAddr, Arrived>,
    acknowledgements: BTreeMap<IpAddr, Arrived>,
    datagrams: BTreeMap<IpAddr, BTreeSet<u16>>,
}

/// Looks at every packet that arrives at a place from the host.
#[derive(Debug)]
pub struct Tap(Watch<Seen>);

impl Tap {
    /// Begins to look.
    pub fn new(place: &Namespace) -> Result<Self> {
        Watch::new(place, take).map(Self)
    }

    /// Number of packets so far.
    pub fn packets(&self) -> u64 {
        self.0.read(|seen| seen.packets)
    }

    /// Number of frames from the host so far, whatever is in them.
    pub fn frames(&self) -> u64 {
        self.0.read(|seen| seen.frames)
    }

    /// Number of frames that there was no room for, since this was last asked.
    pub fn lost(&self) -> Result<u32> {
        self.0.lost()
    }

    /// Packets so far by where they go, as [`to`](Self::to).
    pub fn destinations(&self) -> BTreeMap<IpAddr, Arrived> {
        self.0.read(|seen| seen.by_destination.clone())
    }

    /// As [`destinations`](Self::destinations), resets and all, and without the headers that
    /// each fragment has of its own: in bytes as sockets sent them.
    pub fn as_sent(&self) -> BTreeMap<IpAddr, Arrived> {
        self.0.read(|seen| seen.as_sent.clone())
    }

    /// Of these, what acknowledges or ends a connection of TCP and carries nothing.
    pub fn acknowledgements(&self) -> BTreeMap<IpAddr, Arrived> {
        self.0.read(|seen| seen.acknowledgements.clone())
    }

    /// Identifications of the datagrams of IPv4 to an address that have arrived in fragments.
    pub fn datagrams(&self, address: IpAddr) -> BTreeSet<u16> {
        self.0
            .read(|seen| seen.datagrams.get(&address).cloned().unwrap_or_default())
    }

    /// Packets to an address so far, in bytes headers included. Resets of TCP that
    /// carry nothing are left out: that is how a connection is cut.
    pub fn to(&self, address: IpAddr) -> Arrived {
        self.0
            .read(|seen| seen.by_destination.get(&address).copied())
            .unwrap_or_default()
    }

    /// Headers seen so far, each once.
    pub fn headers(&self) -> BTreeSet<Header> {
        self.0.read(|seen| seen.headers.clone())
    }
}

fn take(seen: &mut Seen, start: &[u8], length: usize) {
    if start.get(6..11) == Some(&HOSTS_OWN) {
        seen.frames += 1;
    }
    let Some(header) = header_from_host(start) else {
        return;
    };
    let packet = start.get(ETHERNET_HEADER..).unwrap_or_default();
    seen.packets += 1;
    seen.headers.insert(header);
    let Some(to) = destination(packet) else {
        return;
    };
    let bytes = length - ETHERNET_HEADER;
    let whole = bytes.saturating_sub(cut_overhead(packet));
    seen.as_sent.entry(to).or_default().add(whole);
    if let Some(identification) = identification(packet) {
        seen.datagrams.entry(to).or_default().insert(identification);
    }
    if is_acknowledgement(packet) {
        seen.acknowledgements.entry(to).or_default().add(whole);
    }
    if !is_bare_reset(packet) {
        seen.by_destination.entry(to).or_default().add(bytes);
    }
}

/// The IP header of a frame that came from the host. Frames that this place
/// sends are seen as well, and passed over.
fn header_from_host(frame: &[u8]) -> Option<Header> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    if ethernet.get(6..11)? != HOSTS_OWN {
        return None;
    }
    let byte = |index: usize| packet.get(index).copied();
    if ethernet.get(12..)? == ETHERTYPE_IPV4 {
        return Some(Header {
            version: 4,
            traffic_class: byte(1)?,
            fragment: u16::from_be_bytes([byte(6)?, byte(7)?]),
            hops: byte(8)?,
            protocol: byte(9)?,
        });
    }
    (ethernet.get(12..)? == ETHERTYPE_IPV6).then_some(Header {
        version: 6,
        traffic_class: byte(0)? << 4 | byte(1)? >> 4,
        fragment: 0,
        hops: byte(7)?,
        protocol: byte(6)?,
    })
}

/// The destination address of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    if packet.first()? >> 4 == 4 {
        let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        return Some(octets.into());
    }
    let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    Some(octets.into())
}

/// Of a fragment of IPv4.
fn identification(packet: &[u8]) -> Option<u16> {
    /// More fragments follow, or some were before.
    const IN_PIECES: u16 = 0x3fff;
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let is_fragment = packet.first()? >> 4 == 4 && word(6)? & IN_PIECES != 0;
    is_fragment.then(|| word(4)).flatten()
}

/// Bytes that are in a packet because it is a fragment.
fn cut_overhead(packet: &[u8]) -> usize {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    if byte(0) >> 4 == 4 {
        let is_later = u16::from_be_bytes([byte(6) & 0x1f, byte(7)]) > 0;
        return if is_later {
            usize::from(byte(0) & 15) * 4
        } else {
            0
        };
    }
    // Extensions before that of the fragment are in each of them.
    let (mut kind, mut at) = (byte(6), 40);
    while [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS].contains(&kind) && at < packet.len() {
        (kind, at) = (byte(at), at + 8 + usize::from(byte(at + 1)) * 8);
    }
    match (kind, u16::from_be_bytes([byte(at + 2), byte(at + 3)]) >> 3) {
        (FRAGMENT, 0) => 8,
        (FRAGMENT, _) => at + 8,
        _ => 0,
    }
}

/// True for a reset of TCP that carries nothing.
fn is_bare_reset(packet: &[u8]) -> bool {
    bare_flags(packet).is_some_and(|flags| flags & RESET != 0)
}

/// True for what a socket of TCP has to say when nothing is to be sent and nothing begins.
fn is_acknowledgement(packet: &[u8]) -> bool {
    bare_flags(packet).is_some_and(|flags| flags & (RESET | SYN) == 0)
}

const SYN: u8 = 2;
const RESET: u8 = 4;

/// The flags of a segment of TCP that carries nothing.
fn bare_flags(packet: &[u8]) -> Option<u8> {
    let (protocol, offset, len) = if packet.first()? >> 4 == 4 {
        let len = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
        (packet.get(9)?, usize::from(packet.first()? & 15) * 4, len)
    } else {
        let len = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
        (packet.get(6)?, 40, len + 40)
    };
    let tcp = packet.get(offset..)?;
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let is_bare = *protocol == 6 && offset + header == usize::from(len);
    is_bare.then_some(*tcp.get(13)?)
}
