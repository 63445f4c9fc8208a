//! Databases of a few hundred bytes, written here and read back in every layout.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;

/// A value in a record.
#[derive(Clone, Debug)]
pub enum Value {
    Text(&'static str),
    U16(u16),
    U32(u32),
    U64(u64),
    Map(Vec<(&'static str, Value)>),
}

use Value::{Map, Text, U16, U32, U64};

/// A database to be: networks with their records, in the order of insertion.
pub struct Writer {
    ip_version: u16,
    networks: Vec<(IpNetwork, Value)>,
    maps_ipv4_alias: bool,
}

impl Writer {
    pub fn new(ip_version: u16) -> Self {
        Self {
            ip_version,
            networks: Vec::new(),
            maps_ipv4_alias: false,
        }
    }

    pub fn network(mut self, network: &str, record: Value) -> Self {
        self.networks.push((network.parse().unwrap(), record));
        self
    }

    /// Links `::ffff:0:0/96` to the IPv4 part, as MaxMind does.
    fn alias(mut self) -> Self {
        self.maps_ipv4_alias = true;
        self
    }

    pub fn finish(self) -> Vec<u8> {
        let mut data = Vec::new();
        let mut tree = vec![[Slot::Empty; 2]];
        for (network, record) in &self.networks {
            let offset = data.len();
            encode(record, &mut data);
            let (bits, length) = self.key(*network);
            *slot(&mut tree, bits, length) = Slot::Data(offset);
        }
        if self.maps_ipv4_alias {
            let Slot::Node(ipv4) = *slot(&mut tree, 0, 96) else {
                panic!("no IPv4 networks")
            };
            *slot(&mut tree, 0xffff << 32, 96) = Slot::Node(ipv4);
        }
        let n_nodes = tree.len();
        let mut file = Vec::new();
        for record in tree.iter().flatten() {
            let number = match *record {
                Slot::Empty => n_nodes,
                Slot::Node(index) => index,
                Slot::Data(offset) => n_nodes + 16 + offset,
            };
            file.extend_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
        }
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(&data);
        file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        encode(
            &Map(vec![
                ("binary_format_major_version", U16(2)),
                ("binary_format_minor_version", U16(0)),
                ("build_epoch", U64(1_782_362_039)),
                ("database_type", Text("Test-Country")),
                ("description", Map(vec![("en", Text("made by a test"))])),
                ("ip_version", U16(self.ip_version)),
                ("languages", Map(vec![])),
                ("node_count", U32(n_nodes as u32)),
                ("record_size", U16(32)),
            ]),
            &mut file,
        );
        file
    }

    /// The bits of a network, most significant first, and how many there are.
    fn key(&self, network: IpNetwork) -> (u128, u8) {
        match (network, self.ip_version) {
            (IpNetwork::V4(v4), 4) => (u128::from(u32::from(v4.network())) << 96, v4.prefix()),
            (IpNetwork::V4(v4), _) => (u32::from(v4.network()).into(), 96 + v4.prefix()),
            (IpNetwork::V6(v6), _) => (v6.network().into(), v6.prefix()),
        }
    }
}

#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Node(usize),
    Data(usize),
}

/// The place of a network in the tree, made if need be. Networks are inserted
/// from short to long; what stands above a longer one goes on around it.
fn slot(tree: &mut Vec<[Slot; 2]>, bits: u128, length: u8) -> &mut Slot {
    let mut node = 0;
    for depth in 0..length - 1 {
        let side = (bits >> (127 - depth) & 1) as usize;
        node = match tree[node][side] {
            Slot::Node(child) => child,
            above => {
                tree.push([above; 2]);
                tree[node][side] = Slot::Node(tree.len() - 1);
                tree.len() - 1
            }
        };
    }
    &mut tree[node][(bits >> (128 - length) & 1) as usize]
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Text(text) => {
            head(2, text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
        U16(number) => {
            head(5, 2, out);
            out.extend_from_slice(&number.to_be_bytes());
        }
        U32(number) => {
            head(6, 4, out);
            out.extend_from_slice(&number.to_be_bytes());
        }
        U64(number) => {
            out.extend_from_slice(&[8, 9 - 7]);
            out.extend_from_slice(&number.to_be_bytes());
        }
        // The only list in these files is the empty one of the languages.
        Map(entries) if entries.is_empty() => out.extend_from_slice(&[0, 11 - 7]),
        Map(entries) => {
            head(7, entries.len(), out);
            for (key, value) in entries {
                encode(&Text(key), out);
                encode(value, out);
            }
        }
    }
}

fn head(kind: u8, size: usize, out: &mut Vec<u8>) {
    let size = u8::try_from(size).unwrap();
    if size < 29 {
        out.push(kind << 5 | size);
    } else {
        out.extend_from_slice(&[kind << 5 | 29, size - 29]);
    }
}

pub fn maxmind(country: &'static str, registered: &'static str) -> Value {
    let names = || Map(vec![("en", Text("a name")), ("de", Text("ein Name"))]);
    let place = |code| {
        Map(vec![
            ("geoname_id", U32(2_963_597)),
            ("iso_code", Text(code)),
            ("names", names()),
        ])
    };
    let continent = Map(vec![("code", Text("EU")), ("names", names())]);
    let mut fields = vec![("continent", continent)];
    if !country.is_empty() {
        fields.push(("country", place(country)));
    }
    if !registered.is_empty() {
        fields.push(("registered_country", place(registered)));
    }
    Map(fields)
}

fn one(record: Value) -> (Option<Answer>, Option<u32>) {
    let data = parse(&Writer::new(4).network("192.0.2.0/24", record).finish()).unwrap();
    assert_eq!(data.n_networks, 1);
    let address = 0xc000_0207;
    (data.countries_v4.get(address), data.asns_v4.get(address))
}

fn place(code: &str) -> Option<Answer> {
    Some(Answer::Country(Country::parse(code).unwrap()))
}

#[test]
fn maxmind_and_dbip_countries() {
    assert_eq!(one(maxmind("IE", "IE")), (place("IE"), None));
    assert_eq!(one(maxmind("IE", "")), (place("IE"), None));
}

#[test]
fn two_countries_are_a_contradiction() {
    assert_eq!(
        one(maxmind("IE", "US")),
        (Some(Answer::Contradictory), None)
    );
    let both = Map(vec![("country", Text("IE")), ("country_code", Text("US"))]);
    assert_eq!(one(both), (Some(Answer::Contradictory), None));
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
    let full = Map(vec![
        ("asn", Text("AS64496")),
        ("continent", Text("EU")),
        ("country", Text("IE")),
        ("country_name", Text("Ireland")),
    ]);
    assert_eq!(one(full), (place("IE"), Some(64496)));
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
        assert_eq!(v6("2001:db8:1::1"), Some(Answer::Contradictory));
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
