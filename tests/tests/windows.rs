//! New bytes add up over any window of time, with flows that are open for longer than the window,
//! whatever the way they are reported in, and whoever reports them.

mod world;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::program::Running;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::told::{Sum, arrived, lost, numbered, told_as_new};
use world::{approving, at, traffic};

/// Open flows are told of so often.
const OFTEN: &str = "update_interval = \"1s\"\nrollup_interval = \"1s\"\nflows_rate = 2\n";

/// This moment, as records have it.
fn now() -> Result<String> {
    let date = Command::new("date")
        .args(["--utc", "+%Y-%m-%dT%H:%M:%S.%6NZ"])
        .output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

fn left(lab: &Lab) -> Result<Sum> {
    let left = arrived(lab, &[("all", &lab.foreign)])?;
    Ok(left.get("all").copied().unwrap_or_default())
}

/// Flows that are open all the time: a connection, a connected socket and one that is not.
fn long_lived(lab: &Lab) -> Result<Vec<Running>> {
    let datagrams = ["--hold", "--count", "7", "--size", "300"];
    let (udp, udp6) = (at(places::FOREIGN, 9), at(places::FOREIGN6, 9));
    let tcp = at(places::FOREIGN, 443);
    let senders = [
        vec!["tcp", &tcp, "--hold", "peer", "--bytes", "20000"],
        [&["udp", &udp, "--connected"][..], &datagrams].concat(),
        [&["udp", &udp6][..], &datagrams].concat(),
    ];
    let senders = senders.into_iter().map(|words| {
        let mut sender = traffic(lab)?.args(words).start()?;
        sender.line()?;
        Ok(sender)
    });
    senders.collect()
}

/// Sinks and what they are to have.
struct Sent {
    udp: UdpSink,
    tcp: TcpSink,
    rounds: u64,
}

impl Sent {
    /// Each sends once more, and so do two that are gone at once; all has arrived then, and
    /// nothing more leaves.
    fn once_more(&mut self, lab: &Lab, senders: &mut [Running]) -> Result<()> {
        for sender in senders {
            sender.proceed()?;
            sender.line()?;
        }
        for _ in 0..2 {
            let short = traffic(lab)?.args(["udp", &at(places::FOREIGN, 9)]).run()?;
            short.success()?;
        }
        self.rounds += 1;
        self.udp.wait_for_packets(self.rounds * (7 + 7 + 2))?;
        wait_for("all of the connection's bytes arrive", || {
            Ok((self.tcp.bytes() >= self.rounds * 20_000).then_some(()))
        })
    }
}

/// New bytes and packets of records from one moment until another.
fn new_within(records: &[Record], from: &str, until: &str) -> Result<Sum> {
    let is_within = |it: &&&Record| {
        let time = it.text("time");
        from < time.as_str() && time.as_str() <= until
    };
    let mut sum = (0, 0);
    for record in numbered(records)?.iter().filter(is_within) {
        if record.is("event", "flow") || record.is("event", "violation") {
            sum.0 += record.number("bytes_new")?;
            sum.1 += record.number("packets_new")?;
        }
    }
    Ok(sum)
}

/// Waits until all that has left is told as new; nothing is sent meanwhile. Returns that and the
/// moment.
fn mark(lab: &Lab, before: &[Record], agent: &mut Agent<'_>) -> Result<(Sum, String)> {
    let mut said = String::new();
    let waited = agent.wait_for("all that has left is told as new", |records| {
        let told = told_as_new(&[before, records].concat());
        let left = left(lab);
        said = format!("told {told:?}, left {left:?}");
        let (told, left) = (told.ok()?, left.ok()?);
        (told == left).then_some(left)
    });
    Ok((waited.context(said)?, now()?))
}

/// Four windows, with an agent killed within the second, and one stopped within the third.
fn windows_add_up(flows: &'static str) -> Result<()> {
    let lab = Lab::new()?;
    let mut sent = Sent {
        udp: UdpSink::new(&lab.foreign, 9)?,
        tcp: TcpSink::new(&lab.foreign, 443)?,
        rounds: 0,
    };
    let start = || {
        let agent = lab.agent().policy(&approving()).settings(OFTEN);
        agent.flows(flows).start()
    };
    let mut agent = start()?;
    let mut senders = long_lived(&lab)?;
    let mut before = Vec::new();
    let mut marks = vec![mark(&lab, &before, &mut agent)?];
    for window in 0..4 {
        sent.once_more(&lab, &mut senders)?;
        if window == 1 || window == 2 {
            let signal = [Signal::SIGKILL, Signal::SIGTERM][window - 1];
            before.extend(agent.stop(signal)?.1);
            sent.once_more(&lab, &mut senders)?;
            agent = start()?;
            sent.once_more(&lab, &mut senders)?;
        }
        marks.push(mark(&lab, &before, &mut agent)?);
    }
    for mut sender in senders {
        sender.proceed()?;
        sender.finish()?.success()?;
    }
    before.extend(agent.stop(Signal::SIGINT)?.1);
    assert_eq!(lost(&before)?, (0, 0));
    assert_eq!(told_as_new(&before)?, left(&lab)?);
    marks.push((left(&lab)?, now()?));
    // Any two marks are the ends of a window.
    for (first, (left_before, from)) in marks.iter().enumerate() {
        for (left_by_then, until) in &marks[first + 1..] {
            let sum = new_within(&before, from, until)?;
            let expected = (
                left_by_then.0 - left_before.0,
                left_by_then.1 - left_before.1,
            );
            ensure!(
                sum == expected,
                "{flows}, from {from} until {until}: new is {sum:?}, and {expected:?} has left"
            );
        }
    }
    lab.close()
}

#[test]
fn new_bytes_add_up_over_any_window_with_each() -> Result<()> {
    windows_add_up("each")
}

#[test]
fn new_bytes_add_up_over_any_window_with_auto() -> Result<()> {
    windows_add_up("auto")
}

#[test]
fn new_bytes_add_up_over_any_window_with_rollup() -> Result<()> {
    windows_add_up("rollup")
}
