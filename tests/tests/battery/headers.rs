//! Forms that packets can have, and destinations that are not what they seem.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use trefoil_lab::Lab;
use trefoil_lab::places::{FOREIGN6, HOST6};
use trefoil_lab::program::Program;
use trefoil_lab::wiring::far_link_address;

use crate::lists::{CONTAINERS, a_router_and_a_container};
use crate::round::go;
use crate::stage::{APPROVED, Furniture, LINK, Stage, TCP_PORT, UDP_PORT, nothing, way};
use crate::world::books::FOREIGN_LINK;
use crate::world::{TRAFFIC, at, mapped_at};

const MPTCP_PORT: u16 = 8443;

/// The host makes as many subflows as it is offered addresses.
fn subflows(lab: &Lab) -> Result<Furniture> {
    lab.host
        .ip("mptcp limits set subflows 4 add_addr_accepted 4\n")?;
    lab.foreign.ip("mptcp limits set subflows 4\n")?;
    Ok(Furniture::default())
}

#[test]
fn row_10_mptcp() -> Result<()> {
    go(&[way("10a", subflow)], "", subflows)
}

/// A connection to an approved address; the far end then offers another of its own.
fn subflow(stage: &mut Stage<'_>) -> Result<()> {
    let foreign = &stage.lab.foreign;
    let offer = format!(
        "mptcp endpoint flush\nmptcp endpoint add {} dev lo signal\n",
        stage.v4
    );
    foreign.ip(&offer)?;
    let port = MPTCP_PORT.to_string();
    let mut server = Program::new(TRAFFIC, foreign, None, None)?
        .args(["serve", &port, "--wait", "--transport", "mptcp"])
        .start()?;
    server.line()?;
    let to = at(APPROVED, MPTCP_PORT);
    let mut arguments = vec!["tcp", &to, "--transport", "mptcp"];
    arguments.extend(["--hold", "peer", "--bytes", "5000"]);
    let client = stage.start(&arguments)?;
    client.proceed()?;
    client.line()?;
    let pid = client.pid();
    stage.senders.insert(pid);
    // Which subflow carries data is the kernel's choice; to open one is enough.
    stage.bytes = 1;
    stage.running.push(server);
    Ok(())
}

#[test]
fn row_11_other_transports() -> Result<()> {
    let lite = |stage: &mut Stage<'_>| {
        let to = stage.udp();
        stage.run(&["udp", &to, "--lite"])
    };
    go(&[way("11a", lite)], "", nothing)
}

#[test]
fn row_12_mapped_addresses() -> Result<()> {
    let ways = [
        way("12a", |stage| {
            let to = mapped_at(stage.v4, TCP_PORT);
            stage.run(&["tcp", &to, "--bytes", "5000"])
        }),
        way("12b", |stage| {
            let to = mapped_at(stage.v4, UDP_PORT);
            stage.run(&["udp", &to])
        }),
        way("12c", |stage| {
            let to = mapped_at(stage.v4, UDP_PORT);
            stage.run(&["udp", &to, "--connected"])
        }),
    ];
    go(&ways, "", nothing)
}

const EMBEDDING: [&str; 3] = ["2002::/16", "2001::/32", "64:ff9b::/96"];

/// The way to relays is the way to the foreign host.
fn relays(lab: &Lab) -> Result<Furniture> {
    for prefix in EMBEDDING {
        lab.host.ip(&format!(
            "route add {prefix} via {FOREIGN6} dev to-foreign onlink\n"
        ))?;
        lab.foreign
            .ip(&format!("route add local {prefix} dev lo\n"))?;
    }
    Ok(Furniture::default())
}

fn embed(stage: &mut Stage<'_>, embed: fn([u16; 2]) -> [u16; 8]) -> Result<()> {
    let IpAddr::V4(inner) = stage.v4 else {
        bail!("no IPv4 address")
    };
    let [a, b, c, d] = inner.octets();
    let halves = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let outer = IpAddr::V6(Ipv6Addr::from(embed(halves)));
    stage.to = vec![outer];
    stage.run(&["udp", &at(outer, UDP_PORT)])
}

#[test]
fn row_13_embedded_addresses() -> Result<()> {
    let ways = [
        way("13a", |stage| {
            embed(stage, |[a, b]| [0x2002, a, b, 0, 0, 0, 0, 1])
        }),
        way("13b", |stage| {
            // By way of a server at an approved address.
            embed(stage, |[a, b]| {
                let [c, d] = server_halves();
                [0x2001, 0, c, d, 0, 0xffff, !a, !b]
            })
        }),
        way("13c", |stage| {
            embed(stage, |[a, b]| [0x64, 0xff9b, 0, 0, 0, 0, a, b])
        }),
    ];
    go(&ways, "", relays)
}

