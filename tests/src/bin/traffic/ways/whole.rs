//! Whole packets of IP, by raw sockets, packet sockets, their rings and tun devices.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::SockaddrStorage;
use trefoil_lab::frames::PacketSocket;
use trefoil_lab::packets::{
    ICMP, ICMPV6, LOOSE, ROUTING, TCP, UDP, datagram, ethertype_of, in_pieces, ipv4, ipv6,
    routing_header, set_inner_checksum, source_route, with_checksum, wrapped,
};
use trefoil_lab::places::{HOST, HOST6};
use trefoil_lab::ways::{Call, Content, Extra, Kind, Pieces, Place};

use super::calls::{sendto, set};
use super::{FLAGS, TURNS, Way};
use crate::ring::Ring;
use crate::tun;

/// Bytes of a packet that its first fragment carries.
const CUT: usize = 32;
/// Number of the datagrams that are sent in fragments.
const IDENTIFICATION: u16 = 0x1313;
/// Address of the link of a frame's sender.
const FROM_LINK: [u8; 6] = [2, 0, 0, 0, 1, 0x99];
const ETHERNET_HEADER: usize = 14;

impl Way<'_> {
    /// By a raw socket that takes headers.
    pub(super) fn headers(&self) {
        let family = match self.is_v6() {
            true => libc::AF_INET6,
            false => libc::AF_INET,
        };
        // SAFETY: socket(2) with numbers reads no memory.
        let socket = unsafe { libc::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW) };
        if self.has(Extra::Mark) {
            set(
                socket,
                libc::SOL_SOCKET,
                libc::SO_MARK,
                &7_i32.to_ne_bytes(),
            );
        }
        let mut to = self.at(self.case.first);
        to.set_port(0);
        let to = SockaddrStorage::from(to);
        for packet in self.packets() {
            sendto(socket, &packet, &to, FLAGS);
        }
    }

    /// By a tun device, which is brought up if that is this process's to do.
    pub(super) fn through_tun(&self) {
        let described = self.is_described();
        let Ok(mut device) = tun::open_by(self.tun, "own-tun", described) else {
            return;
        };
        if self.in_container {
            tun::keep_up(&device, "own-tun");
        }
        for packet in self.packets() {
            let _ = device.write(&self.described(packet, 0));
        }
    }

    /// By a packet socket, or its ring.
    pub(super) fn frames(&self) {
        let mut devices = self.case.extras.iter().filter_map(|extra| match extra {
            Extra::Device(which) => Some(*which),
            _ => None,
        });
        let device = self.device(devices.next_back().unwrap_or(0));
        let ethertype = ethertype_of(self.at(self.case.first).ip());
        let frames = self.packets().into_iter().map(|packet| {
            let frame = self.frame(device, &packet);
            self.described(frame, ETHERNET_HEADER)
        });
        let frames: Vec<Vec<u8>> = frames.collect();
        let Ok(socket) = PacketSocket::open(device, ethertype) else {
            return;
        };
        if self.is_described() {
            let _ = socket.describe_frames();
        }
        let _reader = self.has(Extra::Fanout).then(|| reader(device));
        match self.case.kind {
            Kind::TxRing => self.by_ring(socket.descriptor(), device, ethertype, &frames),
            _ => {
                for frame in &frames {
                    let _ = socket.send(frame);
                }
            }
        }
    }

    /// While the kernel sends what is in the ring, it turns into the next frame, and back.
    fn by_ring(&self, socket: &OwnedFd, device: &str, ethertype: u16, frames: &[Vec<u8>]) {
        let version = if self.has(Extra::Version3) { 3 } else { 2 };
        let Ok(ring) = Ring::make(socket, device, ethertype, version) else {
            return;
        };
        let Some(first) = frames.first() else {
            return;
        };
        // The same, to the second place.
        let other = self.frame(device, &self.whole(self.case.then, self.case.first));
        let other = self.described(other, ETHERNET_HEADER);
        ring.write(first);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    ring.overwrite(&other);
                    ring.overwrite(first);
                }
            });
            for _ in 0..TURNS {
                ring.send(socket, first.len() as u32);
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    fn is_described(&self) -> bool {
        let describes = |extra: &Extra| matches!(extra, Extra::Checksum(_) | Extra::Segmented(_));
        self.case.extras.iter().any(describes)
    }

    /// A frame behind what it says of itself, if it says anything. Its packet begins at `start`.
    fn described(&self, frame: Vec<u8>, start: usize) -> Vec<u8> {
        let (mut missing, mut cut) = (None, None);
        for extra in &self.case.extras {
            match extra {
                Extra::Checksum(place) => missing = Some(*place),
                Extra::Segmented(kind) => cut = Some(*kind),
                _ => {}
            }
        }
        if missing.is_none() && cut.is_none() {
            return frame;
        }
        let header = if self.is_v6() { 40 } else { 20 };
        let destination = if self.is_v6() { 28 } else { 16 };
        // Where the sum begins, and where it goes.
        let (from, at) = match missing {
            Some(1) => (start + 12, start + destination),
            Some(2) => (start + 8, start + destination - 4),
            Some(3) => (start + 12, start + header + 2),
            Some(4) => (start + 12, start + header),
            Some(5) => (start, start + 8),
            Some(6) => (0, 0),
            Some(7) => (start, start),
            _ => (start + header, start + header + 6),
        };
        let word = match (self.at(self.case.then).ip(), missing) {
            (IpAddr::V4(address), Some(1)) => {
                u16::from_be_bytes([address.octets()[0], address.octets()[1]])
            }
            (IpAddr::V6(address), Some(1)) => address.segments()[2],
            (_, Some(2)) => 0x2001,
            (_, Some(7)) => 0x4600,
            _ => self.at(self.case.then).port(),
        };
        let mut whole = match missing {
            Some(_) => with_checksum(frame, from, at, word),
            None => [&[0; 10][..], &frame].concat(),
        };
        if let Some(kind) = cut {
            /// VIRTIO_NET_HDR_GSO_*: TCPV4, UDP, TCPV6, UDP_L4, and TCPV4 with ECN.
            const KINDS: [u8; 5] = [1, 3, 4, 5, 0x81];
            let kind = KINDS[usize::from(kind) % KINDS.len()];
            let fields = [kind, (start + header + 8) as u8, 0, 16, 0];
            if let Some(place) = whole.get_mut(1..6) {
                place.copy_from_slice(&fields);
            }
        }
        whole
    }

    fn frame(&self, device: &str, packet: &[u8]) -> Vec<u8> {
        const WRAPS: [&str; 8] = [
            "vlan-9", "qinq", "mpls", "pppoe", "snap", "lie", "arp", "lldp",
        ];
        let to = match device {
            "lo" => [0; 6],
            "own-a" => [2, 0, 0, 0, 5, 2],
            "own-b" | "own-bridge" => [2, 0, 0, 0, 5, 1],
            // The host's end of the container's link.
            _ => [2, 0, 0, 0, 3, 0x15],
        };
        let ethertype = ethertype_of(self.at(self.case.first).ip()).to_be_bytes();
        let plain = [&ethertype[..], packet].concat();
        let wrap = self.case.extras.iter().find_map(|extra| match extra {
            Extra::Wrapped(number) => wrapped(WRAPS[usize::from(*number) % 8], packet),
            _ => None,
        });
        [&to[..], &FROM_LINK, &wrap.unwrap_or(plain)].concat()
    }

    /// All that is sent: a packet to the first place, or fragments of it.
    fn packets(&self) -> Vec<Vec<u8>> {
        let (first, then) = (self.case.first, self.case.then);
        let packet = self.whole(first, then);
        let mut all = vec![packet.clone()];
        for extra in &self.case.extras {
            let Extra::Fragments(pieces) = extra else {
                continue;
            };
            let [beginning, rest] = in_pieces(&packet, IDENTIFICATION, CUT);
            let [_, elsewhere] = in_pieces(&self.whole(then, first), IDENTIFICATION, CUT);
            all = match pieces {
                Pieces::Both => vec![beginning, rest],
                Pieces::First => vec![beginning],
                Pieces::Later => vec![rest],
                Pieces::Mixed => vec![beginning, elsewhere, rest],
            };
        }
        all
    }

    /// A packet to this place; if it lists destinations, to the other after that.
    fn whole(&self, place: Place, other: Place) -> Vec<u8> {
        let (to, other) = (self.at(place), self.at(other));
        let from = self.source();
        let content = (self.case.extras.iter()).find_map(|extra| match extra {
            Extra::Content(content) => Some(*content),
            _ => None,
        });
        if let Some(content) = content {
            return self.packet_with(content, from, to);
        }
        let size = if self.has(Extra::Large) { 1200 } else { 64 };
        let datagram = datagram(4000, to.port(), size);
        let kind = match self.case.call {
            Call::Sendto => 0,
            Call::Sendmsg => 2,
            Call::Write => 3,
            Call::Send => 4,
            _ => 253,
        };
        let mut packet = match (self.is_v6(), self.case.is_list()) {
            (true, true) => {
                let header = routing_header(kind, UDP, &[other.ip()]);
                return ipv6(from, to.ip(), ROUTING, &[header, datagram].concat());
            }
            (false, true) => {
                let list = source_route(LOOSE, &[other.ip()]);
                return ipv4(from, to.ip(), UDP, &list, &datagram);
            }
            (true, false) => ipv6(from, to.ip(), UDP, &datagram),
            (false, false) => ipv4(from, to.ip(), UDP, &[], &datagram),
        };
        set_inner_checksum(&mut packet);
        packet
    }

    fn source(&self) -> IpAddr {
        let own = match (self.is_v6(), self.in_container) {
            (true, true) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0x21).into(),
            (false, true) => Ipv4Addr::new(192, 0, 2, 121).into(),
            (true, false) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0x50).into(),
            (false, false) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 150)),
        };
        let mut from = own;
        for extra in &self.case.extras {
            match extra {
                Extra::Transparent if self.is_v6() => from = HOST6,
                Extra::Transparent => from = HOST,
                Extra::From(place) => from = self.at(*place).ip(),
                _ => {}
            }
        }
        from
    }

    fn packet_with(&self, content: Content, from: IpAddr, to: SocketAddr) -> Vec<u8> {
        const SOLICITATION: u8 = 135;
        const ADVERTISEMENT: u8 = 136;
        const ROUTER_SOLICITATION: u8 = 133;
        let about = match to.ip() {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(_) => [0; 16],
        };
        // The sender's, or the receiver's, address of the link: that of a way abroad.
        let link = |kind: u8| [kind, 1, 2, 0, 0, 0, 2, 3];
        let (protocol, body) = match (content, self.is_v6()) {
            (Content::Syn, _) => (TCP, syn(to.port())),
            (Content::Echo, true) => (
                ICMPV6,
                [&[128, 0, 0, 0, 0, 1, 0, 1][..], &[b'x'; 64]].concat(),
            ),
            (_, false) => {
                let mut echo = [&[8, 0, 0, 0, 0, 1, 0, 1][..], &[b'x'; 64]].concat();
                let sum = trefoil_lab::packets::checksum(&echo).to_be_bytes();
                echo.splice(2..4, sum);
                (ICMP, echo)
            }
            (Content::Neighbour, true) => {
                let question = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &about, &link(1)];
                (ICMPV6, question.concat())
            }
            (Content::Answer, true) => {
                let answer = [
                    &[ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0][..],
                    &about,
                    &link(2),
                ];
                (ICMPV6, answer.concat())
            }
            (Content::Router, true) => {
                let question = [&[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &link(1)];
                (ICMPV6, question.concat())
            }
        };
        if !self.is_v6() {
            let mut packet = ipv4(from, to.ip(), protocol, &[], &body);
            set_inner_checksum(&mut packet);
            return packet;
        }
        let mut packet = ipv6(from, to.ip(), protocol, &body);
        if !matches!(content, Content::Echo | Content::Syn)
            && let Some(hops) = packet.get_mut(7)
        {
            *hops = 255;
        }
        set_inner_checksum(&mut packet);
        packet
    }
}

/// The beginning of a connection to a port.
fn syn(port: u16) -> Vec<u8> {
    const SYN: u8 = 2;
    let mut segment = 4000_u16.to_be_bytes().to_vec();
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// A packet socket that reads all of an interface, as one of a group that shares it out by flow.
fn reader(device: &str) -> Option<PacketSocket> {
    const PACKET_FANOUT: i32 = 18;
    const ALL: u16 = libc::ETH_P_ALL as u16;
    let reader = PacketSocket::open(device, ALL).ok()?;
    reader.listen().ok()?;
    // The group, and by the flow's hash.
    let group = (std::process::id() & 0xffff).to_ne_bytes();
    set(
        reader.descriptor().as_raw_fd(),
        libc::SOL_PACKET,
        PACKET_FANOUT,
        &group,
    );
    Some(reader)
}
