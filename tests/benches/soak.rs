//! One agent under a mixed load for an hour: memory, descriptors, threads and the fill of every
//! table stay flat.
//!
//! Prints each minute what the agent has, and at the end the slope of each. `TREFOIL_SOAK_SECONDS`
//! says how long. Fails where something is more in the last third than in the one before it.
//! Needs root, and a `trefoil` that `cargo xtask bench` builds.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Agent, Lab, Record, fill, places};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const AN_HOUR: u64 = 3_600;
const LOOK: Duration = Duration::from_secs(5);
/// One of so many looks is printed.
const PRINTED: usize = 12;
const UDP: u16 = 9;
const TCP: u16 = 443;
/// Things that are there for a while belong to no slope: flows of UDP that are idle, caches that fill.
const WARM_UP: f64 = 1.0 / 6.0;

/// A figure that may grow by a tenth, and by so much whatever it is: rounds differ.
const SLACK: [(&str, f64); 4] = [
    ("resident KiB", 2_048.0),
    ("descriptors", 4.0),
    ("threads", 2.0),
    ("spool KiB", 1_024.0),
];
/// The same for entries of a table.
const SLACK_OF_TABLES: f64 = 200.0;

/// Figures of one look, by name.
type Look = BTreeMap<String, f64>;

fn main() -> Result<()> {
    let seconds = match std::env::var("TREFOIL_SOAK_SECONDS") {
        Ok(number) => number.parse().context("TREFOIL_SOAK_SECONDS")?,
        Err(_) => AN_HOUR,
    };
    let lab = Lab::new()?;
    let _sinks = (
        UdpSink::new(&lab.peer, UDP)?,
        TcpSink::new(&lab.peer, TCP)?,
        UdpSink::new(&lab.foreign, UDP)?,
    );
    let agent = lab
        .agent()
        .policy(&policy(0))
        .settings("flows_rate = 20\nviolations_rate = 5\nrollup_interval = \"30s\"\n");
    let mut agent = agent.flows("auto").start()?;
    let mut load = Load::new(&lab)?;
    let (begun, mut looks) = (Instant::now(), Vec::new());
    let mut next = LOOK;
    while begun.elapsed().as_secs() < seconds {
        load.round(&lab, &agent)?;
        if begun.elapsed() >= next {
            next += LOOK;
            let at = begun.elapsed().as_secs_f64();
            let look = look(&lab, &agent)?;
            if looks.len() % PRINTED == 0 {
                println!("{at:6.0} s {}", shown(&look));
            }
            looks.push((at, look));
        }
    }
    let rising = slopes(&looks);
    let n_rounds = load.end(&lab)?;
    balance(&lab, &mut agent, n_rounds + 1)?;
    let records = agent.stop(Signal::SIGINT)?.1;
    println!("{n_rounds} rounds, {} records", records.len());
    lab.close()?;
    ensure!(rising.is_empty(), "not flat: {}", rising.join(", "));
    Ok(())
}

/// Differs from number to number, and decides the same.
fn policy(number: u64) -> String {
    format!(
        "mode = \"report\"\n[[rules]]\nname = \"number {number}\"\nverdict = \"approve\"\n\
         to = {{ networks = [\"198.51.100.0/24\", \"2001:db8:2::/48\"] }}\n"
    )
}

/// Somebody who sends by many sockets, processes and services.
struct Load {
    n_rounds: u64,
    peers: Running,
    connections: Running,
}

impl Load {
    fn new(lab: &Lab) -> Result<Self> {
        let udp = format!("[{}]:{UDP}", places::PEER6);
        let mut peers = sender(lab)?
            .args(["udp-many", &udp, "--hold", "--fresh"])
            .args(["--destinations", "40", "--count", "80"])
            .start()?;
        let tcp = format!("{}:{TCP}", places::PEER);
        let mut connections = sender(lab)?
            .args(["often", "connections", &tcp, "--hold", "--count", "20"])
            .start()?;
        peers.line()?;
        connections.line()?;
        Ok(Self {
            n_rounds: 0,
            peers,
            connections,
        })
    }

