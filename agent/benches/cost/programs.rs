//! The kernel programs one by one.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trefoil::kernel::HOOKS;
use trefoil::policy::testing::Random;
use trefoil_lab::attach::Attachment;
use trefoil_lab::kernel::{ProgramInfo, count_runs};
use trefoil_lab::{Lab, agent, object};

use crate::contender::{Contender, EMPTY, NOTHING, WHOLE};
use crate::figures::{Slices, tenths};
use crate::plan::Plan;
use crate::senders::Senders;
use crate::shuffled;
use crate::workload::{WORKLOADS, Workload};

/// Workloads at which each program's own time is looked at.
const BY_PROGRAM: [&str; 10] = [
    "udp-connected",
    "udp-64",
    "udp-16384",
    "sockets-1",
    "sockets-65536",
    "tcp-short",
    "forwarded",
    "exec",
    "unwatched-udp",
    "unwatched-tcp",
];

/// By program: what the verifier went through, what it became, which helpers it calls, and how
/// long it runs by the kernel's own clock less what an empty program takes by it.
pub fn measure(lab: &Lab, contenders: &mut [Contender], senders: &mut Senders) -> Value {
    let find = |name: &str| contenders.iter().position(|it| it.name == name);
    let (Some(whole_at), Some(empty_at)) = (find(WHOLE), find(EMPTY)) else {
        println!("\nNothing by program: that takes {WHOLE} and {EMPTY}.");
        return Value::Null;
    };
    let whole = &contenders[whole_at];
    let calls = calls();
    let named = full_names(&whole.programs());
    println!(
        "\n{:24} {:>9} {:>8} {:>8}",
        "program", "verified", "bytes", "helpers"
    );
    let mut rows = Vec::new();
    for program in distinct(whole.programs()) {
        let full = &named[&program.id];
        let helpers = calls.get(full);
        println!(
            "{full:24} {:>9} {:>8} {:>8}",
            program.verified,
            program.jited_bytes,
            helpers.map_or(0, object::Calls::n_helpers)
        );
        let by_helper: BTreeMap<_, _> = helpers
            .iter()
            .flat_map(|calls| &calls.helpers)
            .map(|(number, count)| (object::helper_name(*number), *count))
            .collect();
        rows.push(json!({
            "name": full,
            "verified": program.verified,
            "jited_bytes": program.jited_bytes,
            "helpers": by_helper,
        }));
    }

    let counting = count_runs().unwrap();
    let mut runs = |contender: &mut Contender, workload: &Workload| {
        let links = contender.on(lab);
        let before = distinct(contender.programs());
        let (_, count) = senders.slice(workload, &contender.name);
        let after = distinct(contender.programs());
        contender.off(lab, links);
        let runs = before.into_iter().zip(after).map(|(before, after)| {
            let runs = after.runs.since(before.runs);
            (after.id, runs.ns as f64, runs.count as f64)
        });
        (runs.collect::<Vec<_>>(), count as f64)
    };
    let udp = WORKLOADS
        .iter()
        .find(|it| it.name == "udp-connected")
        .unwrap();
    let (of_empty, _) = runs(&mut contenders[empty_at], udp);
    let (_, empty_ns, empty_count) = &of_empty[0];
    let empty_ns = empty_ns / empty_count.max(1.0);
    println!("\nan empty program by the kernel's clock: {empty_ns:.0} ns, taken off below");
    let mut times = Vec::new();
    for workload in WORKLOADS.iter().filter(|it| BY_PROGRAM.contains(&it.name)) {
        println!("{}", workload.title);
        let (all, count) = runs(&mut contenders[whole_at], workload);
        let mut of_workload = Vec::new();
        for (id, ns, n_runs) in all.into_iter().filter(|(_, _, n_runs)| *n_runs > 0.0) {
            let each = ns / n_runs - empty_ns;
            let share = n_runs / count;
            if share < 0.01 {
                continue;
            }
            let name = &named[&id];
            println!(
                "  {name:24} {share:>6.2} x {each:>6.0} ns = {:>7.0} ns",
                share * each
            );
            of_workload.push(json!({
                "program": name,
                "runs": (share * 100.0).round() / 100.0,
                "ns": tenths(each),
            }));
        }
        times.push(json!({ "workload": workload.name, "programs": of_workload }));
    }
    drop(counting);
    json!({ "list": rows, "empty_ns": tenths(empty_ns), "times": times })
}

