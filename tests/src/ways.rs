//! Ways out, drawn at random: what a program may do with a socket so that something leaves.
//!
//! A case is drawn from a seed and a number and from nothing else, so that it can be gone
//! once more, alone, and with less and less in it. `traffic ways` goes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address of [`Place::Translated`].
pub const TRANSLATED: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 77));
/// The same of IPv6.
pub const TRANSLATED6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x77));

/// The family of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 by way of a socket of IPv6.
    Mapped,
}

/// The socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Datagrams.
    Udp,
    /// Datagrams of UDP-Lite.
    UdpLite,
    /// A connection.
    Tcp,
    /// A connection of several.
    Mptcp,
    /// Echo requests.
    Ping,
    /// A raw socket; for containers.
    Raw,
    /// A raw socket with headers of its own; for containers.
    Header,
    /// A packet socket; for containers.
    Packet,
    /// The ring of a packet socket, in which the frame changes while it is sent; for containers.
    TxRing,
    /// A tun device that packets are written into.
    Tun,
}

impl Kind {
    /// True if the sender writes whole packets of IP.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Header | Self::Packet | Self::TxRing | Self::Tun)
    }
}

/// Fragments that a sender makes by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// All of a datagram.
    Both,
    /// The beginning.
    First,
    /// All but the beginning.
    Later,
    /// The beginning goes to the first place and the rest, of the same number, to the second.
    Mixed,
}

/// Content of a whole packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A request for an echo.
    Echo,
    /// The beginning of a connection.
    Syn,
    /// Neighbour discovery: a question about an own address.
    Neighbour,
    /// Neighbour discovery: an answer.
    Answer,
    /// Neighbour discovery: a question for routers.
    Router,
}

/// Where something is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not approved.
    Foreign,
    /// An approved gateway, at its approved port.
    Gateway,
    /// The gateway, at another port.
    OtherPort,
    /// Of the approved network.
    Peer,
    /// An approved gateway that is a router.
    Router,
    /// Unicast of the link's scope.
    Link,
    /// The host itself.
    Own,
    /// The loopback address.
    Loopback,
    /// Multicast beyond the link.
    Wide,
    /// An address in which a foreign one is embedded; without one in IPv4, the foreign one.
    Embedded,
    /// Of the approved network; a host that translates sends it to the foreign place.
    Translated,
}

/// The call that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// sendto(2)
    Sendto,
    /// sendmsg(2)
    Sendmsg,
    /// sendmmsg(2): to both places in one call.
    Sendmmsg,
    /// connect(2) and send(2)
    Send,
    /// connect(2) and write(2)
    Write,
    /// connect(2) and sendfile(2)
    Sendfile,
    /// connect(2) and splice(2)
    Splice,
    /// sendto(2) with MSG_FASTOPEN
    FastOpen,
    /// io_uring: connect and send
    Ring,
    /// io_uring: sendmsg
    RingMessage,
}

/// Something that is done to the socket, or goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// A list of destinations: by this place to a foreign one, and from there on.
    Route(Place),
    /// The same in a control message.
    RouteMessage(Place),
    /// Options of IPv4, or an extension header of IPv6, that mean nothing.
    Options,
    /// IP_TRANSPARENT
    Transparent,
    /// IP_FREEBIND, and bound to an address that is not the host's.
    FreeBind,
    /// SO_BINDTODEVICE: one of the devices.
    Device(u8),
    /// IP_PKTINFO or IPV6_PKTINFO: one of the devices.
    PacketInfo(u8),
    /// IP_UNICAST_IF or IPV6_UNICAST_IF
    UnicastDevice(u8),
    /// UDP_SEGMENT
    Segments,
    /// UDP_CORK or TCP_CORK
    Cork,
    /// MSG_MORE
    More,
    /// TCP_REPAIR
    Repair,
    /// IPV6_V6ONLY
    V6Only,
    /// A flow label.
    FlowLabel,
    /// Connected to nobody in between (AF_UNSPEC).
    Unspec,
    /// MSG_DONTROUTE
    DontRoute,
    /// SO_BROADCAST
    Broadcast,
    /// IP_TTL of 1, as for neighbours.
    ShortLived,
    /// A user namespace of its own, and with it all capabilities there.
    UserNamespace,
    /// The same, with a network of its own that leads nowhere.
    NetworkNamespace,
    /// Datagrams that do not fit into one packet.
    Large,
    /// The kernel is to cut as early as it can.
    SmallPackets,
    /// A mark, by which the container's own network sends it to the foreign place; for containers.
    Mark,
    /// A whole packet comes from there, as far as it says.
    From(Place),
    /// A whole packet has this in it, and no datagram.
    Content(Content),
    /// A whole packet is sent in fragments.
    Fragments(Pieces),
    /// Tags and the like around a packet, by a number.
    Wrapped(u8),
    /// A checksum is missing, and goes to one of several places (PACKET_VNET_HDR, IFF_VNET_HDR).
    Checksum(u8),
    /// The packet is to be cut into segments of one of several kinds (likewise).
    Segmented(u8),
    /// Another packet socket reads along, and spreads what it reads by flow (PACKET_FANOUT).
    Fanout,
    /// TPACKET_V3
    Version3,
}

