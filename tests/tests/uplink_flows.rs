//! Flows that no socket's hooks have judged are in records as well, with both ends, and with their
//! owner: a packet socket's process, the kernel, or a sender whom the host forwards for.

mod world;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::guest;
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::books::{FOREIGN_LINK, frames_of};
use world::{
    PAYLOAD, TRAFFIC, UDP_HEADER, all_of, at, enforcing, ip_header, is_final, reporting, told,
    traffic, traffic_in,
};

/// Final records about what went to an address.
fn finals_to(agent: Agent<'_>, lab: &Lab, to: IpAddr) -> Result<Vec<Record>> {
    let is_wanted = |record: &Record| is_final(record) && record.is("dst_addr", to);
    Ok(all_of(agent, lab)?.into_iter().filter(is_wanted).collect())
}

/// The one record that there is.
fn only(mut records: Vec<Record>) -> Result<Record> {
    ensure!(
        records.len() == 1,
        "{} final records: {records:?}",
        records.len()
    );
    records.pop().context("no record")
}

fn holds(record: &Record, facts: &[(&str, &dyn ToString)]) -> Result<()> {
    for (name, expected) in facts {
        let expected = expected.to_string();
        ensure!(
            record.text(name) == expected,
            "{name} is not `{expected}`: {record}"
        );
    }
    Ok(())
}

#[test]
fn what_is_forwarded_is_told_by_both_its_ends() -> Result<()> {
    for (to, enforced) in [(places::FOREIGN, false), (places::FOREIGN6, true)] {
        let lab = Lab::new()?;
        let machine = guest(&lab.host, "machine", 1)?;
        let policy = if enforced { enforcing() } else { reporting() };
        let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let from = if to.is_ipv4() { machine.v4 } else { machine.v6 };
        // From two ports: two flows.
        for port in ["4001", "4002"] {
            let program = Program::new(TRAFFIC, &machine.place, None, None)?;
            program
                .args(["udp", &at(to, 9), "--count", "5", "--from", port])
                .run()?
                .success()?;
        }
        agent.wait_for("two violations are told", |records| {
            let told = records.iter().filter(|record| {
                record.is("event", "violation")
                    && record.is("dst_addr", to)
                    && record.is("src_addr", from)
                    && record.is("attribution", "forwarded")
            });
            (told.count() == 2).then_some(())
        })?;
        let finals = finals_to(agent, &lab, to)?;
        ensure!(finals.len() == 2, "{} final records", finals.len());
        let bytes = 5 * (PAYLOAD + UDP_HEADER + ip_header(to));
        for record in &finals {
            holds(
                record,
                &[
                    ("attribution", &"forwarded"),
                    ("src_addr", &from),
                    ("dst_port", &9),
                    ("protocol", &"udp"),
                    ("verdict", &"denied"),
                    ("rule", &"never there"),
                    ("pid", &""),
                    ("uid", &""),
                ],
            )?;
            let (outcome, field) = match enforced {
                true => ("dropped", "blocked_bytes"),
                false => ("would-drop", "bytes_out"),
            };
            holds(record, &[("outcome", &outcome), (field, &bytes)])?;
        }
        lab.close()?;
    }
    Ok(())
}

/// A packet that comes in by another interface may be a process's of this host, in another network
/// namespace: a rule that denies some of them holds for all that are not known.
#[test]
fn a_deny_of_a_source_holds_for_what_is_forwarded() -> Result<()> {
    let lab = Lab::new()?;
    let container = guest(&lab.host, "container", 1)?;
    let foreign = UdpSink::new(&lab.foreign, 9)?;
    const POLICY: &str = r#"mode = "enforce"
[[rules]]
name    = "nobody's"
from    = { user = 65534 }
to      = { networks = ["203.0.113.0/24"] }
verdict = "deny"
[[rules]]
name    = "all others'"
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    let to = at(places::FOREIGN, 9);
    // By a packet socket: nobody's, as far as the host can see.
    let from = format!("{}:4000", container.v4);
    Program::new(TRAFFIC, &container.place, None, None)?
        .args(["packet", "to-host", "02:00:00:00:03:01", &to])
        .args(["--from", &from])
        .run()?
        .success()?;
    traffic(&lab)?.args(["udp", &to]).run()?.success()?;
    foreign.wait_for_packets(1)?;
    let records = finals_to(agent, &lab, places::FOREIGN)?;
    let of_container = |record: &&Record| record.is("src_addr", container.v4);
    let contained = only(records.iter().filter(of_container).cloned().collect())?;
    let expected: &[(&str, &dyn ToString)] = &[
        ("attribution", &"forwarded"),
        ("rule", &"nobody's"),
        ("outcome", &"dropped"),
    ];
    holds(&contained, expected)?;
    ensure!(foreign.arrived().packets == 1, "{:?}", foreign.arrived());
    lab.close()
}

