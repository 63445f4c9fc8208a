//! `learn`, `diff` and `check --against`: what was seen, held against policies.

mod world;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{detach, kernel_verb, verb};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::Outcome;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{REFUSED, TRAFFIC, at, finds_only_the_kernel, is_final, traffic_in};

/// A user of the host under test that is not root.
const NOBODY: u32 = 65_534;
/// Far ends that receive, while they live.
struct World {
    _tcp: Vec<TcpSink>,
    _udp: Vec<UdpSink>,
}

impl World {
    fn new(lab: &Lab) -> Result<Self> {
        Ok(Self {
            _tcp: vec![
                TcpSink::new(&lab.peer, 443)?,
                TcpSink::new(&lab.peer, 22)?,
                TcpSink::new(&lab.foreign, 443)?,
            ],
            _udp: vec![
                UdpSink::new(&lab.foreign, 53)?,
                UdpSink::new(&lab.peer, 123)?,
            ],
        })
    }
}

/// A client that connects to a server of the host under test and reads to the end.
fn client(place: &Namespace, host: IpAddr, port: u16) -> Result<()> {
    place.enter(|| {
        let mut stream = TcpStream::connect((host, port))?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    })
}

/// Traffic of the host under test on a day: several services, TCP, UDP, ICMP and a
/// protocol without a name, IPv4 and IPv6, sessions of clients, hundreds of flows.
fn day(lab: &Lab) -> Result<()> {
    let run = |unit: &str, arguments: &[&str]| -> Result<()> {
        let outcome = traffic_in(lab, unit)?.args(arguments).run()?;
        ensure!(outcome.code == 0, "{unit} {arguments:?}: {outcome:?}");
        Ok(())
    };
    for to in [at(places::PEER, 443), at(places::PEER6, 443)] {
        for _ in 0..10 {
            run("shop.service", &["tcp", &to, "--bytes", "3000"])?;
        }
    }
    run("shop.service", &["tcp", &at(places::FOREIGN, 443)])?;
    run(
        "backup@7.service",
        &["tcp", &at(places::PEER, 22), "--bytes", "200000"],
    )?;
    let names = at(places::FOREIGN, 53);
    let burst = traffic_in(lab, "names.service")?
        .args(["burst", &names, "--count", "200", "--program", TRAFFIC])
        .run()?
        .success()?;
    ensure!(
        world::told(&burst)?.iter().all(|one| one.is("code", 0)),
        "{burst:?}"
    );
    let clocks = at(places::PEER, 123);
    run(
        "clock.service",
        &[
            "udp-many",
            &clocks,
            "--destinations",
            "20",
            "--count",
            "200",
        ],
    )?;
    for to in [places::FOREIGN, places::FOREIGN6] {
        run("watch.service", &["ping", &to.to_string()])?;
    }
    run("watch.service", &["raw", &places::PEER.to_string()])?;
    // In no unit, and as somebody else.
    run("odd", &["udp", &at(places::FOREIGN6, 53)])?;
    lab.program_as(NOBODY, TRAFFIC)?
        .args(["udp", &at(places::GATEWAY, 9)])
        .run()?
        .success()?;
    for (place, host) in [(&lab.foreign, places::HOST), (&lab.peer, places::HOST6)] {
        let mut server = traffic_in(lab, "web.service")?
            .args(["serve", "8080", "--bytes", "50000"])
            .start()?;
        server.line()?;
        client(place, host, 8080)?;
        server.finish()?.success()?;
    }
    Ok(())
}

