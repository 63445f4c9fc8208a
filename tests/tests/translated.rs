//! Destinations that the host rewrites: a policy judges where it goes, the record has the
//! named address as well, and report mode tells what enforce mode does.

mod world;

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, anyhow, bail, ensure};
use trefoil_lab::foretold::{Foretold, of_call};
use trefoil_lab::program::Program;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{container, forward};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{
    PAYLOAD, REFUSED, TRAFFIC, UDP_HEADER, all_of, at, enforcing, foretold, is_final, reporting,
    traffic,
};

/// Addresses of services, which the policy does not know. Routed abroad, since the kernel
/// looks for a route before it rewrites.
const TO_PEER: &str = "203.0.113.101";
const TO_FOREIGN: &str = "198.51.100.102";
/// Where they are.
const BACKEND: &str = "198.51.100.11";
const BAD_BACKEND: &str = "203.0.113.12";
const DATAGRAM: u64 = PAYLOAD + UDP_HEADER + 20;

/// Rewrites as service proxies do: for the host's own packets and for forwarded ones, which
/// leave with the host's address.
fn translate(lab: &Lab) -> Result<()> {
    let rewrite = format!(
        "ip daddr {TO_PEER} dnat to {BACKEND}\nip daddr {TO_FOREIGN} dnat to {BAD_BACKEND}"
    );
    lab.host.nft(&format!(
        "table ip services {{\n\
         chain output {{\ntype nat hook output priority -100; policy accept;\n{rewrite}\n}}\n\
         chain prerouting {{\ntype nat hook prerouting priority -100; policy accept;\n{rewrite}\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n\
         ip saddr 192.0.2.121 masquerade\n}}\n}}\n"
    ))?;
    // Masquerading takes an address of the interface, and the lab's have none.
    let host = places::HOST;
    lab.host.ip(&format!(
        "address add {host}/32 dev to-peer\naddress add {host}/32 dev to-foreign\n"
    ))
}

/// Final records about either address of a service.
fn about<'a>(records: &'a [Record], service: &str, backend: &str) -> Vec<&'a Record> {
    let is_it = |record: &&Record| {
        let to = record.text("dst_addr");
        is_final(record) && (to == backend || to == service)
    };
    records.iter().filter(is_it).collect()
}

/// Sends to both services in one mode and returns who was refused, what arrived, and what
/// is told.
fn go(enforced: bool) -> Result<(Vec<bool>, Vec<u64>, Vec<Record>)> {
    let lab = Lab::new()?;
    forward(&lab.host)?;
    translate(&lab)?;
    let _sinks = (UdpSink::new(&lab.peer, 9)?, UdpSink::new(&lab.foreign, 9)?);
    let taps = [Tap::new(&lab.peer)?, Tap::new(&lab.foreign)?];
    let policy = if enforced { enforcing() } else { reporting() };
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let before = [lab.link_to(&lab.peer)?, lab.link_to(&lab.foreign)?];
    let mut refused = Vec::new();
    for service in [TO_PEER, TO_FOREIGN] {
        let program = traffic(&lab)?;
        let outcome = program.args(["udp", &format!("{service}:9")]).run()?;
        ensure!([0, REFUSED].contains(&outcome.code), "{outcome:?}");
        refused.push(outcome.code == REFUSED);
    }
    let records = all_of(agent, &lab)?;
    let mut arrived = Vec::new();
    for ((tap, place), (before, to)) in taps
        .iter()
        .zip([&lab.peer, &lab.foreign])
        .zip(before.into_iter().zip([BACKEND, BAD_BACKEND]))
    {
        let sent = lab.link_to(place)?.since(before).tx_packets;
        wait_for("what was sent arrives", || {
            Ok((tap.frames() >= sent).then_some(()))
        })?;
        arrived.push(tap.to(to.parse()?).bytes);
    }
    lab.close()?;
    Ok((refused, arrived, records))
}

