//! Owners of flows: processes that live for a moment, units and executables
//! that are new, sockets that are older than the agent.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{
    REFUSED, TRAFFIC, all_finals, approving, at, by_source_port, copies, enforcing, gapless, told,
    traffic, traffic_in,
};

const MANY: usize = 1000;
const FIRST_PORT: &str = "20000";

/// The resolver alone sends outside; who has asked it how much is in records about it.
#[test]
fn who_asks_a_resolver_on_this_host_is_told() -> Result<()> {
    const PORT: u16 = 5353;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let agent = lab.agent().policy(&approving());
    let mut agent = agent.settings("local_flows = true\n").start()?;
    let mut askers = BTreeSet::new();
    for (number, unit) in (1..).zip(["mail.service", "web.service"]) {
        let (port, to) = (PORT.to_string(), at(places::FOREIGN, 9));
        let mut resolver = traffic_in(&lab, "resolver.service")?
            .args(["relay", &port, &to])
            .start()?;
        resolver.line()?;
        let asker = traffic_in(&lab, unit)?
            .args(["udp", &format!("127.0.0.1:{PORT}"), "--size", "100"])
            .run()?
            .success()?;
        askers.insert((unit.to_owned(), told(&asker)?[0].number("pid")?));
        resolver.finish()?.success()?;
        sink.wait_for_packets(number)?;
    }
    let finals = agent.wait_for("a final record of each", |records| {
        all_finals(records, PORT, askers.len())
    })?;
    let about = |record: &Record| {
        for (name, expected) in [
            ("verdict", "local"),
            ("attribution", "direct"),
            ("dst_addr", "127.0.0.1"),
            ("bytes_out", "128"),
        ] {
            ensure!(record.is(name, expected), "{name}: {record}");
        }
        Ok((record.text("unit"), record.number("pid")?))
    };
    let told = finals.iter().map(about).collect::<Result<BTreeSet<_>>>()?;
    ensure!(told == askers, "{told:?} for {askers:?}");
    // The asker ends before the resolver does.
    let outside = agent.wait_for("what the resolvers sent", |records| {
        all_finals(records, 9, askers.len())
    })?;
    for record in &outside {
        ensure!(record.is("unit", "resolver.service"), "{record}");
    }
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn a_thousand_short_lived_processes_are_each_named() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let programs = copies(&lab, "bin", 10)?;
    let mut agent = lab.agent().policy(&approving()).start()?;

    let burst = traffic_in(&lab, "burst.service")?
        .args(["burst", &at(places::FOREIGN, 9), "--from", FIRST_PORT])
        .args(["--count", &MANY.to_string(), "--size", "64"])
        .args(
            programs
                .iter()
                .flat_map(|path| ["--program".as_ref(), path.as_os_str()]),
        )
        .run()?
        .success()?;
    sink.wait_for_packets(MANY as u64)?;
    assert_eq!(sink.by_source_port().len(), MANY, "every datagram arrives");

    let finals = agent.wait_for("a final record of each", |records| {
        all_finals(records, 9, MANY)
    })?;
    assert_eq!(finals.len(), MANY);
    let by_port = by_source_port(&finals)?;
    for child in told(&burst)? {
        let record = by_port
            .get(&child.number("port")?)
            .context("a flow without a record")?;
        for (name, expected) in [
            ("pid", child.text("pid")),
            ("exe", child.text("exe")),
            ("attribution", "direct".into()),
            ("unit", "burst.service".into()),
            ("ppid", burst.pid.to_string()),
            ("parent_exe", TRAFFIC.into()),
            ("uid", "0".into()),
            ("protocol", "udp".into()),
            ("src_addr", places::HOST.to_string()),
            ("dst_addr", places::FOREIGN.to_string()),
            ("dst_country", "CN".into()),
            ("direction", "outbound".into()),
            ("verdict", "approved".into()),
            ("rule", "anywhere".into()),
            ("outcome", "passed".into()),
            ("packets_out", "1".into()),
            ("bytes_out", (64 + 28).to_string()),
        ] {
            ensure!(
                record.is(name, &expected),
                "{name} is not {expected}: {record}"
            );
        }
    }
    // The name of a user may come late; a wrong one never comes.
    let users: BTreeSet<String> = finals.iter().map(|record| record.text("user")).collect();
    ensure!(users.contains("root"), "{users:?}");
    ensure!(
        users.iter().all(|user| user == "root" || user.is_empty()),
        "{users:?}"
    );
    let names: BTreeSet<String> = finals.iter().map(|record| record.text("flow")).collect();
    assert_eq!(names.len(), MANY, "each flow has an id of its own");
    gapless(&agent.stop(Signal::SIGINT)?.1)?;
    lab.close()
}

