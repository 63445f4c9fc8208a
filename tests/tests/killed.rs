//! Flows and records that an agent held when it was killed, or when it ended before its sinks took
//! them, are told by the next one: once, or as lost, to the byte.

mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::{Agent, AgentBuilder, detach, kernel_verb};
use trefoil_lab::pipe::{Pace, Pipe};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::chance::{Chance, number_of};
use world::senders::while_sending_every;
use world::told::{
    Sum, arrived, lost, numbered, told_as_new, told_by_verdict, wait_until_nothing_waits,
};
use world::{REFUSED, TRAFFIC, approving, at, reporting, traffic};

/// Processes that send a datagram each.
const MANY: u64 = 500;

fn burst(lab: &Lab, to: std::net::IpAddr, count: u64) -> Result<()> {
    let outcome = traffic(lab)?
        .args(["burst", &at(to, 9), "--count", &count.to_string()])
        .args(["--program", TRAFFIC])
        .run()?;
    outcome.success().map(drop)
}

/// The words of `trefoil status`.
fn status(lab: &Lab) -> Result<Value> {
    let said = kernel_verb(lab, "status", &["--json"])?.stdout;
    serde_json::from_str(&said).with_context(|| said)
}

/// Waits until the agent has so many flows from the kernel.
fn wait_until_taken_in(lab: &Lab, n_flows: u64) -> Result<()> {
    wait_for("the agent has all flows", || {
        let status = status(lab)?;
        let attribution = status["attribution"].as_object().context("attribution")?;
        let taken_in: u64 = attribution.values().filter_map(Value::as_u64).sum();
        Ok((taken_in >= n_flows).then_some(()))
    })
}

/// All that left was approved; so much of it is told by the records.
fn is_told(lab: &Lab, records: &[Record]) -> Result<()> {
    let left = arrived(lab, &[("approved", &lab.foreign)])?;
    assert_eq!(told_by_verdict(records)?, left);
    assert_eq!(lost(records)?, (0, 0), "nothing had to be lost");
    Ok(())
}

/// An agent takes in [`MANY`] flows, ends by `signal`, and another one follows.
fn ends_and_is_followed(
    flows: &'static str,
    settings: &str,
    is_stalled: bool,
    signal: Signal,
) -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = || {
        let agent = lab.agent().policy(&approving()).settings(settings);
        agent.flows(flows).start()
    };
    let agent = start()?;
    if is_stalled {
        lab.journal()?.pause()?;
    }
    burst(&lab, places::FOREIGN, MANY)?;
    sink.wait_for_packets(MANY)?;
    wait_until_taken_in(&lab, MANY)?;
    let mut records = agent.stop(signal)?.1;
    if is_stalled {
        let n_told = records.iter().filter(|it| it.is("state", "closed")).count();
        ensure!((n_told as u64) < MANY, "the sink was not stalled");
        lab.journal()?.go_on()?;
    }
    records.extend(start()?.stop(Signal::SIGINT)?.1);
    is_told(&lab, &records)?;
    lab.close()
}

#[test]
fn a_killed_agent_leaves_its_rollups_to_the_next() -> Result<()> {
    ends_and_is_followed("rollup", "", false, Signal::SIGKILL)
}

#[test]
fn a_killed_agent_leaves_what_auto_rolls_up_to_the_next() -> Result<()> {
    ends_and_is_followed("auto", "flows_rate = 10\n", false, Signal::SIGKILL)
}

#[test]
fn a_killed_agent_leaves_what_a_stalled_sink_did_not_take_to_the_next() -> Result<()> {
    ends_and_is_followed("each", "", true, Signal::SIGKILL)
}

#[test]
fn a_stopped_agent_leaves_what_a_stalled_sink_did_not_take_to_the_next() -> Result<()> {
    ends_and_is_followed("each", "", true, Signal::SIGTERM)
}

/// Nothing is left in the kernel for the next one: all of it is in the spool.
#[test]
fn an_interrupted_agent_leaves_what_a_stalled_sink_did_not_take_to_the_next() -> Result<()> {
    ends_and_is_followed("each", "", true, Signal::SIGINT)?;
    ends_and_is_followed("rollup", "", true, Signal::SIGINT)
}

