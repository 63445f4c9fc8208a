//! Every byte is accounted for: what records say is what interfaces and
//! receivers counted, headers included, to the byte.

mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tap::Tap;
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{all_finals, all_of, approving, at, gapless, is_final, reporting, told, traffic};

/// Bytes that a program sends in the TCP test.
const HUNDRED_MEGABYTES: u64 = 100_000_000;
/// IPv4 or IPv6 header and UDP header.
const UDP_HEADERS: u64 = 28;
const UDP_HEADERS6: u64 = 48;
/// A ring buffer of one page: room for 14 events.
const TINY_RING: &str = "[tables]\nevents_bytes = 4096\n";

/// A link's counters, once nothing is under way any more.
fn settled(lab: &Lab, at_least: u64) -> Result<LinkCounters> {
    let counters = wait_for("packets leave", || {
        Ok(Some(lab.link_to(&lab.foreign)?).filter(|counters| counters.tx_packets >= at_least))
    })?;
    ensure!(
        counters.tx_dropped == 0,
        "the link dropped packets: there is no truth to compare to"
    );
    Ok(counters)
}

fn sum(records: &[Record], name: &str) -> Result<u64> {
    records.iter().map(|record| record.number(name)).sum()
}

fn tcp_flow(settings: &str, to: IpAddr) -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    let mut agent = lab
        .agent()
        .policy(&approving())
        .settings(settings)
        .start()?;
    traffic(&lab)?
        .args([
            "tcp",
            &at(to, 443),
            "--bytes",
            &HUNDRED_MEGABYTES.to_string(),
        ])
        .run()?
        .success()?;
    wait_for("the connection ends", || {
        Ok((sink.ended() == 1).then_some(()))
    })?;
    assert_eq!(sink.bytes(), HUNDRED_MEGABYTES);
    let finals = agent.wait_for("the final record", |records| all_finals(records, 443, 1))?;
    let link = settled(&lab, 1)?;
    let far = LinkCounters::read(&lab.foreign, "to-host")?;
    let record = finals.first().context("no record")?;
    assert_eq!(
        record.number("bytes_out")?,
        link.ip_bytes_out(),
        "{record} {link:?}"
    );
    assert_eq!(record.number("packets_out")?, link.tx_packets);
    assert_eq!(record.number("bytes_out")?, far.ip_bytes_in());
    assert_eq!(record.number("bytes_in")?, link.ip_bytes_in());
    assert_eq!(record.number("packets_in")?, link.rx_packets);
    gapless(&agent.stop(Signal::SIGINT)?.1)?;
    drop(sink);
    lab.close()
}

#[test]
fn a_tcp_flow_of_100_megabytes() -> Result<()> {
    tcp_flow("", places::FOREIGN)
}

#[test]
fn a_tcp_flow_of_100_megabytes_over_ipv6() -> Result<()> {
    tcp_flow("", places::FOREIGN6)
}

#[test]
fn a_tcp_flow_of_100_megabytes_with_a_tiny_ring_buffer() -> Result<()> {
    tcp_flow(TINY_RING, places::FOREIGN)
}

/// 10,000 datagrams from one socket to 100 destinations.
fn datagrams(settings: &str, to: IpAddr, headers: u64) -> Result<Vec<Record>> {
    const DESTINATIONS: u64 = 100;
    const DATAGRAMS: u64 = 10_000;
    const SIZE: u64 = 200;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let mut agent = lab
        .agent()
        .policy(&approving())
        .settings(settings)
        .start()?;
    let outcome = traffic(&lab)?
        .args([
            "udp-many",
            &at(to, 9),
            "--destinations",
            &DESTINATIONS.to_string(),
        ])
        .args([
            "--count",
            &DATAGRAMS.to_string(),
            "--size",
            &SIZE.to_string(),
        ])
        .run()?
        .success()?;
    sink.wait_for_packets(DATAGRAMS)?;
    let finals = agent.wait_for("final records", |records| {
        all_finals(records, 9, DESTINATIONS as usize)
    })?;
    assert_eq!(finals.len() as u64, DESTINATIONS);
    let link = settled(&lab, DATAGRAMS)?;
    let port = told(&outcome)?.pop().context("no answer")?.text("port");
    let arrived = sink.by_destination();
    let mut recorded = BTreeMap::new();
    for record in &finals {
        ensure!(
            record.is("src_port", &port) && record.is("pid", outcome.pid),
            "{record}"
        );
        recorded.insert(record.address("dst_addr")?, record);
    }
    assert_eq!(recorded.len() as u64, DESTINATIONS);
    for (address, arrived) in arrived {
        let record = recorded
            .get(&address)
            .with_context(|| format!("no record of {address}"))?;
        ensure!(
            record.number("packets_out")? == arrived.packets,
            "{record} {arrived:?}"
        );
        let expected = arrived.bytes + arrived.packets * headers;
        ensure!(
            record.number("bytes_out")? == expected,
            "{record} {arrived:?}"
        );
    }
    assert_eq!(sum(&finals, "packets_out")?, link.tx_packets);
    assert_eq!(sum(&finals, "bytes_out")?, link.ip_bytes_out());
    assert_eq!(link.ip_bytes_out(), DATAGRAMS * (SIZE + headers));
    let (_, records) = agent.stop(Signal::SIGINT)?;
    gapless(&records)?;
    lab.close()?;
    Ok(records)
}

