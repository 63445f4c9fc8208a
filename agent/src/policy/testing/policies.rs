//! Random policies as text, so that reading them is tested too.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::places::{ASNS, COUNTRIES};
use super::{GROUPS, Random, USERS};
use crate::policy::local::nameless;
use crate::policy::network::{Extent, Network};
use crate::policy::source::{Area, Policy};

const UNITS: &[&str] = &[
    "nginx.service",
    "nginx*.service",
    "export@*",
    "export@*.service",
    "*-worker.service",
    "cpu.service",
    "session-?.scope",
    "user.slice",
    "user-*.slice",
    "user-1000.slice",
    "system.slice",
    "a-b.slice",
    "user@1000.service",
    "user@*.service/backup.service",
    "user@1000.service/app.slice",
    "user@1000.service/*.scope",
    "[m-o]*.service",
    "-.slice",
];

const CGROUPS: &[&str] = &[
    "/system.slice/*",
    "/user.slice",
    "/user.slice/**",
    "/docker/*",
    "/a.slice/a-b.slice",
    "/lxc/**/x.service",
    "/nginx.service.?",
    "/",
];

const CONTAINERS: &[&str] = &[
    "*",
    "docker:*",
    "docker:4f2a9c01b7de*",
    "4f2a*",
    "podman:*",
    "kubernetes:*2",
    "containerd:00*",
    "systemd-nspawn:web-?",
    "lxc:*",
    "lxc:web",
    "web*",
];

const EXECUTABLES: &[&str] = &[
    "/usr/bin/curl",
    "/usr/bin/*",
    "/usr/**",
    "/**/curl",
    "/usr/lib/postgresql/*/bin/postgres",
    "/opt/?[a-c]/x",
    "/opt/**/bin/[!a]*",
    "/usr/sbin/nginx",
];

const NAT64: &[&str] = &[
    "2001:db8::/32",
    "2001:db8::/40",
    "2001:db8::/48",
    "2001:db8:0:ff00::/56",
    "2001:db8:1:1::/64",
    "2001:db8::/96",
    "2001:ffff::/96",
    "64:ff9b:1::/48",
    "64:ff9b:1:1::/96",
    "2002::/32",
];

const PORTS: &[&str] = &[
    "443/tcp",
    "53",
    "53/udp",
    "8000-8010/tcp",
    "1-65535/tcp",
    "65535/udp",
    "1/sctp",
    "1024-65535",
    "9/udplite",
];

/// Each has one for TCP.
const TCP_PORTS_OR_ANY: &[&str] = &[
    "443/tcp",
    "53",
    "8000-8010/tcp",
    "1-65535/tcp",
    "1024-65535",
];

const PROTOCOLS: &[&str] = &[
    "tcp", "udp", "icmp", "icmpv6", "gre", "esp", "255", "0", "sctp",
];

/// The patterns that one policy uses. Out of all together every large policy would
/// make the same automaton, and a large one.
struct Patterns {
    units: Vec<&'static str>,
    cgroups: Vec<&'static str>,
    containers: Vec<&'static str>,
}

