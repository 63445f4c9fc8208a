//! Tables without room: what finds none is told packet by packet, with its owner and both
//! ends; every byte is in one record or counted as told by none, and what is blocked is as
//! with room.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::books::sum;
use trefoil_lab::fill::entries;
use trefoil_lab::kernel::Objects;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{far_link_address, guest};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::books::{FOREIGN_LINK, OFTEN, books, frames_of};
use world::{
    PAYLOAD, REFUSED, TRAFFIC, UDP_HEADER, all_of, approving, at, ip_header, is_final, told,
    traffic, traffic_in,
};

const PORT: u16 = 9;
const DESTINATIONS: u64 = 50;
const PACKETS_EACH: u64 = 40;
const PACKETS: u64 = DESTINATIONS * PACKETS_EACH;
/// Room for fewer flows than there are destinations.
const SLOTS: usize = 8;

fn settings(more: &str) -> String {
    format!("{OFTEN}[tables]\nflows = {SLOTS}\nuplink_flows = {SLOTS}\n{more}")
}

/// First of the addresses of the foreign place.
fn firsts() -> Result<[IpAddr; 2]> {
    Ok(["203.0.113.1".parse()?, "2001:db8:3::1".parse()?])
}

/// All that `traffic` sends, to many destinations.
fn many(program: Program, to: IpAddr) -> Program {
    program.args([
        "udp-many",
        &at(to, PORT),
        "--destinations",
        &DESTINATIONS.to_string(),
        "--count",
        &PACKETS.to_string(),
    ])
}

fn finals(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|record| is_final(record)).collect()
}

/// How much a counter of losses has moved.
fn lost(records: &[Record], counter: &str) -> Result<u64> {
    records
        .iter()
        .filter(|record| record.is("event", "loss") && record.is("subject", counter))
        .map(|record| record.number("count"))
        .sum()
}

/// Packets and bytes by destination.
type Sums = BTreeMap<IpAddr, (u64, u64)>;

fn sums(finals: &[&Record], packets: &str, bytes: &str) -> Result<Sums> {
    let mut sums = Sums::new();
    for record in finals {
        let sum = sums.entry(record.address("dst_addr")?).or_default();
        sum.0 += record.number(packets)?;
        sum.1 += record.number(bytes)?;
    }
    Ok(sums)
}

/// Fails unless final records tell what has arrived, at each address and to the byte, and
/// unless each that is of one packet is counted as told by itself.
fn are_whole(records: &[Record], sink: &UdpSink, headers: u64) -> Result<()> {
    let finals = finals(records);
    let arrived: Sums = sink
        .by_destination()
        .into_iter()
        .map(|(address, sum)| (address, (sum.packets, sum.bytes + sum.packets * headers)))
        .collect();
    ensure!(arrived.len() as u64 == DESTINATIONS, "{arrived:?}");
    let told = sums(&finals, "packets_out", "bytes_out")?;
    ensure!(told == arrived, "{told:?} {arrived:?}");
    let names: BTreeSet<String> = finals.iter().map(|record| record.text("flow")).collect();
    ensure!(names.len() == finals.len(), "two flows have one name");
    let alone = finals.iter().filter(|record| record.is("packets_out", 1));
    let alone = alone.count() as u64;
    ensure!(
        finals.len() as u64 - alone == SLOTS as u64,
        "{} flows of many packets",
        finals.len() as u64 - alone
    );
    let counted = lost(records, "flows-full")?;
    ensure!(
        counted == alone && lost(records, "packets-untold")? == 0,
        "{counted} of {alone} are counted"
    );
    Ok(())
}

