//! Budgets and exceptions: the kernel counts and stops, with nobody there to do it.

mod world;

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use trefoil_lab::agent::detach;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::program::Program;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{container, forward};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{REFUSED, TRAFFIC, all_of, at, traffic};

const PORT: u16 = 9;
/// Bytes of a datagram with its headers, IP and UDP.
const PACKET: u64 = 1_000;
const PAYLOAD: &str = "972";

/// A policy that approves the foreign host within a limit, and denies it beyond.
fn limited(limit: &str) -> String {
    format!(
        r#"mode = "enforce"

[[rules]]
name    = "a little"
to      = {{ networks = ["{}/32"] }}
verdict = "approve"
{limit}

[[rules]]
name    = "never there"
to      = {{ networks = ["{}/32"] }}
verdict = "deny"
"#,
        places::FOREIGN,
        places::FOREIGN
    )
}

/// Sends datagrams of [`PACKET`] bytes to the foreign host, one process for each, until
/// one is refused; at most this many.
fn send(lab: &Lab, most: usize) -> Result<usize> {
    for n_sent in 0..most {
        let outcome = traffic(lab)?
            .args(["udp", &at(places::FOREIGN, PORT), "--size", PAYLOAD])
            .run()?;
        match outcome.code {
            0 => {}
            REFUSED => return Ok(n_sent),
            _ => anyhow::bail!("neither sent nor refused: {outcome:?}"),
        }
    }
    Ok(most)
}

fn is_about(record: &Record, event: &str, state: &str) -> bool {
    record.is("event", event) && record.is("state", state)
}

