//! The agent's own share, with an agent that runs: short connections beside it, its processor
//! time for each, memory by purpose, time until it is ready, and from a refusal to its record.
//!
//! An agent takes seconds to start, so contenders take turns in blocks of slices here, and
//! nothing stands against itself in blocks as well.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trefoil::clock::since_boot_ns;
use trefoil::policy::testing::Random;
use trefoil_lab::agent::AgentBuilder;
use trefoil_lab::kernel::MapInfo;
use trefoil_lab::{Agent, Lab};

use crate::contender::{CONTROL, Large, NOTHING, policy};
use crate::figures::{Slices, median, quantile, tenths};
use crate::plan::Plan;
use crate::senders::Senders;
use crate::shuffled;
use crate::workload::{CONNECT, REFUSE, WORKLOADS};

/// How approved flows are reported.
const FLOWS: [&str; 3] = ["each", "auto", "rollup"];
/// In one block.
const N_SLICES: usize = 12;
/// After a burst of connections the agent is done when it takes less of this time.
const LOOK: Duration = Duration::from_millis(200);
const IDLE_NS: u64 = 4_000_000;
const N_LOOKS: usize = 100;

struct Sizes {
    rounds: usize,
    connections: u64,
    refusals: usize,
}

const THOROUGH: Sizes = Sizes {
    rounds: 9,
    connections: 20_000,
    refusals: 200,
};
const QUICK: Sizes = Sizes {
    rounds: 1,
    connections: 2_000,
    refusals: 10,
};

/// Measures all of it. Adds how far controls are off.
pub fn measure(
    lab: &Lab,
    plan: &Plan,
    senders: &mut Senders,
    large: &Large,
    controls: &mut BTreeMap<String, f64>,
) -> Value {
    let sizes = if plan.quick { QUICK } else { THOROUGH };
    let mut random = Random::new(1);
    let workload = WORKLOADS.iter().find(|it| it.name == "tcp-short").unwrap();
    let contenders = [NOTHING, CONTROL, FLOWS[0], FLOWS[1], FLOWS[2]];
    let (mut slices, mut ready) = (Slices::default(), Vec::new());
    let mut cpu: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut memory = Value::Null;
    for round in 0..sizes.rounds {
        eprint!("\ragent, round {} of {}", round + 1, sizes.rounds);
        for number in shuffled(&mut random, contenders.len()) {
            let name = contenders[number];
            let is_agent = FLOWS.contains(&name);
            let began = Instant::now();
            let agent = is_agent.then(|| start(lab, large, name).without_json().start().unwrap());
            if is_agent {
                ready.push(began.elapsed().as_secs_f64() * 1e3);
            }
            let all: Vec<_> = (0..N_SLICES)
                .map(|_| senders.slice(workload, name).0)
                .collect();
            slices.push(workload.name, name, round, median(&all));
            if let Some(agent) = agent {
                let taken = cpu_ns_a_connection(&agent, senders, sizes.connections);
                cpu.entry(name).or_default().push(taken);
                memory = resident(&agent);
            }
        }
    }
    eprintln!();
    let refusals = refusals(lab, large, senders, sizes.refusals);

    println!("\nThe agent, enforcing 1,000 rules with all countries, one uplink");
    println!("  ready after {:.0} ms", median(&ready));
    let mut modes = Vec::new();
    for name in FLOWS {
        let figure = slices.figure(workload.name, name).unwrap();
        let cpu_us = median(&cpu[name]) / 1e3;
        println!(
            "  {name:8} {:.3} of short connections without it, {cpu_us:.1} us of CPU a connection",
            figure.ratio
        );
        let mut row = figure.json(name, name);
        row["cpu_us"] = tenths(cpu_us).into();
        modes.push(row);
    }
    let control = slices.control(workload.name).unwrap();
    controls.insert("agent: tcp-short".to_owned(), control);
    let [middle, last] = [0.5, 0.99].map(|at| quantile(refusals.clone(), at));
    println!("  a refusal is in its record after {middle:.1} ms (median), {last:.1} ms (p99)");
    println!("  memory, MiB: {}", serde_json::to_string(&memory).unwrap());
    json!({
        "ready_ms": tenths(median(&ready)),
        "modes": modes,
        "control": (control * 1e4).round() / 1e4,
        "refusal_ms": { "median": tenths(middle), "p99": tenths(last) },
        "memory_mib": memory,
    })
}

