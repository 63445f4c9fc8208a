//! Places that are local whatever a policy says.
//!
//! Owns the list of destinations that no packet leaves the host or its link for.
//! The host's own addresses are local too, but they change, so whoever compiles a
//! policy brings them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::network::Network;

/// The networks that are always local. No rule is asked about them.
///
/// - This host: `127.0.0.0/8`, `::1`, and the unspecified addresses, which
///   connect to the host itself.
/// - This link, never forwarded: `169.254.0.0/16` and `fe80::/10`,
///   `255.255.255.255`, `224.0.0.0/24` (RFC 5771), and IPv6 multicast of scope 1
///   (interface) and 2 (link), whatever its flags say (RFC 4291): permanent,
///   transient or derived from a prefix, the scope alone decides where it ends.
pub fn always_local() -> impl Iterator<Item = Network> {
    let v4 = [
        (Ipv4Addr::UNSPECIFIED, 32),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(224, 0, 0, 0), 24),
        (Ipv4Addr::BROADCAST, 32),
    ];
    let v6 = [
        (Ipv6Addr::UNSPECIFIED, 128),
        (Ipv6Addr::LOCALHOST, 128),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    ];
    let multicast = (0..16).flat_map(|flags: u16| {
        [1, 2].map(|scope| {
            let group = 0xff00 | flags << 4 | scope;
            (Ipv6Addr::new(group, 0, 0, 0, 0, 0, 0, 0), 16)
        })
    });
    let v4 = v4.into_iter().map(|(at, prefix)| (IpAddr::V4(at), prefix));
    let v6 = v6
        .into_iter()
        .chain(multicast)
        .map(|(at, prefix)| (IpAddr::V6(at), prefix));
    v4.chain(v6)
        .map(|(at, prefix)| Network::containing(at, prefix))
}

/// The always local network that `address` is in.
#[must_use]
pub fn always_local_network_of(address: IpAddr) -> Option<Network> {
    always_local().find(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_the_link_and_what_does_not() {
        let local = |text: &str| always_local_network_of(text.parse().unwrap()).is_some();
        for yes in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff01::1",
            "ff02::fb",
            "ff12::1",
            "ff11::1",
            "ff32::1",
            "ff52::1",
        ] {
            assert!(local(yes), "{yes}");
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
            assert!(!local(no), "{no}");
        }
    }
}