/// Address behind a tunnel to the foreign host, and port on which that host takes the tunnel's
/// packets.
const INNER: &str = "198.51.100.70";
const TUNNEL_PORT: u16 = 4789;

fn tunnel_to_foreign(lab: &Lab) -> Result<()> {
    // The kernel would tell who listens for which groups, through the tunnel as well.
    lab.host.enter(|| {
        let new_links = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        Ok(std::fs::write(new_links, "1")?)
    })?;
    lab.host.ip(&format!(
        "link add tunnel type vxlan id 7 remote {} dstport {TUNNEL_PORT} dev to-foreign\n\
         link set tunnel addrgenmode none\n\
         link set tunnel up\n\
         neighbour add {INNER} lladdr 02:00:00:00:03:70 dev tunnel nud permanent\n\
         route add {INNER} dev tunnel src {}\n",
        places::FOREIGN,
        places::HOST
    ))
}

/// A socket that sends so many to the end of the tunnel itself and then through it.
fn into_and_through_the_tunnel(lab: &Lab, count: &str) -> Result<Running> {
    let end = format!("{}:{TUNNEL_PORT}", places::FOREIGN);
    let inner = format!("{INNER}:9");
    let mut socket = traffic(lab)?
        .args(["udp", &end, "--count", count, "--hold", "--then", &inner])
        .start()?;
    socket.line()?;
    Ok(socket)
}

/// Has it send once more; returns how many frames left for the foreign host.
fn step(lab: &Lab, socket: &mut Running) -> Result<u64> {
    let before = lab.link_to(&lab.foreign)?;
    socket.proceed()?;
    socket.line()?;
    Ok(lab.link_to(&lab.foreign)?.since(before).tx_packets)
}

const INNER_ALONE: &str = r#"mode = "enforce"
[[rules]]
name    = "what the tunnel leads to"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;

/// The policy with another rule, which approves of the tunnel's end.
fn and_its_end(limit: &str) -> String {
    format!(
        "{INNER_ALONE}[[rules]]\nname = \"its end\"\nto = {{ networks = [\"{}\"] }}\n{limit}\
         verdict = \"approve\"\n",
        places::FOREIGN
    )
}

#[test]
fn a_tunnel_does_not_lead_where_its_sender_may_not_go() -> Result<()> {
    let lab = Lab::new()?;
    tunnel_to_foreign(&lab)?;
    // One datagram and not two: what is beyond is dropped, and the socket's flow says so.
    let policy = and_its_end("budget = { bytes = \"150 B\", per = \"1h\" }\n");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let mut socket = into_and_through_the_tunnel(&lab, "2")?;
    ensure!(step(&lab, &mut socket)? == 1, "to the tunnel's end");
    ensure!(step(&lab, &mut socket)? == 0, "through the tunnel");
    let pid = socket.pid();
    socket.finish()?;
    let told = finals_to(agent, &lab, places::FOREIGN)?;
    ensure!(told.iter().all(|record| record.is("pid", pid)), "{told:?}");
    // Its own packets to that host, and those that wrap the packets through the tunnel.
    for blocked in [1, 2] {
        let is_it = |record: &&Record| record.is("blocked_packets", blocked);
        ensure!(
            told.iter().filter(is_it).count() == 1,
            "{blocked}: {told:?}"
        );
    }
    lab.close()
}