/// Waits until the agent has told of all flows of [`day`], and ends it.
fn recorded(agent: trefoil_lab::agent::Agent<'_>) -> Result<Vec<Record>> {
    let (_, records) = agent.stop(Signal::SIGINT)?;
    let n_flows = records.iter().filter(|record| is_final(record)).count();
    ensure!(n_flows > 200, "only {n_flows} flows");
    Ok(records)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// The file that the agent wrote last.
fn newest_records(lab: &Lab) -> Result<PathBuf> {
    let mut newest = None;
    for entry in fs::read_dir(&lab.directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("records-") && name.ends_with(".json") {
            newest = newest.max(Some((entry.metadata()?.modified()?, entry.path())));
        }
    }
    newest.map(|(_, path)| path).context("no records")
}

/// A verb with the lab's country data.
fn with_geo(lab: &Lab, words: &[&str]) -> Result<Outcome> {
    let (v4, v6) = (lab.file("geoip"), lab.file("geoip6"));
    let mut all = words.to_vec();
    for file in [&v4, &v6] {
        all.extend(["--geo", path(file)?]);
    }
    let settings = lab.settings()?;
    all.extend(["--config", path(&settings)?]);
    verb(lab, &all)
}

/// Every record of what was not approved.
fn violations(records: &[Record]) -> Vec<&Record> {
    let all = records.iter();
    all.filter(|record| record.is("event", "violation"))
        .collect()
}

#[test]
fn what_was_learned_approves_the_same_again_and_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let _world = World::new(&lab)?;
    let agent = lab.agent().start()?;
    day(&lab)?;
    let first_day = recorded(agent)?;
    ensure!(violations(&first_day).len() > 200);
    let records = newest_records(&lab)?;
    let learned = verb(&lab, &["learn", path(&records)?])?;
    assert_eq!(learned.code, 0, "{learned:?}");
    let text = &learned.stdout;
    for part in [
        r#"from    = { unit = "shop.service" }"#,
        r#"from    = { unit = "backup@7.service" }"#,
        r#"ports = ["53/udp"]"#,
        r#"protocols = ["icmp"]"#,
        r#"protocols = ["icmpv6"]"#,
        "\"web.service answers 2 clients, 8080/tcp\"",
    ] {
        ensure!(text.contains(part), "{part} is not in:\n{text}");
    }
    // The journal has the same facts.
    let journal = lab.journal()?;
    let last = first_day.last().context("no records")?.text("seq");
    wait_for("the journal has all", || {
        let sequence = format!("TREFOIL_SEQ={last}");
        Ok(journal.entries(&[&sequence])?.pop())
    })?;
    let exported = lab.file("journal.json");
    fs::write(&exported, journal.text(&["-o", "json", "--all"])?)?;
    let from_journal = verb(&lab, &["learn", path(&exported)?])?;
    assert_eq!(from_journal.code, 0, "{from_journal:?}");
    assert_eq!(&from_journal.stdout, text);

    // The policy stands every test that there is before it is put in force.
    let policy = lab.file("learned.toml");
    fs::write(&policy, text)?;
    let checked = with_geo(
        &lab,
        &["check", path(&policy)?, "--against", path(&records)?],
    )?;
    ensure!(finds_only_the_kernel(&checked), "{checked:?}");
    ensure!(
        checked.stdout.contains("would have dropped nothing"),
        "{checked:?}"
    );
    let alike = with_geo(
        &lab,
        &["diff", path(&policy)?, path(&policy)?, path(&records)?],
    )?;
    assert_eq!(alike.code, 0, "{alike:?}");

    let enforced = text.replace("mode = \"report\"", "mode = \"enforce\"");
    let agent = lab.agent().policy(&enforced).start()?;
    day(&lab)?;
    let outcome = traffic_in(&lab, "shop.service")?
        .args(["udp", &at(places::FOREIGN, 443)])
        .run()?;
    assert_eq!(outcome.code, REFUSED, "{outcome:?}");
    let second_day = {
        let (_, records) = agent.stop(Signal::SIGTERM)?;
        detach(&lab)?;
        records
    };
    let violations = violations(&second_day);
    ensure!(
        violations
            .iter()
            .all(|record| record.is("unit", "shop.service")
                && record.is("dst_port", 443)
                && record.is("protocol", "udp")),
        "{violations:?}\n{text}"
    );
    ensure!(!violations.is_empty());

    // Held against the policy, the day has one flow too many.
    let records = newest_records(&lab)?;
    let checked = with_geo(
        &lab,
        &[
            "check",
            path(&policy)?,
            "--json",
            "--against",
            path(&records)?,
        ],
    )?;
    assert_eq!(checked.code, 1, "{checked:?}");
    let json: serde_json::Value = serde_json::from_str(&checked.stdout)?;
    let would_drop = json["against"]["would_drop"].as_array().context("a list")?;
    ensure!(
        would_drop.len() == 1
            && would_drop[0]["unit"] == "shop.service"
            && would_drop[0]["flows"] == 1
            && json["against"]["may_drop"]
                .as_array()
                .is_some_and(Vec::is_empty),
        "{json}"
    );
    lab.close()
}