#[test]
fn a_socket_with_more_peers_than_there_is_room_for() -> Result<()> {
    for to in firsts()? {
        let lab = Lab::new()?;
        let sink = UdpSink::new(&lab.foreign, PORT)?;
        let agent = lab.agent().policy(&approving()).settings(&settings(""));
        let mut agent = agent.flows("each").uplink("auto").start()?;
        let outcome = many(traffic(&lab)?, to).run()?.success()?;
        sink.wait_for_packets(PACKETS)?;
        let book = books(&mut agent, &lab, "to-foreign")?;
        // The uplink takes over what the socket's hooks have decided.
        ensure!(sum(&book, &["bytes_kernel"])? == 0, "{book}");
        let records = all_of(agent, &lab)?;
        are_whole(&records, &sink, UDP_HEADER + ip_header(to))?;
        let port = told(&outcome)?.pop().context("no answer")?.text("port");
        for record in finals(&records) {
            let is_whole = record.is("pid", outcome.pid)
                && record.is("attribution", "direct")
                && record.is("src_port", &port)
                && record.is("direction", "outbound")
                && record.is("verdict", "approved");
            ensure!(is_whole, "{record}");
        }
        lab.close()?;
    }
    Ok(())
}

#[test]
fn what_the_ring_buffer_cannot_take_either_is_counted_to_the_byte() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let [to, _] = firsts()?;
    let agent = lab.agent().policy(&approving());
    let agent = agent.settings(&settings("events_bytes = 4096\n"));
    let mut agent = agent.flows("each").uplink("auto").start()?;
    many(traffic(&lab)?, to).run()?.success()?;
    sink.wait_for_packets(PACKETS)?;
    let book = books(&mut agent, &lab, "to-foreign")?;
    ensure!(sum(&book, &["bytes_kernel"])? == 0, "{book}");
    let records = all_of(agent, &lab)?;
    let (mut packets, mut bytes) = (0, 0);
    for (one, other) in sums(&finals(&records), "packets_out", "bytes_out")?.values() {
        packets += one;
        bytes += other;
    }
    let untold = lost(&records, "packets-untold")?;
    ensure!(untold > 0, "all found room");
    ensure!(packets + untold == PACKETS, "{packets} {untold}");
    let packet = PAYLOAD + UDP_HEADER + ip_header(to);
    let bytes_untold = lost(&records, "untold-bytes")?;
    ensure!(
        bytes_untold == untold * packet && bytes + bytes_untold == PACKETS * packet,
        "{bytes} {bytes_untold}"
    );
    lab.close()
}

#[test]
fn with_the_agent_killed_too_nothing_is_left_out() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let [to, _] = firsts()?;
    let policy = approving();
    let settings = settings("");
    let start = || {
        let agent = lab.agent().policy(&policy).settings(&settings);
        agent.flows("each").uplink("auto").start()
    };
    let (_, mut records) = start()?.stop(Signal::SIGKILL)?;
    many(traffic(&lab)?, to).run()?.success()?;
    sink.wait_for_packets(PACKETS)?;
    records.extend(all_of(start()?, &lab)?);
    are_whole(&records, &sink, UDP_HEADER + ip_header(to))?;
    lab.close()
}

#[test]
fn answers_to_connection_requests_without_room() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving()).settings(&settings(""));
    let mut agent = agent.flows("each").uplink("auto").start()?;
    let filling = fill(traffic(&lab)?, "198.51.100.1:9")?;
    let before = lab.link_to(&lab.foreign)?;
    let mut server = traffic(&lab)?
        .args(["serve", "8080", "--bytes", "1000"])
        .start()?;
    server.line()?;
    let client = Program::new(TRAFFIC, &lab.foreign, None, None)?;
    let (to, from) = (at(places::HOST, 8080), places::FOREIGN.to_string());
    client
        .args(["tcp", &to, "--source", &from])
        .run()?
        .success()?;
    server.finish()?.success()?;
    let book = books(&mut agent, &lab, "to-foreign")?;
    ensure!(sum(&book, &["bytes_kernel"])? == 0, "{book}");
    let sent = lab.link_to(&lab.foreign)?.since(before);
    drop(filling);
    let records = all_of(agent, &lab)?;
    let mut finals = finals(&records);
    finals.retain(|record| record.is("dst_addr", places::FOREIGN));
    // The answer, whose session is somebody's later, and the session.
    ensure!(finals.len() == 2, "{finals:?}");
    for record in &finals {
        let is_session = record.number("packets_out")? > 1;
        let known = if is_session { "direct" } else { "inferred" };
        let is_right = record.is("direction", "accepted")
            && record.is("src_port", 8080)
            && record.is("attribution", known);
        ensure!(is_right, "{record}");
    }
    let told = sums(&finals, "packets_out", "bytes_out")?;
    ensure!(
        told.get(&places::FOREIGN) == Some(&(sent.tx_packets, sent.ip_bytes_out())),
        "{told:?} {sent:?}"
    );
    lab.close()
}