/// Records that find room neither in the spool nor in the kernel are lost, and that is told.
#[test]
fn what_finds_no_room_while_a_sink_is_stalled_is_told_as_lost() -> Result<()> {
    const SETTINGS: &str = "[tables]\npending = 40\nevents_bytes = \"4 KiB\"\nended = 30\n";
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = || {
        let agent = lab.agent().policy(&approving()).settings(SETTINGS);
        agent.start()
    };
    let agent = start()?;
    lab.journal()?.pause()?;
    burst(&lab, places::FOREIGN, MANY)?;
    sink.wait_for_packets(MANY)?;
    let mut records = agent.stop(Signal::SIGKILL)?.1;
    lab.journal()?.go_on()?;
    records.extend(start()?.stop(Signal::SIGINT)?.1);
    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    assert_eq!(told_by_verdict(&records)?, left);
    assert_ne!(lost(&records)?, (0, 0));
    lab.close()
}

/// A flow that is open all the time: what is new in each record adds up to what left.
#[test]
fn what_is_new_is_new_over_kills() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let words = ["udp", &at(places::FOREIGN, 9), "--connected", "--hold"];
    let mut records = Vec::new();
    let settings = "rollup_interval = \"1s\"\n";
    let start = |flows| {
        lab.agent()
            .policy(&approving())
            .settings(settings)
            .flows(flows)
            .start()
    };
    let mut agent = start("each")?;
    let mut sender = traffic(&lab)?.args(words).args(["--count", "7"]).start()?;
    sender.line()?;
    for (round, flows) in (1..).zip(["rollup", "each", "rollup", "auto"]) {
        sender.proceed()?;
        sender.line()?;
        sink.wait_for_packets(7 * round)?;
        let mut told = 0;
        agent.wait_for("it has told of the flow", |records| {
            let about = |it: &&Record| it.is("event", "flow") && it.number("bytes_new").is_ok();
            told = records.iter().filter(about).count();
            (told > 0).then_some(())
        })?;
        records.extend(agent.stop(Signal::SIGKILL)?.1);
        agent = start(flows)?;
    }
    sender.proceed()?;
    sender.finish()?.success()?;
    records.extend(agent.stop(Signal::SIGINT)?.1);
    is_told(&lab, &records)?;
    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    assert_eq!(Some(&told_as_new(&records)?), left.get("approved"));
    lab.close()
}

#[test]
fn an_agent_that_is_stopped_closes_the_books() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let agent = lab.agent().policy(&approving()).start()?;
    burst(&lab, places::FOREIGN, 3)?;
    sink.wait_for_packets(3)?;
    let records = agent.stop(Signal::SIGTERM)?.1;
    let [.., sums, last] = &numbered(&records)?[..] else {
        anyhow::bail!("no records");
    };
    ensure!(sums.is("event", "heartbeat"), "{sums}");
    let left = lab.link_to(&lab.foreign)?.ip_bytes_out();
    ensure!(sums.is("bytes_approved", left), "{left} and {sums}");
    ensure!(
        last.is("event", "coverage") && last.is("subject", "this agent"),
        "{last}"
    );
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_spool_that_somebody_has_removed_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving()).start()?;
    agent.stop(Signal::SIGKILL)?;
    lab.remove_agent_state()?;
    let agent = lab.agent().policy(&approving()).start()?;
    let records = agent.stop(Signal::SIGINT)?.1;
    let is_told = |it: &Record| it.is("event", "tamper") && it.is("subject", "the spool");
    ensure!(records.iter().any(is_told), "{records:?}");
    lab.close()
}

/// Rollups are in the spool alone.
fn is_told_as_lost(take_away: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = || lab.agent().policy(&approving()).flows("rollup").start();
    let agent = start()?;
    burst(&lab, places::FOREIGN, MANY)?;
    sink.wait_for_packets(MANY)?;
    wait_until_taken_in(&lab, MANY)?;
    let mut records = agent.stop(Signal::SIGKILL)?.1;
    take_away(&lab)?;
    let agent = start()?;
    burst(&lab, places::FOREIGN, 3)?;
    sink.wait_for_packets(MANY + 3)?;
    records.extend(agent.stop(Signal::SIGINT)?.1);
    let is_told = |it: &Record| it.is("event", "tamper") && it.is("subject", "the spool");
    ensure!(records.iter().any(is_told), "{records:?}");
    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    assert_eq!(told_by_verdict(&records)?, left);
    ensure!(lost(&records)?.1 > MANY / 2, "{:?}", lost(&records)?);
    lab.close()
}