/// A program that is attached at several places once.
fn distinct(programs: Vec<ProgramInfo>) -> Vec<ProgramInfo> {
    let mut seen = Vec::new();
    for program in programs {
        if !seen.iter().any(|it: &ProgramInfo| it.id == program.id) {
            seen.push(program);
        }
    }
    seen
}

fn calls() -> BTreeMap<String, object::Calls> {
    let agent = agent::trefoil().unwrap();
    let target = agent.ancestors().nth(2).unwrap();
    let object = target.join("bpf/bpfel-unknown-none/release/trefoil-ebpf");
    object::programs(&std::fs::read(object).unwrap()).unwrap()
}

/// Names of programs by number. The kernel keeps 15 letters; programs are attached in the
/// order of the agent's list of hooks.
fn full_names(programs: &[ProgramInfo]) -> BTreeMap<u32, String> {
    let mut hooks: Vec<_> = HOOKS.iter().map(|hook| hook.name).collect();
    let mut names = BTreeMap::new();
    for program in programs {
        names.entry(program.id).or_insert_with(|| {
            let hook = hooks.iter().position(|it| it.starts_with(&program.name));
            hook.map_or(program.name.clone(), |at| hooks.remove(at).to_owned())
        });
    }
    names
}

/// All programs but one, for each of them: what the host gets back by the clock.
pub fn leave_out(
    lab: &Lab,
    plan: &Plan,
    contenders: &mut [Contender],
    senders: &mut Senders,
    random: &mut Random,
) -> Value {
    let Some(whole) = contenders.iter_mut().find(|it| it.name == WHOLE) else {
        return Value::Null;
    };
    // Those that are run by the workloads of this part.
    const LEFT_OUT: [&str; 7] = [
        "egress",
        "uplink_egress",
        "ingress",
        "sock_send_lengt",
        "inet_sock_set_s",
        "connect4",
        "sendmsg4",
    ];
    const AT: [&str; 3] = ["udp-connected", "udp-64", "tcp-short"];
    let mut all = vec![Contender::with(NOTHING, "all", again(whole, ""))];
    for name in LEFT_OUT {
        all.push(Contender::with(name, name, again(whole, name)));
    }
    let mut slices = Slices::default();
    for round in 0..plan.rounds {
        for workload in WORKLOADS.iter().filter(|it| AT.contains(&it.name)) {
            for number in shuffled(random, all.len()) {
                let contender = &all[number];
                let links = contender.on(lab);
                // The same tags for all of them: they are of one agent.
                let (ns, _) = senders.slice(workload, WHOLE);
                drop(links);
                // The events of all of them are in the tables of one.
                whole.drain();
                slices.push(workload.name, &contender.name, round, ns);
            }
        }
    }
    println!("\nWithout one program, by the clock");
    let mut rows = Vec::new();
    for workload in AT {
        for name in LEFT_OUT {
            let figure = slices.figure(workload, name).unwrap();
            let [low, saved, high] = figure.added;
            println!(
                "  {workload:14} without {name:16} {saved:>+8.0} ns ({low:+.0} to {high:+.0})"
            );
            rows.push(json!({
                "workload": workload,
                "program": name,
                "added": tenths(saved),
                "low": tenths(low),
                "high": tenths(high),
            }));
        }
    }
    rows.into()
}

/// Attachments of a contender but those of one program.
fn again(whole: &Contender, but: &str) -> Vec<Attachment> {
    let kept = whole.attachments.iter();
    let kept = kept.filter(|it| it.info().unwrap().name != but);
    kept.map(|it| it.again().unwrap()).collect()
}