#[test]
fn more_of_a_packet_socket_and_of_a_guest_than_there_is_room_for() -> Result<()> {
    for to in firsts()? {
        for is_guest in [false, true] {
            let lab = Lab::new()?;
            let machine = guest(&lab.host, "machine", 1)?;
            let sink = UdpSink::new(&lab.foreign, PORT)?;
            let tap = Tap::new(&lab.foreign)?;
            let agent = lab.agent().policy(&approving()).settings(&settings(""));
            let mut agent = agent.flows("each").uplink("auto").start()?;
            let program = if is_guest {
                many(Program::new(TRAFFIC, &machine.place, None, None)?, to)
            } else {
                frames_of(traffic(&lab)?, "to-foreign", FOREIGN_LINK, to).args([
                    "--destinations",
                    &DESTINATIONS.to_string(),
                    "--count",
                    &PACKETS.to_string(),
                ])
            };
            let outcome = program.run()?.success()?;
            wait_for("all arrives", || {
                Ok((tap.packets() >= PACKETS).then_some(()))
            })?;
            books(&mut agent, &lab, "to-foreign")?;
            let records = all_of(agent, &lab)?;
            let is_checked = is_guest || to.is_ipv4();
            if is_checked {
                are_whole(&records, &sink, UDP_HEADER + ip_header(to))?;
            } else {
                // Frames over IPv6 have no checksum, and no socket takes them.
                let told = sums(&finals(&records), "packets_out", "bytes_out")?;
                let packet = PAYLOAD + UDP_HEADER + ip_header(to);
                let each = (PACKETS_EACH, PACKETS_EACH * packet);
                ensure!(told.len() as u64 == DESTINATIONS, "{told:?}");
                ensure!(told.values().all(|sum| *sum == each), "{told:?}");
            }
            for record in finals(&records) {
                let is_whole = if is_guest {
                    record.is("attribution", "forwarded") && record.is("pid", "")
                } else {
                    record.is("attribution", "direct")
                        && record.is("pid", outcome.pid)
                        && record.is("direction", "")
                };
                ensure!(is_whole, "{record}");
            }
            lab.close()?;
        }
    }
    Ok(())
}

/// Fills the table of flows, until it is dropped.
fn fill(program: Program, to: &str) -> Result<Running> {
    let number = (2 * SLOTS).to_string();
    let mut filling = program
        .args(["udp-many", to, "--destinations", &number])
        .args(["--count", &number, "--hold"])
        .start()?;
    filling.line()?;
    filling.proceed()?;
    filling.line()?;
    Ok(filling)
}

