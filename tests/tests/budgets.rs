//! Budgets of the kernel programs, by `tests/budgets.txt`: how many instructions the verifier goes
//! through on this kernel, places at which helpers are called, bytes of object, code, stack and
//! tag. The agent's own size is compared by `cargo xtask package`, which makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::kernel::{MapInfo, Objects, ProgramInfo, Runs};
use trefoil_lab::object::{self, helper_name};
use trefoil_lab::tracer::Tracer;
use trefoil_lab::{Lab, agent};

#[test]
fn the_object_is_within_its_budget() -> Result<()> {
    let object = object()?;
    let found = BTreeMap::from([
        ("object.bytes".to_owned(), object.len() as u64),
        ("code.bytes".to_owned(), object::code_bytes(&object)? as u64),
    ]);
    compare(&["object", "code"], &found, "")
}

#[test]
fn programs_call_no_more_helpers_than_their_budgets_allow() -> Result<()> {
    let programs = object::programs(&object()?)?;
    let (mut found, mut told) = (BTreeMap::new(), String::new());
    for (name, calls) in &programs {
        found.insert(format!("helpers.{name}"), calls.n_helpers() as u64);
        let helpers = calls.helpers.iter();
        let helpers: Vec<_> = helpers
            .map(|(number, count)| format!("{count} {}", helper_name(*number)))
            .collect();
        told.push_str(&format!("{name}: {}\n", helpers.join(", ")));
    }
    compare(&["helpers"], &found, &told)
}

/// This kernel may give more than those that are supported.
#[test]
fn programs_need_no_more_stack_than_any_kernel_gives() -> Result<()> {
    const MOST: u64 = 512;
    let mut programs = object::programs(&object()?)?;
    programs.extend(object::programs(&tracing_object()?)?);
    let deepest = programs
        .iter()
        .map(|(name, calls)| (calls.stack, name))
        .max();
    let (stack, name) = deepest.context("an object without programs")?;
    println!("{name} needs {stack} bytes");
    ensure!(
        (1..=MOST).contains(&stack),
        "{name} needs {stack} bytes of stack"
    );
    Ok(())
}

/// Those that only look have an object of their own, and nothing of it is in what decides.
#[test]
fn the_programs_that_decide_have_nothing_of_a_trace() -> Result<()> {
    let (deciding, tracing) = (object()?, tracing_object()?);
    for name in ["AYA_LOG", "TRACE_", "trace_"] {
        let is_in = |object: &[u8]| {
            let mut windows = object.windows(name.len());
            windows.any(|bytes| bytes == name.as_bytes())
        };
        ensure!(is_in(&tracing), "{name} is not in the programs of a trace");
        ensure!(!is_in(&deciding), "{name} is in the programs that decide");
    }
    Ok(())
}

#[test]
fn programs_of_a_trace_call_nothing_that_changes_what_others_see() -> Result<()> {
    /// Update and deletion of a map's element; writing into a packet, the hash of its flow,
    /// changing and pulling its data.
    const CHANGES: [u32; 6] = [2, 3, 9, 34, 38, 39];
    let programs = object::programs(&tracing_object()?)?;
    ensure!(programs.len() == 6, "{:?}", programs.keys());
    for (name, calls) in &programs {
        let mut helpers = calls.helpers.keys();
        let changing = helpers.find(|number| CHANGES.contains(number));
        let changing = changing.map(|number| helper_name(*number));
        ensure!(changing.is_none(), "{name} calls {changing:?}");
    }
    Ok(())
}

/// Instructions that the verifier went through, by program.
fn verified(programs: &[ProgramInfo]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for program in programs {
        let counted = found.entry(format!("verified.{}", program.name));
        let verified = counted.or_insert(0);
        *verified = u64::from(program.verified).max(*verified);
    }
    found
}

/// Those that decide are the same while somebody traces, and after it: the kernel never changes a
/// program that it has loaded, so the same numbers are the same instructions.
#[test]
fn a_trace_runs_programs_of_its_own_beside_those_that_decide() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().uplink("auto").start()?;
    let deciding = || -> Result<Vec<ProgramInfo>> {
        let mut programs = ProgramInfo::of(&Objects::held_by(agent.pid())?)?;
        // Somebody on this machine may have the kernel count how they run.
        programs.iter_mut().for_each(|it| it.runs = Runs::default());
        Ok(programs)
    };
    let without = deciding()?;
    let tracer = Tracer::start(&lab, &["--for", "10min"])?;
    let tracing = tracer.objects()?.programs;
    assert_eq!(deciding()?, without, "while it traces");
    compare(&["verified"], &verified(&deciding()?), "")?;
    let ids: BTreeSet<u32> = without.iter().map(|it| it.id).collect();
    ensure!(
        !tracing.is_empty() && tracing.is_disjoint(&ids),
        "{tracing:?} and {ids:?}"
    );
    tracer.end(Signal::SIGINT)?;
    assert_eq!(deciding()?, without, "after it");
    drop(agent);
    lab.close()
}

