//! Objects that the agent leaves in the kernel: none in report mode, and in
//! enforce mode all of them until somebody says `detach`.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{acknowledge, detach, kernel_verb};
use trefoil_lab::link::LinkCounters;
use trefoil_lab::program::Outcome;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tap::{Header, Tap};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{REFUSED, approving, at, enforcing, is_final, mapped_at, reporting, traffic};

/// One of everything, to a place that no policy of these tests approves.
fn send_one_of_everything(lab: &Lab) -> Result<Vec<(i32, LinkCounters)>> {
    let (v4, v6) = (places::FOREIGN, places::FOREIGN6);
    let mut results = Vec::new();
    for words in [
        vec!["tcp", &at(v4, 443), "--bytes", "100"],
        vec!["tcp", &at(v6, 443), "--bytes", "100"],
        vec!["tcp", &mapped_at(v4, 443), "--bytes", "100"],
        // Nobody listens here: the answer is a refusal, and stays one.
        vec!["tcp", &at(v4, 444)],
        vec!["udp", &at(v4, 9)],
        vec!["udp", &at(v6, 9)],
        vec!["udp", &mapped_at(v4, 9), "--connected"],
        vec!["udp", &at(v4, 9), "--size", "4000"],
        // Longer than a datagram can be.
        vec!["udp", &at(v4, 9), "--size", "70000"],
        vec!["raw", &v4.to_string()],
        vec!["ping", &v4.to_string()],
        vec!["ping", &v6.to_string(), "--raw"],
    ] {
        let before = lab.link_to(&lab.foreign)?;
        let outcome = traffic(lab)?.args(&words).run()?;
        let mut sent = lab.link_to(&lab.foreign)?.since(before);
        if words.first() == Some(&"tcp") {
            // How a stream is cut into packets, and when it is acknowledged, is
            // a matter of timing.
            sent = LinkCounters {
                tx_packets: sent.tx_packets.min(1),
                ..Default::default()
            };
        }
        // A part that comes back may come at any moment.
        results.push((
            outcome.code,
            LinkCounters {
                rx_bytes: 0,
                rx_packets: 0,
                ..sent
            },
        ));
    }
    Ok(results)
}

/// Effect of traffic, seen from both ends.
#[derive(Debug, PartialEq)]
struct Effect {
    /// Exit code, and what the link counted, of each program.
    sent: Vec<(i32, LinkCounters)>,
    /// Headers of packets as they arrive.
    headers: BTreeSet<Header>,
}

/// As above, and what it looks like where it arrives.
fn send_and_look(lab: &Lab) -> Result<Effect> {
    let tap = Tap::new(&lab.foreign)?;
    let before = lab.link_to(&lab.foreign)?;
    let sent = send_one_of_everything(lab)?;
    wait_for("the tap has seen everything", || {
        let passed = lab.link_to(&lab.foreign)?.since(before).tx_packets;
        Ok((tap.packets() == passed).then_some(()))
    })?;
    Ok(Effect {
        sent,
        headers: tap.headers(),
    })
}

#[test]
fn report_mode_changes_nothing_and_ctrl_c_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let (udp, tcp) = (
        UdpSink::new(&lab.foreign, 9)?,
        TcpSink::new(&lab.foreign, 443)?,
    );
    let without = send_and_look(&lab)?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let objects = agent.objects().clone();
    ensure!(
        !objects.alive()?.programs.is_empty(),
        "the agent holds no programs: {objects:?}"
    );
    let with = send_and_look(&lab)?;
    assert_eq!(without, with);
    udp.wait_for_packets(2 * 4)?;
    assert_eq!(tcp.bytes(), 2 * 300);

    let (code, _) = agent.stop(Signal::SIGINT)?;
    assert_eq!(code, Some(0));
    assert!(lab.pinned().is_empty(), "{:?}", lab.pinned());
    objects.wait_until_gone()?;
    lab.close()
}

fn try_foreign(lab: &Lab) -> Result<Outcome> {
    traffic(lab)?.args(["tcp", &at(places::FOREIGN, 443)]).run()
}