    /// Some of everything; a reload and a sink that takes nothing every now and then.
    fn round(&mut self, lab: &Lab, agent: &Agent<'_>) -> Result<()> {
        self.n_rounds += 1;
        for running in [&mut self.peers, &mut self.connections] {
            running.proceed()?;
            running.line()?;
        }
        for (place, count) in [(places::PEER, "5"), (places::FOREIGN, "2")] {
            let burst = ["burst", &format!("{place}:{UDP}"), "--program", TRAFFIC];
            let burst = sender(lab)?.args(burst).args(["--count", count]);
            burst.run()?.success()?;
        }
        let unit = lab.unit(&format!("soak-{}.service", self.n_rounds))?;
        let own = lab.copy_program(TRAFFIC, &format!("soak-{}", self.n_rounds))?;
        let fresh = Program::new(&own, &lab.host, Some(&unit), None)?;
        let to = format!("{}:{UDP}", places::PEER);
        fresh.args(["udp", &to]).run()?.success()?;
        fs::remove_dir(&unit).with_context(|| format!("remove {}", unit.display()))?;
        fs::remove_file(own)?;
        match self.n_rounds % 60 {
            7 => agent.reload(&policy(self.n_rounds))?,
            30 => lab.journal()?.pause()?,
            35 => lab.journal()?.go_on()?,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    /// Ends all senders, and with them their flows. Returns how many rounds there were.
    fn end(self, lab: &Lab) -> Result<u64> {
        lab.journal()?.go_on()?;
        for running in [self.peers, self.connections] {
            running.finish()?.success()?;
        }
        Ok(self.n_rounds)
    }
}

fn sender(lab: &Lab) -> Result<Program> {
    Program::new(TRAFFIC, &lab.host, Some(&lab.unit("lab.service")?), None)
}

/// Figures of the agent at this moment.
fn look(lab: &Lab, agent: &Agent<'_>) -> Result<Look> {
    let process = format!("/proc/{}", agent.pid());
    let status = fs::read_to_string(format!("{process}/status"))?;
    let number = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        Ok(word.with_context(|| format!("no {name}"))?.parse()?)
    };
    let mut look = Look::new();
    look.insert("resident KiB".into(), number("VmRSS:")?);
    look.insert("threads".into(), number("Threads:")?);
    let descriptors = fs::read_dir(format!("{process}/fd"))?.count();
    look.insert("descriptors".into(), descriptors as f64);
    let mut spool = 0;
    for directory in lab.agent_state() {
        for file in fs::read_dir(directory)? {
            spool += file?.metadata().map_or(0, |file| file.len());
        }
    }
    look.insert("spool KiB".into(), spool as f64 / 1024.0);
    for (name, entries) in fill::entries(agent.objects())? {
        look.insert(name, entries as f64);
    }
    Ok(look)
}

fn shown(look: &Look) -> String {
    let shown = look.iter().filter(|(_, figure)| **figure != 0.0);
    let shown = shown.map(|(name, figure)| format!("{name} {figure:.0}"));
    shown.collect::<Vec<_>>().join(", ")
}

/// Prints how each figure goes on after the warm-up; the names of those that rise.
fn slopes(looks: &[(f64, Look)]) -> Vec<String> {
    let from = (looks.len() as f64 * WARM_UP) as usize;
    let looks = looks.get(from..).unwrap_or_default();
    let names = looks.first().map(|(_, look)| look.keys().cloned());
    println!(
        "{:16} {:>10} {:>10} {:>10} {:>12}",
        "", "mean", "most", "least", "slope an hour"
    );
    let mut rising = Vec::new();
    for name in names.into_iter().flatten() {
        let of = |(at, look): &(f64, Look)| (*at, look.get(&name).copied().unwrap_or_default());
        let points: Vec<(f64, f64)> = looks.iter().map(of).collect();
        let figures = || points.iter().map(|(_, figure)| *figure);
        let (most, least) = (
            figures().fold(0.0, f64::max),
            figures().fold(f64::MAX, f64::min),
        );
        let slope = slope(&points) * 3_600.0;
        println!(
            "{name:16} {:10.1} {most:10.0} {least:10.0} {slope:12.1}",
            mean(&points)
        );
        let third = points.len() / 3;
        let [middle, last] = [1, 2].map(|n| {
            mean(
                points
                    .get(n * third..)
                    .unwrap_or_default()
                    .get(..third)
                    .unwrap_or_default(),
            )
        });
        let slack = SLACK.iter().find(|(of, _)| *of == name);
        let slack = slack.map_or(SLACK_OF_TABLES, |(_, slack)| *slack);
        if last > middle * 1.1 && last > middle + slack {
            rising.push(format!("{name} ({middle:.0}, then {last:.0})"));
        }
    }
    rising
}

fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(_, figure)| figure).sum::<f64>() / points.len().max(1) as f64
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len().max(1) as f64;
    let at = points.iter().map(|(at, _)| at).sum::<f64>() / n;
    let figure = mean(points);
    let both: f64 = points.iter().map(|(x, y)| (x - at) * (y - figure)).sum();
    let square: f64 = points.iter().map(|(x, _)| (x - at).powi(2)).sum();
    if square == 0.0 { 0.0 } else { both / square }
}

/// Waits until all that left is in final records or told as lost, but for what the kernel sends by
/// itself when a connection is over, an acknowledgement each.
fn balance(lab: &Lab, agent: &mut Agent<'_>, n_rounds: u64) -> Result<()> {
    let most = n_rounds * 20 * 52;
    let link = |place| lab.link_to(place).map(|link| link.ip_bytes_out());
    let left = link(&lab.peer)? + link(&lab.foreign)?;
    let mut sums = (0, 0);
    let waited = agent.wait_for("all that left is told", |records| {
        sums = told_and_lost(records);
        (sums.0 + sums.1 + most >= left).then_some(())
    });
    let (told, lost) = sums;
    println!("bytes: {left} left, {told} are told, {lost} are told as lost");
    ensure!(waited.is_ok() && told + lost <= left, "they do not add up");
    Ok(())
}

/// Bytes that final records tell of, and those that are told as lost.
fn told_and_lost(records: &[Record]) -> (u64, u64) {
    let sum = |is_wanted: &dyn Fn(&Record) -> bool| -> u64 {
        let wanted = records.iter().filter(|record| is_wanted(record));
        let bytes = wanted.filter_map(|record| record.number("bytes_out").ok());
        bytes.sum()
    };
    let is_final = |record: &Record| record.is("state", "closed") || record.is("state", "rollup");
    let is_lost = |record: &Record| record.is("event", "loss");
    (sum(&is_final), sum(&is_lost))
}