/// Nanoseconds since 1970.
fn unix_ns() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// A second since 1970, as TOML writes it.
fn moment(at: i64) -> Result<String> {
    let date = std::process::Command::new("date")
        .args(["--utc", "--date", &format!("@{at}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

#[test]
fn a_budget_holds_with_the_agent_killed_and_rolls() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let policy = limited(r#"budget = { bytes = "10500 B", per = "60s" }"#);
    let mut agent = lab
        .agent()
        .policy(&policy)
        .settings("sweep_interval = \"100ms\"\n")
        .start()?;
    ensure!(send(&lab, 9)? == 9, "refused within the budget");
    agent.wait_for("four fifths are used", |records| {
        let near = records
            .iter()
            .find(|record| is_about(record, "budget", "near"))?;
        Some((near.text("subject"), near.number("bytes_out").ok()?))
    })?;
    // A reload sets nothing back, and neither does a killed agent.
    agent.reload(&format!("{policy}# the same\n"))?;
    agent.stop(Signal::SIGKILL)?;
    let n_sent = send(&lab, 50)?;
    // The second does not fit, is dropped, and takes the rest.
    ensure!(n_sent == 1, "{n_sent} more were sent");
    ensure!(
        sink.wait_for_packets(10)?.packets == 10,
        "something was let go beyond the budget"
    );
    ensure!(send(&lab, 1)? == 0, "the budget was not used up");

    let mut agent = lab
        .agent()
        .policy(&policy)
        .settings("sweep_interval = \"100ms\"\n")
        .start()?;
    ensure!(send(&lab, 1)? == 0, "a new agent set the budget back");
    agent.wait_for("it is used up", |records| {
        let used_up = records
            .iter()
            .find(|record| is_about(record, "budget", "used-up"))?;
        (used_up.is("rule", "a little") && used_up.is("bytes_limit", 10_500)).then_some(())
    })?;
    agent.wait_for("the violation names it", |records| {
        let over = records
            .iter()
            .find(|record| record.is("verdict", "over-budget"))?;
        (over.is("event", "violation") && over.is("rule", "a little")).then_some(())
    })?;

    // The window rolls on with nobody there.
    agent.stop(Signal::SIGKILL)?;
    let room = || {
        wait_for("there is room again", || {
            Ok((send(&lab, 1)? == 1).then_some(()))
        })
    };
    // The window is as long as a wait is.
    room().or_else(|_| room())?;
    let arrived = sink.wait_for_packets(11)?;
    ensure!(arrived.packets == 11, "{} packets", arrived.packets);
    lab.agent().policy(&policy).start()?.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn in_report_mode_a_budget_is_charged_as_in_enforce_mode_and_nothing_is_dropped() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let policy = limited(r#"budget = { bytes = "2 KiB", per = "1h" }"#)
        .replace("mode = \"enforce\"", "mode = \"report\"");
    let mut agent = lab
        .agent()
        .policy(&policy)
        .settings("sweep_interval = \"100ms\"\n")
        .start()?;
    ensure!(send(&lab, 5)? == 5, "report mode refused something");
    ensure!(sink.wait_for_packets(5)?.bytes == 5 * (PACKET - 28));
    agent.wait_for("it would have been dropped", |records| {
        let over = records.iter().find(|record| {
            record.is("verdict", "over-budget") && record.is("outcome", "would-drop")
        })?;
        over.is("rule", "a little").then_some(())
    })?;
    // As far as enforce mode would have let it: the window has room again when it would have then.
    let used = agent.wait_for("the budget is used up", |records| {
        let mut all = records.iter();
        let used_up = all.find(|record| is_about(record, "budget", "used-up"))?;
        used_up.number("bytes_out").ok()
    })?;
    ensure!(used == 2048, "{used} bytes of 2048 are charged");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// Sends until the exception has ended, at this moment. Returns how often it was used.
fn ends_at(lab: &Lab, end_ns: i64) -> Result<u64> {
    // Attempt by attempt, with room for what reading two clocks takes.
    const SLACK_NS: i64 = 20_000_000;
    let (mut n_sent, mut n_refused) = (0, 0);
    wait_for("it ends", || {
        let began_ns = unix_ns()?;
        let left = send(lab, 1)? == 1;
        if unix_ns()? < end_ns - SLACK_NS {
            ensure!(left, "it has ended too early");
            n_sent += 1;
        } else if began_ns > end_ns + SLACK_NS {
            ensure!(!left, "it has not ended in time");
            n_refused += 1;
        }
        Ok((n_refused >= 3).then_some(()))
    })?;
    Ok(n_sent)
}

/// The clock by which kernel programs go is another one than that of an agent in such a namespace.
#[test]
fn an_exception_ends_on_time_in_a_time_namespace() -> Result<()> {
    const TEN_DAYS_S: u32 = 864_000;
    let lab = Lab::new()?;
    let _sink = UdpSink::new(&lab.foreign, PORT)?;
    let end = unix_ns()? / 1_000_000_000 + 40;
    let policy = limited(&format!(
        r#"exception = {{ id = "EX-12", basis = "Art. 49(1)(e)", reason = "disk array failure",
              approved_by = ["dpo", "auditor"], expires = {} }}"#,
        moment(end)?
    ));
    let agent = lab.agent().policy(&policy);
    let mut agent = agent.in_time_namespace(TEN_DAYS_S).start()?;
    let time_of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time"));
    ensure!(time_of(&agent.pid().to_string())? != time_of("self")?);
    let before_ns = unix_ns()?;
    ensure!(send(&lab, 1)? == 1, "it has ended too early");
    let after_ns = unix_ns()?;
    let started = agent.wait_for("its use is told", |records| {
        let flow = records
            .iter()
            .find(|record| record.is("event", "flow") && record.is("verdict", "exception"))?;
        Some(flow.text("started"))
    })?;
    // Times of one form are in the order of their letters.
    const SLACK_NS: i64 = 1_000_000_000;
    let [first, last] = [before_ns - SLACK_NS, after_ns + SLACK_NS]
        .map(|at_ns| moment(at_ns.div_euclid(1_000_000_000)));
    let (first, last) = (first?, last?);
    ensure!(
        (first.as_str()..=last.as_str()).contains(&started.as_str()),
        "started at {started}, and not from {first} to {last}"
    );
    ends_at(&lab, end * 1_000_000_000)?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn an_exception_ends_on_time_with_the_agent_killed() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, PORT)?;
    let end = unix_ns()? / 1_000_000_000 + 40;
    let (end_ns, expires) = (end * 1_000_000_000, moment(end)?);
    let policy = limited(&format!(
        r#"exception = {{ id = "EX-12", basis = "Art. 49(1)(e)", reason = "disk array failure",
              approved_by = ["dpo", "auditor"], expires = {expires} }}"#
    ));
    let mut agent = lab
        .agent()
        .policy(&policy)
        .settings("sweep_interval = \"100ms\"\n")
        .start()?;
    // A socket that lives longer than the exception, and keeps what was decided for it.
    let mut older = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, PORT), "--connected", "--hold"])
        .args(["--size", PAYLOAD])
        .start()?;
    older.line()?;
    older.proceed()?;
    older.line()?;
    for state in ["in-force", "used", "ends-soon"] {
        agent.wait_for(state, |records| {
            let record = records
                .iter()
                .find(|record| is_about(record, "exception", state))?;
            let is_whole = record.is("subject", "EX-12")
                && record.is("basis", "Art. 49(1)(e)")
                && record.is("reason", "disk array failure")
                && record.is("approved_by", "dpo, auditor")
                && record.is("rule", "a little");
            is_whole.then_some(())
        })?;
    }
    agent.wait_for("each use has a record of its own", |records| {
        let flow = records
            .iter()
            .find(|record| record.is("event", "flow") && record.is("verdict", "exception"))?;
        flow.is("rule", "a little").then_some(())
    })?;
    agent.stop(Signal::SIGKILL)?;

    let n_sent = ends_at(&lab, end_ns)?;
    ensure!(n_sent > 0, "it was never used with the agent killed");
    // Packets of the older socket are dropped on their way from now on, and it is told so.
    let before = sink.arrived().packets;
    older.proceed()?;
    let older = older.finish()?;
    ensure!(older.code == REFUSED, "{older:?}");
    ensure!(send(&lab, 1)? == 0);
    ensure!(
        sink.arrived().packets == before,
        "the older socket sends on"
    );

    // The next agent says so, and the rule behind it decides.
    let mut agent = lab.agent().policy(&policy).start()?;
    agent.wait_for("it has expired", |records| {
        let expired = records
            .iter()
            .find(|record| is_about(record, "exception", "expired"))?;
        (expired.number("bytes_out").ok()? >= 2 * PACKET).then_some(())
    })?;
    agent.wait_for("the next rule decides", |records| {
        let denied = records
            .iter()
            .find(|record| record.is("verdict", "denied"))?;
        denied.is("rule", "never there").then_some(())
    })?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// Root of a container holds packets back, behind the hook of their socket, by a queue of its own.