#[test]
fn enforcement_goes_on_without_the_agent_until_it_is_detached() -> Result<()> {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let lab = Lab::new()?;
        let (foreign, peer) = (
            TcpSink::new(&lab.foreign, 443)?,
            TcpSink::new(&lab.peer, 443)?,
        );
        let agent = lab.agent().policy(&enforcing()).start()?;
        let objects = agent.objects().clone();
        assert_eq!(try_foreign(&lab)?.code, REFUSED);

        agent.stop(signal)?;

        assert_eq!(
            try_foreign(&lab)?.code,
            REFUSED,
            "{signal}: the policy outlives its agent"
        );
        traffic(&lab)?
            .args(["tcp", &at(places::PEER, 443)])
            .run()?
            .success()?;
        ensure!(!objects.alive()?.programs.is_empty(), "{signal}");
        ensure!(!lab.pinned().is_empty(), "{signal}: nothing is pinned");

        detach(&lab)?;

        try_foreign(&lab)?.success()?;
        assert_eq!((foreign.connections(), peer.connections()), (1, 1));
        objects.wait_until_gone()?;
        assert!(lab.pinned().is_empty(), "{:?}", lab.pinned());
        drop((foreign, peer));
        lab.close()?;
    }
    Ok(())
}

#[test]
fn an_agent_takes_over_from_another_without_a_gap() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let (end, tries) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let trier = scope.spawn(|| -> Result<()> {
            while !end.load(Ordering::Relaxed) {
                let outcome = traffic(&lab)?
                    .args(["udp", &at(places::FOREIGN, 9), "--count", "50"])
                    .run()?;
                ensure!(outcome.code == REFUSED, "got through: {outcome:?}");
                tries.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let restarts = || -> Result<()> {
            for signal in [Signal::SIGKILL, Signal::SIGTERM] {
                let goal = tries.load(Ordering::Relaxed) + 5;
                agent.stop(signal)?;
                agent = lab.agent().policy(&enforcing()).start()?;
                wait_for("more tries", || {
                    ensure!(!trier.is_finished(), "a try went wrong");
                    Ok((tries.load(Ordering::Relaxed) >= goal).then_some(()))
                })?;
            }
            agent.stop(Signal::SIGTERM)?;
            Ok(())
        };
        let restarted = restarts();
        end.store(true, Ordering::Relaxed);
        trier
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        restarted
    })?;
    assert_eq!(sink.arrived().packets, 0);
    detach(&lab)?;
    lab.close()
}

/// The kernel keeps the tag of a socket for a moment when it is closed.
#[test]
fn what_is_over_before_an_agent_stops_is_told_by_it() -> Result<()> {
    const ROUNDS: usize = 5;
    let lab = Lab::new()?;
    for _ in 0..ROUNDS {
        let agent = lab.agent().start()?;
        let sent = traffic(&lab)?.args(["udp", &at(places::PEER, 9), "--count", "3"]);
        let pid = sent.run()?.success()?.pid;
        let (_, records) = agent.stop(Signal::SIGTERM)?;
        let is_its = |it: &&Record| is_final(it) && it.is("pid", pid);
        let told = records.iter().find(is_its);
        ensure!(
            told.is_some_and(|it| it.is("packets_out", 3)),
            "{records:#?}"
        );
    }
    detach(&lab)?;
    lab.close()
}

#[test]
fn two_agents_do_not_share_one_set_of_pins() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let second = lab.agent().policy(&enforcing()).run_to_end()?;
    ensure!(second.code != 0, "{second:?}");
    ensure!(
        second.stderr.contains(&lab.pins().display().to_string()),
        "an error that does not say what is in the way: {}",
        second.stderr
    );
    assert_eq!(try_foreign(&lab)?.code, REFUSED);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn status_says_whether_all_is_as_it_should_be() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    acknowledge(&lab)?;
    let alive = kernel_verb(&lab, "status", &[])?;
    ensure!(alive.code == 0, "{alive:?}");
    let json = kernel_verb(&lab, "status", &["--json"])?;
    Record::parse(json.stdout.lines().collect::<String>().as_str()).context("status --json")?;
    agent.stop(Signal::SIGKILL)?;
    let dead = kernel_verb(&lab, "status", &[])?;
    ensure!(dead.code == 1, "{dead:?}");
    detach(&lab)?;
    let gone = kernel_verb(&lab, "status", &[])?;
    ensure!(gone.code == 1, "{gone:?}");
    lab.close()
}

