//! Networks, as policies write them.
//!
//! Owns what a well-formed network is and which addresses it has. Knows nothing
//! of routes or countries.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::problem::Fault;

/// A prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// First and last address of something, as numbers in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// IPv4
    V4(u32, u32),
    /// IPv6
    V6(u128, u128),
}

impl Network {
    /// The network with exactly this address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        let prefix = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self { address, prefix }
    }

    /// `address/prefix` with host bits cut off; a prefix that is too long is a host's.
    #[must_use]
    pub fn containing(address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let prefix = prefix.min(32);
                let bits = v4.to_bits() & !host_mask32(prefix);
                Self {
                    address: Ipv4Addr::from_bits(bits).into(),
                    prefix,
                }
            }
            IpAddr::V6(v6) => {
                let prefix = prefix.min(128);
                let bits = v6.to_bits() & !host_mask128(prefix);
                Self {
                    address: Ipv6Addr::from_bits(bits).into(),
                    prefix,
                }
            }
        }
    }

    /// Reads `address/prefix`, or an address alone, which is a network of one.
    ///
    /// # Errors
    ///
    /// Not an address, a prefix that is too long, or host bits that are set:
    /// somebody who writes these may mean the host or the network.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = parse_address(address)?;
        let network = match prefix {
            None => return Ok(Self::host(address)),
            Some(prefix) => {
                let longest = Self::host(address).prefix;
                let prefix = prefix
                    .parse::<u8>()
                    .ok()
                    .filter(|&prefix| prefix <= longest)
                    .ok_or_else(|| {
                        Fault::new(format!("`{text}` has no valid prefix length"))
                            .help(format!("after `/` comes a number from 0 to {longest}"))
                    })?;
                Self::containing(address, prefix)
            }
        };
        if network.address != address {
            return Err(
                Fault::new(format!("`{text}` has host bits set")).help(format!(
                    "write `{network}` for the network, or `{}` for the host",
                    Self::host(address)
                )),
            );
        }
        Ok(network)
    }

    /// Length of the prefix.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// First address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// First and last address, as numbers.
    #[must_use]
    pub fn extent(&self) -> Extent {
        match self.address {
            IpAddr::V4(v4) => {
                let first = v4.to_bits();
                Extent::V4(first, first | host_mask32(self.prefix))
            }
            IpAddr::V6(v6) => {
                let first = v6.to_bits();
                Extent::V6(first, first | host_mask128(self.prefix))
            }
        }
    }

    /// First and last address.
    #[must_use]
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        let (first, last) = match self.extent() {
            Extent::V4(first, last) => (
                Ipv4Addr::from_bits(first).into(),
                Ipv4Addr::from_bits(last).into(),
            ),
            Extent::V6(first, last) => (
                Ipv6Addr::from_bits(first).into(),
                Ipv6Addr::from_bits(last).into(),
            ),
        };
        (first, last)
    }

    /// True when `address` is one of this network's. The two families have no
    /// address in common.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::containing(address, self.prefix) == *self
    }

    /// The network whose two halves these are.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let whole = Self::containing(self.address, self.prefix.checked_sub(1)?);
        let are_halves = self.prefix == other.prefix
            && self.address != other.address
            && whole.contains(other.address);
        are_halves.then_some(whole)
    }

    /// True when every address of `other` is one of this network's.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// Reads an address as a policy may write it.
///
/// # Errors
///
/// Not an address, or an IPv4-mapped one, which is judged as the IPv4 address
/// that it is and would match nothing here.
pub fn parse_address(text: &str) -> Result<IpAddr, Fault> {
    let address: IpAddr = text.parse().map_err(|_| {
        let fault = Fault::new(format!("`{text}` is not an IP address"));
        if text.starts_with('[') {
            fault.help("brackets belong around the address of an endpoint only")
        } else if text.contains('%') {
            fault.help("leave out the interface after `%`")
        } else {
            fault.help("write it as in 192.0.2.0/24 or 2001:db8::/32")
        }
    })?;
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Fault::new(format!(
            "`{text}` is an IPv4 address inside an IPv6 address"
        ))
        .help(format!(
            "such traffic is judged as IPv4: write {v4}, a prefix being 96 shorter"
        )));
    }
    Ok(address)
}

const fn host_mask32(prefix: u8) -> u32 {
    match u32::MAX.checked_shr(prefix as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

const fn host_mask128(prefix: u8) -> u128 {
    match u128::MAX.checked_shr(prefix as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents() {
        let extent = |text| Network::parse(text).unwrap().extent();
        assert_eq!(extent("192.0.2.0/24"), Extent::V4(0xc000_0200, 0xc000_02ff));
        assert_eq!(extent("0.0.0.0/0"), Extent::V4(0, u32::MAX));
        assert_eq!(extent("192.0.2.1"), Extent::V4(0xc000_0201, 0xc000_0201));
        assert_eq!(extent("::/0"), Extent::V6(0, u128::MAX));
        assert_eq!(extent("::2/128"), Extent::V6(2, 2));
    }

    #[test]
    fn refusals_say_what_is_right() {
        let fault = Network::parse("198.51.100.7/24").unwrap_err();
        assert_eq!(fault.message, "`198.51.100.7/24` has host bits set");
        assert!(fault.help.unwrap().contains("`198.51.100.0/24`"));
        for wrong in [
            "192.0.2.0/33",
            "2001:db8::/129",
            "192.0.2.0/",
            "192.0.2.0/-1",
        ] {
            let fault = Network::parse(wrong).unwrap_err();
            assert!(fault.message.contains("prefix"), "{wrong}: {fault:?}");
        }
        for wrong in [
            "10/8",
            "example.org",
            "192.0.2.01",
            "[2001:db8::1]",
            "fe80::1%eth0",
            "",
        ] {
            assert!(Network::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Network::parse("::ffff:192.0.2.0/120").is_err());
    }

    #[test]
    fn halves() {
        let network = |text| Network::parse(text).unwrap();
        let joined = |a, b| {
            network(a)
                .joined(&network(b))
                .map(|whole| whole.to_string())
        };
        assert_eq!(
            joined("192.0.2.4", "192.0.2.5").as_deref(),
            Some("192.0.2.4/31")
        );
        assert_eq!(
            joined("0.0.0.0/1", "128.0.0.0/1").as_deref(),
            Some("0.0.0.0/0")
        );
        assert_eq!(
            joined("2001:db8::/33", "2001:db8:8000::/33").as_deref(),
            Some("2001:db8::/32")
        );
        for (a, b) in [
            ("192.0.2.5", "192.0.2.6"),
            ("192.0.2.4", "192.0.2.4"),
            ("192.0.2.4/31", "192.0.2.6"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.4", "2001:db8::"),
        ] {
            assert_eq!(joined(a, b), None, "{a} {b}");
        }
    }

    #[test]
    fn covers() {
        let network = |text| Network::parse(text).unwrap();
        assert!(network("192.0.2.0/24").covers(&network("192.0.2.128/25")));
        assert!(network("192.0.2.0/24").covers(&network("192.0.2.0/24")));
        assert!(!network("192.0.2.0/25").covers(&network("192.0.2.0/24")));
        assert!(!network("0.0.0.0/0").covers(&network("::/0")));
    }
}
