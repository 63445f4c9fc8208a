//! Destinations that embed another: who is meant by an address of a translator or of a
//! tunnel is judged as well.
//!
//! Says it in the terms of the documents that define the forms; the ABI has the same in
//! terms of halves, and both are tested against each other.

use std::net::{IpAddr, Ipv4Addr};

use trefoil_ebpf::abi::verdict;

use super::Ruling;

/// The IPv4 address that is embedded, and in what way.
pub(super) fn in_address(address: IpAddr) -> Option<(IpAddr, &'static str)> {
    let IpAddr::V6(v6) = address else { return None };
    let last =
        |groups: [u16; 2]| Ipv4Addr::from_bits(u32::from(groups[0]) << 16 | u32::from(groups[1]));
    let (v4, how) = match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => (last([a, b]), "NAT64, RFC 6052"),
        [0x64, 0xff9b, 1, ..] => {
            let [.., a, b, _, c, d, e, f, g, h, i] = v6.octets();
            let v4 = match [e, f, g, h, i] {
                [0, 0, 0, 0, 0] => Ipv4Addr::new(a, b, c, d),
                [_, x, y, z, w] => Ipv4Addr::new(x, y, z, w),
            };
            (v4, "NAT64, RFC 8215")
        }
        [0x2002, a, b, ..] => (last([a, b]), "6to4"),
        [0x2001, 0, .., a, b] => (last([!a, !b]), "Teredo"),
        _ => return None,
    };
    Some((IpAddr::V4(v4), how))
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
        // What leaves is not made local by what is embedded.
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
    use proptest::prelude::*;
    use trefoil_ebpf::abi::{Address, Decision};

    #[test]
    fn each_form_says_who_is_meant() {
        for (outer, inner) in [
            ("64:ff9b::203.0.113.9", Some("203.0.113.9")),
            ("64:ff9b:1::203.0.113.9", Some("203.0.113.9")),
            ("64:ff9b:1:fffe::203.0.113.9", Some("203.0.113.9")),
            // RFC 6052, section 2.2: 192.0.2.33 behind a prefix of 48 bits.
            ("64:ff9b:1:c000:2:2100::", Some("192.0.2.33")),
            ("2002:c000:221::1", Some("192.0.2.33")),
            // RFC 4380, section 5.1: the address is inverted.
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Some("192.0.2.45")),
            ("64:ff9b:2::1", None),
            ("64:ff9b:0:1::1", None),
            ("2001:1::1", None),
            ("2001:db8::1", None),
            ("2003::1", None),
            ("192.0.2.1", None),
        ] {
            let found = in_address(outer.parse().unwrap()).map(|(inner, _)| inner);
            assert_eq!(found, inner.map(|inner| inner.parse().unwrap()), "{outer}");
        }
    }

    proptest! {
        #[test]
        fn the_kernel_finds_the_same(
            prefix in proptest::sample::select(vec![
                0x0064_ff9b_0000_0000_u64, 0x0064_ff9b_0001_0000, 0x2002_0000_0000_0000,
                0x2001_0000_0000_0000, 0x2001_0db8_0000_0000,
            ]),
            bits: u64,
            low: u64,
            shift in 0_u32..64,
        ) {
            let (high, low) = (prefix | bits >> shift.max(16), low << shift);
            let address = Address::from_halves(high, low);
            let v6 = std::net::Ipv6Addr::from(address.0);
            let expected = in_address(v6.into()).map(|(inner, _)| inner);
            let found = address.embedded_v4().map(|v4| IpAddr::V4(v4.into()));
            prop_assert_eq!(found, expected, "{}", v6);
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