/// Others that use the socket meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// Nobody.
    None,
    /// A thread connects it to one place and the other in turn.
    Reconnect,
    /// A thread puts another socket under its descriptor.
    Replace,
    /// A child sends, too.
    Fork,
    /// Another process gets it over a UNIX socket.
    Pass,
    /// Another program goes on with it.
    Exec,
}

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The family of the socket.
    pub family: Family,
    /// The socket.
    pub kind: Kind,
    /// The first destination.
    pub first: Place,
    /// The second.
    pub then: Place,
    /// The call that sends.
    pub call: Call,
    /// Extras that go with it.
    pub extras: Vec<Extra>,
    /// Others that use the socket.
    pub race: Race,
}

impl Case {
    /// True if its whole packets list destinations.
    pub fn is_list(&self) -> bool {
        let is_list = |extra: &Extra| matches!(extra, Extra::Route(_));
        self.extras.iter().any(is_list)
    }

    /// False if what becomes of its bytes is not to be told from the outside: its packets list
    /// destinations, change while they are on their way, or are cut by headers of their own.
    pub fn is_told_by_address(&self) -> bool {
        let is_other = |extra: &Extra| {
            matches!(
                extra,
                Extra::Route(_) | Extra::RouteMessage(_) | Extra::Segmented(_)
            )
        };
        self.kind != Kind::TxRing && !self.extras.iter().any(is_other)
    }