/// Approves units or executables called `good`, and nothing else.
fn only_good(from: &str) -> String {
    format!(
        "mode = \"enforce\"\n\
         [[rules]]\n\
         name = \"the good ones\"\n\
         from = {{ {from} }}\n\
         to = {{ networks = [\"198.51.100.0/24\"] }}\n\
         verdict = \"approve\"\n"
    )
}

/// Runs `traffic units` with these arguments and holds every exit code and every
/// record against what `is_good` says about the child.
fn judged_right(
    lab: &Lab,
    policy: &str,
    arguments: &[String],
    is_good: impl Fn(&Record) -> bool,
) -> Result<()> {
    let sink = TcpSink::new(&lab.peer, 5432)?;
    let mut agent = lab.agent().policy(policy).start()?;
    let units = traffic(lab)?
        .args(["units", &at(places::PEER, 5432), "--from", FIRST_PORT])
        .args(["--count", &MANY.to_string(), "--root"])
        .args([lab.unit("")?])
        .args(arguments)
        .run()?
        .success()?;
    let children = told(&units)?;
    assert_eq!(children.len(), MANY);
    let wrong: Vec<&Record> = children
        .iter()
        .filter(|child| !child.is("code", if is_good(child) { 0 } else { REFUSED }))
        .collect();
    ensure!(wrong.is_empty(), "{} judged wrong: {wrong:?}", wrong.len());

    let finals = agent.wait_for("a final record of each", |records| {
        all_finals(records, 5432, MANY)
    })?;
    assert_eq!(finals.len(), MANY);
    let by_pid: BTreeMap<String, &Record> = finals
        .iter()
        .map(|record| (record.text("pid"), record))
        .collect();
    for child in &children {
        let record = by_pid
            .get(&child.text("pid"))
            .context("a flow without a record")?;
        let good = is_good(child);
        for (name, expected) in [
            ("event", if good { "flow" } else { "violation" }),
            ("verdict", if good { "approved" } else { "unapproved" }),
            ("outcome", if good { "passed" } else { "refused" }),
            ("rule", if good { "the good ones" } else { "" }),
            ("unit", &child.text("unit")),
            ("exe", &child.text("exe")),
            ("attribution", "direct"),
        ] {
            ensure!(
                record.is(name, expected),
                "{name} is not {expected}: {record}"
            );
        }
    }
    let good = children.iter().filter(|child| is_good(child)).count() as u64;
    assert_eq!(sink.connections(), good);
    gapless(&agent.stop(Signal::SIGTERM)?.1)?;
    trefoil_lab::agent::detach(lab)
}

fn is_good_unit(child: &Record) -> bool {
    child.text("unit").starts_with("good@")
}

fn unit_templates() -> Vec<String> {
    ["--unit", "good@%.service", "--unit", "bad@%.service"]
        .map(String::from)
        .to_vec()
}

#[test]
fn a_new_unit_whose_first_process_connects_at_once() -> Result<()> {
    let lab = Lab::new()?;
    judged_right(
        &lab,
        &only_good("unit = \"good@*.service\""),
        &unit_templates(),
        is_good_unit,
    )?;
    lab.close()
}

#[test]
fn a_new_unit_whose_first_process_executes_a_program() -> Result<()> {
    let lab = Lab::new()?;
    let mut arguments = unit_templates();
    arguments.extend(["--program".to_owned(), TRAFFIC.to_owned()]);
    judged_right(
        &lab,
        &only_good("unit = \"good@*.service\""),
        &arguments,
        is_good_unit,
    )?;
    lab.close()
}