#[test]
fn what_was_in_a_spool_that_somebody_has_removed_is_told_as_lost() -> Result<()> {
    is_told_as_lost(Lab::remove_agent_state)
}

#[test]
fn what_was_in_a_spool_that_somebody_has_cut_is_told_as_lost() -> Result<()> {
    is_told_as_lost(|lab| {
        let dirs = lab.agent_state().into_iter();
        for file in dirs.flat_map(|dir| [dir.join("spool.0"), dir.join("spool.1")]) {
            if file.exists() {
                // The header, and a part of the first batch.
                fs::OpenOptions::new()
                    .write(true)
                    .open(file)?
                    .set_len(300)?;
            }
        }
        Ok(())
    })
}

/// Nobody tells but `trefoil detach` itself, with the sinks that the agent had.
#[test]
fn detach_without_an_agent_tells_what_no_agent_has_told() -> Result<()> {
    for flows in ["each", "rollup"] {
        let lab = Lab::new()?;
        let sink = UdpSink::new(&lab.foreign, 9)?;
        let agent = lab.agent().policy(&approving()).flows(flows).start()?;
        // One that goes on, one that is over and taken in, and those that no agent sees.
        let words = ["udp", &at(places::FOREIGN, 9), "--connected", "--hold"];
        let mut open = traffic(&lab)?.args(words).args(["--count", "7"]).start()?;
        open.line()?;
        open.proceed()?;
        open.line()?;
        burst(&lab, places::FOREIGN, 20)?;
        wait_until_taken_in(&lab, 21)?;
        let file = agent.records_file().to_owned();
        let n_before = agent.stop(Signal::SIGKILL)?.1.len();
        burst(&lab, places::FOREIGN, 30)?;
        open.proceed()?;
        open.line()?;
        sink.wait_for_packets(7 + 20 + 30 + 7)?;
        let said = kernel_verb(&lab, "detach", &[])?.success()?;
        ensure!(
            said.stdout.contains("what none had told is in records now"),
            "{said:?}"
        );
        let text = fs::read_to_string(&file)?;
        let records = text
            .lines()
            .map(Record::parse)
            .collect::<Result<Vec<_>>>()?;
        ensure!(records.len() > n_before, "{text}");
        is_told(&lab, &records)?;
        let named = |it: &&Record| it.is("exe", TRAFFIC) && it.is("rule", "anywhere");
        ensure!(records.iter().filter(named).count() > 0, "{text}");
        drop(open);
        lab.close()?;
    }
    Ok(())
}

/// A change of sizes gives tables another name, and then makes new ones.
#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_change_of_sizes_loses_nothing() -> Result<()> {
    const NAMES: [&str; 7] = [
        "EVENTS",
        "FLOWS",
        "ENDED",
        "PROCESSES",
        "EXECUTABLES",
        "CGROUPS",
        "REMEMBERED",
    ];
    for n_renamed in [1, 4, NAMES.len()] {
        let lab = Lab::new()?;
        let sink = UdpSink::new(&lab.foreign, 9)?;
        let start = |settings| lab.agent().policy(&approving()).settings(settings).start();
        let agent = start("")?;
        let mut records = agent.stop(Signal::SIGKILL)?.1;
        burst(&lab, places::FOREIGN, 50)?;
        for name in &NAMES[..n_renamed] {
            let pinned = lab.pinned().into_iter();
            let pin = pinned.filter(|it| it.file_name().is_some_and(|it| it == *name));
            for pin in pin {
                fs::rename(&pin, pin.with_file_name(format!("{name}-former-0")))?;
            }
        }
        burst(&lab, places::FOREIGN, 50)?;
        let sizes = "[tables]\nflows = 4096\nended = 4096\nevents_bytes = \"1 MiB\"\n";
        let agent = start(sizes)?;
        burst(&lab, places::FOREIGN, 50)?;
        sink.wait_for_packets(150)?;
        records.extend(agent.stop(Signal::SIGINT)?.1);
        is_told(&lab, &records)?;
        lab.close()?;
    }
    Ok(())
}

/// Where an agent hands its records over.
#[derive(Clone, Copy, Debug)]
enum Sinks {
    /// To the journal, which is the report of record, and to a file.
    JournalAndFile(Pace),
    File,
    Pipe(Pace),
}

