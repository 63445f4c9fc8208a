//! Places that are local whatever a policy says, and places that are by where a packet goes.
//!
//! Owns the lists. The host's own addresses change, so whoever compiles a policy brings them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::network::Network;

/// Treatment of unicast to the link's scope, see [`link_local`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLocal {
    /// Rules are asked, as about any other destination: a router may forward it, and what
    /// answers there may be no neighbour.
    #[default]
    Judged,
    /// It is local, and no rule is asked.
    Local,
}

/// The networks that are always local. No rule is asked about them: no router forwards what
/// goes there.
///
/// `255.255.255.255`, `224.0.0.0/24` (RFC 5771), and IPv6 multicast of scope 1 (interface)
/// and 2 (link), whatever its flags say (RFC 4291): permanent, transient or derived from a
/// prefix, the scope alone decides where it ends.
pub fn always_local() -> impl Iterator<Item = Network> {
    let v4 = [(Ipv4Addr::new(224, 0, 0, 0), 24), (Ipv4Addr::BROADCAST, 32)];
    let multicast = (0..16).flat_map(|flags: u16| {
        [1, 2].map(|scope| {
            let group = 0xff00 | flags << 4 | scope;
            (Ipv6Addr::new(group, 0, 0, 0, 0, 0, 0, 0), 16)
        })
    });
    networks(v4, multicast)
}

/// The networks of this host itself, beside its addresses: `127.0.0.0/8`, `::1`, and the
/// unspecified addresses, which connect to the host. They are local where a packet may stay;
/// one that leaves nevertheless is judged.
pub fn own() -> impl Iterator<Item = Network> {
    let v4 = [
        (Ipv4Addr::UNSPECIFIED, 32),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
    ];
    networks(
        v4,
        [(Ipv6Addr::UNSPECIFIED, 128), (Ipv6Addr::LOCALHOST, 128)],
    )
}

/// Unicast to the link's scope: `169.254.0.0/16` and `fe80::/10`.
pub fn link_local() -> impl Iterator<Item = Network> {
    networks(
        [(Ipv4Addr::new(169, 254, 0, 0), 16)],
        [(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)],
    )
}

/// Networks that no rule can name, since no rule is asked about what goes there as it
/// should.
pub fn nameless() -> impl Iterator<Item = Network> {
    always_local().chain(own())
}

fn networks(
    v4: impl IntoIterator<Item = (Ipv4Addr, u8)>,
    v6: impl IntoIterator<Item = (Ipv6Addr, u8)>,
) -> impl Iterator<Item = Network> {
    let v4 = v4.into_iter().map(|(at, prefix)| (IpAddr::V4(at), prefix));
    let v6 = v6.into_iter().map(|(at, prefix)| (IpAddr::V6(at), prefix));
    v4.chain(v6)
        .map(|(at, prefix)| Network::containing(at, prefix))
}

impl LinkLocal {
    /// The networks where no rule is asked.
    pub fn local(self) -> impl Iterator<Item = Network> {
        let link = match self {
            Self::Judged => None,
            Self::Local => Some(link_local()),
        };
        always_local().chain(link.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_the_link_and_what_does_not() {
        let is_in = |mut networks: Box<dyn Iterator<Item = Network>>, text: &str| {
            let address = text.parse().unwrap();
            networks.any(|network| network.contains(address))
        };
        for yes in [
            "224.0.0.251",
            "255.255.255.255",
            "ff01::1",
            "ff02::fb",
            "ff12::1",
            "ff11::1",
            "ff32::1",
            "ff52::1",
        ] {
            assert!(is_in(Box::new(always_local()), yes), "{yes}");
        }
        for own_address in ["0.0.0.0", "127.0.0.1", "127.255.255.255", "::", "::1"] {
            assert!(is_in(Box::new(own()), own_address), "{own_address}");
            assert!(
                !is_in(Box::new(always_local()), own_address),
                "{own_address}"
            );
        }
        for link in ["169.254.169.254", "fe80::1", "febf::1"] {
            assert!(is_in(Box::new(LinkLocal::Local.local()), link), "{link}");
            assert!(!is_in(Box::new(LinkLocal::Judged.local()), link), "{link}");
            assert!(!is_in(Box::new(nameless()), link), "{link}");
        }
        for no in [
            "0.0.0.1",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "10.0.0.1",
            "224.0.1.1",
            "239.255.255.250",
            "255.255.255.254",
            "::2",
            "fe7f::1",
            "fec0::1",
            "fd00::1",
            "ff00::1",
            "ff03::1",
            "ff05::2",
            "ff0e::1",
            "2001:db8::1",
        ] {
            let all = LinkLocal::Local.local().chain(own());
            assert!(!is_in(Box::new(all), no), "{no}");
        }
    }
}