const fn server_halves() -> [u16; 2] {
    let [a, b, c, d] = Ipv4Addr::new(203, 0, 113, 1).octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

#[test]
fn row_14_headers_between() -> Result<()> {
    let ways = [
        way("14a", |stage| {
            let to = stage.udp();
            stage.run(&["udp", &to, "--options"])
        }),
        way("14b", |stage| {
            let to = at(stage.v6, UDP_PORT);
            stage.run(&["udp", &to, "--options"])
        }),
        way("14c", |stage| {
            let to = stage.v6.to_string();
            stage.run(&["raw", &to, "--extensions", "9"])
        }),
        way("14d", |stage| {
            let to = stage.udp();
            stage.run(&["udp", &to, "--size", "4000"])
        }),
        way("14e", |stage| {
            let to = at(stage.v6, UDP_PORT);
            stage.run(&["udp", &to, "--size", "4000"])
        }),
        way("14f", |stage| {
            stage.has_ports = false;
            let to = stage.v4.to_string();
            stage.run(&[
                "raw",
                &to,
                "--own-header",
                "--fragment",
                "100",
                "--protocol",
                "17",
            ])
        }),
    ];
    go(&ways, "", nothing)
}

/// Stands in for a prefix that a translator has: the last part is its length.
const OWN: [&str; 6] = [
    "3fff:32::/32",
    "3fff:40:4000::/40",
    "3fff:48:1::/48",
    "3fff:56:1:100::/56",
    "3fff:64::/64",
    "3fff:96::/96",
];
/// In which whoever runs the translator chooses the length (RFC 8215).
const OPEN: &str = "64:ff9b:1::/48";

/// Approves the translators, and what every layout but the one that is meant makes of their
/// addresses, so that only what is meant can be what is not approved.
fn translators(lab: &Lab) -> Result<Furniture> {
    let mut furniture = a_router_and_a_container(lab)?;
    for prefix in OWN.into_iter().chain([OPEN]) {
        lab.host.ip(&format!(
            "route add {prefix} via {FOREIGN6} dev to-foreign src {HOST6} onlink\n"
        ))?;
        lab.foreign
            .ip(&format!("route add local {prefix} dev lo\n"))?;
    }
    furniture.policy = format!(
        "nat64 = {OWN:?}\n\
         [[rules]]\n\
         name = \"translators\"\n\
         to = {{ networks = [\"3fff::/20\", {OPEN:?}, \"0.0.0.0/1\", \"128.0.0.0/2\", \
         \"192.0.0.0/5\", \"200.0.0.0/7\", \"202.0.0.0/8\"] }}\n\
         verdict = \"approve\"\n"
    );
    Ok(furniture)
}

/// The way's IPv4 address as a prefix has it (RFC 6052, section 2.2). `more` is in the octets
/// that are to be zero.
fn translated(stage: &mut Stage<'_>, prefix: &str, length: usize, more: u8) -> Result<String> {
    let (IpAddr::V4(inner), Some((network, _))) = (stage.v4, prefix.split_once('/')) else {
        bail!("no IPv4 address, or no prefix")
    };
    let mut octets = network.parse::<Ipv6Addr>()?.octets();
    let places = (length / 8..16).filter(|place| *place != 8);
    let rest = inner.octets().into_iter().chain([more].repeat(16));
    for (place, octet) in places.zip(rest) {
        octets[place] = octet;
    }
    octets[8] |= if length == 96 { 0 } else { more };
    let outer = IpAddr::V6(octets.into());
    stage.to = vec![outer];
    Ok(at(outer, UDP_PORT))
}

#[test]
fn row_45_translators_of_the_operators_own() -> Result<()> {
    let ways = [
        way("45a", |stage| own(stage, 0, 32)),
        way("45b", |stage| own(stage, 1, 40)),
        way("45c", |stage| own(stage, 2, 48)),
        way("45d", |stage| own(stage, 3, 56)),
        way("45e", |stage| own(stage, 4, 64)),
        way("45f", |stage| own(stage, 5, 96)),
        way("45g", |stage| {
            let to = translated(stage, OWN[1], 40, 0xff)?;
            stage.run_as_user(&["udp", &to])
        }),
        way("45h", |stage| {
            let to = translated(stage, OWN[4], 64, 0)?;
            stage.run_as_user(&["udp", &to, "--connected"])
        }),
        way("45i", |stage| {
            let to = translated(stage, OWN[3], 56, 0)?;
            stage.run_as_user(&["begin", &to])
        }),
        way("45j", |stage| {
            let to = translated(stage, OWN[2], 48, 0)?;
            stage.run_in_container(&["udp", &to])
        }),
        way("45k", |stage| {
            let to = translated(stage, OWN[2], 48, 0)?;
            let from = "[2001:db8:1::1:21]:4000";
            stage.run_in_container(&["packet", "to-host", CONTAINERS, &to, "--from", from])
        }),
        way("45l", |stage| {
            let to = translated(stage, OWN[0], 32, 0)?;
            let (far, from) = (far_link_address(FOREIGN_LINK), at(HOST6, 4000));
            stage.run(&["packet", LINK, &far, &to, "--from", &from])
        }),
    ];
    go(&ways, "", translators)
}

fn own(stage: &mut Stage<'_>, number: usize, length: usize) -> Result<()> {
    let to = translated(stage, OWN[number], length, 0)?;
    stage.run_as_user(&["udp", &to])
}

#[test]
fn row_45_translators_of_whom_nothing_is_said() -> Result<()> {
    let ways = [
        way("45m", |stage| open(stage, 48)),
        way("45n", |stage| open(stage, 56)),
        way("45o", |stage| open(stage, 64)),
        way("45p", |stage| open(stage, 96)),
        way("45q", |stage| {
            let to = translated(stage, OPEN, 64, 0)?;
            stage.run_in_container(&["udp", &to])
        }),
    ];
    go(&ways, "", translators)
}

fn open(stage: &mut Stage<'_>, length: usize) -> Result<()> {
    let to = translated(stage, OPEN, length, 0)?;
    stage.run_as_user(&["udp", &to])
}