#[test]
fn what_is_behind_a_service_decides_for_the_host() -> Result<()> {
    let (refused, arrived, records) = go(true)?;
    ensure!(
        !refused[0],
        "the backend is approved, and the call was refused"
    );
    ensure!(arrived == [DATAGRAM, 0], "enforce mode: {arrived:?}");
    let sum = |records: &[&Record], field: &str| -> u64 {
        let numbers = records.iter().map(|record| record.number(field));
        numbers.map(Result::unwrap_or_default).sum()
    };
    let good = about(&records, TO_PEER, BACKEND);
    ensure!(
        sum(&good, "bytes_out") == DATAGRAM,
        "counted once: {good:?}"
    );
    let bad = about(&records, TO_FOREIGN, BAD_BACKEND);
    ensure!(sum(&bad, "bytes_out") == 0, "nothing left: {bad:?}");

    let (refused, arrived, records) = go(false)?;
    ensure!(refused == [false, false], "report mode refuses");
    ensure!(arrived == [DATAGRAM; 2], "report mode: {arrived:?}");
    for (service, backend, outcome) in [
        (TO_PEER, BACKEND, "passed"),
        (TO_FOREIGN, BAD_BACKEND, "would-drop"),
    ] {
        let told = about(&records, service, backend);
        ensure!(
            sum(&told, "bytes_out") == DATAGRAM,
            "counted once: {told:?}"
        );
        let record = told.first().context("no record")?;
        for (field, expected) in [
            ("dst_addr", backend),
            ("dst_named", service),
            ("outcome", outcome),
        ] {
            ensure!(
                record.is(field, expected),
                "{field} is not {expected}: {record}"
            );
        }
    }
    Ok(())
}

/// The host translates for a container as for itself, and knows it at the uplink: by the connection that it tracks.
#[test]
fn behind_a_service_a_container_is_known() -> Result<()> {
    let lab = Lab::new()?;
    forward(&lab.host)?;
    let guest = container(&lab.host, "container", 21)?;
    translate(&lab)?;
    let sink = UdpSink::new(&lab.peer, 9)?;
    let rules = [BACKEND, TO_PEER].map(|to| {
        format!(
            "[[rules]]\nname = \"to {to}\"\nfrom = {{ unit = \"container.service\" }}\n\
             to = {{ networks = [\"{to}\"] }}\nverdict = \"approve\"\n"
        )
    });
    let policy = format!("mode = \"enforce\"\n{}", rules.concat());
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let program = |unit: &str| Program::new(TRAFFIC, &guest.place, Some(&lab.unit(unit)?), None);
    let words = ["udp", &format!("{TO_PEER}:9")];
    program("container.service")?.args(words).run()?.success()?;
    sink.wait_for_packets(1)?;
    // Another unit of the same container may not.
    program("other.service")?.args(words).run()?;
    let records = all_of(agent, &lab)?;
    let told = about(&records, BACKEND, BACKEND);
    let [record] = told.as_slice() else {
        bail!("not one record: {told:?}");
    };
    for (field, expected) in [
        ("unit", "container.service"),
        ("dst_named", TO_PEER),
        ("attribution", "direct"),
        ("verdict", "approved"),
    ] {
        ensure!(record.is(field, expected), "{field}: {record}");
    }
    let arrived = sink.arrived();
    ensure!(arrived.packets == 1, "{arrived:?}");
    lab.close()
}

#[test]
fn answers_from_behind_a_service_are_counted() -> Result<()> {
    const QUESTION: &str = "exec 3<>/dev/udp/203.0.113.101/9; echo hello >&3; timeout 20 dd bs=64 count=1 status=none <&3";
    let lab = Lab::new()?;
    forward(&lab.host)?;
    translate(&lab)?;
    let backend = lab.peer.enter(|| Ok(UdpSocket::bind((BACKEND, 9))?))?;
    let answers = std::thread::spawn(move || -> Result<()> {
        let mut question = [0; 64];
        let (_, from) = backend.recv_from(&mut question)?;
        backend.send_to(b"and hello\n", from)?;
        Ok(())
    });
    let agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let program = lab.program("/bin/bash")?;
    program.args(["-c", QUESTION]).run()?.success()?;
    answers.join().map_err(|_| anyhow!("the backend"))??;
    let records = all_of(agent, &lab)?;
    let told = about(&records, TO_PEER, BACKEND);
    let record = told.first().context("no record")?;
    ensure!(record.is("dst_named", TO_PEER), "{record}");
    let (out, back) = (record.number("bytes_out")?, record.number("bytes_in")?);
    ensure!((out, back) == (20 + 8 + 6, 20 + 8 + 10), "{record}");
    lab.close()
}

