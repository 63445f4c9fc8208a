//! Traffic that somebody makes much of costs the agent no more than its part, and nothing is
//! dropped that the kernel has room for.

mod world;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::{detach, kernel_verb};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Agent, Lab, Record, fill, places, wait_for};
use world::told::{arrived, lost, told_by_verdict};
use world::{REFUSED, TRAFFIC, approving, at, enforcing, gapless, traffic, traffic_in};

/// Flows whose numbers are kept in the records' sums alone.
const SUMS: &str = "rollup";

/// Flows that the agent has taken in.
fn taken_in(lab: &Lab) -> Result<u64> {
    let said = kernel_verb(lab, "status", &["--json"])?.stdout;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let attribution = status["attribution"].as_object().context("attribution")?;
    Ok(attribution.values().filter_map(Value::as_u64).sum())
}

fn wait_until_taken_in(lab: &Lab, n_flows: u64) -> Result<()> {
    wait_for("the agent has all flows", || {
        Ok((taken_in(lab)? >= n_flows).then_some(()))
    })
}

/// One socket that sends a datagram to so many places, and waits.
fn with_peers(lab: &Lab, count: u64) -> Result<Running> {
    let count = count.to_string();
    let sender = traffic(lab)?.args(["udp-many", &at(places::PEER6, 9), "--hold"]);
    let mut sender = sender
        .args(["--destinations", &count, "--count", &count])
        .start()?;
    sender.line()?;
    sender.proceed()?;
    sender.line()?;
    Ok(sender)
}

/// Heartbeats so far.
fn n_beats(records: &[Record]) -> usize {
    let beats = records
        .iter()
        .filter(|record| record.is("event", "heartbeat"));
    beats.count()
}

/// The agent's time for so many seconds in which nothing happens, in milliseconds a second.
fn idle_ms(agent: &mut Agent<'_>, seconds: usize) -> Result<f64> {
    let begun = n_beats(agent.records()?);
    agent.wait_for("a heartbeat", |records| {
        (n_beats(records) > begun).then_some(())
    })?;
    let (begun, before) = (n_beats(agent.records()?), agent.processor()?);
    agent.wait_for("heartbeats", |records| {
        (n_beats(records) >= begun + seconds).then_some(())
    })?;
    let n_seconds = n_beats(agent.records()?) - begun;
    Ok((agent.processor()? - before).as_secs_f64() * 1e3 / n_seconds as f64)
}

/// Flows of which the agent's last heartbeat knows the owner.
fn told_in_heartbeat(records: &[Record]) -> u64 {
    let mut beats = records
        .iter()
        .rev()
        .filter(|it| it.is("event", "heartbeat"));
    let n_flows = beats.next().map(|beat| beat.number("flows_direct"));
    n_flows.and_then(Result::ok).unwrap_or(0)
}

/// As many peers as are followed at a time, or nearly. A look at all of them falls into one part at
/// most: it costs more than a part does, and [`flows_that_are_idle_cost_next_to_nothing`] bounds it.
#[test]
fn peers_of_one_socket_cost_at_the_end_what_they_cost_at_the_start() -> Result<()> {
    const A_PART: u64 = 20_000;
    const PARTS: usize = 6;
    const SETTINGS: &str =
        "sweep_interval = \"1m\"\nheartbeat_interval = \"1s\"\n[tables]\nflows = 131072\n";
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving()).settings(SETTINGS);
    let mut agent = agent.flows(SUMS).start()?;
    let sender = traffic(&lab)?.args(["udp-many", &at(places::PEER6, 9), "--hold", "--fresh"]);
    let count = A_PART.to_string();
    let mut sender = sender
        .args(["--destinations", &count, "--count", &count])
        .start()?;
    sender.line()?;
    let mut parts = Vec::new();
    for part in 1..=PARTS {
        let before = agent.processor()?;
        sender.proceed()?;
        sender.line()?;
        agent.wait_for("the agent has all flows", |records| {
            (told_in_heartbeat(records) >= part as u64 * A_PART).then_some(())
        })?;
        parts.push((agent.processor()? - before).as_nanos() as u64 / A_PART);
    }
    println!("ns of a processor a flow, by part: {parts:?}");
    let least = |parts: &[u64]| parts.iter().min().copied().unwrap_or(0);
    let (first, last) = parts.split_at(PARTS / 2);
    ensure!(least(last) < 2 * least(first), "{parts:?}");
    sender.finish()?.success()?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// The records of an agent while one socket sends to many places and is closed, with the sinks