#[test]
fn a_policy_is_enforced_without_room_as_with_it() -> Result<()> {
    let lab = Lab::new()?;
    let good = lab.copy_program(TRAFFIC, "good/traffic")?;
    let policy = format!(
        r#"mode = "enforce"

[[rules]]
name    = "a little"
to      = {{ networks = ["198.51.100.70/32"] }}
budget  = {{ bytes = "1000 B", per = "1h" }}
verdict = "approve"

[[rules]]
name    = "good programs"
from    = {{ exe = "{}" }}
to      = {{ networks = ["198.51.100.80/32"] }}
verdict = "approve"

[[rules]]
name    = "the rest of that place"
to      = {{ networks = ["198.51.100.0/26"] }}
verdict = "approve"
"#,
        good.display()
    );
    let tap = Tap::new(&lab.peer)?;
    let foreign = Tap::new(&lab.foreign)?;
    let agent = lab.agent().policy(&policy).settings(&settings(""));
    let mut agent = agent.flows("each").uplink("auto").start()?;
    let filling = fill(traffic(&lab)?, "198.51.100.1:9")?;

    // Packets of 92 bytes, each charged once: ten fit.
    let limited = traffic(&lab)?.args(["udp", "198.51.100.70:9", "--count", "20"]);
    let limited = limited.run()?;
    ensure!(limited.code == REFUSED, "{limited:?}");
    // The owner of the program matters for each packet.
    let good = lab.program(&good)?.args(["udp", "198.51.100.80:9"]);
    good.run()?.success()?;
    let other = traffic(&lab)?.args(["udp", "198.51.100.80:9"]).run()?;
    ensure!(other.code == REFUSED, "{other:?}");
    // Nobody is asked before there is a packet.
    let raw = traffic(&lab)?.args(["raw", "203.0.113.10"]).run()?;
    ensure!(raw.code == REFUSED, "{raw:?}");

    const RAW: u64 = 20 + PAYLOAD;
    let dropped = agent.wait_for("what was dropped is told", |records| {
        let mut finals = records.iter().filter(|record| is_final(record));
        let dropped = finals.find(|record| record.is("dst_addr", "203.0.113.10"))?;
        Some(dropped.clone())
    })?;
    ensure!(
        dropped.is("outcome", "dropped")
            && dropped.is("blocked_bytes", RAW)
            && dropped.is("bytes_out", 0)
            && dropped.is("pid", raw.pid)
            && dropped.is("attribution", "direct"),
        "{dropped}"
    );
    drop(filling);
    let records = all_of(agent, &lab)?;
    let told = sums(&finals(&records), "packets_out", "bytes_out")?;
    let packet = 20 + UDP_HEADER + PAYLOAD;
    for (host, packets) in [("198.51.100.70", 10), ("198.51.100.80", 1)] {
        let host: IpAddr = host.parse()?;
        ensure!(tap.to(host).packets == packets, "{:?}", tap.to(host));
        ensure!(
            told.get(&host) == Some(&(packets, packets * packet)),
            "{told:?}"
        );
    }
    ensure!(foreign.packets() == 0, "something arrived");
    lab.close()
}

#[test]
fn what_has_no_room_is_told_once_wherever_it_comes_from() -> Result<()> {
    const POLICY: &str = r#"
mode = "enforce"
[[rules]]
name    = "the service's peer"
from    = { unit = "lab.service" }
to      = { networks = ["198.51.100.0/24"], ports = ["9/udp"] }
verdict = "approve"
"#;
    const LARGE: u64 = 5000;
    const FRAGMENTS: u64 = 4;
    let lab = Lab::new()?;
    let place = guest(&lab.host, "container", 1)?;
    let tap = Tap::new(&lab.peer)?;
    let before = lab.link_to(&lab.peer)?;
    let agent = lab.agent().policy(POLICY).settings(&settings(""));
    let mut agent = agent.flows("each").uplink("auto").start()?;
    let filling = fill(traffic(&lab)?, "198.51.100.1:9")?;
    // Of the host and of a container, whole and in fragments, of which only the first has
    // ports.
    let cgroup = lab.unit("lab.service")?;
    let of_container = || Program::new(TRAFFIC, &place.place, Some(&cgroup), None);
    let large = LARGE.to_string();
    for (host, program, size) in [
        ("198.51.100.70", traffic(&lab)?, "64"),
        ("198.51.100.71", traffic(&lab)?, &large),
        ("198.51.100.72", of_container()?, "64"),
        ("198.51.100.73", of_container()?, &large),
    ] {
        let words = ["udp", &format!("{host}:9"), "--count", "5", "--size", size];
        program.args(words).run()?.success().context(host)?;
    }
    let others = traffic_in(&lab, "other.service")?.args(["udp", "198.51.100.74:9"]);
    ensure!(others.run()?.code == REFUSED);
    let sent = lab.link_to(&lab.peer)?.since(before).tx_packets;
    wait_for("all arrives", || Ok((tap.packets() >= sent).then_some(())))
        .with_context(|| format!("{} of {sent} have", tap.packets()))?;
    let book = books(&mut agent, &lab, "to-peer")?;
    ensure!(
        sum(&book, &["bytes_kernel", "bytes_dropped"])? == 0,
        "{book}"
    );
    drop(filling);
    let records = all_of(agent, &lab)?;
    let finals = finals(&records);
    let told = sums(&finals, "packets_out", "bytes_out")?;
    for (host, size, fragments) in [
        ("198.51.100.70", PAYLOAD, 1),
        ("198.51.100.71", LARGE, FRAGMENTS),
        ("198.51.100.72", PAYLOAD, 1),
        ("198.51.100.73", LARGE, FRAGMENTS),
    ] {
        let host: IpAddr = host.parse()?;
        ensure!(
            tap.to(host).packets == 5 * fragments,
            "{host}: {:?}",
            tap.to(host)
        );
        // As the socket's hooks see it, which is before it is cut into fragments.
        let expected = (5, 5 * (20 + UDP_HEADER + size));
        ensure!(told.get(&host) == Some(&expected), "{host}: {told:?}");
    }
    for record in &finals {
        let is_whole = record.is("unit", "lab.service") && record.is("attribution", "direct");
        ensure!(is_whole || record.is("outcome", "refused"), "{record}");
    }
    ensure!(lost(&records, "flows-full")? >= 20);
    lab.close()
}

