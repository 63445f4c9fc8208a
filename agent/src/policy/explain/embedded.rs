//! Destinations that embed another: who is meant by an address of a translator or of a
//! tunnel is judged as well.
//!
//! Says it in the terms of the documents that define the forms; the ABI has the same in
//! terms of halves, and both are tested against each other.

use std::net::{IpAddr, Ipv4Addr};

use trefoil_ebpf::abi::verdict;

use super::Ruling;
use crate::policy::Policy;

/// The IPv4 addresses that are embedded, and in what way.
pub(super) fn in_address(policy: &Policy, address: IpAddr) -> Vec<(IpAddr, String)> {
    let all = forms(policy, address);
    let is_several = all.len() > 1;
    // Of several, one to which nothing can go is not the one that is meant.
    let meant = all
        .into_iter()
        .filter(|(v4, _)| !is_several || v4.octets()[0] != 0);
    meant.map(|(v4, how)| (IpAddr::V4(v4), how)).collect()
}

/// All that may be meant by an address, whether anything can go there or not.
pub(super) fn forms(policy: &Policy, address: IpAddr) -> Vec<(Ipv4Addr, String)> {
    let IpAddr::V6(v6) = address else {
        return Vec::new();
    };
    if v6.to_ipv4_mapped().is_some() {
        return Vec::new();
    }
    let octets = v6.octets();
    let last =
        |groups: [u16; 2]| Ipv4Addr::from_bits(u32::from(groups[0]) << 16 | u32::from(groups[1]));
    // Behind the prefix, and not in the ninth octet.
    let behind = |prefix: u8| {
        let places = (usize::from(prefix) / 8..).filter(|place| *place != 8);
        let taken: Vec<u8> = places.take(4).map(|place| octets[place]).collect();
        Ipv4Addr::new(taken[0], taken[1], taken[2], taken[3])
    };
    // The kernel's order, so that of equally strict verdicts the same one is told.
    const SIX_TO_FOUR: u8 = 97;
    const TEREDO: u8 = 98;
    let own = policy.nat64.iter().filter(|own| own.contains(address));
    let own = own.map(|own| {
        (
            own.prefix(),
            behind(own.prefix()),
            format!("NAT64 of {own}"),
        )
    });
    let mut all: Vec<(u8, Ipv4Addr, String)> = own.collect();
    let mut add = |form, v4, how: &str| all.push((form, v4, how.to_owned()));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => add(96, last([a, b]), "NAT64, RFC 6052"),
        [0x64, 0xff9b, 1, ..] if policy.nat64.iter().all(|own| !own.contains(address)) => {
            for prefix in [48, 56, 64, 96] {
                let how = format!("NAT64, RFC 8215, behind {prefix} bits");
                add(prefix, behind(prefix), &how);
            }
        }
        [0x2002, a, b, ..] => add(SIX_TO_FOUR, last([a, b]), "6to4"),
        [0x2001, 0, .., a, b] => add(TEREDO, last([!a, !b]), "Teredo"),
        [0, 0, 0, 0, 0, 0, a, b] => add(96, last([a, b]), "IPv4-compatible"),
        _ => {}
    }
    all.sort_by_key(|(form, ..)| *form);
    all.dedup_by_key(|(form, ..)| *form);
    all.into_iter().map(|(_, v4, how)| (v4, how)).collect()
}

