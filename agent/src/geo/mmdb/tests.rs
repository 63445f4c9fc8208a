//! Databases of a few hundred bytes, written here and read back in every layout.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::geo::testing::Value::{Bool, Map, Text, U16, U32};
use crate::geo::testing::{Value, Writer, flagged, ipinfo, maxmind, represented};
use crate::geo::{Countries, Country};

fn one(record: Value) -> (Option<Answer>, Option<u32>) {
    let data = parse(&Writer::new(4).network("192.0.2.0/24", record).finish()).unwrap();
    assert_eq!(data.n_networks, 1);
    let address = 0xc000_0207;
    (data.countries_v4.get(address), data.asns_v4.get(address))
}

fn place(code: &str) -> Option<Answer> {
    Some(Answer::Country(Country::parse(code).unwrap()))
}

fn several(codes: &[&str]) -> Option<Answer> {
    let countries = codes.iter().filter_map(|code| Country::parse(code));
    Countries::new(countries, false).map(Answer::Contradictory)
}

#[test]
fn maxmind_and_dbip_countries() {
    assert_eq!(one(maxmind("IE", "IE")), (place("IE"), None));
    assert_eq!(one(maxmind("IE", "")), (place("IE"), None));
}

#[test]
fn two_countries_are_a_contradiction() {
    assert_eq!(one(maxmind("IE", "US")), (several(&["IE", "US"]), None));
    let both = Map(vec![("country", Text("IE")), ("country_code", Text("US"))]);
    assert_eq!(one(both), (several(&["IE", "US"]), None));
}

#[test]
fn ground_of_another_country_is_in_two() {
    let base = represented(maxmind("DE", "DE"), "US");
    assert_eq!(one(base), (several(&["DE", "US"]), None));
    let embassy = represented(maxmind("DE", "DE"), "DE");
    assert_eq!(one(embassy), (place("DE"), None));
}

#[test]
fn what_is_flagged_may_be_anywhere() {
    let anywhere = (Some(Answer::Anywhere), None);
    for flag in ["is_anycast", "is_satellite_provider", "is_anonymous_proxy"] {
        assert_eq!(one(flagged(maxmind("IE", "IE"), flag)), anywhere, "{flag}");
        assert_eq!(one(flagged(maxmind("", "IE"), flag)), anywhere, "{flag}");
    }
    assert_eq!(
        one(flagged(maxmind("IE", "IE"), "is_something_else")),
        (place("IE"), None)
    );
    for (value, answer) in [
        (Bool(true), Some(Answer::Anywhere)),
        (Text("true"), Some(Answer::Anywhere)),
        (Bool(false), place("IE")),
        (Text(""), place("IE")),
        (U16(1), place("IE")),
    ] {
        for flag in ["is_anycast", "is_satellite"] {
            let record = Map(vec![("country_code", Text("IE")), (flag, value.clone())]);
            assert_eq!(one(record), (answer, None), "{flag} {value:?}");
        }
    }
    for code in ["A1", "A2", "A3"] {
        assert_eq!(one(maxmind(code, "IE")), anywhere, "{code}");
        let record = Map(vec![("country_code", Text(code))]);
        assert_eq!(one(record), anywhere, "{code}");
    }
}

#[test]
fn where_the_holder_is_registered_is_not_where_the_address_is() {
    assert_eq!(one(maxmind("", "US")), (None, None));
}

#[test]
fn codes_that_are_no_country_are_no_answer() {
    assert_eq!(one(maxmind("EU", "IE")), (None, None));
    assert_eq!(one(maxmind("IE", "EU")), (place("IE"), None));
    assert_eq!(one(Map(vec![("country_code", Text("??"))])), (None, None));
}

#[test]
fn ipinfo_countries_and_autonomous_systems() {
    assert_eq!(one(ipinfo("IE", "AS64496")), (place("IE"), Some(64496)));
    let lite = Map(vec![
        ("asn", Text("AS64496")),
        ("country", Text("Ireland")),
        ("country_code", Text("IE")),
    ]);
    assert_eq!(one(lite), (place("IE"), Some(64496)));
    assert_eq!(
        one(Map(vec![("asn", Text("")), ("country", Text("IE"))])),
        (place("IE"), None)
    );
}

#[test]
fn ip_location_db_countries_and_autonomous_systems() {
    assert_eq!(
        one(Map(vec![("country_code", Text("IE"))])),
        (place("IE"), None)
    );
    let asn = Map(vec![
        ("autonomous_system_number", U32(64496)),
        ("autonomous_system_organization", Text("Example")),
    ]);
    assert_eq!(one(asn), (None, Some(64496)));
}

#[test]
fn a_database_of_both_families() {
    for writer in [
        Writer::new(6),
        Writer::new(6).network("::ffff:0:0/96", maxmind("US", "")),
    ] {
        let content = writer
            .network("192.0.2.0/24", maxmind("IE", "IE"))
            .network("192.0.2.128/25", maxmind("FR", "FR"))
            .network("2001:db8::/32", maxmind("DE", "DE"))
            .network("2001:db8:1::/48", maxmind("DE", "CH"))
            .finish();
        let data = parse(&content).unwrap();
        assert_eq!(data.name, "Test-Country");
        assert_eq!(data.date.as_deref(), Some("2026-06-25"));
        assert_eq!(data.countries_v4.get(0xc000_0201), place("IE"));
        assert_eq!(data.countries_v4.get(0xc000_02ff), place("FR"));
        let v6 = |address: &str| {
            data.countries_v6
                .get(address.parse::<Ipv6Addr>().unwrap().into())
        };
        assert_eq!(v6("2001:db8::1"), place("DE"));
        assert!(matches!(
            v6("2001:db8:1::1"),
            Some(Answer::Contradictory(_))
        ));
        assert_eq!(v6("2001:db8:2::1"), place("DE"));
        assert_eq!(v6("2001:db9::"), None);
        assert_eq!(
            v6("::ffff:192.0.2.1"),
            None,
            "mapped addresses are looked up as IPv4"
        );
        assert_eq!(data.n_contradictory, 1);
    }
}

