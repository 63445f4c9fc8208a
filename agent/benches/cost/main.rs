//! Cost of Trefoil to a host, side by side with the cost of alternatives.
//!
//! All contenders take turns on the same two namespaces and the same control group: in
//! each round, and for each workload, every one of them is switched on for a slice of some tens
//! of milliseconds, in random order. A figure is the median, over rounds, of what a slice
//! takes more than that of nothing in the same round. Nothing takes part twice: where it
//! differs from itself by over 3 %, the run proves nothing, says so, and fails.
//!
//! Needs root, nftables, Linux 6.6, and what `cargo xtask bench cost` builds and tells by the
//! environment. Arguments: `--quick` (two rounds of short slices, to see that it works),
//! `--rounds N`, `--only FILTER` (contenders and workloads with that in their name; may be
//! repeated).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark stops where it cannot go on"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use serde_json::{Value, json};
use trefoil::geo::Geo;
use trefoil::policy::testing::Random;
use trefoil_lab::Lab;
use trefoil_lab::wiring::{Guest, guest};

use contender::{CONTROL, Contender, Large, NOTHING, Setup};
use figures::{Slices, TOLERANCE};
use plan::{AGENT, PROGRAMS, Plan};
use senders::Senders;
use workload::{SENDER, SERVER, WORKLOADS, Workload};

mod agent;
mod contender;
mod figures;
mod held;
#[path = "../policy/large.rs"]
mod large;
mod plan;
mod programs;
mod senders;
mod workload;

/// Where `cargo xtask bench` says that the country table is; without it, Debian's serves.
const TABLE: &str = "TREFOIL_BENCH_TABLE";
/// The object with the programs of contenders.
const CONTENDERS: &str = "TREFOIL_BENCH_CONTENDERS";
/// The commit that is measured.
const COMMIT: &str = "TREFOIL_BENCH_COMMIT";
/// The file that results go to.
const RESULTS: &str = "TREFOIL_BENCH_RESULTS";

const DEBIAN: &str = "/usr/share/tor/geoip";
/// Limit on entries of conntrack for the time of a run: with many sockets and short connections
/// the usual one is reached.
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const CONNTRACK_ENTRIES: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(SENDER) => workload::send(),
        Some(SERVER) => workload::serve(),
        _ => return measure(&Plan::read(&arguments)),
    }
    ExitCode::SUCCESS
}