#[test]
fn diff_and_check_say_what_another_policy_would_do_to_what_was_seen() -> Result<()> {
    let lab = Lab::new()?;
    let _world = World::new(&lab)?;
    let agent = lab.agent().policy(&world::reporting()).start()?;
    day(&lab)?;
    let records = recorded(agent)?;
    let file = newest_records(&lab)?;
    let (old, new) = (lab.file("old.toml"), lab.file("new.toml"));
    fs::write(&old, world::reporting())?;
    fs::write(
        &new,
        world::reporting().replace("2001:db8:2::/48", "2001:db8:3::/48"),
    )?;
    let diff = with_geo(
        &lab,
        &["diff", path(&old)?, path(&new)?, path(&file)?, "--json"],
    )?;
    assert_eq!(diff.code, 1, "{diff:?}");
    let json: serde_json::Value = serde_json::from_str(&diff.stdout)?;
    let sum = |list: &str, what: &str| -> Result<u64> {
        let groups = json[list].as_array().context("a list")?.iter();
        Ok(groups.filter_map(|group| group[what].as_u64()).sum())
    };
    let seen = |place: &str, what: &str| -> Result<u64> {
        let finals = records.iter().filter(|record| is_final(record));
        let there = finals.filter(|record| record.text("dst_addr").starts_with(place));
        match what {
            "flows" => Ok(there.count() as u64),
            what => there.map(|record| record.number(what)).sum(),
        }
    };
    for what in ["flows", "bytes_out"] {
        assert_eq!(
            (
                sum("no_longer_approved", what)?,
                sum("newly_approved", what)?
            ),
            (seen("2001:db8:2:", what)?, seen("2001:db8:3:", what)?),
            "{what} of {json}"
        );
    }
    ensure!(seen("2001:db8:2:", "flows")? > 10 && seen("2001:db8:3:", "flows")? > 1);
    let text = with_geo(&lab, &["diff", path(&old)?, path(&new)?, path(&file)?])?.stdout;
    for part in [
        "no longer approved",
        "newly approved",
        "denied by rule \"never there\"",
    ] {
        ensure!(text.contains(part), "{text}");
    }

    let checked = with_geo(&lab, &["check", path(&old)?, "--against", path(&file)?])?;
    assert_eq!(checked.code, 1, "{checked:?}");
    for part in [
        "would have been dropped",
        "names.service",
        "203.0.113.10:53/udp (CN)",
    ] {
        ensure!(checked.stdout.contains(part), "{part}: {checked:?}");
    }

    // Rolled up, there are no addresses, and nobody guesses.
    let agent = lab
        .agent()
        .policy(&world::approving())
        .flows("rollup")
        .start()?;
    day(&lab)?;
    agent.stop(Signal::SIGINT)?;
    let rolled = newest_records(&lab)?;
    let learned = verb(&lab, &["learn", path(&rolled)?])?;
    assert_eq!(learned.code, 0, "{learned:?}");
    ensure!(
        !learned.stdout.contains("[[rules]]") && learned.stdout.contains("rolled up"),
        "{learned:?}"
    );
    let checked = with_geo(&lab, &["check", path(&old)?, "--against", path(&rolled)?])?;
    assert_eq!(checked.code, 1, "{checked:?}");
    ensure!(
        checked.stdout.contains("may have been dropped"),
        "{checked:?}"
    );
    lab.close()
}

#[test]
fn learn_sees_what_is_open_with_the_agent_dead() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.peer, 5432)?;
    let agent = lab.agent().policy(&world::approving()).start()?;
    let to = at(places::PEER, 5432);
    let mut held = traffic_in(&lab, "shop.service")?
        .args(["tcp", &to, "--hold", "peer", "--bytes", "1000"])
        .start()?;
    held.line()?;
    held.proceed()?;
    held.line()?;
    agent.signal(Signal::SIGKILL)?;
    wait_for("the agent is gone", || {
        Ok(kernel_verb(&lab, "status", &[])?.code.eq(&1).then_some(()))
    })?;
    let learned = kernel_verb(&lab, "learn", &[])?;
    assert_eq!(learned.code, 0, "{learned:?}");
    for part in [
        r#"from    = { unit = "shop.service" }"#,
        r#"to      = { networks = ["198.51.100.10/32"], ports = ["5432/tcp"] }"#,
    ] {
        ensure!(learned.stdout.contains(part), "{learned:?}");
    }
    held.finish()?.success()?;
    drop(agent);
    lab.close()
}

#[test]
fn what_cannot_be_read_is_no_evidence() -> Result<()> {
    let lab = Lab::new()?;
    let missing = verb(&lab, &["learn", "/nowhere/records.json"])?;
    ensure!(missing.code == 1 && missing.stderr.contains("/nowhere/records.json"));
    let empty = lab.file("empty.json");
    fs::write(&empty, "")?;
    let nothing = verb(&lab, &["learn", path(&empty)?])?;
    ensure!(
        nothing.code == 1 && nothing.stderr.contains("no record") && nothing.stdout.is_empty(),
        "{nothing:?}"
    );
    let agent = lab.agent().start()?;
    agent.stop(Signal::SIGINT)?;
    let records = newest_records(&lab)?;
    let broken = lab.file("broken.json");
    fs::write(&broken, fs::read_to_string(&records)? + "{\"event\":\"fl")?;
    let half = verb(&lab, &["learn", path(&broken)?])?;
    ensure!(
        half.code == 1 && half.stderr.contains("broken.json:") && half.stdout.contains("NOT ALL"),
        "{half:?}"
    );
    let twice = verb(&lab, &["learn", "-", "-"])?;
    assert_eq!(twice.code, 2, "{twice:?}");
    lab.close()
}