fn start<'lab>(lab: &'lab Lab, large: &Large, flows: &'static str) -> AgentBuilder<'lab> {
    lab.agent()
        .policy(&policy(true, Some(&large.policy)))
        .flows(flows)
        .argument("--geo")
        .argument(large.table)
        .uplink("to-gateway")
        .uplink("to-peer")
}

/// Until the agent has nothing left to do of a burst of them.
fn cpu_ns_a_connection(agent: &Agent<'_>, senders: &mut Senders, n: u64) -> f64 {
    let before = cpu_ns(agent.pid());
    senders.ask(&format!("{CONNECT} {n}"));
    let mut now = cpu_ns(agent.pid());
    for _ in 0..N_LOOKS {
        thread::sleep(LOOK);
        let earlier = std::mem::replace(&mut now, cpu_ns(agent.pid()));
        if now - earlier < IDLE_NS {
            break;
        }
    }
    (now - before) as f64 / n as f64
}

/// Sums the CPU time of all threads of a process, in nanoseconds.
fn cpu_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Milliseconds from refusals to their records.
fn refusals(lab: &Lab, large: &Large, senders: &mut Senders, n: usize) -> Vec<f64> {
    let mut agent = start(lab, large, "auto").start().unwrap();
    let mut all = Vec::new();
    for _ in 0..n {
        let before = n_refusals(&mut agent);
        let (refused_ns, _) = senders.ask(REFUSE);
        let began = Instant::now();
        while n_refusals(&mut agent) == before {
            thread::sleep(Duration::from_micros(100));
            assert!(began.elapsed() < trefoil_lab::wait::PATIENCE, "no record");
        }
        all.push((since_boot_ns() as f64 - refused_ns) / 1e6);
    }
    all
}

fn n_refusals(agent: &mut Agent<'_>) -> usize {
    let records = agent.records().unwrap().iter();
    records
        .filter(|record| record.is("outcome", "refused"))
        .count()
}

/// MiB: of the process by what it is for, and of the kernel's tables, the largest by name.
fn resident(agent: &Agent<'_>) -> Value {
    let mut by_purpose: BTreeMap<&str, f64> = BTreeMap::new();
    let text = fs::read_to_string(format!("/proc/{}/smaps", agent.pid())).unwrap();
    let mut purpose = "other";
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            purpose = match words.nth(4) {
                Some("[heap]") | None => "heap",
                Some("[stack]") => "stacks",
                Some(name) if name.contains("bpf-map") => "tables that are mapped",
                Some(name) if name.ends_with("/trefoil") => "program",
                Some(name) if name.contains(".so") => "libraries",
                Some(_) => "other",
            };
        } else if first == "Rss:" {
            let kib: f64 = words.next().unwrap().parse().unwrap();
            *by_purpose.entry(purpose).or_default() += kib / 1024.0;
        }
    }
    let total: f64 = by_purpose.values().sum();
    let mut tables = tables(agent);
    let of_tables: f64 = tables.iter().map(|(mib, _)| mib).sum();
    tables.sort_by(|a, b| b.0.total_cmp(&a.0));
    let largest: BTreeMap<_, _> = tables
        .into_iter()
        .take(8)
        .map(|(mib, name)| (name, tenths(mib)))
        .collect();
    let by_purpose: BTreeMap<_, _> = by_purpose
        .into_iter()
        .map(|(name, mib)| (name, tenths(mib)))
        .collect();
    json!({
        "resident": tenths(total),
        "by_purpose": by_purpose,
        "kernel_tables": tenths(of_tables),
        "largest_tables": largest,
    })
}

/// Returns the memory that the kernel reports for each of the tables, in MiB, and the table's
/// name.
fn tables(agent: &Agent<'_>) -> Vec<(f64, String)> {
    let names: BTreeMap<_, _> = MapInfo::of(agent.objects())
        .unwrap()
        .into_iter()
        .map(|map| (map.id, map.name))
        .collect();
    let directory = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).unwrap();
    let mut tables = BTreeMap::new();
    for entry in directory.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            let name = names.get(&(id as u32)).cloned().unwrap_or_default();
            tables.insert(id, (bytes as f64 / 1_048_576.0, name));
        }
    }
    tables.into_values().collect()
}