#[test]
fn ipv4_networks_in_the_mapped_range() {
    let linked = Writer::new(6)
        .network("192.0.2.0/24", maxmind("IE", ""))
        .alias()
        .finish();
    let apart = Writer::new(6)
        .network("::ffff:192.0.2.0/120", maxmind("IE", ""))
        .finish();
    for content in [linked, apart] {
        let data = parse(&content).unwrap();
        assert_eq!(data.n_networks, 1);
        let [range] = data.countries_v4.as_slice() else {
            panic!("{:?}", data.countries_v4)
        };
        assert_eq!((range.first, range.last), (0xc000_0200, 0xc000_02ff));
        assert!(data.countries_v6.is_empty());
    }
}

#[test]
fn a_value_of_an_unexpected_kind_says_nothing() {
    let record = Map(vec![
        ("country", U32(1)),
        ("country_code", Text("IE")),
        ("asn", Map(vec![("asn", Text("AS64496"))])),
    ]);
    assert_eq!(one(record), (place("IE"), None));
    let record = Map(vec![(
        "country",
        Map(vec![("iso_code", Text("FR")), ("other", U16(1))]),
    )]);
    assert_eq!(one(record), (place("FR"), None));
    assert_eq!(
        one(Map(vec![("autonomous_system_number", U16(7))])),
        (None, Some(7))
    );
}

#[test]
fn a_tree_that_repeats_itself_is_refused() {
    // Both sides of every node lead to the next one: 2^31 networks from 32 nodes.
    let mut content = Writer::new(4)
        .network("0.0.0.0/32", maxmind("IE", ""))
        .finish();
    for node in 0..31_usize {
        let next = (node as u32 + 1).to_be_bytes();
        content[node * 8..][..4].copy_from_slice(&next);
        content[node * 8 + 4..][..4].copy_from_slice(&next);
    }
    assert!(matches!(parse(&content), Err(MmdbProblem::Tree)));
}

#[test]
fn a_tree_that_repeats_nothing_is_refused_too() {
    // The same, with 2^128 places at which there is no data.
    let mut content = Writer::new(6).network("::/128", maxmind("IE", "")).finish();
    let nothing = 128_u32.to_be_bytes();
    for node in 0..128_usize {
        let next = (node as u32 + 1).to_be_bytes();
        content[node * 8..][..4].copy_from_slice(&next);
        content[node * 8 + 4..][..4].copy_from_slice(&next);
    }
    content[127 * 8..][..4].copy_from_slice(&nothing);
    content[127 * 8 + 4..][..4].copy_from_slice(&nothing);
    assert!(matches!(parse(&content), Err(MmdbProblem::Tree)));
}

#[test]
fn a_record_that_is_a_list_is_refused() {
    // The values of a map without their keys are not where they seem to be.
    let mut content = Writer::new(4)
        .network("192.0.2.0/24", Map(vec![("country", Text("IE"))]))
        .finish();
    let map = content
        .windows(8)
        .position(|window| window == b"\xe1Gcountr")
        .unwrap();
    // A list of two: `country`, `IE`.
    content.splice(map..=map, [2, 11 - 7]);
    assert!(matches!(parse(&content), Err(MmdbProblem::Record { .. })));
}

#[test]
fn recognised_by_its_marker() {
    let content = Writer::new(4)
        .network("192.0.2.0/24", maxmind("IE", ""))
        .finish();
    assert!(is_mmdb(&content));
    assert!(!is_mmdb(&content[..content.len() / 2]));
    assert!(!is_mmdb(b""));
    assert!(!is_mmdb(b"16777216,16777471,AU\n"));
}

proptest! {
    /// Whatever is wrong with a file, reading it ends, and with an error or data.
    #[test]
    fn a_damaged_file_does_no_harm(damage in proptest::collection::vec((0_usize..1000, any::<u8>()), 1..4)) {
        let mut content = Writer::new(6)
            .network("192.0.2.0/24", maxmind("IE", "IE"))
            .network("2001:db8::/32", maxmind("DE", "US"))
            .finish();
        for (position, byte) in damage {
            let position = position * content.len() / 1000;
            content[position] = byte;
        }
        let _ = parse(&content);
    }

    #[test]
    fn finds_what_the_reader_finds(
        networks in proptest::collection::btree_map((0_u32..64, 26_u8..=32), 0_usize..3, 1..12),
        addresses in proptest::collection::vec(0_u32..64, 8),
    ) {
        const CODES: [&str; 3] = ["IE", "FR", "DE"];
        let mut networks: Vec<_> = networks.into_iter().collect();
        networks.sort_by_key(|((_, prefix), _)| *prefix);
        let mut writer = Writer::new(6);
        for ((host, prefix), code) in networks {
            let address = IpAddr::from((0xc000_0200 | host).to_be_bytes());
            let network = IpNetwork::new(address, prefix).unwrap().to_string();
            writer = writer.network(&network, maxmind(CODES[code], ""));
        }
        let content = writer.finish();
        let data = parse(&content).unwrap();
        let reader = Reader::from_source(&content[..]).unwrap();
        for host in addresses {
            let address = 0xc000_0200 | host;
            let found = reader.lookup(IpAddr::from(address.to_be_bytes())).unwrap();
            let record: Option<Record> = found.decode().unwrap();
            prop_assert_eq!(data.countries_v4.get(address), record.and_then(|r| r.said().answer));
        }
    }
}
