//! Going every way out twice, in report mode and in enforce mode, and grading it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::battery::{Found, Grade, Grades, Privilege, Table};
use trefoil_lab::link::LinkCounters;
use trefoil_lab::sink::{Arrived, TcpSink, UdpSink};
use trefoil_lab::tap::Tap;
use trefoil_lab::{Agent, Lab, Record, wait_for};

use crate::foretold::{self, Enforced};
use crate::stage::{Furnish, Furniture, Meanwhile, Stage, TCP_PORT, UDP_PORT, Way, policy_with};

/// Goes all ways of a row and holds what is observed against the table. `furnish` sets
/// up what the lab does not have by itself.
pub fn go(ways: &[Way], settings: &str, furnish: Furnish) -> Result<()> {
    let lab = Lab::new()?;
    let furniture = furnish(&lab)?;
    let _sinks = (
        UdpSink::new(&lab.foreign, UDP_PORT)?,
        TcpSink::new(&lab.foreign, TCP_PORT)?,
    );
    let once = |enforced| go_once(&lab, &furniture, ways, enforced, settings);
    let (reported, enforced) = (once(false)?, once(true)?);
    let table = Table::of_the_project()?;
    let mut differences = Vec::new();
    for ((way, first), second) in ways.iter().zip(reported).zip(enforced) {
        let policy = policy_with(true, &furniture.policy);
        let outcome = Enforced {
            arrived: &second.arrived_at,
            own_bytes: second.arrived,
            calls: second.calls,
        };
        let (foretold, why) = foretold::grade(&lab, &policy, &first.left, first.calls, &outcome)
            .with_context(|| way.id)?;
        if first.privilege != second.privilege {
            differences.push(format!("{} is gone by two users", way.id));
        }
        let observed = Grades {
            privilege: first.privilege,
            seen: first.found.seen,
            owned: first.found.owned,
            attribution: first.found.attribution,
            foretold,
            blocked: match second.arrived {
                0 => Grade::Yes,
                some if some < first.bytes => Grade::Part,
                _ => Grade::No,
            },
        };
        println!("{}  {observed}  {why}", way.id);
        if let Err(difference) = table.hold(way.id, &observed) {
            differences.push(format!("{difference}\nforetold: {why}"));
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    lab.close()
}

/// Outcome of one way, gone once.
struct Gone {
    /// See [`Stage::left`].
    left: Vec<Record>,
    privilege: Privilege,
    found: Found,
    bytes: u64,
    calls: u64,
    arrived: u64,
    arrived_at: BTreeMap<IpAddr, Arrived>,
}

fn go_once(
    lab: &Lab,
    furniture: &Furniture,
    ways: &[Way],
    enforced: bool,
    settings: &str,
) -> Result<Vec<Gone>> {
    let mut stages: Vec<Stage<'_>> = (0..ways.len())
        .map(|number| Stage::new(lab, furniture, enforced, number))
        .collect();
    for (way, stage) in ways.iter().zip(&mut stages) {
        (way.prepare)(stage).with_context(|| format!("{}, before the agent", way.id))?;
    }
    let settings = format!("heartbeat_interval = \"1s\"\n{settings}");
    let start = || {
        let policy = policy_with(enforced, &furniture.policy);
        let agent = lab.agent().policy(&policy).settings(&settings);
        agent.uplink(ways[0].uplink).start()
    };
    let mut agent = start()?;
    // Packets that left before were judged by nobody.
    let tap = Arc::new(Tap::new(&lab.foreign)?);
    let before = lab.link_to(&lab.foreign)?;
    let routed = furniture.routed(lab)?;
    let mut records = Vec::new();
    for (way, stage) in ways.iter().zip(&mut stages) {
        let described = || format!("{}, enforced: {enforced}", way.id);
        stage.tap = Some(tap.clone());
        let books = Books::told_by(agent.records()?);
        match way.agent {
            Meanwhile::Runs => (way.send)(stage).with_context(described)?,
            Meanwhile::Stopped => {
                agent.signal(Signal::SIGSTOP)?;
                (way.send)(stage).with_context(described)?;
                agent.signal(Signal::SIGCONT)?;
            }
            Meanwhile::Killed => {
                records.extend(agent.stop(Signal::SIGKILL)?.1);
                (way.send)(stage).with_context(described)?;
                agent = start()?;
            }
        }
        wait_until_gone(stage, &tap, &mut agent, books).with_context(described)?;
        stage.running.clear();
    }
    let link = match ways[0].uplink {
        "auto" => ways[0].link,
        name => name,
    };
    let sent = LinkCounters::read(&lab.host, link)?.tx_bytes;
    let books = agent.wait_for("books that are about all of it", |records| {
        let books = Books::told_by(records);
        (books.counted_by(link) >= sent).then_some(books)
    })?;
    // All that the link took has arrived.
    if let Some(router) = &furniture.router {
        let sent = furniture.routed(lab)?;
        wait_for("the router has read all that was sent", || {
            Ok((router.received() >= sent).then_some(()))
        })?;
        println!("{} frames by the router", sent - routed);
    }
    let sent = lab.link_to(&lab.foreign)?.since(before).tx_packets;
    wait_for("all that was sent arrives", || {
        Ok((tap.packets() >= sent).then_some(()))
    })
    .with_context(|| format!("{} of {sent} have", tap.packets()))?;
    // Once nothing is enforced any more, the kernel sends again what was dropped.
    let arrived: Vec<_> = stages
        .iter()
        .map(|stage| (stage.arrived(&tap), stage.arrived_at(&tap)))
        .collect();
    records.extend(agent.stop(Signal::SIGINT)?.1);
    if let Some(counter) = furniture.fills {
        let is_full = |record: &Record| record.is("event", "loss") && record.is("subject", counter);
        ensure!(records.iter().any(is_full), "nothing moved {counter}");
    }
    if lab.pins().exists() {
        trefoil_lab::agent::detach(lab)?;
    }
    let mut all: Vec<Gone> = stages
        .iter()
        .zip(arrived)
        .map(|(stage, (arrived, arrived_at))| {
            Ok(Gone {
                left: stage.left(&records).cloned().collect(),
                privilege: stage.privilege,
                found: stage.told_by(&records)?,
                bytes: stage.bytes,
                calls: stage.calls,
                arrived,
                arrived_at,
            })
        })
        .collect::<Result<_>>()?;
    // Bytes that no record of a flow tells may be among the sums of an uplink.
    let of_no_flow = all.iter_mut().filter(|gone| gone.found.seen == Grade::No);
    let of_no_flow: Vec<&mut Gone> = of_no_flow.collect();
    let bytes: u64 = of_no_flow.iter().map(|gone| gone.bytes).sum();
    if books.without_flow() >= bytes {
        of_no_flow
            .into_iter()
            .for_each(|gone| gone.found.seen = Grade::Part);
    }
    Ok(all)
}

/// The last books of each uplink.
#[derive(Default)]
struct Books(BTreeMap<String, Record>);

impl Books {
    fn told_by(records: &[Record]) -> Self {
        let mut books = Self::default();
        for record in records {
            if record.text("subject").starts_with("books of uplink") {
                books.0.insert(record.text("uplink"), record.clone());
            }
        }
        books
    }

    fn sum(&self, fields: &[&str]) -> u64 {
        let number = |record: &Record, field: &&str| record.number(field).unwrap_or_default();
        let of_one = |record| fields.iter().map(move |field| number(record, field));
        self.0.values().flat_map(of_one).sum()
    }

    /// Bytes that no hook of a socket has judged.
    fn without_flow(&self) -> u64 {
        self.sum(&[
            "bytes_kernel",
            "bytes_forwarded",
            "bytes_packet_socket",
            "bytes_not_ip",
            "bytes_unaccounted",
        ])
    }

    fn dropped(&self) -> u64 {
        self.sum(&["bytes_dropped"])
    }

    /// Bytes of which the interface's counter knew.
    fn counted_by(&self, uplink: &str) -> u64 {
        self.0.get(uplink).map_or(0, |record| {
            ["bytes_before", "bytes_sent"]
                .iter()
                .map(|field| record.number(field).unwrap_or_default())
                .sum()
        })
    }
}

/// Waits until all bytes of a way have arrived, or until a record says why not.
fn wait_until_gone(
    stage: &Stage<'_>,
    tap: &Tap,
    agent: &mut Agent<'_>,
    before: Books,
) -> Result<()> {
    if stage.bytes == 0 && !stage.enforced {
        bail!("nothing was sent");
    }
    agent.wait_for("bytes arrive or are blocked", |records| {
        let arrived = stage.arrived(tap);
        let is_dropped = || Books::told_by(records).dropped() > before.dropped();
        let is_blocked =
            stage.enforced && (stage.refused || stage.is_blocked_by(records) || is_dropped());
        (is_blocked || arrived > 0 && arrived >= stage.bytes).then_some(())
    })
}
