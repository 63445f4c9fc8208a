//! Enforcement that nobody confirms ends by itself, on time, with nobody there to
//! end it; what was confirmed goes on.

mod world;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use trefoil_lab::agent::{AgentBuilder, detach, kernel_verb};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{REFUSED, at, enforcing, traffic};

const UDP_PORT: u16 = 9;
const TCP_PORT: u16 = 443;

/// An agent whose enforcement nobody has confirmed.
fn on_trial<'lab>(lab: &'lab Lab, within: &str) -> AgentBuilder<'lab> {
    lab.agent().policy(&enforcing()).settings(&format!(
        "confirm_within = \"{within}\"\nsweep_interval = \"100ms\"\n"
    ))
}

fn is_policy(record: &Record, state: &str) -> bool {
    record.is("event", "policy") && record.is("state", state)
}

/// Nanoseconds since boot.
fn now_ns() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// Until when the policy is enforced, by what `status` says, in nanoseconds since
/// boot; rounded to a microsecond by what it is written as.
fn end_of_trial_ns(lab: &Lab) -> Result<i64> {
    let outcome = kernel_verb(lab, "status", &["--json"])?;
    let status = serde_json::from_str::<serde_json::Value>(&outcome.stdout)?;
    let until = status["policy"]["enforced_until"]
        .as_str()
        .context("no trial")?;
    // date(1) reads it independently of what wrote it.
    let date = std::process::Command::new("date")
        .args(["--date", until, "+%s%N"])
        .output()?;
    let unix_ns: i64 = String::from_utf8(date.stdout)?.trim().parse()?;
    let real = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let unix_now_ns = real.tv_sec() * 1_000_000_000 + real.tv_nsec();
    Ok(now_ns()? + unix_ns - unix_now_ns)
}

/// Tries to send one datagram to the foreign host; true if it was let go.
fn leaves(lab: &Lab) -> Result<bool> {
    let outcome = traffic(lab)?
        .args(["udp", &at(places::FOREIGN, UDP_PORT)])
        .run()?;
    ensure!(
        outcome.code == 0 || outcome.code == REFUSED,
        "neither sent nor refused: {outcome:?}"
    );
    Ok(outcome.code == 0)
}

#[test]
fn nobody_confirms_and_the_kernel_ends_enforcement_on_time_with_the_agent_killed() -> Result<()> {
    // Two clocks are compared through text of microseconds, read one after the other.
    const SLACK_NS: i64 = 20_000_000;
    let lab = Lab::new()?;
    let _datagrams = UdpSink::new(&lab.foreign, UDP_PORT)?;
    let sink = TcpSink::new(&lab.foreign, TCP_PORT)?;
    // A connection from before, whose packets are dropped by a decision that its
    // socket keeps, and sent again and again.
    let mut older = traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN, TCP_PORT), "--hold", "peer"])
        .args(["--bytes", "1000"])
        .start()?;
    older.line()?;
    let agent = on_trial(&lab, "8s").start()?;
    let end_ns = end_of_trial_ns(&lab)?;
    ensure!(!leaves(&lab)?, "it is not enforced at all");
    agent.stop(Signal::SIGKILL)?;
    // An agent that lived would cut it.
    older.proceed()?;
    older.line()?;

    let (mut n_refused, mut n_let_go) = (0, 0);
    wait_for("the trial ends", || {
        let began_ns = now_ns()?;
        let left = leaves(&lab)?;
        let ended_ns = now_ns()?;
        if ended_ns < end_ns - SLACK_NS {
            ensure!(!left, "let go {} ns too early", end_ns - ended_ns);
            ensure!(sink.bytes() == 0, "the older connection got through");
            n_refused += 1;
        } else if began_ns > end_ns + SLACK_NS {
            ensure!(left, "refused {} ns too late", began_ns - end_ns);
            n_let_go += 1;
        }
        Ok((n_let_go >= 3).then_some(()))
    })?;
    ensure!(n_refused > 0, "never refused after the agent was killed");

    wait_for("the older connection goes on", || {
        Ok((sink.bytes() >= 1000).then_some(()))
    })?;
    older.finish()?.success()?;

    // The next agent says what became of it, and does not begin it anew.
    let mut agent = on_trial(&lab, "8s").start()?;
    agent.wait_for("the policy is reverted", |records| {
        records
            .iter()
            .any(|record| is_policy(record, "reverted"))
            .then_some(())
    })?;
    ensure!(leaves(&lab)?, "a restart began the trial anew");
    let status = kernel_verb(&lab, "status", &[])?;
    ensure!(
        status.code == 1 && status.stdout.contains("trefoil confirm"),
        "{status:?}"
    );
    let confirm = kernel_verb(&lab, "confirm", &[])?;
    ensure!(
        confirm.code == 1 && confirm.stdout.starts_with("Too late: "),
        "{confirm:?}"
    );

    // Somebody who reloads wants to try again.
    agent.reload(&enforcing())?;
    wait_for("it is tried again", || Ok((!leaves(&lab)?).then_some(())))?;
    agent.wait_for("it ends again", |records| {
        let reverted = records.iter().filter(|r| is_policy(r, "reverted"));
        (reverted.count() == 2).then_some(())
    })?;
    ensure!(
        leaves(&lab)?,
        "enforced after the record said that it is not"
    );
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn what_was_confirmed_is_enforced_without_an_end() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = on_trial(&lab, "20s").start()?;
    let end_ns = end_of_trial_ns(&lab)?;
    ensure!(!leaves(&lab)?, "it is not enforced at all");
    kernel_verb(&lab, "confirm", &[])?.success()?;
    agent.wait_for("a record of it", |records| {
        records
            .iter()
            .any(|record| is_policy(record, "confirmed"))
            .then_some(())
    })?;
    let again = kernel_verb(&lab, "confirm", &[])?;
    ensure!(
        again.code == 0 && again.stdout.contains("nothing is on trial"),
        "{again:?}"
    );
    wait_for("the trial would have ended", || {
        Ok((now_ns()? > end_ns).then_some(()))
    })?;
    ensure!(!leaves(&lab)?, "not enforced any more");
    // Nor do a restart or a reload put it on trial again.
    agent.stop(Signal::SIGKILL)?;
    let agent = on_trial(&lab, "1s").start()?;
    agent.reload(&enforcing())?;
    let deadline_ns = now_ns()? + 2_000_000_000;
    wait_for("another trial would have ended", || {
        Ok((now_ns()? > deadline_ns).then_some(()))
    })?;
    ensure!(!leaves(&lab)?, "a confirmed policy was put on trial again");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;

    let nothing = kernel_verb(&lab, "confirm", &[])?;
    ensure!(nothing.code == 1, "{nothing:?}");
    lab.close()
}

#[test]
fn a_new_address_does_not_repeat_that_a_trial_is_over() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = on_trial(&lab, "1s").start()?;
    let mut count = |state: &str, n: usize| {
        agent.wait_for(&format!("{n} times {state}"), |records| {
            let found = records.iter().filter(|record| is_policy(record, state));
            (found.count() >= n).then_some(())
        })
    };
    count("reverted", 1)?;
    for (number, address) in [(2, "192.0.2.77"), (3, "192.0.2.78")] {
        lab.host.ip(&format!("address add {address}/32 dev lo\n"))?;
        count("in-force", number)?;
    }
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let n_reverted = records.iter().filter(|r| is_policy(r, "reverted")).count();
    assert_eq!(n_reverted, 1);
    detach(&lab)?;
    lab.close()
}
