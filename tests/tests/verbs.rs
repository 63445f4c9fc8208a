//! `flows` and `explain`: questions that anyone may ask at any time.

mod world;

use std::{fs::Permissions, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{acknowledge, kernel_verb, trefoil, verb};
use trefoil_lab::{Lab, Record, places, sink::TcpSink, wait_for};
use world::{TRAFFIC, at, enforcing, traffic_in};

/// The open flow of process `pid`, as `flows --json` shows it.
fn open_flow(lab: &Lab, pid: u32) -> Result<Option<Record>> {
    let outcome = kernel_verb(lab, "flows", &["--json"])?.success()?;
    let records: Vec<Record> = outcome
        .stdout
        .lines()
        .map(Record::parse)
        .collect::<Result<_>>()?;
    Ok(records.into_iter().find(|record| record.is("pid", pid)))
}

#[test]
fn flows_shows_what_is_open_with_the_agent_alive_or_dead() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.peer, 5432)?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let mut held = traffic_in(&lab, "shop.service")?
        .args([
            "tcp",
            &at(places::PEER, 5432),
            "--hold",
            "peer",
            "--bytes",
            "1000",
        ])
        .start()?;
    held.line()?;
    held.proceed()?;
    held.line()?;
    let pid = held.pid();
    for agent_is in ["alive", "dead"] {
        let flow = wait_for(&format!("the flow, the agent {agent_is}"), || {
            Ok(open_flow(&lab, pid)?
                .filter(|flow| flow.number("bytes_out").is_ok_and(|bytes| bytes > 1000)))
        })?;
        for (name, expected) in [
            ("unit", "shop.service"),
            ("exe", TRAFFIC),
            ("dst_addr", "198.51.100.10"),
            ("dst_port", "5432"),
            ("protocol", "tcp"),
            ("verdict", "approved"),
        ] {
            ensure!(
                flow.is(name, expected),
                "{agent_is}: {name} is not {expected}: {flow}"
            );
        }
        let table = kernel_verb(&lab, "flows", &[])?.success()?;
        ensure!(
            table.stdout.contains("198.51.100.10"),
            "{agent_is}: {}",
            table.stdout
        );
        if agent_is == "alive" {
            agent.signal(Signal::SIGKILL)?;
            wait_for("the agent is gone", || {
                Ok(kernel_verb(&lab, "status", &[])?.code.eq(&1).then_some(()))
            })?;
        }
    }
    held.finish()?.success()?;
    wait_for("the flow is gone", || {
        Ok(open_flow(&lab, pid)?.is_none().then_some(()))
    })?;
    drop(agent);
    lab.close()
}

#[test]
fn explain_names_the_rule_and_why_not_the_others() -> Result<()> {
    let lab = Lab::new()?;
    let policy = lab.file("explained.toml");
    std::fs::write(&policy, enforcing())?;
    let (v4, v6) = (lab.file("geoip"), lab.file("geoip6"));
    let mut common = vec!["explain", "--policy", policy.to_str().context("path")?];
    for file in [&v4, &v6] {
        common.extend(["--geo", file.to_str().context("path")?]);
    }
    for (to, verdict, rule) in [
        ("198.51.100.7:443", "approved", Some("the peer")),
        ("203.0.113.7:443", "denied", Some("never there")),
        ("[2001:db8:3::7]:443", "denied", Some("never there")),
        ("[::ffff:203.0.113.7]:443", "denied", Some("never there")),
        ("203.0.113.200:443", "undetermined", None),
        ("192.0.2.10:443", "unapproved", None),
        ("127.0.0.1:443", "local", None),
    ] {
        let mut words = common.clone();
        words.extend(["--protocol", "tcp", "--to", to]);
        let outcome = verb(&lab, &words)?;
        ensure!(
            outcome.stdout.contains(verdict),
            "{to} is not {verdict}: {outcome:?}"
        );
        if let Some(rule) = rule {
            ensure!(outcome.stdout.contains(rule), "{to}: {outcome:?}");
        }
    }
    lab.close()
}

#[test]
fn wrong_usage_has_its_own_exit_code() -> Result<()> {
    let lab = Lab::new()?;
    for words in [
        &["run", "--no-such-flag"][..],
        &["no-such-verb"],
        &["explain", "--to", "x:y"],
        &["explain", "--to", "203.0.113.7:443", "--protocol", "icmp"],
        &["explain", "--to", "203.0.113.7:443", "--exe", "curl"],
    ] {
        let outcome = verb(&lab, words)?;
        ensure!(outcome.code == 2, "{words:?}: {outcome:?}");
        ensure!(
            !outcome.stderr.is_empty(),
            "{words:?} was refused without a word"
        );
    }
    lab.close()
}

#[test]
fn whoever_may_not_look_is_told_so() -> Result<()> {
    const NOT_PERMITTED: i32 = 77;
    const NOBODY: u32 = 65_534;
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    // Anybody may list the lab's pins; the usual place is root's.
    let closed = lab.file("closed");
    std::fs::create_dir(&closed)?;
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700))?;
    for pins in [lab.pins(), closed.join("trefoil")] {
        let pins = pins.to_str().context("path")?;
        for name in ["status", "flows", "detach"] {
            let outcome = lab
                .program_as(NOBODY, trefoil()?)?
                .args([name, "--pin-dir", pins])
                .run()?;
            ensure!(outcome.code == NOT_PERMITTED, "{name} {pins}: {outcome:?}");
            ensure!(outcome.stdout.is_empty(), "{name} {pins}: {outcome:?}");
        }
    }
    acknowledge(&lab)?;
    let healthy = kernel_verb(&lab, "status", &[])?;
    ensure!(healthy.code == 0, "somebody could do harm: {healthy:?}");
    agent.stop(Signal::SIGTERM)?;
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let settings = lab.settings()?;
    acknowledge(&lab)?;
    for words in [
        &["status"][..],
        &["explain", "--to", "203.0.113.7:443"],
        // Nothing is open, so it never writes anything.
        &["flows", "--follow"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut child = Command::new(trefoil()?)
            .args(words)
            .arg("--config")
            .arg(&settings)
            .stdout(writer)
            .spawn()?;
        let status = wait_for(&format!("{words:?} ends"), || Ok(child.try_wait()?))?;
        assert_eq!(status.code(), Some(0), "{words:?}");
    }
    agent.stop(Signal::SIGTERM)?;
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}