#[test]
fn ten_thousand_datagrams_to_a_hundred_destinations() -> Result<()> {
    let records = datagrams("", "203.0.113.1".parse()?, UDP_HEADERS)?;
    assert!(!records.iter().any(|record| record.is("event", "loss")));
    Ok(())
}

#[test]
fn ten_thousand_datagrams_to_a_hundred_destinations_over_ipv6() -> Result<()> {
    datagrams("", "2001:db8:3::1".parse()?, UDP_HEADERS6)?;
    Ok(())
}

#[test]
fn a_tiny_ring_buffer_is_reported_and_costs_no_byte() -> Result<()> {
    let records = datagrams(TINY_RING, "203.0.113.1".parse()?, UDP_HEADERS)?;
    let loss = records.iter().find(|record| record.is("event", "loss"));
    let loss = loss.context("no loss was reported")?;
    ensure!(
        loss.is("subject", "events-full") && loss.number("count")? > 0,
        "{loss}"
    );
    Ok(())
}

#[test]
fn a_thousand_processes_with_a_tiny_ring_buffer_are_all_counted() -> Result<()> {
    const MANY: u64 = 1000;
    const SIZE: u64 = 64;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let agent = lab
        .agent()
        .policy(&approving())
        .settings(TINY_RING)
        .start()?;
    traffic(&lab)?
        .args(["burst", &at(places::FOREIGN, 9)])
        .args(["--count", &MANY.to_string(), "--size", &SIZE.to_string()])
        .args(["--program", world::TRAFFIC])
        .run()?
        .success()?;
    sink.wait_for_packets(MANY)?;
    let link = settled(&lab, MANY)?;
    // The end of a flow may be what found no room; the end of the agent is the
    // end of every flow.
    let (_, records) = agent.stop(Signal::SIGINT)?;
    let finals = all_finals(&records, 9, MANY as usize).context("too few final records")?;
    assert_eq!(finals.len() as u64, MANY);
    assert_eq!(sum(&finals, "packets_out")?, MANY);
    assert_eq!(sum(&finals, "bytes_out")?, MANY * (SIZE + UDP_HEADERS));
    assert_eq!(sum(&finals, "bytes_out")?, link.ip_bytes_out());
    gapless(&records)?;
    lab.close()
}

#[test]
fn a_session_that_a_foreign_client_opened_is_egress_too() -> Result<()> {
    const BYTES: u64 = 1_000_000;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let mut server = world::traffic_in(&lab, "shop.service")?
        .args(["serve", "8080", "--bytes", &BYTES.to_string()])
        .start()?;
    server.line()?;
    let pid = server.pid();
    let received = lab.foreign.enter(|| {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect((places::HOST, 8080))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes.len() as u64)
    })?;
    assert_eq!(received, BYTES);
    server.finish()?.success()?;
    let record = agent.wait_for("the final record", |records| {
        records
            .iter()
            .find(|record| {
                is_final(record)
                    && record.is("src_port", 8080)
                    && record.is("direction", "accepted")
            })
            .cloned()
    })?;
    for (name, expected) in [
        ("pid", pid.to_string()),
        ("unit", "shop.service".into()),
        ("verdict", "denied".into()),
        ("outcome", "would-drop".into()),
        ("dst_country", "CN".into()),
    ] {
        ensure!(
            record.is(name, &expected),
            "{name} is not {expected}: {record}"
        );
    }
    let link = lab.link_to(&lab.foreign)?;
    assert_eq!(
        record.number("bytes_out")?,
        link.ip_bytes_out(),
        "{record} {link:?}"
    );
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// Connecting a socket to another peer while it sends makes nothing look as if it went there.
#[test]
fn a_packet_is_told_where_it_went_whatever_its_socket_is_connected_to_meanwhile() -> Result<()> {
    const EACH: &str = "violations_rate = 1000000\n[tables]\nevents_bytes = 16777216\n";
    let lab = Lab::new()?;
    let _sinks = [UdpSink::new(&lab.peer, 9)?, UdpSink::new(&lab.foreign, 9)?];
    let taps = [Tap::new(&lab.peer)?, Tap::new(&lab.foreign)?];
    let agent = lab.agent().policy(&reporting()).settings(EACH).start()?;
    let (peer, foreign) = (at(places::PEER, 9), at(places::FOREIGN, 9));
    traffic(&lab)?
        .args(["turn", "race", &peer, &foreign])
        .run()?
        .success()?;
    let records = all_of(agent, &lab)?;
    let finals: Vec<_> = records.iter().filter(|record| is_final(record)).collect();
    for to in [places::PEER, places::FOREIGN] {
        let about = finals.iter().filter(|record| record.is("dst_addr", to));
        let told = sum(&about.copied().cloned().collect::<Vec<_>>(), "packets_out")?;
        // The kernel may send a packet by the route to the one peer, addressed to the other.
        let arrived = || taps.iter().map(|tap| tap.to(to).packets).sum::<u64>();
        wait_for("what is told arrives", || {
            Ok((arrived() >= told).then_some(()))
        })?;
        let arrived = arrived();
        ensure!(
            told > 1000 && arrived == told,
            "{to}: {arrived} packets arrived, {told} told"
        );
    }
    lab.close()
}