fn measure(plan: &Plan) -> ExitCode {
    let lab = Lab::new().unwrap();
    let guest = prepare(&lab);
    let conntrack = ConntrackRoom::make();
    let mut senders = Senders::start(&lab, &guest, plan.slice_ms);
    let large = large_policy();
    let mut random = Random::new(u64::from(std::process::id()));

    let (mut contenders, ebpf) = contenders(&lab, plan, &large);
    let workloads: Vec<_> = WORKLOADS
        .iter()
        .filter(|it| plan.wants_workload(it.name))
        .collect();
    println!(
        "{} contenders, {} workloads, {} rounds of slices of {} ms",
        contenders.len(),
        workloads.len(),
        plan.rounds,
        plan.slice_ms
    );
    let slices = compare(
        &lab,
        plan,
        &mut contenders,
        &workloads,
        &mut senders,
        &mut random,
    );

    let mut results = json!({
        "commit": std::env::var(COMMIT).unwrap_or_default(),
        "machine": machine(),
        "quick": plan.quick,
        "partial": !plan.only.is_empty(),
        "rounds": plan.rounds,
        "slice_ms": plan.slice_ms,
        "large_table": Path::new(large.table).file_name().unwrap().to_str(),
    });
    let mut controls = show(&slices, &workloads, &contenders, &mut results);
    if plan.wants_part(PROGRAMS) {
        results["programs"] = programs::measure(&lab, &mut contenders, &mut senders);
        results["without"] =
            programs::leave_out(&lab, plan, &mut contenders, &mut senders, &mut random);
    }
    drop((contenders, ebpf));
    if plan.wants_part(AGENT) {
        results["agent"] = agent::measure(&lab, plan, &mut senders, &large, &mut controls);
    }
    drop((senders, conntrack, guest));
    lab.close().unwrap();

    let worst = controls.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let (worst_at, worst) = worst.map_or(("", 0.0), |(name, value)| (name, *value));
    let proves = worst <= TOLERANCE;
    results["control"] = json!({
        "worst": (worst * 1e4).round() / 1e4,
        "workload": worst_at,
        "proves": proves,
    });
    if let Some(file) = std::env::var_os(RESULTS).map(PathBuf::from) {
        let text = serde_json::to_string_pretty(&results).unwrap();
        std::fs::write(&file, format!("{text}\n")).unwrap();
        println!("\nAll figures are in {}", file.display());
    }
    println!(
        "\nControl: nothing differs from itself by {:.1} % at most ({worst_at}).",
        worst * 100.0
    );
    if plan.quick {
        println!("A quick run shows that it works, and proves nothing.");
    } else if !proves {
        println!(
            "This run proves nothing: its controls differ by over {:.0} %.",
            TOLERANCE * 100.0
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Measures all contenders at all workloads, and goes on with those whose control still differs.
fn compare(
    lab: &Lab,
    plan: &Plan,
    contenders: &mut [Contender],
    workloads: &[&Workload],
    senders: &mut Senders,
    random: &mut Random,
) -> Slices {
    let mut slices = Slices::default();
    let mut wanted = workloads.to_vec();
    for turn in 0..=plan.more {
        for round in turn * plan.rounds..(turn + 1) * plan.rounds {
            eprint!("\rround {} of {}", round + 1, (turn + 1) * plan.rounds);
            for workload in &wanted {
                if round % workload.every != 0 {
                    continue;
                }
                for number in shuffled(random, contenders.len()) {
                    let contender = &mut contenders[number];
                    let links = contender.on(lab);
                    let (ns, _) = senders.slice(workload, &contender.name);
                    contender.off(lab, links);
                    slices.push(workload.name, &contender.name, round, ns);
                }
            }
        }
        wanted.retain(|it| it.is_control && slices.control(it.name) > Some(TOLERANCE));
        if wanted.is_empty() {
            break;
        }
    }
    eprintln!();
    slices
}

/// Far addresses that take nothing, near ones for many sockets, and ports for many connections.
fn prepare(lab: &Lab) -> Guest {
    lab.peer
        .ip("route del local 198.51.100.0/24 dev lo\n")
        .unwrap();
    let near = format!("route add local {} dev lo\n", workload::NEAR);
    lab.host.ip(&near).unwrap();
    lab.host
        .enter(|| {
            let range = "/proc/sys/net/ipv4/ip_local_port_range";
            Ok(std::fs::write(range, "10000 65000")?)
        })
        .unwrap();
    guest(&lab.host, "machine", 1).unwrap()
}

/// Room for entries of conntrack, which is the machine's; as it was when dropped.
struct ConntrackRoom(Option<String>);

impl ConntrackRoom {
    fn make() -> Self {
        let before = std::fs::read_to_string(CONNTRACK_MAX).ok();
        let is_less = |text: &String| {
            text.trim()
                .parse::<u64>()
                .is_ok_and(|n| n < CONNTRACK_ENTRIES)
        };
        let before = before.filter(is_less);
        if before.is_some() {
            std::fs::write(CONNTRACK_MAX, CONNTRACK_ENTRIES.to_string()).unwrap();
        }
        Self(before)
    }
}

impl Drop for ConntrackRoom {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            std::fs::write(CONNTRACK_MAX, before).unwrap();
        }
    }
}

fn large_policy() -> Large {
    let table = std::env::var(TABLE).unwrap_or_else(|_| DEBIAN.to_owned());
    let geo = Geo::load(&[PathBuf::from(&table)]).unwrap();
    Large {
        policy: large::policy(&geo),
        table: Box::leak(table.into_boxed_str()),
    }
}

fn contenders(lab: &Lab, plan: &Plan, large: &Large) -> (Vec<Contender>, aya::Ebpf) {
    let mut all = vec![
        Contender::nothing(NOTHING, "nothing"),
        Contender::nothing(CONTROL, "nothing, once more"),
    ];
    let object = std::env::var_os(CONTENDERS).expect("run `cargo xtask bench cost`");
    let (others, ebpf) =
        contender::others(lab, Path::new(&object), |name| plan.wants_contender(name));
    all.extend(others);
    for setup in Setup::all() {
        if plan.wants_contender(&setup.name()) {
            all.push(contender::trefoil(lab, setup, large));
        }
    }
    (all, ebpf)
}

/// Numbers below this one in random order.
fn shuffled(random: &mut Random, n: usize) -> Vec<usize> {
    let mut all: Vec<_> = (0..n).collect();
    for last in (1..n).rev() {
        all.swap(last, random.below(last + 1));
    }
    all
}

/// Prints the comparison, and puts it into the results. How far controls are off, by workload.
fn show(
    slices: &Slices,
    workloads: &[&Workload],
    contenders: &[Contender],
    results: &mut Value,
) -> BTreeMap<String, f64> {
    let (mut controls, mut all) = (BTreeMap::new(), Vec::new());
    for workload in workloads {
        println!("\n{}", workload.title);
        let mut figures = Vec::new();
        for contender in contenders {
            let figure = slices.figure(workload.name, &contender.name).unwrap();
            let [low, added, high] = figure.added;
            println!(
                "  {:42} {:>11.0} ns {added:>+10.0} ({low:+.0} to {high:+.0}) {:>7.3}",
                contender.title, figure.ns, figure.ratio
            );
            figures.push(figure.json(&contender.name, &contender.title));
        }
        let control = slices.control(workload.name).unwrap();
        if workload.is_control {
            controls.insert(workload.name.to_owned(), control);
        }
        all.push(json!({
            "name": workload.name,
            "title": workload.title,
            "control": (control * 1e4).round() / 1e4,
            "rounds": slices.rounds(workload.name),
            "contenders": figures,
        }));
    }
    results["workloads"] = all.into();
    controls
}

/// Describes the machine that the figures come from.
fn machine() -> Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.unwrap_or_default().trim_start_matches(['\t', ' ', ':']);
    let mitigation = |name: &str| {
        let text = read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"));
        text.trim().to_owned()
    };
    json!({
        "cpu": cpu,
        "cpus": thread::available_parallelism().unwrap().get(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "jit": read("/proc/sys/net/core/bpf_jit_enable").trim(),
        "spectre_v2": mitigation("spectre_v2"),
        "srso": mitigation("spec_rstack_overflow"),
        "date": date(),
    })
}

fn date() -> String {
    let date = Command::new("date")
        .args(["--utc", "+%F"])
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}
