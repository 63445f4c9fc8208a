//! `trefoil trace` says of calls and packets which hook saw them, what it found and why it decided
//! so; and it changes nothing.

mod world;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{acknowledge, detach, kernel_verb};
use trefoil_lab::program::Program;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tracer::Tracer;
use trefoil_lab::wiring::guest;
use trefoil_lab::{Lab, Record, places};
use world::books::{OFTEN, books};
use world::{REFUSED, TRAFFIC, all_of, at, enforcing, is_final, reporting, traffic, traffic_in};

/// A trace that lasts until it is ended.
const LONG: [&str; 2] = ["--for", "10min"];

fn holds(line: &Record, facts: &[(&str, &str)]) -> Result<()> {
    for (name, expected) in facts {
        ensure!(
            line.is(name, expected),
            "{name} is not `{expected}`: {line}"
        );
    }
    Ok(())
}

fn is_by(hook: &str, outcome: &str) -> impl Fn(&Record) -> bool {
    move |line| line.is("hook", hook) && line.is("outcome", outcome)
}

/// Sends one datagram; true if it was refused.
fn is_refused(lab: &Lab, to: std::net::IpAddr) -> Result<bool> {
    let outcome = traffic(lab)?.args(["udp", &at(to, 9)]).run()?;
    ensure!(matches!(outcome.code, 0 | REFUSED), "{outcome:?}");
    Ok(outcome.code == REFUSED)
}

#[test]
fn a_refused_call_is_explained() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let tracer = Tracer::start(&lab, &LONG)?;
    let outcome = traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN, 443)])
        .run()?;
    ensure!(outcome.code == REFUSED, "{outcome:?}");
    let line = tracer.wait_for("the call is told", is_by("connect4", "refused"))?;
    holds(
        &line,
        &[
            ("pid", &outcome.pid.to_string()),
            ("exe", TRAFFIC),
            ("unit", "lab.service"),
            ("attribution", "direct"),
            ("dst_addr", &places::FOREIGN.to_string()),
            ("dst_port", "443"),
            ("protocol", "tcp"),
            ("dst_country", "CN"),
            ("verdict", "denied"),
            ("mode", "enforce"),
            ("rule", "never there"),
            ("reason", "rule `never there` matches first"),
            ("decided", "judged"),
            ("flow", "none"),
        ],
    )?;
    ensure!(is_refused(&lab, places::FOREIGN6)?, "it was let go");
    let line = tracer.wait_for("the datagram is told", is_by("sendmsg6", "refused"))?;
    holds(&line, &[("protocol", "udp"), ("verdict", "denied")])?;
    // Where no rule matches, that is the reason.
    ensure!(is_refused(&lab, places::UNPLACED)?, "it was let go");
    let line = tracer.wait_for("what no rule is about is told", |line| {
        line.is("dst_addr", places::UNPLACED) && line.is("outcome", "refused")
    })?;
    let reason = format!(
        "no rule matches, and the country of {} is not known",
        places::UNPLACED
    );
    holds(&line, &[("verdict", "undetermined"), ("reason", &reason)])?;
    let traced = tracer.end(Signal::SIGINT)?;
    ensure!(traced.code == Some(0), "{traced:?}");
    ensure!(
        traced
            .errors
            .contains(&format!("{} lines", traced.lines.len())),
        "{traced:?}"
    );
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

/// With nobody there but the hooks.
#[test]
fn a_dropped_packet_is_explained_with_the_agent_killed() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.foreign, 443)?;
    let mut older = traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN, 443), "--hold", "peer"])
        .args(["--bytes", "1000"])
        .start()?;
    older.line()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    agent.stop(Signal::SIGKILL)?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    agent.stop(Signal::SIGKILL)?;
    let tracer = Tracer::start(&lab, &[&LONG[..], &["--to", "203.0.113.0/24:443"]].concat())?;
    older.proceed()?;
    let line = tracer.wait_for("the packet is told", is_by("egress", "dropped"))?;
    holds(
        &line,
        &[
            ("exe", TRAFFIC),
            ("unit", "lab.service"),
            ("interface", "to-foreign"),
            ("verdict", "denied"),
            ("rule", "never there"),
            ("decided", "as its flow"),
        ],
    )?;
    // The kernel sends it again.
    let is_known = |line: &Record| line.is("outcome", "dropped") && line.is("flow", "known");
    tracer.wait_for("the next one belongs to a flow that is known", is_known)?;
    tracer.end(Signal::SIGTERM)?;
    drop(older);
    detach(&lab)?;
    lab.remove_agent_state()?;
    lab.close()
}