    /// Draws the case with this number.
    #[must_use]
    pub fn draw(seed: u64, number: u64, in_container: bool) -> Self {
        let mut draw = Draw(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        const PLACES: [Place; 14] = [
            Place::Foreign,
            Place::Foreign,
            Place::Gateway,
            Place::Gateway,
            Place::OtherPort,
            Place::Peer,
            Place::Router,
            Place::Link,
            Place::Own,
            Place::Loopback,
            Place::Wide,
            Place::Embedded,
            Place::Translated,
            Place::Translated,
        ];
        let kinds: &[Kind] = match in_container {
            false => &[
                Kind::Udp,
                Kind::Udp,
                Kind::Udp,
                Kind::UdpLite,
                Kind::Tcp,
                Kind::Mptcp,
                Kind::Ping,
                Kind::Tun,
            ],
            true => &[
                Kind::Udp,
                Kind::Udp,
                Kind::Tcp,
                Kind::Mptcp,
                Kind::Ping,
                Kind::Raw,
                Kind::Header,
                Kind::Packet,
                Kind::Packet,
                Kind::TxRing,
                Kind::Tun,
            ],
        };
        let count = draw.below(5);
        let kind = draw.one_of(kinds);
        Self {
            family: draw.one_of(&[Family::V4, Family::V6, Family::V6, Family::Mapped]),
            kind,
            first: draw.one_of(&PLACES),
            then: draw.one_of(&PLACES),
            call: draw.one_of(&[
                Call::Sendto,
                Call::Sendmsg,
                Call::Sendmmsg,
                Call::Send,
                Call::Write,
                Call::Sendfile,
                Call::Splice,
                Call::FastOpen,
                Call::Ring,
                Call::RingMessage,
            ]),
            extras: (0..count)
                .map(|_| match kind.is_whole() {
                    true => draw.extra_of_packet(&PLACES),
                    false => draw.extra(&PLACES),
                })
                .collect(),
            race: draw.one_of(&[
                Race::None,
                Race::None,
                Race::None,
                Race::Reconnect,
                Race::Replace,
                Race::Fork,
                Race::Pass,
                Race::Exec,
            ]),
        }
    }

    /// Without one of its extras, or without others that use the socket: what may be left
    /// out of it, from 0 on.
    #[must_use]
    pub fn without(mut self, part: usize) -> Option<Self> {
        match part {
            0 if self.race != Race::None => self.race = Race::None,
            0 => return None,
            _ if part <= self.extras.len() => {
                self.extras.remove(part - 1);
            }
            _ => return None,
        }
        Some(self)
    }

    /// Without all of these parts.
    #[must_use]
    pub fn without_all(mut self, parts: &[usize]) -> Self {
        let mut parts = parts.to_vec();
        // From the last on, so that the others keep their places.
        parts.sort_unstable_by(|a, b| b.cmp(a));
        for part in parts {
            if let Some(less) = self.clone().without(part) {
                self = less;
            }
        }
        self
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            kind,
            first,
            then,
            call,
            extras,
            race,
        } = self;
        write!(
            formatter,
            "{kind:?} socket, {family:?}, to {first:?} and then {then:?} by {call:?}, \
             with {extras:?}, meanwhile: {race:?}"
        )
    }
}

/// Numbers from a seed (SplitMix64).
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn extra(&mut self, places: &[Place]) -> Extra {
        let (place, device) = (self.one_of(places), self.below(8) as u8);
        self.one_of(&[
            Extra::Route(place),
            Extra::Route(Place::Router),
            Extra::Route(Place::Link),
            Extra::RouteMessage(place),
            Extra::Options,
            Extra::Transparent,
            Extra::FreeBind,
            Extra::Device(device),
            Extra::Device(device),
            Extra::PacketInfo(device),
            Extra::UnicastDevice(device),
            Extra::Segments,
            Extra::Cork,
            Extra::More,
            Extra::Repair,
            Extra::V6Only,
            Extra::FlowLabel,
            Extra::Unspec,
            Extra::DontRoute,
            Extra::Broadcast,
            Extra::ShortLived,
            Extra::UserNamespace,
            Extra::NetworkNamespace,
            Extra::Large,
            Extra::SmallPackets,
            Extra::Mark,
        ])
    }

    /// Draws what goes with a whole packet of IP.
    fn extra_of_packet(&mut self, places: &[Place]) -> Extra {
        const PIECES: [Pieces; 4] = [Pieces::Both, Pieces::First, Pieces::Later, Pieces::Mixed];
        const CONTENTS: [Content; 5] = [
            Content::Echo,
            Content::Syn,
            Content::Neighbour,
            Content::Answer,
            Content::Router,
        ];
        let (place, number) = (self.one_of(places), self.below(8) as u8);
        let (pieces, content) = (self.one_of(&PIECES), self.one_of(&CONTENTS));
        self.one_of(&[
            Extra::Route(place),
            Extra::Transparent,
            Extra::From(place),
            Extra::From(Place::Foreign),
            Extra::Content(content),
            Extra::Content(content),
            Extra::Fragments(pieces),
            Extra::Fragments(pieces),
            Extra::Wrapped(number),
            Extra::Checksum(number),
            Extra::Segmented(number),
            Extra::Device(number),
            Extra::Device(number),
            Extra::Fanout,
            Extra::Version3,
            Extra::Large,
            Extra::Mark,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_can_be_drawn_once_more_and_made_smaller() {
        let case = Case::draw(7, 41, true);
        assert_eq!(case, Case::draw(7, 41, true));
        let all: Vec<usize> = (0..=case.extras.len()).collect();
        let least = case.without_all(&all);
        assert!(least.extras.is_empty() && least.race == Race::None);
    }
}