#[test]
fn an_agent_that_is_detached_while_it_runs_says_so_and_ends() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.foreign, 443)?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    assert_eq!(try_foreign(&lab)?.code, REFUSED);
    detach(&lab)?;
    try_foreign(&lab)?.success()?;
    agent.wait_for("the agent says what happened", |records| {
        records
            .iter()
            .any(|record| {
                record.is("event", "coverage")
                    && record.is("state", "uncovered")
                    && record.is("reason", "somebody ran `trefoil detach`")
            })
            .then_some(())
    })?;
    // With exit code 0, so that a service manager does not start it again.
    assert_eq!(agent.ended()?, Some(0));
    ensure!(lab.pinned().is_empty(), "{:?}", lab.pinned());
    lab.close()
}

#[test]
fn detach_where_nothing_is_attached_is_fine() -> Result<()> {
    let lab = Lab::new()?;
    detach(&lab)?;
    lab.close()
}

/// Capabilities of each thread of a process, by name.
fn capabilities(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut held = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
                .with_context(|| format!("no {name} in {status}"))
        };
        let permitted = u64::from_str_radix(&field("CapPrm:")?, 16)?;
        held.insert(field("Name:")?, permitted);
    }
    Ok(held)
}

#[test]
fn a_running_agent_has_given_up_what_it_needed_to_start() -> Result<()> {
    const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    const CAP_BPF: u64 = 1 << 39;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let expected = BTreeMap::from(
        [
            ("trefoil", CAP_BPF),
            ("compiler", CAP_DAC_READ_SEARCH),
            ("cutter", CAP_NET_ADMIN),
            ("hashes", CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH),
            ("logins", 0),
        ]
        .map(|(name, capabilities)| (name.to_owned(), capabilities)),
    );
    // A thread may have to wait for its turn before it gives up anything.
    wait_for("every thread has what it needs", || {
        Ok((capabilities(agent.pid())? == expected).then_some(()))
    })
    .with_context(|| format!("{:x?} instead of {expected:x?}", capabilities(agent.pid())))?;

    // It can do all of its work with that: reload, hash, name, report.
    agent.reload(&approving())?;
    let outcome = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?;
    agent.wait_for("a flow by the new policy", |records| {
        records
            .iter()
            .any(|record| {
                record.is("event", "flow")
                    && record.is("pid", outcome.pid)
                    && record.is("user", "root")
            })
            .then_some(())
    })?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn who_asks_an_agent_that_ends_is_told_so() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().start()?;
    // So that it does not answer before it ends.
    agent.signal(Signal::SIGSTOP)?;
    let status = format!("/proc/{}/status", agent.pid());
    // Until then another thread of it may still take the signal.
    wait_for("it has stopped", || {
        let is_stopped = fs::read_to_string(&status)?.contains("State:\tT");
        Ok(is_stopped.then_some(()))
    })?;
    let asked = std::thread::scope(|scope| -> Result<_> {
        let asks = scope.spawn(|| kernel_verb(&lab, "reload", &[]));
        wait_for("it is asked", || {
            let is_pending = fs::read_to_string(&status)?.lines().any(|line| {
                let pending = line.strip_prefix("ShdPnd:").map(str::trim);
                let bits = pending.and_then(|bits| u64::from_str_radix(bits, 16).ok());
                bits.is_some_and(|bits| bits & 1 << (Signal::SIGHUP as u32 - 1) != 0)
            });
            Ok(is_pending.then_some(()))
        })?;
        agent.stop(Signal::SIGKILL)?;
        asks.join().expect("it does not panic")
    })?;
    assert_ne!(asked.code, 0);
    ensure!(
        asked.stderr.contains("ended before it answered"),
        "{asked:?}"
    );
    detach(&lab)?;
    lab.close()
}
