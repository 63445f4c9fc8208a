//! Access from outside goes through gateways, too: who may open sessions to which service of
//! this host is the policy's to say, and nobody here can make up that one was opened.

mod world;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpStream};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{detach, verb};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::{Agent, Lab, Record, namespace::Namespace, places, wiring::guest};
use world::{REFUSED, TRAFFIC, at, is_final, traffic, traffic_in};

const SSH: u16 = 22;
const WEB: u16 = 443;

/// The web server is for clients in two countries, ssh for the gateway. The peer is approved for
/// all that ssh is not.
const RULES: &str = r#"
[[gateways]]
name    = "dublin-1"
clients = ["192.0.2.10", "2001:db8:1::10"]

[[rules]]
name      = "web for the region"
direction = "accepted"
from      = { ports = ["443/tcp"] }
to        = { countries = ["IE", "DE"] }
verdict   = "approve"

[[rules]]
name      = "ssh by the gateway"
direction = "accepted"
from      = { ports = ["22/tcp"] }
to        = { gateway = "dublin-1" }
verdict   = "approve"

[[rules]]
name    = "ssh by nothing else"
from    = { ports = ["22/tcp"] }
verdict = "deny"

[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24", "2001:db8:2::/48"] }
verdict = "approve"

[[rules]]
name      = "names"
direction = "outbound"
from      = { ports = ["53/udp"] }
to        = { networks = ["192.0.2.10", "2001:db8:1::10"] }
verdict   = "approve"
"#;

fn enforcing() -> String {
    format!("mode = \"enforce\"\n{RULES}")
}

/// The host and a far end, by one family of addresses.
struct Ways {
    host: IpAddr,
    gateway: IpAddr,
    peer: IpAddr,
    foreign: IpAddr,
}

const WAYS: [Ways; 2] = [
    Ways {
        host: places::HOST,
        gateway: places::GATEWAY,
        peer: places::PEER,
        foreign: places::FOREIGN,
    },
    Ways {
        host: places::HOST6,
        gateway: places::GATEWAY6,
        peer: places::PEER6,
        foreign: places::FOREIGN6,
    },
];

/// A client that takes all that a service of the host sends.
fn client(place: &Namespace, from: IpAddr, host: IpAddr, port: u16) -> Result<Program> {
    let client = Program::new(TRAFFIC, place, None, None)?;
    Ok(client.args(["tcp", &at(host, port), "--source", &from.to_string()]))
}

fn server(lab: &Lab, unit: &str, arguments: &[&str]) -> Result<Running> {
    let mut server = traffic_in(lab, unit)?.args(arguments).start()?;
    server.line()?;
    Ok(server)
}

/// The final record of a session that was accepted from this address on this port.
fn session(agent: &mut Agent<'_>, from: IpAddr, port: u16) -> Result<Record> {
    agent.wait_for("the final record of a session", |records| {
        let mut finals = records.iter().filter(|record| is_final(record));
        finals
            .find(|record| record.is("dst_addr", from) && record.is("src_port", port))
            .cloned()
    })
}

/// The violation by answers to this address from this port.
fn violation(agent: &mut Agent<'_>, from: IpAddr, port: u16) -> Result<Record> {
    agent.wait_for("a violation is told", |records| {
        let mut all = records.iter().filter(|one| one.is("event", "violation"));
        all.find(|record| record.is("dst_addr", from) && record.is("src_port", port))
            .cloned()
    })
}

fn says(record: &Record, facts: &[(&str, &str)]) -> Result<()> {
    for (name, expected) in facts {
        ensure!(
            record.is(name, *expected),
            "{name} is not {expected}: {record}"
        );
    }
    Ok(())
}

/// Sessions from the gateway, the peer and the foreign host, to both services.
fn each_is_let_in_where_it_may(how: &str) -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    for way in &WAYS {
        for (port, unit, verdict, rule) in [
            (SSH, "ssh.service", "gateway", "ssh by the gateway"),
            (WEB, "web.service", "approved", "web for the region"),
        ] {
            let number = port.to_string();
            let arguments = ["workers", &number, "--bytes", "3000", "--accept", how];
            let serving = server(&lab, unit, &arguments)?;
            client(&lab.gateway, way.gateway, way.host, port)?
                .run()?
                .success()?;
            serving.finish()?.success()?;
            let record = session(&mut agent, way.gateway, port)?;
            says(
                &record,
                &[
                    ("direction", "accepted"),
                    ("verdict", verdict),
                    ("rule", rule),
                    ("unit", unit),
                    ("attribution", "direct"),
                ],
            )?;
        }
        // From the peer, which is approved for all else, and from elsewhere.
        let listening = server(&lab, "ssh.service", &["serve", "22", "--bytes", "3000"])?;
        let client_of_ssh = client(&lab.peer, way.peer, way.host, SSH)?.start()?;
        let record = violation(&mut agent, way.peer, SSH)?;
        says(
            &record,
            &[
                ("direction", "accepted"),
                ("verdict", "denied"),
                ("rule", "ssh by nothing else"),
                ("outcome", "dropped"),
            ],
        )?;
        drop((client_of_ssh, listening));
        let listening = server(&lab, "web.service", &["serve", "443", "--bytes", "3000"])?;
        let client_of_web = client(&lab.foreign, way.foreign, way.host, WEB)?.start()?;
        let record = violation(&mut agent, way.foreign, WEB)?;
        says(
            &record,
            &[
                ("direction", "accepted"),
                ("verdict", "unapproved"),
                ("outcome", "dropped"),
            ],
        )?;
        drop((client_of_web, listening));
    }
    assert_eq!(lab.link_to(&lab.foreign)?.tx_packets, 0);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn workers_that_share_a_listener_are_reached_by_the_gateway_alone() -> Result<()> {
    each_is_let_in_where_it_may("worker")
}

#[test]
fn a_service_that_was_handed_its_listener_is_reached_by_the_gateway_alone() -> Result<()> {
    each_is_let_in_where_it_may("activated")
}

/// To bind to a service's port and connect out makes nothing that was accepted, nor does it to
/// have listened before.
#[test]
fn what_is_opened_from_a_services_port_is_outbound() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    for way in &WAYS {
        let to = at(way.gateway, 4000);
        for (port, verdict) in [("443", "unapproved"), ("22", "denied")] {
            for more in [&[][..], &["--listened"]] {
                let arguments = [&["tcp", &to, "--from", port], more].concat();
                let outcome = traffic(&lab)?.args(&arguments).run()?;
                ensure!(outcome.code == REFUSED, "{arguments:?}: {outcome:?}");
                let pid = outcome.pid.to_string();
                let record = agent.wait_for("the refusal is told", |records| {
                    let mut all = records.iter();
                    all.find(|one| one.is("event", "violation") && one.is("pid", &pid))
                        .cloned()
                })?;
                says(&record, &[("direction", "outbound"), ("verdict", verdict)])?;
            }
        }
    }
    assert_eq!(lab.link_to(&lab.gateway)?.tx_packets, 0);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// An answer by datagram is outbound, and is approved by its own port; a socket that is bound to
/// none may not have it.
#[test]
fn datagrams_are_approved_by_the_port_that_they_come_from() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    for way in &WAYS {
        let to = at(way.gateway, 4000);
        for more in [&[][..], &["--connected"]] {
            let from = |port: &'static [&'static str]| [&["udp", to.as_str()], more, port].concat();
            traffic(&lab)?
                .args(from(&["--from", "53"]))
                .run()?
                .success()?;
            for other in [&["--from", "54"][..], &[]] {
                let outcome = traffic(&lab)?.args(from(other)).run()?;
                ensure!(outcome.code == REFUSED, "{other:?}: {outcome:?}");
            }
        }
        let record = agent.wait_for("a datagram is told", |records| {
            let mut all = records.iter().filter(|record| is_final(record));
            all.find(|one| one.is("src_port", "53") && one.is("dst_addr", way.gateway))
                .cloned()
        })?;
        says(
            &record,
            &[
                ("direction", "outbound"),
                ("verdict", "approved"),
                ("rule", "names"),
            ],
        )?;
    }
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// The opener of a session that is older than the agent is not known: the session is not approved
/// as accepted, a rule that denies its port holds, and a rule that does not ask approves.
#[test]
fn sessions_older_than_the_agent_are_nobodys_to_let_in() -> Result<()> {
    const BYTES: u64 = 10_000_000;
    let lab = Lab::new()?;
    let bytes = BYTES.to_string();
    let mut sessions = Vec::new();
    for (port, place, far) in [
        (SSH, &lab.gateway, places::GATEWAY),
        (WEB, &lab.gateway, places::GATEWAY),
        (8080, &lab.peer, places::PEER),
    ] {
        let number = port.to_string();
        let serving = server(&lab, "old.service", &["serve", &number, "--bytes", &bytes])?;
        // A client that stops to read soon, so that most is not under way yet.
        let stream = place.enter(|| {
            let mut stream = TcpStream::connect((places::HOST, port))?;
            stream.read_exact(&mut [0; 10_000])?;
            Ok(stream)
        })?;
        sessions.push((port, far, serving, stream));
    }
    let mut agent = lab
        .agent()
        .policy(&format!("mode = \"report\"\n{RULES}"))
        .start()?;
    for (port, far, serving, mut stream) in sessions {
        stream.read_to_end(&mut Vec::new())?;
        drop(stream);
        serving.finish()?.success()?;
        let record = session(&mut agent, far, port)?;
        ensure!(record.text("direction").is_empty(), "{record}");
        let (verdict, rule) = match port {
            SSH => ("denied", "ssh by nothing else"),
            WEB => ("unapproved", ""),
            _ => ("approved", "the peer"),
        };
        says(&record, &[("verdict", verdict), ("rule", rule)])?;
    }
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn a_listener_older_than_the_agent_accepts_as_any_other() -> Result<()> {
    let lab = Lab::new()?;
    let arguments = ["workers", "22", "--count", "2", "--bytes", "3000"];
    let serving = server(&lab, "ssh.service", &arguments)?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    for way in &WAYS {
        client(&lab.gateway, way.gateway, way.host, SSH)?
            .run()?
            .success()?;
        let record = session(&mut agent, way.gateway, SSH)?;
        says(
            &record,
            &[("direction", "accepted"), ("verdict", "gateway")],
        )?;
    }
    serving.finish()?.success()?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// Whoever is root in a network namespace can have the kernel there believe that a peer has asked
/// for a session. So nothing is approved as accepted there.
#[test]
fn what_another_namespace_has_accepted_is_only_claimed() -> Result<()> {
    let lab = Lab::new()?;
    let machine = guest(&lab.host, "machine", 1)?;
    lab.peer.ip(&format!(
        "route add {} via {} dev to-host onlink\n",
        machine.v4,
        places::HOST
    ))?;
    let text = r#"
mode = "report"
[[rules]]
name      = "web"
direction = "accepted"
from      = { ports = ["443/tcp"] }
to        = { networks = ["198.51.100.0/24"] }
verdict   = "approve"
"#;
    let mut agent = lab.agent().policy(text).start()?;
    let unit = lab.unit("box.service")?;
    let mut serving = Program::new(TRAFFIC, &machine.place, Some(&unit), None)?
        .args(["serve", "443", "--bytes", "3000"])
        .start()?;
    serving.line()?;
    client(&lab.peer, places::PEER, machine.v4, WEB)?
        .run()?
        .success()?;
    serving.finish()?.success()?;
    let record = session(&mut agent, places::PEER, WEB)?;
    says(
        &record,
        &[("direction", "claimed"), ("verdict", "unapproved")],
    )?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// `trefoil explain` says of a session what the kernel does.
#[test]
fn explain_says_who_may_open_a_session() -> Result<()> {
    let lab = Lab::new()?;
    let policy = lab.file("gateways.toml");
    fs::write(&policy, enforcing())?;
    let files = [policy, lab.file("geoip"), lab.file("geoip6")];
    let [path, v4, v6] = files
        .each_ref()
        .map(|file| file.to_str().unwrap_or_default());
    let ask = |more: &[&str]| {
        let common = ["explain", "--policy", path, "--geo", v4, "--geo", v6];
        verb(&lab, &[&common[..], more].concat())
    };
    for (more, expected) in [
        (
            &[
                "--to",
                "192.0.2.10",
                "--direction",
                "accepted",
                "--from-port",
                "22",
            ][..],
            "accepted on port 22 from 192.0.2.10",
        ),
        (
            &[
                "--to",
                "192.0.2.10",
                "--direction",
                "accepted",
                "--from-port",
                "22",
            ],
            "`dublin-1` opens sessions",
        ),
        (
            &[
                "--to",
                "198.51.100.10",
                "--direction",
                "accepted",
                "--from-port",
                "22",
            ],
            "denied, dropped",
        ),
        (
            &["--to", "192.0.2.10:4000", "--from-port", "443"],
            "unapproved, refused",
        ),
        (
            &[
                "--to",
                "192.0.2.10:4000",
                "--protocol",
                "udp",
                "--from-port",
                "53",
            ],
            "rule `names`",
        ),
    ] {
        let outcome = ask(more)?.success()?;
        ensure!(outcome.stdout.contains(expected), "{more:?}: {outcome:?}");
    }
    let outcome = ask(&[
        "--to",
        "192.0.2.10",
        "--protocol",
        "udp",
        "--direction",
        "accepted",
    ])?;
    ensure!(outcome.code == 2, "{outcome:?}");
    ensure!(outcome.stderr.contains("--from-port"), "{outcome:?}");
    lab.close()
}
