//! Addresses that are in no country, whatever a file of country data says.
//!
//! Owns a dated table of networks that the IANA set aside: the special-purpose
//! registries of RFC 6890 and its successors, and multicast. Data files do place some
//! of these in countries, mostly in the one of whoever registered them; but a private
//! address is wherever the network is that uses it, and an anycast service answers
//! from wherever its nearest copy stands. For these addresses the policy's own
//! networks decide.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::data::Answer;
use super::ranges::{Range, Ranges};

/// A block that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    first: IpAddr,
    prefix: u8,
    /// Purpose of the block.
    pub purpose: &'static str,
    /// The document that says so.
    pub source: &'static str,
}

/// The month in which the table was as in the registries.
pub const AS_OF: &str = "2026-11";

/// The blocks as of [`AS_OF`], from the IANA IPv4 and IPv6 Special-Purpose Address
/// Registries, the multicast registries (RFC 5771, RFC 4291), and RFC 3879. Sorted by
/// family and address, without overlap.
///
/// Left out on purpose:
///
/// - The documentation blocks `192.0.2.0/24`, `198.51.100.0/24`, `203.0.113.0/24`,
///   `2001:db8::/32` and `3fff::/20`. No network uses them and no provider's data
///   places them, so they are in no country anyway; but trials and examples are made
///   with them, and then a file of the operator's own places them.
/// - Forms that have an IPv4 address in them, which decides: `::ffff:0:0/96`,
///   `64:ff9b::/96`, `64:ff9b:1::/48`, `2001::/32`, `2002::/16`.
pub const SPECIAL: &[Special] = &[
    v4([0, 0, 0, 0], 8, "this network", "RFC 791"),
    v4([10, 0, 0, 0], 8, "private use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, "shared address space", "RFC 6598"),
    v4([127, 0, 0, 0], 8, "loopback", "RFC 1122"),
    v4([169, 254, 0, 0], 16, "link local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", "RFC 6890"),
    v4([192, 31, 196, 0], 24, "AS112 anycast", "RFC 7535"),
    v4([192, 52, 193, 0], 24, "AMT anycast", "RFC 7450"),
    v4([192, 88, 99, 0], 24, "6to4 relay anycast", "RFC 7526"),
    v4([192, 168, 0, 0], 16, "private use", "RFC 1918"),
    v4([192, 175, 48, 0], 24, "AS112 anycast", "RFC 7534"),
    v4([198, 18, 0, 0], 15, "benchmarking", "RFC 2544"),
    v4([224, 0, 0, 0], 4, "multicast", "RFC 5771"),
    v4([240, 0, 0, 0], 4, "reserved", "RFC 1112"),
    v6([0, 0, 0, 0], 127, "unspecified, loopback", "RFC 4291"),
    v6([0x100, 0, 0, 0], 64, "discard only", "RFC 6666"),
    v6([0x100, 0, 0, 1], 64, "dummy prefix", "RFC 9780"),
    v6(
        [0x2001, 1, 0, 0],
        32,
        "IETF protocol assignments",
        "RFC 2928",
    ),
    v6([0x2001, 2, 0, 0], 48, "benchmarking", "RFC 5180"),
    v6([0x2001, 3, 0, 0], 32, "AMT anycast", "RFC 7450"),
    v6([0x2001, 4, 0x112, 0], 48, "AS112 anycast", "RFC 7535"),
    v6([0x2001, 0x10, 0, 0], 28, "ORCHID", "RFC 4843"),
    v6([0x2001, 0x20, 0, 0], 28, "ORCHIDv2", "RFC 7343"),
    v6([0x2001, 0x30, 0, 0], 28, "drone identification", "RFC 9374"),
    v6([0x2620, 0x4f, 0x8000, 0], 48, "AS112 anycast", "RFC 7534"),
    v6([0x5f00, 0, 0, 0], 16, "segment routing", "RFC 9602"),
    v6([0xfc00, 0, 0, 0], 7, "unique local", "RFC 4193"),
    v6([0xfe80, 0, 0, 0], 10, "link local", "RFC 4291"),
    v6([0xfec0, 0, 0, 0], 10, "site local", "RFC 3879"),
    v6([0xff00, 0, 0, 0], 8, "multicast", "RFC 4291"),
];

const fn v4(first: [u8; 4], prefix: u8, purpose: &'static str, source: &'static str) -> Special {
    let [a, b, c, d] = first;
    Special {
        first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        prefix,
        purpose,
        source,
    }
}

/// From the first four groups, behind which there are only zeros.
const fn v6(first: [u16; 4], prefix: u8, purpose: &'static str, source: &'static str) -> Special {
    let [a, b, c, d] = first;
    Special {
        first: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)),
        prefix,
        purpose,
        source,
    }
}