#[test]
fn fragments_that_are_forwarded_follow_their_beginning() -> Result<()> {
    const POLICY: &str = r#"
mode = "enforce"
[[rules]]
name    = "one service"
to      = { networks = ["198.51.100.0/24"], ports = ["9/udp"] }
verdict = "approve"
"#;
    let lab = Lab::new()?;
    let machine = guest(&lab.host, "machine", 1)?;
    let agent = lab.agent().policy(POLICY).settings(&settings(""));
    let agent = agent.flows("each").uplink("auto").start()?;
    let of_machine = || Program::new(TRAFFIC, &machine.place, None, None);
    // Flows of uplinks stay for a minute.
    drop(fill(of_machine()?, "198.51.100.1:9")?);
    let before = lab.link_to(&lab.peer)?;
    let large = of_machine()?.args(["udp", "198.51.100.70:9", "--size", "5000"]);
    large.run()?.success()?;
    let sent = wait_for("four fragments leave", || {
        let sent = lab.link_to(&lab.peer)?.since(before);
        Ok((sent.tx_packets >= 4).then_some(sent))
    })?;
    let records = all_of(agent, &lab)?;
    let told = sums(&finals(&records), "packets_out", "bytes_out")?;
    let host: IpAddr = "198.51.100.70".parse()?;
    ensure!(
        told.get(&host) == Some(&(sent.tx_packets, sent.ip_bytes_out())),
        "{told:?} {sent:?}"
    );
    lab.close()
}

#[test]
fn without_room_too_what_two_processes_send_by_one_socket_is_not_ascribed_for_certain() -> Result<()>
{
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving()).settings(&settings(""));
    let agent = agent.flows("each").uplink("auto").start()?;
    let filling = fill(traffic(&lab)?, "198.51.100.1:9")?;
    let shared = traffic(&lab)?.args(["share", "203.0.113.10:9"]);
    let senders = told(&shared.run()?.success()?)?;
    drop(filling);
    let records = all_of(agent, &lab)?;
    let mut finals = finals(&records);
    finals.retain(|record| record.is("dst_addr", places::FOREIGN));
    ensure!(finals.len() == 3, "{finals:?}");
    // Nobody knows of the second one before it sends.
    for ((record, sender), known) in finals
        .iter()
        .zip(&senders)
        .zip(["direct", "inferred", "inferred"])
    {
        let is_right = record.is("pid", sender.text("pid")) && record.is("attribution", known);
        ensure!(is_right, "{record} {sender}");
    }
    lab.close()
}