#[test]
fn what_the_kernel_makes_of_the_programs_is_within_its_budget() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().uplink("auto").start()?;
    let mut found = verified(&ProgramInfo::of(agent.objects())?);
    let tag = MapInfo::of(agent.objects())?;
    let tag = tag.into_iter().find(|map| map.name == "SOCKETS");
    let tag = tag.context("the agent has no map of tags")?;
    found.insert("tag.bytes".to_owned(), u64::from(tag.value_bytes));
    drop(agent);
    lab.close()?;
    compare(&["verified", "tag"], &found, "")
}

/// The object that the agent under test has in it.
fn object() -> Result<Vec<u8>> {
    object_in("bpf")
}

/// The object of `trefoil trace`, which it has in it as well.
fn tracing_object() -> Result<Vec<u8>> {
    object_in("bpf/trace")
}

fn object_in(directory: &str) -> Result<Vec<u8>> {
    let agent = agent::trefoil()?;
    let target = agent.ancestors().nth(2).context("no target directory")?;
    let path = target.join(directory);
    let path = path.join("bpfel-unknown-none/release/trefoil-ebpf");
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Programs of which a kernel loads one or the other.
const ALTERNATIVES: [(&str, &str); 1] = [("verified.iter_sockets", "verified.iter_socket_fil")];

/// Set, the tests write the lines anew, for a commit that says why.
const RAISE: &str = "TREFOIL_RAISE_BUDGETS";
const FILE: &str = "budgets.txt";

/// Holds what was found against the lines of these kinds. A program without a line, and what
/// is above its line, is a problem, and so is a line for helpers of what is no program.
fn compare(kinds: &[&str], found: &BTreeMap<String, u64>, told: &str) -> Result<()> {
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE_BY_ONE.lock();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut budgets = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(limit)) = (words.next(), words.next()) else {
            continue;
        };
        let limit: u64 = limit.parse().with_context(|| format!("{FILE}: {line}"))?;
        budgets.insert(name.to_owned(), limit);
    }
    let is_of_kind = |name: &str| {
        kinds
            .iter()
            .any(|kind| name.split('.').next() == Some(kind))
    };
    let mut problems = Vec::new();
    for (name, number) in found {
        match budgets.get(name) {
            Some(limit) if number <= limit => {}
            Some(limit) => problems.push(format!("{name} is {number}, above {limit}")),
            None => problems.push(format!("{name} is {number}, and has no line")),
        }
    }
    for name in budgets.keys() {
        let is_gone = is_of_kind(name) && !found.contains_key(name);
        if is_gone && name.starts_with("helpers.") {
            problems.push(format!("{name} has a line, and is no program"));
        }
        let stands_in = ALTERNATIVES.iter().any(|(one, other)| {
            name == one && found.contains_key(*other) || name == other && found.contains_key(*one)
        });
        if is_gone && name.starts_with("verified.") && !stands_in {
            problems.push(format!("{name} has a line, and did not load"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    if std::env::var_os(RAISE).is_some() {
        budgets.retain(|name, _| !(is_of_kind(name) && name.starts_with("helpers.")));
        budgets.extend(
            found
                .iter()
                .map(|(name, number)| {
                    let before = budgets.get(name).copied().filter(|limit| number <= limit);
                    (name.clone(), before.unwrap_or_else(|| limit(name, *number)))
                })
                .collect::<Vec<_>>(),
        );
        let mut new: String = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        for (name, limit) in &budgets {
            new.push_str(&format!("{name} {limit}\n"));
        }
        return fs::write(&file, new).with_context(|| format!("write {}", file.display()));
    }
    bail!(
        "{}\n\nMake it smaller; or run this test with {RAISE}=1, which raises the lines in \
         tests/{FILE}, and say in the commit what the host gets for it.\n{told}",
        problems.join("\n"),
    )
}

/// The line for a number that was found. Compilers and kernels move what the verifier goes
/// through and how large code is; calls of helpers and the layout of the tag are written by
/// hand.
fn limit(name: &str, found: u64) -> u64 {
    match name.split('.').next() {
        Some("verified") => rounded_up(found + found / 4),
        Some("object" | "code") => rounded_up(found + found / 10),
        _ => found,
    }
}

/// With two digits that are not zero.
fn rounded_up(number: u64) -> u64 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    number.div_ceil(unit) * unit
}