impl Patterns {
    fn random(random: &mut Random) -> Self {
        let mut some = |all: &[&'static str], n: usize| -> Vec<&'static str> {
            (0..n).map(|_| *random.pick(all)).collect()
        };
        Self {
            units: some(UNITS, 6),
            cgroups: some(CGROUPS, 3),
            containers: some(CONTAINERS, 3),
        }
    }
}

/// A policy that compiles.
pub(super) fn text(random: &mut Random) -> String {
    let patterns = Patterns::random(random);
    let mut text = format!(
        "mode = \"{}\"\n{}[zones]\n",
        random.pick(&["report", "enforce"]),
        match random.below(3) {
            0 => String::new(),
            _ => format!("nat64 = {}\n", list(random, 3, |random| of(random, NAT64))),
        }
    );
    let n_zones = 1 + random.below(3);
    for zone in 0..n_zones {
        let areas = list(random, 4, |random| {
            if random.one_in(2) {
                country(random)
            } else {
                network(random).to_string()
            }
        });
        writeln!(text, "zone-{zone} = {areas}").expect("strings take everything");
    }
    let n_gateways = 1 + random.below(2);
    for gateway in 0..n_gateways {
        let endpoints = list(random, 5, endpoint);
        writeln!(
            text,
            "[[gateways]]\nname = \"gateway-{gateway}\"\nendpoints = {endpoints}\nclients = {}",
            list(random, 3, |random| network(random).to_string())
        )
        .expect("strings take everything");
    }
    // Mostly few, so that flows get far; at times more than fit into one word of a row.
    let n_rules = if random.one_in(8) {
        40 + random.below(100)
    } else {
        random.below(10)
    };
    for rule in 0..n_rules {
        // Where there are many, most of the first ones ask for much, or nothing would
        // ever reach those behind them.
        let is_narrow = n_rules >= 40 && rule < 64 && !random.one_in(8);
        text.push_str(&rule_text(
            random, &patterns, rule, is_narrow, n_zones, n_gateways,
        ));
    }
    text
}

fn rule_text(
    random: &mut Random,
    patterns: &Patterns,
    index: usize,
    is_narrow: bool,
    n_zones: usize,
    n_gateways: usize,
) -> String {
    let mut from = Vec::new();
    let mut to = Vec::new();
    let direction = *random.pick(&["", "", "", "outbound", "accepted", "accepted"]);
    let is_accepted = direction == "accepted";
    if random.one_in(3) {
        from.push(format!(
            "unit = {}",
            list(random, 2, |random| of(random, &patterns.units))
        ));
    }
    if random.one_in(6) {
        from.push(format!(
            "cgroup = {}",
            list(random, 2, |random| of(random, &patterns.cgroups))
        ));
    }
    if random.one_in(6) {
        from.push(format!(
            "container = {}",
            list(random, 2, |random| of(random, &patterns.containers))
        ));
    }
    if is_narrow || random.one_in(3) {
        from.push(format!(
            "exe = {}",
            list(random, 2, |random| of(random, EXECUTABLES))
        ));
    }
    if random.one_in(4) {
        from.push(format!("user = {}", list(random, 2, user)));
    }
    if random.one_in(6) {
        from.push(format!("group = {}", list(random, 2, group)));
    }
    match random.below(8) {
        0 => from.push(format!("interactive = {}", random.one_in(2))),
        1 | 2 => from.push(session(random, n_gateways)),
        _ => {}
    }
    if is_narrow || random.one_in(2) {
        to.push(format!(
            "networks = {}",
            list(random, 4, |random| network(random).to_string())
        ));
    }
    if random.one_in(4) {
        to.push(format!("countries = {}", list(random, 3, country)));
    }
    if random.one_in(6) {
        let asn = |random: &mut Random| match random.pick(&ASNS) {
            asn if random.one_in(2) => format!("AS{asn}"),
            asn => asn.to_string(),
        };
        to.push(format!("asns = {}", list(random, 3, asn)));
    }
    if random.one_in(4) {
        let zone = |random: &mut Random| format!("zone-{}", random.below(n_zones));
        to.push(format!("zones = {}", list(random, 2, zone)));
    }
    // A gateway's services and those of the rule may exclude each other, which is
    // a problem and no policy; so they do not come together here.
    if random.one_in(5) || is_accepted && random.one_in(3) {
        if is_accepted && random.one_in(2) {
            from.push(near_ports(random));
        }
        let gateway = |random: &mut Random| format!("gateway-{}", random.below(n_gateways));
        to.push(format!("gateway = {}", list(random, 2, gateway)));
    } else if random.one_in(3) {
        let ports = list(random, 3, |random| of(random, TCP_PORTS_OR_ANY));
        to.push(format!("ports = {ports}"));
        if random.one_in(4) {
            from.push("ports = [\"53\", \"1024-65535\"]".to_owned());
        }
        if random.one_in(3) {
            to.push("protocols = [\"tcp\", \"udp\", \"sctp\", \"udplite\"]".to_owned());
        }
    } else if random.one_in(4) {
        to.push(format!(
            "protocols = {}",
            match is_accepted {
                true => "[\"tcp\", \"sctp\"]".to_owned(),
                false => list(random, 3, |random| of(random, PROTOCOLS)),
            }
        ));
    } else if random.one_in(2) {
        from.push(near_ports(random));
    }
    if from.is_empty() && to.is_empty() {
        to.push("networks = [\"0.0.0.0/0\", \"::/0\"]".to_owned());
    }
    let mut text = format!("[[rules]]\nname = \"rule-{index}\"\n");
    if !direction.is_empty() {
        writeln!(text, "direction = \"{direction}\"").expect("strings take everything");
    }
    for (key, parts) in [("from", from), ("to", to)] {
        if !parts.is_empty() {
            writeln!(text, "{key} = {{ {} }}", parts.join(", ")).expect("strings take everything");
        }
    }
    let verdict = if random.one_in(3) { "deny" } else { "approve" };
    writeln!(text, "verdict = \"{verdict}\"").expect("strings take everything");
    if verdict == "approve" {
        text.push_str(&limit(random, index));
    }
    text
}

/// Where somebody logged in from.
fn session(random: &mut Random, n_gateways: usize) -> String {
    let gateway = |random: &mut Random| format!("gateway-{}", random.below(n_gateways));
    let keys = [
        format!("gateway = {}", list(random, 2, gateway)),
        format!(
            "networks = {}",
            list(random, 3, |random| network(random).to_string())
        ),
        format!("countries = {}", list(random, 3, country)),
    ];
    let which = *random.pick(&[0b001, 0b010, 0b100, 0b011, 0b101, 0b110, 0b111]);
    let named = (0..).zip(keys).filter(|(at, _)| which >> at & 1 == 1);
    let named: Vec<String> = named.map(|(_, key)| key).collect();
    let interactive = random.pick(&["", ", interactive = true"]);
    format!("session = {{ {} }}{interactive}", named.join(", "))
}

/// Ports of this host, one of which is of TCP.
fn near_ports(random: &mut Random) -> String {
    let ports = list(random, 2, |random| of(random, PORTS));
    format!(
        "ports = [\"{}\", {}",
        random.pick(&["22/tcp", "443", "8000-8010/tcp"]),
        &ports[1..]
    )
}

/// A budget or an exception, at times. Moments are around [`super::questions::NOW_US`].
fn limit(random: &mut Random, index: usize) -> String {
    match random.below(8) {
        0 => {
            let bytes = random.pick(&["100 B", "2 KiB", "1 TiB"]);
            format!("budget = {{ bytes = \"{bytes}\", per = \"1d\" }}\n")
        }
        1 => {
            let period = random.pick(&[
                "expires = 2027-01-15T07:00:00Z",
                "expires = 2027-01-15T10:00:00+01:00",
                "starts = 2027-01-15T06:00:00Z, expires = 2027-01-15T07:00:00Z",
                "starts = 2027-01-15T06:00:00Z, expires = 2027-01-15T09:00:00Z",
                "starts = 2027-01-15T08:30:00Z, expires = 2027-01-15T09:00:00Z",
            ]);
            let bytes = random.pick(&["", ", bytes = \"200 B\""]);
            format!(
                "exception = {{ id = \"EX-{index}\", basis = \"a\", reason = \"b\", \
                 approved_by = [\"c\", \"d\"], {period}{bytes} }}\n"
            )
        }
        _ => String::new(),
    }
}

/// Between 1 and `most` values, as TOML.
fn list(random: &mut Random, most: usize, value: impl Fn(&mut Random) -> String) -> String {
    let n_values = 1 + random.below(most);
    let values: Vec<String> = (0..n_values)
        .map(|_| format!("\"{}\"", value(random)))
        .collect();
    format!("[{}]", values.join(", "))
}

fn of(random: &mut Random, all: &[&str]) -> String {
    (*random.pick(all)).to_owned()
}

fn country(random: &mut Random) -> String {
    match random.below(5) {
        0 => of(random, &["EU", "EEA", "ADEQUATE"]),
        _ => of(random, &COUNTRIES),
    }
}

fn user(random: &mut Random) -> String {
    match random.below(2) {
        0 => random.pick(USERS).0.to_owned(),
        _ => of(random, &["0", "1", "27", "4294967294"]),
    }
}

fn group(random: &mut Random) -> String {
    match random.below(2) {
        0 => random.pick(GROUPS).0.to_owned(),
        _ => of(random, &["0", "1", "5", "51", "4294967294"]),
    }
}

fn endpoint(random: &mut Random) -> String {
    let address = remote_address(random);
    let port = random.pick(&[443, 1194, 51820]);
    match address {
        address if random.one_in(6) => format!("{address}/esp"),
        IpAddr::V4(v4) => format!("{v4}:{port}/{}", random.pick(&["tcp", "udp"])),
        IpAddr::V6(v6) => format!("[{v6}]:{port}/{}", random.pick(&["tcp", "udp"])),
    }
}

/// An address that is not local.
fn remote_address(random: &mut Random) -> IpAddr {
    loop {
        let address = address(random).to_canonical();
        if !is_local(&Network::host(address)) {
            return address;
        }
    }
}

/// A network that is not local, of any length, often within or around others.
pub(super) fn network(random: &mut Random) -> Network {
    loop {
        let address = address(random);
        let prefix = match address {
            IpAddr::V4(_) => random.below(33),
            IpAddr::V6(_) if random.one_in(2) => random.below(129),
            IpAddr::V6(_) => random.below(33) * 4,
        };
        let network = Network::containing(address, u8::try_from(prefix).unwrap_or_default());
        let is_v4_in_v6 = match network.extent() {
            Extent::V4(..) => false,
            Extent::V6(first, _) => Ipv6Addr::from_bits(first).to_ipv4_mapped().is_some(),
        };
        // Anything as a whole would leave nothing to the other networks.
        let is_rare = prefix < 4 && !random.one_in(4);
        if !is_local(&network) && !is_v4_in_v6 && !is_rare {
            return network;
        }
    }
}

/// An address out of few, so that networks of them overlap.
pub(super) fn address(random: &mut Random) -> IpAddr {
    if random.one_in(2) {
        let octets = [
            *random.pick(&[0, 10, 127, 128, 192, 224, 255]),
            *random.pick(&[0, 1, 254]),
            *random.pick(&[0, 2, 255]),
            *random.pick(&[0, 1, 128, 255]),
        ];
        return IpAddr::V4(Ipv4Addr::from(octets));
    }
    let mut groups = [0; 8];
    groups[0] = *random.pick(&[0, 0x2001, 0x2001, 0xfe80, 0xff02, 0xff0e, 0xffff]);
    groups[1] = *random.pick(&[0, 0x0db8, 0xffff]);
    for group in &mut groups[2..] {
        *group = *random.pick(&[0, 0, 0, 1, 0xffff]);
    }
    IpAddr::V6(Ipv6Addr::from(groups))
}

fn is_local(network: &Network) -> bool {
    nameless().any(|local| local.covers(network))
}

/// Every network and endpoint that a policy names.
pub(super) fn networks_of(policy: &Policy) -> impl Iterator<Item = Network> {
    let zones = policy
        .zones
        .iter()
        .flat_map(|zone| &zone.areas)
        .filter_map(|area| match area {
            Area::Network(network) => Some(*network),
            Area::Country(_) | Area::Group(..) => None,
        });
    let endpoints = policy
        .gateways
        .iter()
        .flat_map(|gateway| &gateway.endpoints);
    let endpoints = endpoints.map(|endpoint| Network::host(endpoint.address));
    let clients = policy.gateways.iter().flat_map(|gateway| &gateway.clients);
    let rules = policy.rules.iter().flat_map(|rule| {
        let origins = rule.session.as_ref();
        let origins = origins.and_then(|origin| origin.networks.as_ref());
        rule.networks.iter().chain(origins).flatten()
    });
    zones.chain(endpoints).chain(clients.chain(rules).copied())
}