/// A start failed where there were more of them than the table holds, until `detach`.
#[test]
fn a_host_with_more_control_groups_than_the_table_starts() -> Result<()> {
    const ROOM: usize = 4;
    let lab = Lab::new()?;
    for number in 0..=ROOM {
        lab.unit(&format!("many-{number}.service"))?;
    }
    let settings = format!("[tables]\ncgroups = {ROOM}\n");
    let mut agent = lab
        .agent()
        .policy(&approving())
        .settings(&settings)
        .start()?;
    agent.wait_for("the loss is told", |records| {
        lost(records, "cgroups-full").ok().filter(|lost| *lost > 0)
    })?;
    all_of(agent, &lab)?;
    lab.close()
}

/// A rule that denies by the source holds for whom nothing is known of any more, since that may be
/// whom it means.
#[test]
fn a_deny_of_a_source_holds_with_every_table_full() -> Result<()> {
    const FULL: &str = "[tables]\nevents_bytes = 4096\nflows = 1\nuplink_flows = 1\n\
                        remembered = 1\nended = 1\nprocesses = 1\nexecutables = 1\n\
                        cgroups = 1\nfollowed = 1\nrollups = 1\npending = 1\n";
    /// Whoever is unknown may still fill tables.
    const FILLING: &str = "[[rules]]\nname = \"what fills\"\nverdict = \"approve\"\n\
                           to = { networks = [\"203.0.113.0/24\"] }\n";
    const NOBODY: u32 = 65534;
    let lab = Lab::new()?;
    let copy = lab.copy_program(TRAFFIC, "denied")?;
    let exe = copy.to_str().context("a path that is not UTF-8")?;
    let denied_unit = lab.unit("denied.service")?;
    let _sinks = (
        UdpSink::new(&lab.peer, PORT)?,
        TcpSink::new(&lab.peer, 443)?,
    );
    let approving = "[[rules]]\nname = \"the peer\"\nverdict = \"approve\"\n\
                     to = { networks = [\"198.51.100.0/24\"] }\n";
    let (udp, tcp) = (at(places::PEER, PORT), at(places::PEER, 443));
    let raw = places::PEER.to_string();
    let frame = format!(
        "packet to-foreign {} 203.0.113.1:9 --from {}:4000",
        far_link_address(3),
        places::HOST
    );
    let calls: [&[&str]; 5] = [
        &["udp", &udp],
        &["udp", &udp, "--connected"],
        &["tcp", &tcp],
        &["ping", &raw],
        &["raw", &raw],
    ];
    for from in [
        None,
        Some("unit = \"denied.service\"".to_owned()),
        Some(format!("exe = \"{exe}\"")),
        Some("user = \"nobody\"".to_owned()),
    ] {
        let deny = from.as_ref().map_or(String::new(), |from| {
            format!("[[rules]]\nname = \"not they\"\nverdict = \"deny\"\nfrom = {{ {from} }}\n")
        });
        let policy = format!("mode = \"enforce\"\n{FILLING}{deny}{approving}");
        let agent = lab.agent().policy(&policy).settings(FULL);
        let agent = agent.flows("each").uplink("auto").start()?;
        let filling = || traffic_in(&lab, "filling.service");
        let _filling = fill(filling()?, "203.0.113.1:9")?;
        filling()?.args(frame.split(' ')).run()?.success()?;
        agent.signal(Signal::SIGSTOP)?;
        // Their last numbers fill the ring buffer, and wait then.
        for _ in 0..2 * SLOTS {
            let call = ["udp", "203.0.113.1:9", "--connected"];
            filling()?.args(call).run()?.success()?;
        }
        let full = entries(&Objects::held_by(agent.pid())?)?;
        for table in [
            "FLOWS",
            "UPLINK_FLOWS",
            "ENDED",
            "PROCESSES",
            "EXECUTABLES",
            "CGROUPS",
        ] {
            ensure!(
                full.get(table).is_some_and(|n| *n > 0),
                "{table} is not full: {full:?}"
            );
        }
        for call in calls {
            let before = lab.link_to(&lab.peer)?;
            let as_user = from.as_ref().is_some_and(|from| from.contains("user"));
            let program = match as_user {
                true if call[0] == "raw" => continue,
                true => lab.program_as(NOBODY, &copy)?,
                false => Program::new(&copy, &lab.host, Some(&denied_unit), None)?,
            };
            let outcome = program.args(call).run()?;
            let sent = lab.link_to(&lab.peer)?.since(before).tx_packets;
            let expected = from.is_none();
            ensure!(
                (sent > 0) == expected && (outcome.code == 0) == expected,
                "{from:?} {call:?}: {sent} packets have left: {outcome:?}"
            );
        }
        agent.signal(Signal::SIGCONT)?;
        agent.stop(Signal::SIGTERM)?;
        trefoil_lab::agent::detach(&lab)?;
    }
    lab.close()
}