#[test]
fn a_tunnel_does_not_lead_where_its_sender_may_not_go_any_more() -> Result<()> {
    let lab = Lab::new()?;
    tunnel_to_foreign(&lab)?;
    let mut agent = lab
        .agent()
        .policy(&and_its_end(""))
        .uplink("auto")
        .start()?;
    let mut socket = into_and_through_the_tunnel(&lab, "1")?;
    ensure!(step(&lab, &mut socket)? == 1, "not to the tunnel's end");
    ensure!(step(&lab, &mut socket)? == 1, "not through the tunnel");
    agent.reload(INNER_ALONE)?;
    // A packet that may have been on its way since before is let go for a while.
    wait_for("the tunnel's packets are judged anew", || {
        Ok((step(&lab, &mut socket)? == 0).then_some(()))
    })?;
    ensure!(
        step(&lab, &mut socket)? == 0,
        "judged anew, and not for good"
    );
    // And not because what it sent there itself is forgotten.
    let is_over = |record: &&Record| is_final(record) && record.is("packets_out", 1);
    let over = agent.records()?.iter().find(is_over);
    ensure!(over.is_none(), "{over:?}");
    socket.finish()?;
    drop(agent);
    lab.close()
}

#[test]
fn what_a_guest_sends_through_a_tunnel_is_not_the_kernels_own() -> Result<()> {
    let lab = Lab::new()?;
    let machine = guest(&lab.host, "machine", 1)?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    tunnel_to_foreign(&lab)?;
    let program = Program::new(TRAFFIC, &machine.place, None, None)?;
    let to = format!("{INNER}:9");
    program.args(["udp", &to]).run()?.success()?;
    let record = only(finals_to(agent, &lab, places::FOREIGN)?)?;
    const ETHERNET_AND_VXLAN_HEADERS: u64 = 14 + 8;
    let inner = PAYLOAD + UDP_HEADER + ip_header(places::FOREIGN);
    let bytes = inner + ETHERNET_AND_VXLAN_HEADERS + UDP_HEADER + ip_header(places::FOREIGN);
    holds(
        &record,
        &[
            ("attribution", &"none"),
            ("dst_port", &4789),
            ("bytes_out", &bytes),
            ("pid", &""),
        ],
    )?;
    lab.close()
}