/// stalled or not.
fn one_socket_ends(is_stalled: bool) -> Result<()> {
    /// More than are kept for sinks, of what begins and of what ends.
    const N_PEERS: u64 = 6_000;
    const SETTINGS: &str = "[tables]\npending = 1024\n";
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.peer, 9)?;
    let agent = lab.agent().policy(&approving()).settings(SETTINGS);
    let agent = agent.start()?;
    if is_stalled {
        lab.journal()?.pause()?;
    }
    let sender = with_peers(&lab, N_PEERS)?;
    sink.wait_for_packets(N_PEERS)?;
    if !is_stalled {
        wait_until_taken_in(&lab, N_PEERS)?;
    }
    sender.finish()?.success()?;
    if is_stalled {
        lab.journal()?.go_on()?;
    }
    let mut agent = agent;
    let left = arrived(&lab, &[("approved", &lab.peer)])?;
    agent.wait_for("all that left is told", |records| {
        (told_by_verdict(records).ok()? == left).then_some(())
    })?;
    let (_, records) = agent.stop(Signal::SIGINT)?;
    assert_eq!(told_by_verdict(&records)?, left);
    assert_eq!(lost(&records)?, (0, 0));
    let dropped = records
        .iter()
        .find(|it| it.is("event", "loss") && !it.is("subject", "events-full"));
    ensure!(dropped.is_none(), "{dropped:?}");
    gapless(&records)?;
    lab.close()
}

#[test]
fn what_ends_with_its_socket_is_dropped_by_nobody() -> Result<()> {
    one_socket_ends(false)
}

#[test]
fn what_ends_while_a_sink_takes_nothing_waits_in_the_kernel() -> Result<()> {
    one_socket_ends(true)
}