#[test]
fn packets_that_wait_do_not_leave_by_an_exception_that_is_over() -> Result<()> {
    const COUNT: u64 = 20;
    let lab = Lab::new()?;
    forward(&lab.host)?;
    let place = container(&lab.host, "container", 21)?.place;
    let tap = Tap::new(&lab.foreign)?;
    // One packet in two seconds.
    place.tc("qdisc add dev to-host root tbf rate 4kbit burst 1100 limit 100000\n")?;
    let end = unix_ns()? / 1_000_000_000 + 20;
    let policy = limited(&format!(
        r#"exception = {{ id = "EX-12", basis = "Art. 49(1)(e)", reason = "disk array failure",
              approved_by = ["dpo", "auditor"], expires = {} }}"#,
        moment(end)?
    ));
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let sent_before = LinkCounters::read(&place, "to-host")?.tx_packets;
    let unit = lab.unit("container.service")?;
    let (to, count) = (at(places::FOREIGN, PORT), COUNT.to_string());
    Program::new(TRAFFIC, &place, Some(&unit), None)?
        .args([
            "udp",
            &to,
            "--connected",
            "--size",
            "900",
            "--count",
            &count,
        ])
        .run()?
        .success()?;
    // A packet that has waited for a second at the most may still be on its way.
    wait_for("the exception is over", || {
        Ok((unix_ns()? > (end + 2) * 1_000_000_000).then_some(()))
    })?;
    let arrived = tap.to(places::FOREIGN).packets;
    wait_for("the queue is empty", || {
        let sent = LinkCounters::read(&place, "to-host")?.tx_packets - sent_before;
        Ok((sent >= COUNT).then_some(()))
    })?;
    all_of(agent, &lab)?;
    let late = tap.to(places::FOREIGN).packets - arrived;
    ensure!(
        arrived < COUNT && late == 0,
        "{arrived} have left by the exception, and {late} when it was over"
    );
    lab.close()
}