#[test]
fn a_frame_is_its_senders_also_if_it_is_the_only_one() -> Result<()> {
    for (to, enforced) in [
        (places::FOREIGN, false),
        (places::FOREIGN6, false),
        (places::FOREIGN, true),
    ] {
        let lab = Lab::new()?;
        let policy = if enforced { enforcing() } else { reporting() };
        let agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let from = if to.is_ipv4() {
            places::HOST
        } else {
            places::HOST6
        };
        let traffic = traffic_in(&lab, "frames.service")?;
        let sent = frames_of(traffic, "to-foreign", FOREIGN_LINK, to).run()?;
        let pid = told(&sent)?.pop().context("it said nothing")?.text("pid");
        let record = only(finals_to(agent, &lab, to)?)?;
        holds(
            &record,
            &[
                ("attribution", &"direct"),
                ("pid", &pid),
                ("exe", &TRAFFIC),
                ("unit", &"frames.service"),
                ("src_addr", &from),
                ("direction", &""),
                ("verdict", &"denied"),
            ],
        )?;
        let bytes = PAYLOAD + UDP_HEADER + ip_header(to);
        let field = if enforced {
            "blocked_bytes"
        } else {
            "bytes_out"
        };
        holds(&record, &[(field, &bytes)])?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn rules_about_a_service_hold_for_its_packet_sockets() -> Result<()> {
    const POLICY: &str = r#"
mode = "report"
[[rules]]
name    = "leases"
from    = { unit = "leases.service" }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;
    let lab = Lab::new()?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    for unit in ["leases.service", "other.service"] {
        let traffic = traffic_in(&lab, unit)?;
        let frames = frames_of(traffic, "to-foreign", FOREIGN_LINK, places::FOREIGN);
        frames.args(["--count", "4"]).run()?.success()?;
    }
    // The kernel tells the owner of a socket when its first frame has been sent.
    let finals = finals_to(agent, &lab, places::FOREIGN)?;
    let mut told: Vec<_> = finals
        .iter()
        .map(|record| {
            let packets = record.number("packets_out")?;
            Ok((record.text("unit"), record.text("verdict"), packets))
        })
        .collect::<Result<_>>()?;
    told.sort();
    let expected = [
        ("leases.service", "approved", 3),
        ("leases.service", "unapproved", 1),
        ("other.service", "unapproved", 4),
    ];
    let expected = expected.map(|(unit, verdict, n)| (unit.to_owned(), verdict.to_owned(), n));
    ensure!(told == expected, "{told:?}");
    lab.close()
}

/// The rule for who writes into tun devices, under `mode`.
/// A budget is used up by each fragment that is forwarded, not by the first alone.
#[test]
fn a_budget_ends_in_the_middle_of_a_datagram() -> Result<()> {
    const BUDGET: u64 = 2000;
    const POLICY: &str = r#"
mode = "enforce"
[[rules]]
name    = "a little"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
budget  = { bytes = "2000 B", per = "1h" }
"#;
    let lab = Lab::new()?;
    let machine = guest(&lab.host, "machine", 1)?;
    let mut agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    let tap = Tap::new(&lab.peer)?;
    let program = Program::new(TRAFFIC, &machine.place, None, None)?;
    let datagram = ["udp", &at(places::PEER, 9), "--size", "20000"];
    program.args(datagram).run()?.success()?;
    agent.wait_for("the rest is told", |records| {
        records
            .iter()
            .any(|record| record.is("verdict", "over-budget"))
            .then_some(())
    })?;
    let all = all_of(agent, &lab)?;
    let arrived = tap.to(places::PEER).bytes;
    ensure!(arrived > 0 && arrived <= BUDGET, "{arrived} bytes arrived");
    ensure!(all.iter().any(is_final), "nothing is told at the end");
    lab.close()
}

#[test]
fn what_the_kernel_sends_by_itself_is_the_kernels() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    // Nobody listens: the kernel resets the connection that is asked for.
    let (server, source) = (at(places::HOST, 81), places::FOREIGN.to_string());
    let client = Program::new(TRAFFIC, &lab.foreign, None, None)?;
    client.args(["tcp", &server, "--source", &source]).run()?;
    traffic(&lab)?.args(["udp", &at(places::PEER, 9)]).run()?;
    let record = only(finals_to(agent, &lab, places::FOREIGN)?)?;
    const BARE_RESET: u64 = 40;
    holds(
        &record,
        &[
            ("attribution", &"kernel"),
            ("src_port", &81),
            ("bytes_out", &BARE_RESET),
            ("verdict", &"denied"),
            ("outcome", &"would-drop"),
        ],
    )?;
    lab.close()
}

/// The beginning of a user's connection lists addresses, and its checksum is still to be written when it comes
/// to the uplink.
#[test]
fn a_connection_that_lists_addresses_is_told_once_and_leaves_where_it_may() -> Result<()> {
    const USER: u32 = 65534;
    for mode in ["report", "enforce"] {
        let (lab, tap) = Lab::with_tap()?;
        let policy = format!(
            "mode = \"{mode}\"\n[[rules]]\nname = \"there\"\nverdict = \"approve\"\n\
             to = {{ networks = [\"2001:db8:3::/48\"] }}\n"
        );
        let agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let (to, by) = ("[2001:db8:3::28]:9", "2001:db8:3::29");
        // Nobody answers it.
        lab.program_as(USER, TRAFFIC)?
            .args(["route", "option", to, "--via", by, "--tcp"])
            .run()?;
        let left = || -> u64 {
            let all = tap.as_sent();
            let there = all.iter().filter(|(to, _)| !to.is_multicast());
            there.map(|(_, arrived)| arrived.packets).sum()
        };
        wait_for("it leaves", || Ok((left() > 0).then_some(())))?;
        let records = all_of(agent, &lab)?;
        let finals: Vec<_> = records.iter().filter(|record| is_final(record)).collect();
        let told: u64 = finals
            .iter()
            .filter_map(|record| record.number("packets_out").ok())
            .sum();
        ensure!(
            left() == told,
            "{mode}: {} left, {told} told: {finals:#?}",
            left()
        );
        lab.close()?;
    }
    Ok(())
}
