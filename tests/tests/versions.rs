//! An upgrade and a downgrade over a change of the layouts that kernel part and agent share, under
//! load: between the agent, and a build of it in which the entries of a table are of another size.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::kernel::MapInfo;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Agent, Lab, Record, places};
use world::senders::{some_more, while_sending};
use world::told::{Sum, arrived, lost, told_by_verdict};
use world::{REFUSED, at, traffic};

/// Part of the packets that may be counted twice: from one store to the next, both versions count,
/// and on a busy machine somebody else may run in between.
const OVERLAP: u64 = 100;

const POLICY: &str = r#"mode = "enforce"

[[rules]]
name = "foreign alone"
to = { networks = ["203.0.113.0/24", "2001:db8:3::/48"] }
verdict = "approve"
"#;

/// An agent of this version, or of the other one.
fn start(lab: &Lab, is_other: bool) -> Result<Agent<'_>> {
    let agent = lab.agent().policy(POLICY).flows("auto");
    agent.of_other_layout(is_other).start()
}

/// Bytes of an entry of the table whose layout differs.
fn entry_bytes(agent: &Agent<'_>) -> Result<u32> {
    let maps = MapInfo::of(agent.objects())?.into_iter();
    let mut tables = maps.filter(|map| map.name == "CGROUPS");
    Ok(tables.next().context("no such table")?.value_bytes)
}

/// Versions that have something in the kernel.
fn versions(lab: &Lab) -> BTreeSet<String> {
    let pins = lab.pins();
    let pinned = lab.pinned().into_iter();
    let version = pinned.filter_map(|pin| {
        let below = pin.strip_prefix(&pins).ok()?.components().next()?;
        Some(below.as_os_str().to_string_lossy().into_owned())
    });
    version.filter(|it| it.starts_with('v')).collect()
}

#[test]
fn another_version_takes_over_and_nothing_gets_through_or_lost_untold() -> Result<()> {
    let lab = Lab::new()?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
        UdpSink::new(&lab.peer, 9)?,
    );
    let mut records: Vec<Record> = Vec::new();
    // From here on all is seen.
    let agent = start(&lab, false)?;
    let (this, entry) = (versions(&lab), entry_bytes(&agent)?);
    assert_eq!(this.len(), 1);
    records.extend(agent.stop(Signal::SIGTERM)?.1);
    let is_over = AtomicBool::new(false);
    // Up and down, after an agent that was stopped and after one that was killed.
    let switches = [
        (true, Signal::SIGTERM),
        (false, Signal::SIGTERM),
        (true, Signal::SIGKILL),
        (false, Signal::SIGKILL),
    ];
    let agent = std::thread::scope(|scope| -> Result<_> {
        let tries = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                let words = ["udp", &at(places::PEER, 9), "--count", "20"];
                let outcome = traffic(&lab)?.args(words).run()?;
                ensure!(outcome.code == REFUSED, "got through: {outcome:?}");
            }
            Ok(())
        });
        let switched = while_sending(&lab, |rounds| {
            let mut agent = start(&lab, false)?;
            for (is_other, signal) in switches {
                some_more(rounds)?;
                records.extend(agent.stop(signal)?.1);
                some_more(rounds)?;
                agent = start(&lab, is_other)?;
                let there = versions(&lab);
                ensure!(
                    there.len() == 1 && (there != this) == is_other,
                    "{there:?} after {this:?}"
                );
                assert_eq!(entry_bytes(&agent)? != entry, is_other);
                some_more(rounds)?;
            }
            Ok(agent)
        });
        is_over.store(true, Ordering::Relaxed);
        tries
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        switched
    })?;
    records.extend(agent.stop(Signal::SIGTERM)?.1);
    let left = arrived(
        &lab,
        &[("approved", &lab.foreign), ("unapproved", &lab.peer)],
    )?;
    ensure!(!left.contains_key("unapproved"), "it arrived: {left:?}");
    let told = told_by_verdict(&records)?;
    eprintln!(
        "told {told:?}, of it lost {:?}; left {left:?}",
        lost(&records)?
    );
    let packets = |sums: &BTreeMap<String, Sum>| sums.get("approved").map_or(0, |it| it.1);
    let (told, left) = (packets(&told), packets(&left));
    ensure!(
        left <= told && told <= left + left / OVERLAP,
        "{told} told, {left} left"
    );
    ensure!(lost(&records)?.1 > 0, "flows that were open cannot be read");
    detach(&lab)?;
    lab.close()
}
