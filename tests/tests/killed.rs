//! What an agent held when it was killed, or when it ended before its sinks took it, the next
//! one tells: once, or as lost, to the byte.

mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::kernel_verb;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::senders::while_sending;
use world::told::{arrived, lost, numbered, told_by_verdict};
use world::{TRAFFIC, approving, at, reporting, traffic};

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
    trefoil_lab::agent::detach(&lab)?;
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

/// Numbers that differ from run to run, or are those of `TREFOIL_SEED`: splitmix64.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = number_of("TREFOIL_SEED", now.as_nanos() as u64);
        eprintln!("TREFOIL_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }

    fn pause(&mut self, end_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(end_ms)));
    }
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

/// Kills agents at random moments, and holds what all of them told against what arrived:
/// `TREFOIL_KILLS` of them.
#[test]
fn agents_are_killed_at_random_and_the_books_balance() -> Result<()> {
    let n_kills = number_of("TREFOIL_KILLS", 20);
    let mut chance = Chance::new();
    let lab = Lab::new()?;
    let _sinks = (
        TcpSink::new(&lab.foreign, 443)?,
        UdpSink::new(&lab.foreign, 9)?,
        UdpSink::new(&lab.peer, 9)?,
    );
    let journal = lab.journal()?;
    let agent = |flows| {
        // So that both ways of reporting are used, and rollups end now and then.
        let settings = "flows_rate = 5\nviolations_rate = 20\nrollup_interval = \"2s\"\n";
        let agent = lab.agent().policy(&reporting()).settings(settings);
        agent.flows(flows)
    };
    let mut records = Vec::new();
    // From here on all is seen.
    records.extend(agent("each").start()?.stop(Signal::SIGTERM)?.1);
    let is_over = AtomicBool::new(false);
    let mut n_by_way: BTreeMap<String, u64> = BTreeMap::new();
    std::thread::scope(|scope| -> Result<()> {
        let bursts = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                burst(&lab, places::PEER, 40)?;
                burst(&lab, places::FOREIGN, 10)?;
            }
            Ok(())
        });
        let killed = while_sending(&lab, |_| {
            for _ in 0..n_kills {
                let flows = ["each", "auto", "rollup"][chance.below(3) as usize];
                let sink = ["fast", "slow", "stalled"][chance.below(3) as usize];
                if sink != "fast" {
                    journal.pause()?;
                }
                // Loading takes some of them longer than they live.
                let is_early = chance.below(4) == 0;
                if is_early {
                    let ended = agent(flows).start_and_kill(|| chance.pause(3_000))?;
                    records.extend(ended);
                } else {
                    let running = agent(flows).start()?;
                    chance.pause(1_500);
                    if sink == "slow" {
                        journal.go_on()?;
                        chance.pause(300);
                    }
                    records.extend(running.stop(Signal::SIGKILL)?.1);
                }
                journal.go_on()?;
                if chance.below(2) == 0 {
                    chance.pause(1_000);
                }
                *n_by_way.entry(format!("{flows}, {sink}")).or_default() += 1;
            }
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        bursts
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        killed
    })?;
    records.extend(agent("auto").start()?.stop(Signal::SIGINT)?.1);
    let left = arrived(&lab, &[("denied", &lab.foreign), ("approved", &lab.peer)])?;
    eprintln!(
        "{n_kills} kills: {n_by_way:?}; left {left:?}, lost {:?}",
        lost(&records)?
    );
    assert_eq!(told_by_verdict(&records)?, left);
    lab.close()
}
