//! Two agents on one host, with pins of their own: each has its own numbers, and its records say
//! whose they are.

mod world;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Agent, Lab, Record, places};
use world::told::{arrived, numbered, told_by_verdict};
use world::{approving, at, is_final, traffic};

fn send(lab: &Lab, count: u64) -> Result<()> {
    let count = count.to_string();
    let program = traffic(lab)?.args(["udp", &at(places::FOREIGN, 9), "--count", &count]);
    program.run()?.success().map(drop)
}

/// The instance that all records name.
fn instance(records: &[Record]) -> Result<String> {
    let mut names = records.iter().map(|record| record.text("instance"));
    let first = names.next().context("no records")?;
    ensure!(names.all(|name| name == first), "{first}: {records:#?}");
    Ok(first)
}

#[test]
fn two_agents_on_one_host_number_their_records_by_instance() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = |name: &str| lab.agent().policy(&approving()).pins(name).start();
    let mut told: BTreeMap<&str, Vec<Record>> = BTreeMap::new();
    let mut sent = 0;
    // Each is followed by another one in its place while the other goes on, killed or stopped.
    let mut one = start("one")?;
    let mut other = start("other")?;
    for (round, signal) in (1..).zip([Signal::SIGKILL, Signal::SIGTERM]) {
        send(&lab, round)?;
        sent += round;
        sink.wait_for_packets(sent)?;
        let mut both: [&mut Agent<'_>; 2] = [&mut one, &mut other];
        for agent in &mut both {
            let is_told = |it: &&Record| is_final(it) && it.is("packets_out", round);
            agent.wait_for("each tells of all", |records| {
                records.iter().find(is_told).map(drop)
            })?;
        }
        told.entry("one").or_default().extend(one.stop(signal)?.1);
        one = start("one")?;
        let ended = other.stop(signal)?.1;
        told.entry("other").or_default().extend(ended);
        other = start("other")?;
    }
    send(&lab, 3)?;
    sink.wait_for_packets(sent + 3)?;
    let (last_of_one, last_of_other) = (one.stop(Signal::SIGINT)?.1, other.stop(Signal::SIGINT)?.1);
    told.entry("one").or_default().extend(last_of_one);
    told.entry("other").or_default().extend(last_of_other);

    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    let mut instances = Vec::new();
    for (name, records) in &told {
        let instance = instance(records)?;
        ensure!(
            instance.ends_with(&format!("/bpf/{name}")),
            "{name} calls itself {instance:?}"
        );
        numbered(records).with_context(|| format!("of {instance}"))?;
        assert_eq!(told_by_verdict(records)?, left, "{instance}");
        instances.push(instance);
    }
    // In one place, by both.
    let all: Vec<Record> = told.into_values().flatten().collect();
    for instance in &instances {
        let of_one = all.iter().filter(|it| it.is("instance", instance));
        let of_one: Vec<Record> = of_one.cloned().collect();
        numbered(&of_one).with_context(|| format!("of {instance}"))?;
    }
    lab.close()
}
