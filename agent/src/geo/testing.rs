//! Small country databases, for tests.
//!
//! Owns a writer of the MMDB format, as far as tests need it, and records as the
//! known providers lay them out. The answers that a reader should give are not
//! stated here.

use ipnetwork::IpNetwork;

/// A value in a record.
#[derive(Clone, Debug)]
pub enum Value {
    /// UTF-8.
    Text(&'static str),
    /// A small number.
    U16(u16),
    /// A number.
    U32(u32),
    /// A large number.
    U64(u64),
    /// True or false.
    Bool(bool),
    /// Keys and values.
    Map(Vec<(&'static str, Value)>),
}

use Value::{Bool, Map, Text, U16, U32, U64};

/// A database to be: networks with their records, in the order of insertion.
pub struct Writer {
    ip_version: u16,
    networks: Vec<(IpNetwork, Value)>,
    maps_ipv4_alias: bool,
}

impl Writer {
    /// An empty one, for addresses of this version; 6 has room for both.
    #[must_use]
    pub fn new(ip_version: u16) -> Self {
        Self {
            ip_version,
            networks: Vec::new(),
            maps_ipv4_alias: false,
        }
    }

    /// Adds a network. A network that lies within another comes after it.
    ///
    /// # Panics
    ///
    /// If it is no network.
    #[must_use]
    pub fn network(mut self, network: &str, record: Value) -> Self {
        let network = network.parse().expect("a network");
        self.networks.push((network, record));
        self
    }

    /// Links `::ffff:0:0/96` to the IPv4 part, as MaxMind does.
    #[must_use]
    pub fn alias(mut self) -> Self {
        self.maps_ipv4_alias = true;
        self
    }

    /// The file.
    ///
    /// # Panics
    ///
    /// If it is too large for the simplest form of the format.
    #[must_use]
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
            file.extend_from_slice(&u32::try_from(number).expect("a small file").to_be_bytes());
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
        Bool(value) => out.extend_from_slice(&[u8::from(*value), 14 - 7]),
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
    let size = u8::try_from(size).expect("a short value");
    if size < 29 {
        out.push(kind << 5 | size);
    } else {
        out.extend_from_slice(&[kind << 5 | 29, size - 29]);
    }
}

/// A record as MaxMind has it; an empty code leaves the field out.
#[must_use]
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

/// The same record with a flag among its traits, as MaxMind has them.
#[must_use]
pub fn flagged(record: Value, flag: &'static str) -> Value {
    with(record, "traits", Map(vec![(flag, Bool(true))]))
}

/// The same record for ground of another country's, such as a military base.
#[must_use]
pub fn represented(record: Value, country: &'static str) -> Value {
    let place = Map(vec![
        ("iso_code", Text(country)),
        ("type", Text("military")),
    ]);
    with(record, "represented_country", place)
}

fn with(record: Value, key: &'static str, value: Value) -> Value {
    let Map(mut fields) = record else {
        return record;
    };
    fields.push((key, value));
    Map(fields)
}

/// A record in each of the known layouts, with a name for it.
#[must_use]
pub fn layouts() -> Vec<(&'static str, Value)> {
    vec![
        ("maxmind", maxmind("IE", "IE")),
        ("maxmind-contradictory", maxmind("IE", "US")),
        ("maxmind-holder", maxmind("", "US")),
        (
            "maxmind-anycast",
            flagged(maxmind("IE", "IE"), "is_anycast"),
        ),
        (
            "maxmind-base-abroad",
            represented(maxmind("DE", "DE"), "US"),
        ),
        ("ipinfo", ipinfo("IE", "AS64496")),
        (
            "ipinfo-core",
            Map(vec![
                ("as", Map(vec![("asn", Text("AS64496"))])),
                ("country_code", Text("IE")),
                ("is_anycast", Bool(true)),
                ("is_satellite", Bool(false)),
            ]),
        ),
        (
            "ipinfo-lite",
            Map(vec![
                ("asn", Text("AS64496")),
                ("country", Text("Ireland")),
                ("country_code", Text("IE")),
            ]),
        ),
        ("ip-location-db", Map(vec![("country_code", Text("IE"))])),
        (
            "asn",
            Map(vec![
                ("autonomous_system_number", U32(64496)),
                ("autonomous_system_organization", Text("Example")),
            ]),
        ),
    ]
}

/// A record as IPinfo has it.
#[must_use]
pub fn ipinfo(country: &'static str, asn: &'static str) -> Value {
    Map(vec![
        ("asn", Text(asn)),
        ("continent", Text("EU")),
        ("country", Text(country)),
        ("country_name", Text("a name")),
    ])
}
