//! Nothing is lost and nothing is counted twice while agents come and go and
//! policies change.

mod world;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places};
use world::senders::{some_more, while_sending};
use world::{REFUSED, approving, at, enforcing, gapless, is_final, reporting, told, traffic};

/// The final record of each flow. A killed agent may have handed a record over
/// that the next one hands over again, the same to the last byte.
fn one_final_each(records: &[Record]) -> Result<BTreeMap<String, &Record>> {
    let mut finals: BTreeMap<String, &Record> = BTreeMap::new();
    for record in records.iter().filter(|record| is_final(record)) {
        let before = finals.insert(record.text("flow"), record);
        ensure!(
            before.is_none_or(|before| before == record),
            "{record} and {before:?}"
        );
    }
    Ok(finals)
}

/// Holds the sums of all final records against the link.
fn sums_agree(lab: &Lab, records: &[Record]) -> Result<()> {
    let link = lab.link_to(&lab.foreign)?;
    ensure!(
        link.tx_dropped == 0,
        "the link dropped packets: there is no truth to compare to"
    );
    let (mut bytes, mut packets) = (0, 0);
    for record in one_final_each(records)?.values() {
        bytes += record.number("bytes_out")?;
        packets += record.number("packets_out")?;
    }
    assert_eq!((packets, bytes), (link.tx_packets, link.ip_bytes_out()));
    Ok(())
}

#[test]
fn agents_come_and_go_and_every_byte_is_counted_once() -> Result<()> {
    let lab = Lab::new()?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
    );
    let mut records = Vec::new();
    let mut agent = lab.agent().policy(&approving()).start()?;
    while_sending(&lab, |rounds| {
        for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
            some_more(rounds)?;
            records.extend(agent.stop(signal)?.1);
            some_more(rounds)?;
            agent = lab.agent().policy(&approving()).start()?;
        }
        some_more(rounds)?;
        Ok(agent)
    })
    .and_then(|agent| {
        records.extend(agent.stop(Signal::SIGINT)?.1);
        Ok(())
    })?;
    assert_eq!(
        one_final_each(&records)?.len(),
        3,
        "each flow is one, whoever watched it"
    );
    sums_agree(&lab, &records)?;
    // The same record may come twice after a kill; otherwise seq has no gap.
    records.dedup();
    gapless(&records)?;
    lab.close()
}

#[test]
fn policies_change_and_every_byte_is_counted_once() -> Result<()> {
    let lab = Lab::new()?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
    );
    let mut agent = lab.agent().policy(&approving()).start()?;
    while_sending(&lab, |rounds| {
        for number in 0..6 {
            some_more(rounds)?;
            let n_before = n_policies(agent.records()?);
            agent.reload(&if number % 2 == 0 {
                reporting()
            } else {
                approving()
            })?;
            agent.wait_for("the policy is in force", |records| {
                (n_policies(records) > n_before).then_some(())
            })?;
        }
        some_more(rounds)
    })?;
    let (_, records) = agent.stop(Signal::SIGINT)?;
    // Another verdict is another flow.
    assert_eq!(one_final_each(&records)?.len(), 3 * 7);
    sums_agree(&lab, &records)?;
    gapless(&records)?;
    lab.close()
}

fn n_policies(records: &[Record]) -> usize {
    records
        .iter()
        .filter(|record| record.is("event", "policy"))
        .count()
}

#[test]
fn agents_come_and_go_and_no_packet_is_judged_by_none() -> Result<()> {
    let lab = Lab::new()?;
    let before = lab.link_to(&lab.foreign)?;
    let mut records = Vec::new();
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    // Packets that only `egress` sees and judges.
    let mut sender = traffic(&lab)?
        .args(["raw-flood", &places::FOREIGN.to_string()])
        .start()?;
    sender.line()?;
    for number in 0..10 {
        let signal = match number % 2 {
            0 => Signal::SIGKILL,
            _ => Signal::SIGTERM,
        };
        records.extend(agent.stop(signal)?.1);
        agent = lab.agent().policy(&enforcing()).start()?;
    }
    let outcome = sender.finish()?.success()?;
    let [.., sent] = &told(&outcome)?[..] else {
        anyhow::bail!("nothing told: {outcome:?}");
    };
    agent.wait_for("the last record of the flow", |records| {
        records.iter().any(is_final).then_some(())
    })?;
    records.extend(agent.stop(Signal::SIGTERM)?.1);
    assert_eq!(sent.number("went")?, 0);
    // Not even a question for the far end's link address.
    assert_eq!(lab.link_to(&lab.foreign)?.since(before).tx_packets, 0);
    let finals = one_final_each(&records)?;
    let blocked: u64 = finals
        .values()
        .map(|record| record.number("blocked_packets"))
        .sum::<Result<_>>()?;
    assert_eq!(blocked, sent.number("refused")?);
    assert_eq!(finals.len(), 1, "one flow, whoever watched it");
    detach(&lab)?;
    lab.close()
}

#[test]
fn what_happened_while_no_agent_ran_is_reported_by_the_next() -> Result<()> {
    const DATAGRAMS: u64 = 50;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.peer, 9)?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    agent.stop(Signal::SIGKILL)?;

    let passed = traffic(&lab)?
        .args([
            "udp",
            &at(places::PEER, 9),
            "--count",
            &DATAGRAMS.to_string(),
        ])
        .run()?
        .success()?;
    let refused = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?;
    assert_eq!(refused.code, REFUSED);
    sink.wait_for_packets(DATAGRAMS)?;

    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let record = agent.wait_for("the flow that passed", |records| {
        records
            .iter()
            .find(|record| is_final(record) && record.is("pid", passed.pid))
            .cloned()
    })?;
    for (name, expected) in [
        ("packets_out", DATAGRAMS.to_string()),
        (
            "bytes_out",
            lab.link_to(&lab.peer)?.ip_bytes_out().to_string(),
        ),
        ("verdict", "approved".into()),
        ("exe", world::TRAFFIC.into()),
        ("attribution", "direct".into()),
    ] {
        ensure!(
            record.is(name, &expected),
            "{name} is not {expected}: {record}"
        );
    }
    let record = agent.wait_for("the violation", |records| {
        records
            .iter()
            .find(|record| record.is("event", "violation") && record.is("pid", refused.pid))
            .cloned()
    })?;
    ensure!(
        record.is("outcome", "refused") && record.is("rule", "never there"),
        "{record}"
    );
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}