#[test]
fn flows_that_are_idle_cost_next_to_nothing() -> Result<()> {
    const N_FLOWS: u64 = 50_000;
    const N_SOCKETS: u64 = 10_000;
    let lab = Lab::new()?;
    let settings = "heartbeat_interval = \"1s\"\n";
    let agent = lab.agent().policy(&approving()).settings(settings);
    let mut agent = agent.flows(SUMS).start()?;
    let nothing = idle_ms(&mut agent, 5)?;
    let many_peers = with_peers(&lab, N_FLOWS)?;
    let sockets = traffic(&lab)?.args(["often", "sockets", &at(places::PEER6, 10)]);
    let mut sockets = sockets.args(["--count", &N_SOCKETS.to_string()]).start()?;
    sockets.line()?;
    wait_until_taken_in(&lab, N_FLOWS + N_SOCKETS)?;
    let idle = idle_ms(&mut agent, 20)?;
    println!("ms of a processor a second: {nothing:.1} without flows, {idle:.1} with idle ones");
    ensure!(
        idle - nothing < 60.0,
        "{nothing} without flows, {idle} with idle ones"
    );
    many_peers.finish()?.success()?;
    sockets.finish()?.success()?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn memory_that_starting_took_is_given_back() -> Result<()> {
    /// Of a debug build with the country data of the Internet.
    const MOST_KIB: u64 = 72 << 10;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&approving());
    for table in ["/usr/share/tor/geoip", "/usr/share/tor/geoip6"] {
        agent = agent.argument("--geo").argument(table);
    }
    // Beats by itself once, when it starts.
    let agent = agent.settings("heartbeat_interval = \"1h\"\n").start()?;
    wait_for("what starting took is given back", || {
        Ok((agent.resident_kib()? < MOST_KIB).then_some(()))
    })
    .with_context(|| format!("{:?} KiB are resident", agent.resident_kib()))?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// Refused calls of `traffic often` as the agent tells them: violations, rollups, and their sum.
fn refused(arguments: &[&str], settings: &str) -> Result<(usize, usize, u64)> {
    const N_CALLS: u64 = 4_000;
    let lab = Lab::new()?;
    let settings = format!("heartbeat_interval = \"1s\"\n{settings}");
    let mut agent = lab
        .agent()
        .policy(&enforcing())
        .settings(&settings)
        .start()?;
    let sender = traffic_in(&lab, "lab.service")?;
    let sender = sender.args(["often", "calls", &at(places::FOREIGN, 9)]);
    let sender = sender
        .args(["--count", &N_CALLS.to_string()])
        .args(arguments);
    sender.run()?.success()?;
    let sum = |records: &[Record]| -> u64 {
        let of_violations = records.iter().filter(|it| it.is("event", "violation"));
        of_violations
            .filter_map(|it| it.number("refused").ok())
            .sum()
    };
    agent.wait_for("all refusals are told", |records| {
        (sum(records) >= N_CALLS).then_some(())
    })?;
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    gapless(&records)?;
    let violations = records.iter().filter(|it| it.is("event", "violation"));
    let (rollups, singles): (Vec<&Record>, Vec<_>) =
        violations.partition(|it| it.is("state", "rollup"));
    for record in rollups.iter().chain(&singles) {
        for (name, expected) in [("unit", "lab.service"), ("uid", "0"), ("comm", "traffic")] {
            let is_common = name == "comm" && record.is("state", "rollup");
            ensure!(is_common || record.is(name, expected), "{name}: {record}");
        }
    }
    lab.close()?;
    Ok((singles.len(), rollups.len(), sum(&records) - N_CALLS))
}

#[test]
fn a_call_that_is_refused_in_a_loop_is_one_violation_and_counts() -> Result<()> {
    let (singles, rollups, too_many) = refused(&[], "")?;
    assert_eq!((singles, too_many), (1, 0));
    ensure!((1..=5).contains(&rollups), "{rollups}");
    Ok(())
}

#[test]
fn new_sockets_make_no_new_violation_of_a_refused_call() -> Result<()> {
    let (singles, rollups, too_many) = refused(&["--vary", "sockets"], "")?;
    assert_eq!((singles, too_many), (1, 0));
    ensure!((1..=5).contains(&rollups), "{rollups}");
    Ok(())
}

#[test]
fn a_user_who_varies_refused_calls_has_the_stated_rate() -> Result<()> {
    let vary = [
        "--vary",
        "addresses",
        "--vary",
        "ports",
        "--vary",
        "sockets",
    ];
    let (singles, _, too_many) = refused(&vary, "violations_rate = 100\n")?;
    assert_eq!(too_many, 0);
    // A burst of 100, and ten a second while it takes.
    ensure!((100..1_000).contains(&singles), "{singles}");
    Ok(())
}

/// Network namespaces of a user's, each with a process that waits in it.
fn with_namespaces(lab: &Lab, user: u32, count: usize) -> Result<Vec<Running>> {
    let arguments = ["--user", "--net", "sh", "-c", "echo; read line; true"];
    let mut users = Vec::new();
    for _ in 0..count {
        let mut user = lab.program_as(user, "unshare")?.args(arguments).start()?;
        user.line()?;
        users.push(user);
    }
    Ok(users)
}

/// Tries a call that the policy forbids, again and again, until it is refused or `is_over`.
fn until_refused(lab: &Lab, is_over: &AtomicBool) -> Result<bool> {
    wait_for("a call is refused", || {
        let outcome = traffic(lab)?.args(["udp", &at(places::FOREIGN, 9)]).run()?;
        let is_refused = outcome.code == REFUSED;
        Ok((is_refused || is_over.load(Ordering::Relaxed)).then_some(is_refused))
    })
}

/// A first enforcing start says what of the user's namespaces it has left unread before anything is
/// refused: it is not those that the refusals wait for.
#[test]
fn an_enforcing_start_does_not_wait_for_a_users_network_namespaces() -> Result<()> {
    /// More than are read before the hooks are there.
    const N_NAMESPACES: usize = 100;
    /// So many, and the host's own.
    const MOST_READ: u64 = 32;
    const USER: u32 = 65534;
    let lab = Lab::new()?;
    let users = with_namespaces(&lab, USER, N_NAMESPACES)?;
    let is_over = AtomicBool::new(false);
    let (agent, is_refused) = std::thread::scope(|scope| -> Result<_> {
        let tries = scope.spawn(|| until_refused(&lab, &is_over));
        let agent = lab.agent().policy(&enforcing()).start();
        is_over.store(agent.is_err(), Ordering::Relaxed);
        let tried = tries
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((agent?, tried?))
    })?;
    ensure!(is_refused, "nothing was refused");
    let said = agent.errors();
    let unread = said.split_once("those of ").and_then(|(_, rest)| {
        let (count, rest) = rest.split_once(' ')?;
        let is_it = rest.starts_with("network namespaces are not counted");
        is_it.then(|| count.parse::<u64>().ok()).flatten()
    });
    let unread = unread.with_context(|| said.clone())?;
    ensure!(unread >= N_NAMESPACES as u64 - MOST_READ, "{said}");
    ensure!(said.contains("the start does not wait for them"), "{said}");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    for user in users {
        user.finish()?.success()?;
    }
    lab.close()
}

/// One user's refused calls, with everything that he can vary, while no agent takes anything in:
/// the records of others have their room, and his own are in sums.
#[test]
fn a_flood_of_refused_calls_keeps_nobody_elses_records_out() -> Result<()> {
    const FLOODER: u32 = 65534;
    const OTHER: u32 = 1;
    const N_FLOOD: u64 = 12_000;
    const N_OTHERS: u64 = 20;
    /// Less room than the flood would take, and enough for what a sender has for himself.
    const SETTINGS: &str = "[tables]\nevents_bytes = \"512 KiB\"\nended = 512\n";
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.peer, 9)?;
    let start = || {
        let agent = lab.agent().policy(&enforcing()).settings(SETTINGS);
        agent.start()
    };
    let mut records = start()?.stop(Signal::SIGKILL)?.1;
    let calls = |unit: &str, user, count: u64, vary: &[&str]| -> Result<()> {
        let unit = lab.unit(unit)?;
        let sender = Program::new(TRAFFIC, &lab.host, Some(&unit), Some(user))?;
        let sender = sender.args(["often", "calls", &at(places::FOREIGN, 9)]);
        let sender = sender.args(["--count", &count.to_string()]).args(vary);
        sender.run()?.success().map(drop)
    };
    let all = ["ports", "addresses", "sockets"];
    let vary: Vec<&str> = all.iter().flat_map(|what| ["--vary", what]).collect();
    calls("flood.service", FLOODER, N_FLOOD, &vary)?;
    calls("other.service", OTHER, 1, &[])?;
    calls("root.service", 0, 1, &[])?;
    for _ in 0..N_OTHERS {
        let sender = traffic(&lab)?.args(["udp", &at(places::PEER, 9)]);
        sender.run()?.success()?;
    }
    sink.wait_for_packets(N_OTHERS)?;
    let mut agent = start()?;
    let refused = |records: &[Record], uid: u32| -> u64 {
        let of_user = records
            .iter()
            .filter(|it| it.is("event", "violation") && it.is("uid", uid));
        of_user.filter_map(|it| it.number("refused").ok()).sum()
    };
    agent.wait_for("all refusals are told", |records| {
        let told = [FLOODER, OTHER, 0].map(|uid| refused(records, uid));
        (told.iter().sum::<u64>() >= N_FLOOD + 2).then_some(())
    })?;
    records.extend(agent.stop(Signal::SIGTERM)?.1);
    for (uid, expected) in [(FLOODER, N_FLOOD), (OTHER, 1), (0, 1)] {
        assert_eq!(refused(&records, uid), expected, "of user {uid}");
    }
    for (uid, unit) in [(OTHER, "other.service"), (0, "root.service")] {
        let is_its = |it: &&Record| it.is("event", "violation") && it.is("uid", uid);
        let record = records.iter().find(is_its).context("no violation")?;
        let dst = places::FOREIGN.to_string();
        ensure!(
            record.is("unit", unit) && record.is("dst_addr", dst),
            "{record}"
        );
    }
    assert_eq!(lost(&records)?, (0, 0));
    let left = arrived(&lab, &[("approved", &lab.peer)])?;
    assert_eq!(told_by_verdict(&records)?, left);
    detach(&lab)?;
    lab.close()
}