impl Sinks {
    fn by_chance(chance: &mut Chance) -> Self {
        let pace = [Pace::Fast, Pace::Slow, Pace::Stalled][chance.below(3) as usize];
        match chance.below(7) {
            0..3 => Self::JournalAndFile(pace),
            3..6 => Self::Pipe(pace),
            _ => Self::File,
        }
    }
}

/// Kills an agent that is set up by chance, ready or not yet, with sinks that take records fast,
/// slowly or not at all. `meanwhile` runs while it runs. Returns its records, but those that are to be
/// read from the pipe, and what it was.
fn kill_one<'lab>(
    lab: &'lab Lab,
    chance: &mut Chance,
    pipe: &'lab Pipe,
    agent: impl Fn(&'static str) -> AgentBuilder<'lab>,
    meanwhile: impl FnOnce(&mut Chance, &Agent<'_>) -> Result<()>,
) -> Result<(Vec<Record>, String)> {
    let journal = lab.journal()?;
    let flows = ["each", "auto", "rollup"][chance.below(3) as usize];
    let sinks = Sinks::by_chance(chance);
    let agent = match sinks {
        Sinks::JournalAndFile(_) => agent(flows),
        Sinks::File => agent(flows).without_journal(),
        Sinks::Pipe(pace) => {
            pipe.set_pace(pace);
            agent(flows).without_journal().records_through(pipe)
        }
    };
    if let Sinks::JournalAndFile(Pace::Slow | Pace::Stalled) = sinks {
        journal.pause()?;
    }
    // Loading takes some of them longer than they live.
    let records = if chance.below(4) == 0 {
        agent.start_and_kill(|| chance.pause(3_000))?
    } else {
        let running = agent.start()?;
        meanwhile(chance, &running)?;
        chance.pause(1_500);
        match sinks {
            Sinks::JournalAndFile(Pace::Slow) => journal.go_on()?,
            Sinks::Pipe(Pace::Stalled) if chance.below(2) == 0 => pipe.set_pace(Pace::Fast),
            _ => {}
        }
        if !matches!(sinks, Sinks::JournalAndFile(Pace::Fast)) {
            chance.pause(300);
        }
        running.stop(Signal::SIGKILL)?.1
    };
    journal.go_on()?;
    if chance.below(2) == 0 {
        chance.pause(1_000);
    }
    Ok((records, format!("{flows}, {sinks:?}")))
}

/// The records of one that has all the time that it needs for what others have left.
fn last(lab: &Lab, agent: AgentBuilder<'_>, signal: Signal) -> Result<Vec<Record>> {
    let agent = agent.start()?;
    wait_until_nothing_waits(lab)?;
    Ok(agent.stop(signal)?.1)
}

/// Pause between two rounds of a sender: a kill at any moment still falls between two packets, and
/// the processors are free for the agents, whose starts are most of the time.
const CALM: Duration = Duration::from_millis(100);

/// Runs `again` every now and then on a thread of its own while `act` runs.
fn while_again<T>(
    again: impl Fn() -> Result<()> + Sync,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                again()?;
                std::thread::sleep(CALM);
            }
            Ok(())
        });
        let acted = act();
        is_over.store(true, Ordering::Relaxed);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        acted
    })
}

/// Checks that new bytes in records add up to those that left, unless some were lost: a flow of
/// which something was told may have lost its last numbers.
fn is_told_as_new(records: &[Record], left: &BTreeMap<String, Sum>) -> Result<()> {
    let left = left
        .values()
        .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    let (new, lost) = (told_as_new(records)?, lost(records)?);
    let is_right = match lost {
        (0, 0) => new == left,
        lost => new.0 <= left.0 && new.0 + lost.0 >= left.0,
    };
    ensure!(is_right, "new {new:?}, lost {lost:?}, left {left:?}");
    Ok(())
}

/// So that both ways of reporting are used, and rollups end now and then.
const BOTH_WAYS: &str = "flows_rate = 5\nviolations_rate = 20\nrollup_interval = \"2s\"\n";