/// The stricter of two rulings, and whether it is that of the embedded address.
pub(super) fn stricter(outer: Ruling, inner: Ruling) -> (Ruling, bool) {
    // From the most lenient to the strictest.
    const ORDER: [u8; 7] = [
        verdict::GATEWAY,
        verdict::APPROVED,
        verdict::EXCEPTION,
        verdict::OVER_BUDGET,
        verdict::UNAPPROVED,
        verdict::UNDETERMINED,
        verdict::DENIED,
    ];
    let inner = match inner.verdict {
        // A packet that leaves is not local because of an embedded address.
        verdict::LOCAL => Ruling {
            verdict: verdict::UNDETERMINED,
            rule: None,
        },
        _ => inner,
    };
    let rank = |ruling: Ruling| ORDER.iter().position(|own| *own == ruling.verdict);
    if outer.verdict != verdict::LOCAL && rank(inner) > rank(outer) {
        (inner, true)
    } else {
        (outer, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_ebpf::abi::Decision;

    #[test]
    fn each_form_says_who_is_meant() {
        let policy = Policy::parse(
            "mode = \"report\"\nnat64 = [\"2001:db8::/32\", \"2001:db8:1ff::/48\"]",
            "policy.toml",
        );
        let mut policy = policy.unwrap();
        // RFC 6052, section 2.4: 192.0.2.33 behind prefixes of each length.
        for (prefix, outer) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ] {
            policy.nat64 = vec![prefix.parse::<Prefix>().unwrap().0];
            let found = in_address(&policy, outer.parse().unwrap());
            let found: Vec<_> = found
                .into_iter()
                .map(|(inner, _)| inner.to_string())
                .collect();
            assert_eq!(found, ["192.0.2.33"], "{outer}");
        }
        policy.nat64.clear();
        for (outer, inner) in [
            ("64:ff9b::203.0.113.9", &["203.0.113.9"][..]),
            ("64:ff9b:1:c000:2:2100::", &["192.0.2.33", "2.33.0.0"]),
            ("2002:c000:221::1", &["192.0.2.33"]),
            // RFC 4380, section 5.1: the address is inverted.
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", &["192.0.2.45"]),
            ("::203.0.113.9", &["203.0.113.9"]),
            ("64:ff9b:1::203.0.113.9", &["203.0.113.9"]),
            ("64:ff9b:2::1", &[]),
            ("64:ff9b:0:1::1", &[]),
            ("2001:1::1", &[]),
            ("2001:db8::1", &[]),
            ("2003::1", &[]),
            ("192.0.2.1", &[]),
            ("::ffff:192.0.2.1", &[]),
        ] {
            let found = in_address(&policy, outer.parse().unwrap());
            let found: Vec<_> = found
                .into_iter()
                .map(|(inner, _)| inner.to_string())
                .collect();
            assert_eq!(found, inner, "{outer}");
        }
        // The policy is believed if it says how the translator embeds addresses.
        policy.nat64 = vec!["64:ff9b:1::/48".parse::<Prefix>().unwrap().0];
        assert_eq!(
            in_address(&policy, "64:ff9b:1:c000:2:2100::".parse().unwrap()).len(),
            1
        );
    }

    /// A network, where only its text is to be had.
    struct Prefix(crate::policy::network::Network);

    impl std::str::FromStr for Prefix {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            crate::policy::network::Network::parse(text)
                .map(Self)
                .map_err(|_| ())
        }
    }

    #[test]
    fn the_kernel_orders_verdicts_the_same() {
        let all = [
            verdict::LOCAL,
            verdict::GATEWAY,
            verdict::APPROVED,
            verdict::EXCEPTION,
            verdict::OVER_BUDGET,
            verdict::DENIED,
            verdict::UNAPPROVED,
            verdict::UNDETERMINED,
        ];
        for (outer, inner) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
            let decision = |verdict, rule| Decision {
                verdict,
                rule,
                ..Decision::default()
            };
            let ruling = |verdict, rule| Ruling {
                verdict,
                rule: Some(rule),
            };
            let found = decision(outer, 1).or_stricter(decision(inner, 2));
            let (expected, _) = stricter(ruling(outer, 1), ruling(inner, 2));
            assert_eq!(found.verdict, expected.verdict, "{outer} {inner}");
            if let Some(rule) = expected.rule {
                assert_eq!(usize::from(found.rule), rule, "{outer} {inner}");
            }
        }
    }
}
