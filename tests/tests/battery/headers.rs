//! What packets can look like, and destinations that are not what they seem.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use trefoil_lab::Lab;
use trefoil_lab::places::FOREIGN6;
use trefoil_lab::program::Program;

use crate::stage::{APPROVED, Furniture, Stage, TCP_PORT, UDP_PORT, go, nothing, way};
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