impl Special {
    /// The block that this address is in. A mapped IPv4 address is that address.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<&'static Self> {
        let address = address.to_canonical();
        SPECIAL.iter().find(|block| block.contains(address))
    }

    /// Its first address and the length of its prefix, as in `10.0.0.0/8`.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}/{}", self.first, self.prefix)
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let differing = first.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differing = first.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Special {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (
            network,
            Self {
                purpose, source, ..
            },
        ) = (self.network(), self);
        write!(formatter, "{network} ({purpose}, {source})")
    }
}

/// All IPv4 blocks.
pub(super) fn all_v4() -> Ranges<u32, Answer> {
    let mut ranges = Ranges::default();
    for block in SPECIAL {
        if let IpAddr::V4(first) = block.first {
            let first = first.to_bits();
            ranges.append(Range {
                first,
                last: first | u32::MAX.unbounded_shr(block.prefix.into()),
                value: Answer::Special,
            });
        }
    }
    ranges
}

/// All IPv6 blocks.
pub(super) fn all_v6() -> Ranges<u128, Answer> {
    let mut ranges = Ranges::default();
    for block in SPECIAL {
        if let IpAddr::V6(first) = block.first {
            let first = first.to_bits();
            ranges.append(Range {
                first,
                last: first | u128::MAX.unbounded_shr(block.prefix.into()),
                value: Answer::Special,
            });
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_begins_where_networks_do() {
        for pair in SPECIAL.windows(2) {
            assert!(pair[0].first < pair[1].first, "{} {}", pair[0], pair[1]);
            assert!(!pair[0].contains(pair[1].first), "{} {}", pair[0], pair[1]);
        }
        for block in SPECIAL {
            let (bits, width) = match block.first {
                IpAddr::V4(first) => (first.to_bits().trailing_zeros(), 32),
                IpAddr::V6(first) => (first.to_bits().trailing_zeros(), 128),
            };
            assert!(bits >= width - u32::from(block.prefix), "{block}");
        }
    }

    #[test]
    fn ends_where_the_registries_say() {
        let is_special = |text: &str| Special::of(text.parse().unwrap()).is_some();
        for (before, first, last, behind) in [
            ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
            (
                "100.63.255.255",
                "100.64.0.0",
                "100.127.255.255",
                "100.128.0.0",
            ),
            (
                "172.15.255.255",
                "172.16.0.0",
                "172.31.255.255",
                "172.32.0.0",
            ),
            (
                "192.167.255.255",
                "192.168.0.0",
                "192.168.255.255",
                "192.169.0.0",
            ),
            (
                "198.17.255.255",
                "198.18.0.0",
                "198.19.255.255",
                "198.20.0.0",
            ),
            (
                "192.88.98.255",
                "192.88.99.0",
                "192.88.99.255",
                "192.88.100.0",
            ),
            ("fbff::", "fc00::", "fdff:ffff::", "fe00::"),
            ("2001:1f:ffff::", "2001:20::", "2001:2f:ffff::", "2001:40::"),
        ] {
            assert!(is_special(first) && is_special(last), "{first} {last}");
            // The block before ORCHIDv2 is the first ORCHID.
            assert!(
                !is_special(before) || before.starts_with("2001:1f"),
                "{before}"
            );
            assert!(!is_special(behind), "{behind}");
        }
        assert!(is_special("::ffff:10.0.0.1"));
        for ordinary in [
            "192.0.2.1",
            "2001:db8::1",
            "2002::1",
            "2001::1",
            "64:ff9b::1",
            "1.1.1.1",
        ] {
            assert!(!is_special(ordinary), "{ordinary}");
        }
    }

    #[test]
    fn the_ranges_are_the_blocks() {
        let (v4, v6) = (all_v4(), all_v6());
        for block in SPECIAL {
            match block.first {
                IpAddr::V4(first) => assert!(v4.get(first.to_bits()).is_some(), "{block}"),
                IpAddr::V6(first) => assert!(v6.get(first.to_bits()).is_some(), "{block}"),
            }
        }
        for address in [0x0900_0000, 0x0aff_ffff, 0x0b00_0000, 0xc633_6401, u32::MAX] {
            let by_block = Special::of(IpAddr::V4(Ipv4Addr::from_bits(address)));
            assert_eq!(v4.get(address).is_some(), by_block.is_some(), "{address:x}");
        }
    }
}