#[test]
fn forwarded_packets_are_explained_where_they_are_judged() -> Result<()> {
    for is_enforced in [false, true] {
        let lab = Lab::new()?;
        let machine = guest(&lab.host, "machine", 1)?;
        let policy = match is_enforced {
            true => enforcing(),
            false => reporting(),
        };
        let agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let tracer = Tracer::start(&lab, &LONG)?;
        let send = |to| {
            let program = Program::new(TRAFFIC, &machine.place, None, None)?;
            let program = program.args(["udp", &at(to, 9), "--count", "2"]);
            program.run()?.success()
        };
        send(places::FOREIGN)?;
        let outcome = match is_enforced {
            true => "dropped",
            false => "would-drop",
        };
        let line = tracer.wait_for("the frame is told", is_by("uplink_egress", outcome))?;
        let facts = [
            ("sender", "forwarded"),
            ("attribution", "forwarded"),
            ("pid", ""),
            ("interface", "to-foreign"),
            ("dst_addr", &places::FOREIGN.to_string()),
            ("verdict", "denied"),
            ("rule", "never there"),
            ("decided", "judged"),
            ("flow", "new"),
        ];
        holds(&line, &facts)?;
        let line = tracer.wait_for("the second goes the way of the first", |line| {
            line.is("hook", "uplink_egress") && line.is("flow", "known")
        })?;
        holds(&line, &[("decided", "as its flow"), ("outcome", outcome)])?;
        send(places::PEER6)?;
        let line = tracer.wait_for("what is approved is told", |line| {
            line.is("hook", "uplink_egress") && line.is("dst_addr", places::PEER6)
        })?;
        holds(&line, &[("outcome", "passed"), ("verdict", "approved")])?;
        drop(tracer);
        detach(&lab)?;
        agent.ended()?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn an_approved_flow_is_explained_from_call_to_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = UdpSink::new(&lab.peer, 9)?;
    let agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let tracer = Tracer::start(&lab, &[&LONG[..], &["--unit", "lab.service"]].concat())?;
    traffic(&lab)?
        .args(["udp", &at(places::PEER, 9), "--count", "2", "--connected"])
        .run()?
        .success()?;
    let of = |hook: &'static str, flow: &'static str| {
        move |line: &Record| {
            line.is("hook", hook) && line.is("flow", flow) && line.is("dst_port", 9)
        }
    };
    for (hook, flow, decided) in [
        ("connect4", "new", "judged"),
        ("egress", "new", "as its flow"),
        ("egress", "known", "as its flow"),
    ] {
        let line = tracer.wait_for(hook, of(hook, flow))?;
        holds(
            &line,
            &[
                ("outcome", "passed"),
                ("verdict", "approved"),
                ("rule", "the peer"),
                ("unit", "lab.service"),
                ("dst_country", "DE"),
                ("decided", decided),
            ],
        )?;
    }
    let line = tracer.wait_for("the uplink", |line| line.is("hook", "uplink_egress"))?;
    holds(
        &line,
        &[
            ("decided", "as at its socket"),
            ("sender", "socket"),
            ("outcome", "passed"),
            ("rule", "the peer"),
            ("interface", "to-peer"),
        ],
    )?;
    drop(tracer);
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn only_what_is_asked_for_is_shown() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    type IsWanted = fn(&Record) -> bool;
    let asked: [(&[&str], IsWanted); 4] = [
        (&["--unit", "one.service"], |line| {
            line.is("unit", "one.service")
        }),
        (&["--unit", "/"], |_| true),
        (&["--to", "198.51.100.0/24"], |line| {
            line.is("dst_addr", places::PEER)
        }),
        (&["--to", ":7"], |line| line.is("dst_port", 7)),
    ];
    for (arguments, is_wanted) in asked {
        if arguments == ["--unit", "/"] {
            let wrong = kernel_verb(&lab, "trace", arguments)?;
            ensure!(
                wrong.code == 2 && wrong.stderr.contains("--unit"),
                "{wrong:?}"
            );
            continue;
        }
        let tracer = Tracer::start(&lab, &[&LONG[..], arguments].concat())?;
        let mut n_sent = 0;
        for unit in [
            "one.service",
            "two.service",
            "xone.service",
            "one.service.slice",
        ] {
            for (to, port) in [(places::PEER, 9), (places::FOREIGN, 7)] {
                traffic_in(&lab, unit)?
                    .args(["udp", &at(to, port)])
                    .run()?
                    .success()?;
                n_sent += 1;
            }
        }
        ensure!(n_sent == 8);
        let traced = tracer.end(Signal::SIGINT)?;
        ensure!(
            traced.lines.iter().all(is_wanted),
            "{arguments:?}: {traced:?}"
        );
        // A call and a packet each.
        let expected = match arguments {
            ["--unit", _] => 4,
            _ => 8,
        };
        ensure!(traced.lines.len() == expected, "{arguments:?}: {traced:?}");
    }
    let tracer = Tracer::start(&lab, &LONG)?;
    let sent = traffic(&lab)?.args(["udp", &at(places::PEER, 9)]).run()?;
    let told = tracer.wait_for("all is shown", |line| line.is("pid", sent.pid))?;
    ensure!(told.is("unit", "lab.service"), "{told}");
    drop(tracer);
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn only_the_process_that_is_asked_for_is_shown() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let words = ["udp", &at(places::PEER, 9), "--hold"];
    let start = || traffic(&lab)?.args(words).start();
    let mut both = [start()?, start()?];
    both.iter_mut()
        .try_for_each(|sender| sender.line().map(drop))?;
    let pid = both[0].pid().to_string();
    let tracer = Tracer::start(&lab, &[&LONG[..], &["--pid", &pid]].concat())?;
    for _ in 0..3 {
        // The other one first, so that its lines would be there by the time of the last one.
        for sender in both.iter_mut().rev() {
            sender.proceed()?;
            sender.line()?;
        }
    }
    for sender in both {
        sender.finish()?.success()?;
    }
    let traced = tracer.end(Signal::SIGINT)?;
    // A call and a packet each.
    let is_own = |line: &Record| line.is("pid", &pid);
    let are_own = traced.lines.len() == 6 && traced.lines.iter().all(is_own);
    ensure!(are_own, "{traced:?}");
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn more_than_the_rate_is_counted_and_said() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let tracer = Tracer::start(&lab, &[&LONG[..], &["--rate", "1"]].concat())?;
    traffic(&lab)?
        .args(["udp", &at(places::PEER, 9), "--count", "200"])
        .run()?
        .success()?;
    let traced = tracer.end(Signal::SIGINT)?;
    ensure!(traced.code == Some(0), "{traced:?}");
    ensure!((1..400).contains(&traced.lines.len()), "{traced:?}");
    let more = traced
        .errors
        .split("; ")
        .find_map(|part| {
            part.split(" more were beyond 1 lines")
                .next()?
                .parse::<usize>()
                .ok()
        })
        .with_context(|| format!("not said: {traced:?}"))?;
    ensure!(traced.lines.len() + more == 400, "{traced:?}");
    // It ends when its time is over.
    let traced = Tracer::start(&lab, &["--for", "1s"])?.ended()?;
    ensure!(
        traced.code == Some(0) && traced.lines.is_empty(),
        "{traced:?}"
    );
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

/// Sums of final records and books, apart from owners and times.
fn sums(lab: &Lab, traces: bool) -> Result<BTreeMap<String, u64>> {
    let machine = guest(&lab.host, "machine", 1)?;
    let policy = format!(
        "mode = \"enforce\"\n[[rules]]\nname = \"a little\"\nto = {{ networks = [\"{}/32\"] }}\n\
         verdict = \"approve\"\nbudget = {{ bytes = \"300 B\", per = \"1d\" }}\n{}",
        places::FOREIGN,
        world::RULES
    );
    let mut agent = lab
        .agent()
        .policy(&policy)
        .settings(OFTEN)
        .uplink("to-foreign")
        .start()?;
    let tracer = traces.then(|| Tracer::start(lab, &LONG)).transpose()?;
    let mut sums = BTreeMap::new();
    let forward = |count| {
        let program = Program::new(TRAFFIC, &machine.place, None, None)?;
        let program = program.args(["udp", &at(places::FOREIGN, 9), "--count", count]);
        program.run()?.success()
    };
    // Judged at the uplink, each by the budget: three fit, and one of the host's is the last.
    forward("2")?;
    for to in [places::FOREIGN, places::PEER] {
        for count in ["1", "3"] {
            let outcome = traffic(lab)?
                .args(["udp", &at(to, 9), "--count", count])
                .run()?;
            *sums.entry(format!("exit {}", outcome.code)).or_default() += 1;
        }
    }
    forward("4")?;
    let book = books(&mut agent, lab, "to-foreign")?;
    for name in ["bytes_socket", "bytes_forwarded"] {
        sums.insert(name.to_owned(), book.number(name).unwrap_or_default());
    }
    if let Some(tracer) = tracer {
        let status = kernel_verb(lab, "status", &[])?;
        ensure!(!status.stdout.contains("before the hook"), "{status:?}");
        ensure!(!tracer.lines()?.is_empty(), "it has seen nothing");
        tracer.end(Signal::SIGINT)?;
    }
    for record in all_of(agent, lab)? {
        let kind = format!("{} {}", record.text("event"), record.text("subject"));
        if record.is("event", "coverage") && kind.contains("exit of") {
            *sums.entry(kind).or_default() += 1;
        }
        if is_final(&record) {
            let name = format!("{} {}", record.text("verdict"), record.text("outcome"));
            for field in ["bytes_out", "blocked_bytes", "refused"] {
                *sums.entry(format!("{name} {field}")).or_default() +=
                    record.number(field).unwrap_or_default();
            }
            *sums.entry(name).or_default() += 1;
        }
    }
    Ok(sums)
}

#[test]
fn records_books_and_budgets_are_the_same_while_somebody_traces() -> Result<()> {
    let mut found = Vec::new();
    for traces in [false, true] {
        let lab = Lab::new()?;
        found.push(sums(&lab, traces)?);
        lab.close()?;
    }
    ensure!(found[0] == found[1], "{found:#?}");
    ensure!(
        found[0].keys().any(|name| name.starts_with("over-budget")),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn a_trace_that_is_killed_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let pinned = lab.pinned();
    let tracer = Tracer::start(&lab, &LONG)?;
    ensure!(lab.pinned() == pinned, "it has pinned something");
    let held = tracer.objects()?;
    let mut own = held.clone();
    for id in &agent.objects().maps {
        own.maps.remove(id);
    }
    ensure!(own.links.len() >= 6, "{own:?}");
    // Only one at a time.
    let other = kernel_verb(&lab, "trace", &["--for", "1s"])?;
    ensure!(
        other.code == 1 && other.stderr.contains("another"),
        "{other:?}"
    );
    acknowledge(&lab)?;
    let status = kernel_verb(&lab, "status", &[])?;
    ensure!(status.code == 0, "{status:?}");
    tracer.end(Signal::SIGKILL)?;
    own.wait_until_gone()?;
    ensure!(
        agent.objects().alive()? == *agent.objects(),
        "the agent's own"
    );
    ensure!(
        is_refused(&lab, places::FOREIGN)?,
        "nothing is refused any more"
    );
    // The next one can begin.
    let tracer = Tracer::start(&lab, &LONG)?;
    ensure!(is_refused(&lab, places::FOREIGN)?, "nothing is refused");
    tracer.wait_for("the call is told", is_by("sendmsg4", "refused"))?;
    // And it ends with the hooks.
    detach(&lab)?;
    let mut tracer = tracer;
    let traced = tracer.ended()?;
    ensure!(traced.errors.contains("taken out"), "{traced:?}");
    agent.ended()?;
    lab.close()
}

#[test]
fn a_trace_ends_when_another_agent_takes_over() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let mut tracer = Tracer::start(&lab, &LONG)?;
    agent.stop(Signal::SIGTERM)?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let traced = tracer.ended()?;
    ensure!(
        traced.code == Some(0) && traced.errors.contains("taken over"),
        "{traced:?}"
    );
    let tracer = Tracer::start(&lab, &LONG)?;
    ensure!(is_refused(&lab, places::FOREIGN)?, "nothing is refused");
    tracer.wait_for("the call is told", is_by("sendmsg4", "refused"))?;
    drop(tracer);
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

/// All lines that a second may have come at once.
#[test]
fn a_burst_within_the_rate_is_shown_whole() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let arguments = ["--rate", "10000", "--to", "198.51.100.0/24"];
    let tracer = Tracer::start(&lab, &[&LONG[..], &arguments].concat())?;
    traffic(&lab)?
        .args(["udp", &at(places::PEER, 9), "--count", "2000"])
        .run()?
        .success()?;
    let traced = tracer.end(Signal::SIGINT)?;
    ensure!(
        traced.code == Some(0) && traced.lines.len() == 4000,
        "{} lines: {}",
        traced.lines.len(),
        traced.errors
    );
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn what_cannot_be_asked_for_is_said() -> Result<()> {
    let lab = Lab::new()?;
    for (arguments, code, said) in [
        (&["--for", "2h"][..], 2, "an hour"),
        (&["--for", "0s"], 2, "--for"),
        (&["--to", "nowhere"], 2, "--to: `nowhere`"),
        (&["--unit", "ssh"], 2, "full name"),
        (&["--rate", "0"], 2, "--rate"),
        (&["--pid", "0"], 2, "--pid"),
        (&["--for", "1s"], 1, "nothing of Trefoil is pinned"),
    ] {
        let outcome = kernel_verb(&lab, "trace", arguments)?;
        ensure!(
            outcome.code == code && outcome.stderr.contains(said),
            "{arguments:?}: {outcome:?}"
        );
    }
    lab.close()
}