/// Packets to a service are of the flow to its backend, which the call does not name. Enforce mode
/// does with each what is foretold.
#[test]
fn who_sends_next_to_a_service_is_judged_as_who_that_is() -> Result<()> {
    const RULES: &str = "[[rules]]\nname = \"root\"\nfrom = { user = 0 }\n\
                         to = { networks = [\"198.51.100.0/24\"] }\nverdict = \"approve\"\n";
    let lab = Lab::new()?;
    translate(&lab)?;
    let _sink = UdpSink::new(&lab.peer, 9)?;
    // Another name meanwhile, which is refused or not.
    let [peer, foreign] = [places::PEER, places::FOREIGN].map(|between| at(between, 10));
    let ways: [(&[&str], u64, u64); 4] = [
        (&[], 0, 2),
        (&["--uid", "12345"], 0, 1),
        (&["--between", &peer, "--uid", "12345"], 1, 1),
        (&["--between", &foreign, "--uid", "12345"], 0, 1),
    ];
    let start = |mode: &str| {
        let policy = format!("mode = \"{mode}\"\n{RULES}");
        lab.agent().policy(&policy).uplink("auto").start()
    };
    let send = |how: &[&str]| -> Result<(u32, u64)> {
        let before = lab.link_to(&lab.peer)?;
        let words = ["become", &format!("{TO_PEER}:9"), "--unconnected"];
        let pid = traffic(&lab)?.args(words).args(how).run()?.pid;
        Ok((pid, lab.link_to(&lab.peer)?.since(before).tx_packets))
    };
    let agent = start("enforce")?;
    for (how, others, expected) in &ways {
        ensure!(send(how)?.1 - others == *expected, "{how:?}");
    }
    all_of(agent, &lab)?;
    let agent = start("report")?;
    let pids: Vec<u32> = ways
        .iter()
        .map(|(how, ..)| Ok(send(how)?.0))
        .collect::<Result<_>>()?;
    let records = all_of(agent, &lab)?;
    let policy = format!("mode = \"enforce\"\n{RULES}");
    for ((how, _, expected), pid) in ways.iter().zip(pids) {
        let mut told = about(&records, TO_PEER, BACKEND);
        told.retain(|record| record.is("pid", pid));
        let foretold = foretold(&lab, &policy, &told)?;
        let sums = |outcome: Foretold| {
            let of = told.iter().zip(&foretold);
            let of = of.filter(|(_, foretold)| **foretold == outcome);
            of.map(|(record, _)| record.number("packets_out"))
                .sum::<Result<u64>>()
        };
        let (leave, blocked) = (sums(Foretold::Leaves)?, sums(Foretold::Blocked)?);
        ensure!(
            (leave, blocked) == (*expected, 2 - expected),
            "{how:?}: {leave} packets are foretold to leave, {blocked} not: {told:#?}"
        );
    }
    lab.close()
}

/// Services of the last test: an address that is named, and one behind it.
#[derive(Clone, Copy)]
struct Service {
    named: Ipv4Addr,
    backend: Ipv4Addr,
}

/// The service with this number of a kind: of which the name, the backend, or both are approved.
fn service(kind: usize, number: u8) -> Service {
    const APPROVED: [u8; 3] = [198, 51, 100];
    const OTHER: [u8; 3] = [203, 0, 113];
    let (named, backend) = [(OTHER, APPROVED), (APPROVED, OTHER), (APPROVED, APPROVED)][kind];
    let last = 63 + 40 * kind as u8 + number;
    let at = |[a, b, c]: [u8; 3], d| Ipv4Addr::new(a, b, c, d);
    Service {
        named: at(named, last),
        backend: at(backend, last + 20),
    }
}