#[test]
fn a_new_executable_that_connects_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let original = lab.copy_program(TRAFFIC, "original")?;
    let mut arguments: Vec<String> = ["--unit", "one@%.service"].map(String::from).to_vec();
    for directory in ["good", "bad"] {
        std::fs::create_dir(lab.file(directory))?;
    }
    for number in 0..MANY {
        // Every process has a path that no process has had before.
        let directory = if number % 2 == 0 { "good" } else { "bad" };
        let link = lab.file(&format!("{directory}/x{number}"));
        std::fs::hard_link(&original, &link)?;
        arguments.extend(["--program".to_owned(), path_text(&link)?]);
    }
    let policy = only_good(&format!("exe = \"{}/*\"", path_text(&lab.file("good"))?));
    judged_right(&lab, &policy, &arguments, |child| {
        child.text("exe").contains("/good/")
    })?;
    lab.close()
}

fn path_text(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .context("a path that is not UTF-8")?
        .to_owned())
}

#[test]
fn sockets_older_than_the_agent_are_named_and_judged() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.peer, 5432)?;
    let foreign = TcpSink::new(&lab.foreign, 443)?;
    let bytes = ["--bytes", "5000"];
    let mut good = traffic_in(&lab, "old.service")?
        .args(["tcp", &at(places::PEER, 5432), "--hold", "peer"])
        .args(bytes)
        .start()?;
    let mut bad = traffic_in(&lab, "old.service")?
        .args(["tcp", &at(places::FOREIGN, 443), "--hold", "peer"])
        .args(bytes)
        .start()?;
    let mut datagrams = traffic_in(&lab, "old.service")?
        .args(["udp", &at(places::FOREIGN, 9), "--hold"])
        .start()?;
    for older in [&mut good, &mut bad, &mut datagrams] {
        older.line()?;
    }
    wait_for("both connections are accepted", || {
        Ok((sink.connections() + foreign.connections() == 2).then_some(()))
    })?;
    let (pids, foreign_before) = (
        [good.pid(), bad.pid(), datagrams.pid()],
        lab.link_to(&lab.foreign)?,
    );

    let mut agent = lab.agent().policy(&enforcing()).start()?;

    for older in [&mut good, &mut bad, &mut datagrams] {
        older.proceed()?;
    }
    let outcome = datagrams.finish()?;
    assert_eq!(outcome.code, REFUSED, "{}", outcome.stdout);
    good.line()?;
    good.finish()?.success()?;
    assert_eq!(sink.bytes(), 5000);

    for (pid, verdict) in pids.iter().zip(["approved", "denied", "denied"]) {
        let record = agent.wait_for(&format!("a record of process {pid}"), |records| {
            records.iter().find(|record| record.is("pid", pid)).cloned()
        })?;
        for (name, expected) in [
            ("verdict", verdict),
            ("unit", "old.service"),
            ("exe", TRAFFIC),
        ] {
            ensure!(
                record.is(name, expected),
                "{name} is not {expected}: {record}"
            );
        }
        ensure!(!record.is("attribution", "none"), "{record}");
    }
    let outcome = bad.finish()?;
    // It was cut before this end had closed its half, or while it waited for the other.
    ensure!(
        ["ENOTCONN", "ECONNABORTED"]
            .iter()
            .any(|error| outcome.stdout.contains(error)),
        "{outcome:?}"
    );
    let sent = lab.link_to(&lab.foreign)?.since(foreign_before);
    assert_eq!(sent.tx_packets, 1, "nothing but the reset leaves");
    assert_eq!(foreign.bytes(), 0);
    agent.stop(Signal::SIGTERM)?;
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}

