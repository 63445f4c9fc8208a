//! Cost of a flow for the agent, from the first to the last of a million: peers of one socket, and
//! short connections.
//!
//! Prints for each tenth the time of a processor that the agent has had for a flow and its resident
//! memory, and at the end what is in no record. `TREFOIL_BENCH_FLOWS` says how many flows.
//! Fails if the cost of a flow grows, the memory is above its bound, or something is lost. Needs root, and
//! a `trefoil` that `cargo xtask bench` builds.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::kernel_verb;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const N_FLOWS: u64 = 1_000_000;
const PARTS: u64 = 10;
/// As docs/SIZING.md says, MiB.
const MAX_RESIDENT: f64 = 192.0;
/// Times that the last three tenths may cost of the first three. There are few sweeps in a tenth: a single
/// one says little.
const MAX_GROWTH: f64 = 1.2;
const UDP: u16 = 9;
const TCP: u16 = 443;

const POLICY: &str = r#"
mode = "report"
[[rules]]
name    = "anywhere"
to      = { networks = ["0.0.0.0/0", "::/0"] }
verdict = "approve"
"#;

fn main() -> Result<()> {
    let n_flows = match std::env::var("TREFOIL_BENCH_FLOWS") {
        Ok(number) => number.parse().context("TREFOIL_BENCH_FLOWS")?,
        Err(_) => N_FLOWS,
    };
    measure("peers of one socket", n_flows, 0, |a_part| {
        let count = a_part.to_string();
        let to = format!("[{}]:{UDP}", places::PEER6);
        let sender = vec!["udp-many".to_owned(), to, "--hold".into(), "--fresh".into()];
        [
            sender,
            vec![
                "--destinations".into(),
                count.clone(),
                "--count".into(),
                count,
            ],
        ]
        .concat()
    })?;
    // The kernel acknowledges the end of each by itself.
    measure("short connections", n_flows, n_flows, |a_part| {
        let to = format!("{}:{TCP}", places::PEER);
        let words = ["often", "connections", &to, "--hold", "--count"];
        let words = words.iter().map(|word| (*word).to_owned());
        words.chain([a_part.to_string()]).collect()
    })
}

/// Has a sender make flows, and looks at the agent meanwhile.
fn measure(
    what: &str,
    n_flows: u64,
    by_kernel: u64,
    sender: impl Fn(u64) -> Vec<String>,
) -> Result<()> {
    let lab = Lab::new()?;
    let _sinks = (
        UdpSink::new(&lab.peer, UDP)?,
        TcpSink::one_by_one(&lab.peer, TCP)?,
    );
    let mut agent = lab.agent().policy(POLICY).flows("auto").start()?;
    let a_part = n_flows / PARTS;
    let unit = lab.unit("lab.service")?;
    let program = Program::new(TRAFFIC, &lab.host, Some(&unit), None)?;
    let mut running: Running = program.args(sender(a_part)).start()?;
    running.line()?;
    println!("{what}: {n_flows}");
    println!(
        "{:>8} {:>12} {:>14} {:>12}",
        "tenth", "us a flow", "agent's share", "resident MiB"
    );
    let mut costs = Vec::new();
    for part in 1..=PARTS {
        let (before, begun) = (agent.processor()?, std::time::Instant::now());
        running.proceed()?;
        running.line()?;
        wait_for("the agent has all flows", || {
            Ok((taken_in(&lab)? >= part * a_part).then_some(()))
        })?;
        let taken = (agent.processor()? - before).as_nanos() as f64;
        let share = taken / begun.elapsed().as_nanos() as f64;
        let resident = agent.resident_kib()? as f64 / 1024.0;
        let cost = taken / 1e3 / a_part as f64;
        println!("{part:8} {cost:12.2} {share:14.2} {resident:12.1}");
        ensure!(resident < MAX_RESIDENT, "{resident:.1} MiB are resident");
        costs.push(cost);
    }
    running.finish()?.success()?;
    let (first, last) = (mean(&costs[..3]), mean(&costs[costs.len() - 3..]));
    println!("last to first three tenths: {:.2}", last / first);
    let left = lab.link_to(&lab.peer)?.tx_packets;
    let mut sums = (0, 0);
    // Records that a sink has not taken when an agent ends are the next one's to tell.
    let waited = agent.wait_for("all that left is told", |records| {
        sums = told_and_lost(records);
        (sums.0 + sums.1 + by_kernel >= left).then_some(())
    });
    let (told, lost) = sums;
    println!("packets: {left} left, {told} are told, {lost} are told as lost");
    let (_, records) = agent.stop(Signal::SIGINT)?;
    for record in records.iter().filter(|record| record.is("event", "loss")) {
        println!("loss: {} {}", record.text("subject"), record.text("count"));
    }
    println!("records: {}\n", records.len());
    ensure!(waited.is_ok() && told + lost <= left, "they do not add up");
    ensure!(lost == 0, "the kernel had room for what is lost");
    // Of few flows, a tenth is over before the agent looks.
    ensure!(
        n_flows < N_FLOWS || last < MAX_GROWTH * first,
        "a flow costs more the more there were"
    );
    lab.close()
}

fn mean(costs: &[f64]) -> f64 {
    costs.iter().sum::<f64>() / costs.len() as f64
}

/// Packets that final records tell of, and those that are told as lost.
fn told_and_lost(records: &[Record]) -> (u64, u64) {
    let sum = |is_wanted: &dyn Fn(&Record) -> bool| -> u64 {
        let wanted = records.iter().filter(|record| is_wanted(record));
        let packets = wanted.filter_map(|record| record.number("packets_out").ok());
        packets.sum()
    };
    let is_final = |record: &Record| record.is("state", "closed") || record.is("state", "rollup");
    let is_lost = |record: &Record| record.is("event", "loss");
    (sum(&is_final), sum(&is_lost))
}

fn taken_in(lab: &Lab) -> Result<u64> {
    let said = kernel_verb(lab, "status", &["--json"])?.stdout;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let attribution = status["attribution"].as_object().context("attribution")?;
    Ok(attribution.values().filter_map(Value::as_u64).sum())
}