/// A user who made refused calls leaves their table when he is quiet, and is told whole if he comes back.
#[test]
fn who_makes_no_refused_calls_any_more_leaves_their_table() -> Result<()> {
    const USERS: [u32; 5] = [2001, 2002, 2003, 2004, 2005];
    /// More than are told one by one in a turn.
    const N_CALLS: u64 = 1500;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let in_table = |agent: &Agent<'_>| -> Result<u64> {
        let entries = fill::entries(agent.objects())?;
        entries.get("REFUSALS").copied().context("no such table")
    };
    let everybody = in_table(&agent)?;
    let unit = lab.unit("lab.service")?;
    let calls = |user| -> Result<()> {
        let sender = Program::new(TRAFFIC, &lab.host, Some(&unit), Some(user))?;
        let sender = sender.args(["often", "calls", &at(places::FOREIGN, 9)]);
        let sender = sender.args(["--count", &N_CALLS.to_string()]);
        sender.run()?.success().map(drop)
    };
    for _ in 0..2 {
        for user in USERS {
            calls(user)?;
        }
        // The first may be quiet already.
        ensure!(in_table(&agent)? > everybody, "nobody is in the table");
        wait_for("the table has everybody's entries alone", || {
            Ok((in_table(&agent)? == everybody).then_some(()))
        })?;
    }
    let told = |records: &[Record], user| -> u64 {
        let of_user = records
            .iter()
            .filter(|it| it.is("event", "violation") && it.is("uid", user));
        of_user.filter_map(|it| it.number("refused").ok()).sum()
    };
    agent.wait_for("all refusals are told", |records| {
        let is_told = |user: &u32| told(records, *user) >= 2 * N_CALLS;
        USERS.iter().all(is_told).then_some(())
    })?;
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    for user in USERS {
        assert_eq!(told(&records, user), 2 * N_CALLS, "of user {user}");
    }
    detach(&lab)?;
    lab.close()
}