/// Returns the record of a socket to which a shell does this, as descriptor 3.
fn handed_on(script: &str, packets: u64) -> Result<Record> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let mut agent = lab.agent().policy(&approving()).start()?;
    let script = format!("exec 3<>/dev/udp/203.0.113.10/9; {script}");
    lab.program("/bin/bash")?
        .args(["-c", &script])
        .run()?
        .success()?;
    assert_eq!(sink.wait_for_packets(packets)?.bytes, 6 * packets);
    let finals = agent.wait_for("the final record", |records| all_finals(records, 9, 1))?;
    let record = finals.first().context("no record")?.clone();
    agent.stop(Signal::SIGINT)?;
    lab.close()?;
    Ok(record)
}

#[test]
fn who_sends_on_a_socket_that_another_process_connected_is_named() -> Result<()> {
    let record = handed_on("/bin/echo hello >&3; :", 1)?;
    ensure!(record.is("attribution", "direct"), "{record}");
    ensure!(record.text("exe").ends_with("/echo"), "{record}");
    Ok(())
}

#[test]
fn a_socket_that_two_processes_send_on_is_not_ascribed_for_certain() -> Result<()> {
    let record = handed_on("echo hello >&3; /bin/echo hello >&3; :", 2)?;
    ensure!(record.is("attribution", "inferred"), "{record}");
    let exe = record.text("exe");
    ensure!(exe.ends_with("/bash") || exe.ends_with("/echo"), "{record}");
    Ok(())
}

#[test]
fn a_user_is_named() -> Result<()> {
    const NOBODY: u32 = 65534;
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.peer, 9)?;
    let program = lab.copy_program(TRAFFIC, "traffic")?;
    let mut agent = lab
        .agent()
        .policy(
            "mode = \"report\"\n[[rules]]\nname = \"nobody\"\nfrom = { user = \"nobody\" }\n\
             to = { networks = [\"198.51.100.0/24\"] }\nverdict = \"approve\"\n",
        )
        .start()?;
    // The first time, the name may come late; a look-up is under way then.
    for times in 1..=2 {
        let (user, root) = (lab.program_as(NOBODY, &program)?, lab.program(&program)?);
        user.args(["udp", &at(places::PEER, 9)]).run()?.success()?;
        root.args(["udp", &at(places::PEER, 9)]).run()?.success()?;
        let finals = agent.wait_for("both flows", |records| all_finals(records, 9, 2 * times))?;
        for (user, uid, verdict) in [("nobody", NOBODY, "approved"), ("root", 0, "unapproved")] {
            let record = finals
                .iter()
                .rfind(|record| record.is("uid", uid))
                .context(user)?;
            ensure!(record.is("verdict", verdict), "{record}");
            let named = record.is("user", user);
            ensure!(named || (times == 1 && record.is("user", "")), "{record}");
        }
    }
    assert_eq!(sink.wait_for_packets(4)?.packets, 4);
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// The agent knows its socket by the cookie in the tag, which a socket that is older has none of.
#[test]
fn a_socket_older_than_the_agent_has_one_flow_for_each_peer() -> Result<()> {
    const ROUNDS: usize = 3;
    let lab = Lab::new()?;
    let _sink = UdpSink::new(&lab.peer, 9)?;
    let mut older = traffic_in(&lab, "old.service")?
        .args(["udp", &at(places::PEER, 9), "--hold"])
        .start()?;
    older.line()?;
    let agent = lab.agent().policy(&enforcing());
    let mut agent = agent.settings("heartbeat_interval = \"1s\"\n").start()?;
    for round in 1..=ROUNDS {
        older.proceed()?;
        older.line()?;
        // Between two heartbeats the agent has looked which sockets there are.
        agent.wait_for("heartbeats", |records| {
            let beats = records
                .iter()
                .filter(|record| record.is("event", "heartbeat"));
            (beats.count() >= 3 * round).then_some(())
        })?;
    }
    older.finish()?.success()?;
    let finals = agent.wait_for("the final record", |records| all_finals(records, 9, 1))?;
    let record = finals.first().context("no record")?;
    ensure!(
        record.is("packets_out", ROUNDS) && record.is("attribution", "direct"),
        "{record}"
    );
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let finals = records.iter().filter(|record| world::is_final(record));
    ensure!(
        finals.clone().count() == 1,
        "{:?}",
        finals.collect::<Vec<_>>()
    );
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}
