//! Ways out, drawn at random: what a program may do with a socket so that something leaves.
//!
//! A case is drawn from a seed and a number and from nothing else, so that it can be gone
//! once more, alone, and with less and less in it. `traffic ways` goes them.

use std::fmt;

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
}

/// The call that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// sendto(2)
    Sendto,
    /// sendmsg(2)
    Sendmsg,
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
    /// What goes with it.
    pub extras: Vec<Extra>,
    /// Who else uses the socket.
    pub race: Race,
}

impl Case {
    /// True if its packets list destinations: what becomes of their bytes at each is not to be
    /// told from the outside.
    pub fn has_lists(&self) -> bool {
        let is_list = |extra: &Extra| matches!(extra, Extra::Route(_) | Extra::RouteMessage(_));
        self.extras.iter().any(is_list)
    }

    /// Draws the case with this number.
    #[must_use]
    pub fn draw(seed: u64, number: u64, in_container: bool) -> Self {
        let mut draw = Draw(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        const PLACES: [Place; 12] = [
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
            ],
            true => &[
                Kind::Udp,
                Kind::Udp,
                Kind::Tcp,
                Kind::Ping,
                Kind::Raw,
                Kind::Header,
                Kind::Packet,
            ],
        };
        let count = draw.below(5);
        Self {
            family: draw.one_of(&[Family::V4, Family::V6, Family::V6, Family::Mapped]),
            kind: draw.one_of(kinds),
            first: draw.one_of(&PLACES),
            then: draw.one_of(&PLACES),
            call: draw.one_of(&[
                Call::Sendto,
                Call::Sendmsg,
                Call::Send,
                Call::Write,
                Call::Sendfile,
                Call::Splice,
                Call::FastOpen,
                Call::Ring,
                Call::RingMessage,
            ]),
            extras: (0..count).map(|_| draw.extra(&PLACES)).collect(),
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
        let (place, device) = (self.one_of(places), self.below(4) as u8);
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