/// Tables of other sizes were refused, until `detach` had taken out what is enforced.
#[test]
fn tables_change_their_sizes_over_a_takeover() -> Result<()> {
    const POLICY: &str = r#"
mode = "enforce"
[[rules]]
name    = "one program of one service"
from    = { unit = "kept.service", exe = "EXE" }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let exe = lab.copy_program(TRAFFIC, "kept")?;
    let policy = POLICY.replace("EXE", exe.to_str().context("a path that is not UTF-8")?);
    let settings = |entries: usize, many: usize, events: usize| {
        format!(
            "{OFTEN}[tables]\nevents_bytes = {events}\nflows = {entries}\n\
             uplink_flows = {entries}\nended = {entries}\nremembered = {entries}\n\
             uplinks = {entries}\nprocesses = {many}\nexecutables = {many}\n\
             cgroups = {many}\n"
        )
    };
    let sizes = [
        settings(64, 2048, 1 << 20),
        settings(100, 5000, 1 << 21),
        settings(16, 1024, 1 << 20),
        settings(64, 2048, 1 << 20),
    ];
    let start = |settings: &str| {
        let agent = lab.agent().policy(&policy).settings(settings);
        agent.flows("each").uplink("auto").start()
    };
    let mut agent = start(&sizes[0])?;
    let mut kept = many(
        lab.program_in("kept.service", &exe)?,
        "203.0.113.1".parse()?,
    )
    .args(["--hold"])
    .start()?;
    kept.line()?;
    let mut records = Vec::new();
    let mut n_sent = 0;
    for (number, settings) in sizes[1..].iter().enumerate() {
        let mut send = || -> Result<()> {
            n_sent += PACKETS;
            kept.proceed()?;
            kept.line()?;
            sink.wait_for_packets(n_sent).map(drop)
        };
        send()?;
        if number == 0 {
            // One more with no agent there.
            records.extend(agent.stop(Signal::SIGKILL)?.1);
            send()?;
        } else {
            records.extend(agent.stop(Signal::SIGTERM)?.1);
        }
        agent = start(settings)?;
    }
    drop(kept);
    records.extend(all_of(agent, &lab)?);
    let finals = finals(&records);
    let told = sums(&finals, "packets_out", "bytes_out")?;
    let headers = UDP_HEADER + 20;
    let arrived: Sums = sink
        .by_destination()
        .into_iter()
        .map(|(to, sum)| (to, (sum.packets, sum.bytes + sum.packets * headers)))
        .collect();
    ensure!(told == arrived, "{told:?} {arrived:?}");
    ensure!(arrived.len() as u64 == DESTINATIONS, "{arrived:?}");
    for record in &finals {
        let is_whole = record.is("verdict", "approved")
            && record.is("unit", "kept.service")
            && record.is("exe", exe.display().to_string());
        ensure!(is_whole, "{record}");
    }
    ensure!(
        records
            .iter()
            .all(|record| !record.is("event", "violation"))
    );
    lab.close()
}