/// Kills agents at random moments, and holds what all of them told against what arrived:
/// `TREFOIL_KILLS` of them.
#[test]
fn agents_are_killed_at_random_and_the_books_balance() -> Result<()> {
    let n_kills = number_of("TREFOIL_KILLS", 50);
    let mut chance = Chance::from_time();
    let lab = Lab::new()?;
    let pipe = Pipe::new(&lab)?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
        UdpSink::new(&lab.peer, 9)?,
    );
    let agent = |flows| {
        let agent = lab.agent().policy(&reporting()).settings(BOTH_WAYS);
        agent.flows(flows)
    };
    let mut records = Vec::new();
    // From here on all is seen.
    records.extend(agent("each").start()?.stop(Signal::SIGTERM)?.1);
    let mut n_by_way: BTreeMap<String, u64> = BTreeMap::new();
    let bursts = || {
        burst(&lab, places::PEER, 40)?;
        burst(&lab, places::FOREIGN, 10)
    };
    while_again(bursts, || {
        while_sending_every(CALM, &lab, |_| {
            for _ in 0..n_kills {
                let (told, way) = kill_one(&lab, &mut chance, &pipe, agent, |_, _| Ok(()))?;
                records.extend(told);
                *n_by_way.entry(way).or_default() += 1;
            }
            Ok(())
        })
    })?;
    records.extend(last(&lab, agent("auto"), Signal::SIGINT)?);
    records.extend(pipe.finish()?);
    let left = arrived(&lab, &[("denied", &lab.foreign), ("approved", &lab.peer)])?;
    eprintln!(
        "{n_kills} kills: {n_by_way:?}; left {left:?}, lost {:?}",
        lost(&records)?
    );
    assert_eq!(told_by_verdict(&records)?, left);
    is_told_as_new(&records, &left)?;
    lab.close()
}

/// Approves the foreign host under a name that differs from reload to reload.
fn enforcing_but_foreign(number: u64) -> String {
    format!(
        "mode = \"enforce\"\n\n[[rules]]\nname = \"number {number}\"\n\
         to = {{ networks = [\"203.0.113.0/24\", \"2001:db8:3::/48\"] }}\nverdict = \"approve\"\n"
    )
}

/// The same while a policy is enforced and changes: nothing that it does not approve arrives, and no
/// connection that it approves breaks.
#[test]
fn agents_that_enforce_are_killed_at_random_and_reloaded() -> Result<()> {
    let n_kills = number_of("TREFOIL_KILLS", 50);
    let mut chance = Chance::from_time();
    let lab = Lab::new()?;
    let pipe = Pipe::new(&lab)?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
        TcpSink::new(&lab.peer, 443)?,
        UdpSink::new(&lab.peer, 9)?,
    );
    let number = Cell::new(0);
    let policy = || {
        number.set(number.get() + 1);
        enforcing_but_foreign(number.get())
    };
    let agent = |flows| {
        let agent = lab.agent().policy(&policy()).settings(BOTH_WAYS);
        agent.flows(flows)
    };
    let mut records = Vec::new();
    records.extend(agent("each").start()?.stop(Signal::SIGTERM)?.1);
    let (mut n_by_way, mut n_reloads) = (BTreeMap::<String, u64>::new(), 0);
    let refused = || {
        for (protocol, port) in [("udp", 9), ("tcp", 443)] {
            let words = [protocol, &at(places::PEER, port)];
            let outcome = traffic(&lab)?.args(words).run()?;
            ensure!(outcome.code == REFUSED, "got through: {outcome:?}");
        }
        burst(&lab, places::FOREIGN, 10)
    };
    while_again(refused, || {
        while_sending_every(CALM, &lab, |_| {
            for _ in 0..n_kills {
                let reload = |chance: &mut Chance, running: &Agent<'_>| {
                    for _ in 0..chance.below(4) {
                        running.reload(&policy())?;
                        n_reloads += 1;
                        chance.pause(300);
                    }
                    Ok(())
                };
                let (told, way) = kill_one(&lab, &mut chance, &pipe, agent, reload)?;
                records.extend(told);
                *n_by_way.entry(way).or_default() += 1;
            }
            Ok(())
        })
    })?;
    records.extend(last(&lab, agent("auto"), Signal::SIGTERM)?);
    records.extend(pipe.finish()?);
    let left = arrived(
        &lab,
        &[("approved", &lab.foreign), ("unapproved", &lab.peer)],
    )?;
    eprintln!(
        "{n_kills} kills, {n_reloads} reloads: {n_by_way:?}; left {left:?}, lost {:?}",
        lost(&records)?
    );
    assert_eq!(told_by_verdict(&records)?, left);
    ensure!(!left.contains_key("unapproved"), "it arrived: {left:?}");
    is_told_as_new(&records, &left)?;
    detach(&lab)?;
    lab.close()
}