/// Calls of a program: by a container, or by the host itself.
const CALLS: [(bool, &[&str]); 6] = [
    (false, &["udp"]),
    (false, &["udp", "--connected"]),
    (false, &["begin"]),
    (true, &["udp"]),
    (true, &["udp", "--connected"]),
    (true, &["begin"]),
];

/// Outcome of a call.
struct Called {
    is_container: bool,
    how: &'static [&'static str],
    service: Service,
    refused: bool,
    arrived: u64,
}

/// Makes each call to a service of its own of each kind.
fn call_all(enforced: bool) -> Result<(Lab, Vec<Called>, Vec<Record>)> {
    let lab = Lab::new()?;
    let container = container(&lab.host, "container", 21)?.place;
    translate(&lab)?;
    let services = (0..3).flat_map(|kind| (0..CALLS.len()).map(move |n| service(kind, n as u8)));
    let map: Vec<String> = services
        .map(|Service { named, backend }| format!("{named} : {backend}"))
        .collect();
    let rewrite = format!("dnat to ip daddr map {{ {} }}", map.join(", "));
    lab.host.nft(&format!(
        "add rule ip services output {rewrite}\nadd rule ip services prerouting {rewrite}\n"
    ))?;
    let taps = [Tap::new(&lab.peer)?, Tap::new(&lab.foreign)?];
    let policy = if enforced { enforcing() } else { reporting() };
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let before = [lab.link_to(&lab.peer)?, lab.link_to(&lab.foreign)?];
    let mut all = Vec::new();
    for kind in 0..3 {
        for (number, (is_container, how)) in CALLS.into_iter().enumerate() {
            let service = service(kind, number as u8);
            let (call, more) = how.split_first().context("no call")?;
            let unit = lab.unit("lab.service")?;
            let place = if is_container { &container } else { &lab.host };
            let outcome = Program::new(TRAFFIC, place, Some(&unit), None)?
                .args([*call, &format!("{}:9", service.named)])
                .args(more)
                .run()?;
            ensure!([0, REFUSED].contains(&outcome.code), "{outcome:?}");
            all.push(Called {
                is_container,
                how,
                service,
                refused: outcome.code == REFUSED,
                arrived: 0,
            });
        }
    }
    let records = all_of(agent, &lab)?;
    for ((tap, place), before) in taps.iter().zip([&lab.peer, &lab.foreign]).zip(before) {
        let sent = lab.link_to(place)?.since(before).tx_packets;
        wait_for("what was sent arrives", || {
            Ok((tap.frames() >= sent).then_some(()))
        })?;
        for called in &mut all {
            called.arrived += tap.to(called.service.backend.into()).packets;
        }
    }
    Ok((lab, all, records))
}

/// By the host and by a container, whose call two hooks judge: its socket's, by the name, and that
/// of the uplink, by the backend.
#[test]
fn report_mode_foretells_each_call_to_a_service() -> Result<()> {
    let (lab, reported, records) = call_all(false)?;
    let mut all_foretold = Vec::new();
    for called in &reported {
        let Service { named, backend } = called.service;
        ensure!(
            !called.refused && called.arrived > 0,
            "{named} in report mode"
        );
        let told = about(&records, &named.to_string(), &backend.to_string());
        let foretold = of_call(foretold(&lab, &enforcing(), &told)?);
        all_foretold.push((
            foretold.with_context(|| format!("no record of {named}"))?,
            told,
        ));
    }
    let (other, enforced, _) = call_all(true)?;
    for (called, (foretold, told)) in enforced.iter().zip(all_foretold) {
        let Called {
            is_container,
            how,
            service: Service { named, backend },
            refused,
            arrived,
        } = called;
        let expected = match *arrived {
            0 => Foretold::Blocked,
            _ => Foretold::Leaves,
        };
        println!("{how:?} to {named}, by a container: {is_container}: {foretold:?}");
        ensure!(
            foretold == expected && !(*refused && *arrived > 0),
            "{how:?} to {named}, which is {backend}, by a container: {is_container}: {arrived} \
             packets arrive and refused is {refused}; foretold was {foretold:?}: {told:#?}"
        );
    }
    other.close()?;
    lab.close()
}
