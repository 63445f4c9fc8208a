//! `trefoil status`: is everything as it should be?

use std::collections::BTreeMap;

use serde::Serialize;
use trefoil_ebpf::abi::{MODE_ENFORCE, Totals, verdict};

mod uplinks;

use self::uplinks::UplinkStatus;
use super::{Ending, Failure, say, say_json, sources};
use crate::{
    cli::StatusArgs,
    clock::{self, BootClock},
    kernel::{Enforcement, HOOKS, KernelError, Reader},
    losses::is_harmless,
    report::words,
    state::State,
};

/// Everything that `status` says; its JSON form.
#[derive(Debug, Serialize)]
struct Status {
    /// True if there are no findings.
    healthy: bool,
    /// What is not as it should be.
    findings: Vec<String>,
    /// What is not covered on this kernel.
    notes: Vec<String>,
    agent: Option<AgentStatus>,
    policy: Option<PolicyStatus>,
    hooks: BTreeMap<&'static str, bool>,
    attached_since: Option<String>,
    bytes_out: BTreeMap<&'static str, u64>,
    bytes_blocked: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    losses: BTreeMap<&'static str, u64>,
    attribution: BTreeMap<&'static str, u64>,
    /// By name.
    uplinks: BTreeMap<String, UplinkStatus>,
}

#[derive(Debug, Serialize)]
struct AgentStatus {
    pid: u32,
    version: String,
    pending: u64,
}

#[derive(Debug, Serialize)]
struct PolicyStatus {
    mode: &'static str,
    /// When enforcement ends unless it is confirmed.
    enforced_until: Option<String>,
    generation: u32,
    id: Option<String>,
    source: Option<String>,
    rules: Option<usize>,
    geo: Option<String>,
}

pub fn status(args: &StatusArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let pins = sources::pins(pin_dir)?;
    let status = match Reader::open(&pins) {
        Ok(reader) => look(&reader, State::read(pin_dir), pins.has_agent())?,
        Err(error @ KernelError::NothingPinned { .. }) => nothing(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    if args.json {
        say_json(&status)?;
    } else {
        say(&text(&status))?;
    }
    Ok(if status.healthy {
        Ending::Fine
    } else {
        Ending::Findings
    })
}

fn nothing(finding: String) -> Status {
    Status {
        healthy: false,
        findings: vec![finding],
        notes: Vec::new(),
        agent: None,
        policy: None,
        hooks: BTreeMap::new(),
        attached_since: None,
        bytes_out: BTreeMap::new(),
        bytes_blocked: BTreeMap::new(),
        refused: BTreeMap::new(),
        losses: BTreeMap::new(),
        attribution: BTreeMap::new(),
        uplinks: BTreeMap::new(),
    }
}

fn look(reader: &Reader, state: Option<State>, agent_lives: bool) -> Result<Status, Failure> {
    let (mut findings, mut notes) = (Vec::new(), Vec::new());
    let header = reader.policy()?;
    let instance = reader.instance();
    let links = reader.links();
    let hooks: BTreeMap<_, _> = HOOKS
        .iter()
        .filter(|hook| hook.is_pinned())
        .map(|hook| {
            let is_attached = links
                .iter()
                .any(|(of, name)| *of == instance && name == hook.name);
            (hook.name, is_attached)
        })
        .collect();
    let is_nothing_attached = hooks.values().all(|is_attached| !is_attached);
    if is_nothing_attached {
        findings.push(
            "no hook is attached: nothing is watched; an agent is starting, or its links were \
             removed"
                .to_owned(),
        );
    }
    for (hook, _) in hooks
        .iter()
        .filter(|(_, is_attached)| !**is_attached && !is_nothing_attached)
    {
        // What the kernel does not have is said, and nothing that anybody can mend.
        let lacking = state
            .iter()
            .flat_map(|state| &state.uncovered)
            .find(|(name, _)| name == hook);
        match lacking {
            Some((_, without)) => notes.push(format!("no hook {hook} on this kernel: {without}")),
            None => findings.push(format!(
                "hook {hook} is not attached: it was, and is not any more"
            )),
        }
    }
    // Those at uplinks have a pin for each, and none that shows whether the kernel has them.
    let uncovered = state.iter().flat_map(|state| &state.uncovered);
    // Of one that is attached, a fallback may cover less.
    for (hook, what) in uncovered.filter(|(name, _)| hooks.get(name.as_str()) != Some(&false)) {
        notes.push(format!("hook {hook} on this kernel does not cover {what}"));
    }
    if header.is_none() {
        findings.push("no policy is in force: nothing is judged".to_owned());
    }
    if !agent_lives {
        findings.push(
            match is_nothing_attached {
                true => "no agent is running",
                false => {
                    "no agent is running: the kernel goes on counting and deciding, but nobody \
                     reports"
                }
            }
            .to_owned(),
        );
    }
    let uplinks = uplinks::look(reader, &mut findings, &mut notes)?;
    let enforcement = reader.enforcement();
    let holds = enforcement.holds_at(clock::since_boot_ns());
    if header.is_some_and(|header| header.mode == MODE_ENFORCE) && !holds {
        findings.push(
            "the policy asks to be enforced, but nobody ran `trefoil confirm` in time: it only \
             reports; a reload tries it again"
                .to_owned(),
        );
    }
    let losses = reader.losses()?;
    for (name, count) in losses
        .iter()
        .filter(|(name, count)| **count > 0 && !is_harmless(name))
    {
        findings.push(format!("{name}: {count} since the programs were loaded"));
    }
    let of_agent = state.as_ref().filter(|_| agent_lives);
    if let Some(stalled) = of_agent.and_then(|state| state.stalled.as_ref()) {
        findings.push(format!("records wait to be handed over: {stalled}"));
    }
    let unwatched = state.iter().filter(|_| agent_lives);
    for (subject, reason) in unwatched.flat_map(|state| &state.unwatched) {
        findings.push(format!("{subject} is not watched: {reason}"));
    }
    if let Some(aside) = of_agent.and_then(|state| state.aside.as_ref()) {
        findings.push(format!(
            "a sink misses records: {aside}; the others have them"
        ));
    }
    if agent_lives && !is_nothing_attached {
        findings.extend(stale(state.as_ref()));
    }
    // A file of an agent before says nothing about the policy in force now.
    let state = state.filter(|state| header.is_none_or(|p| p.generation == state.generation));
    let totals = reader.totals()?;
    let sums = |of: fn(&Totals) -> u64| {
        (verdict::LOCAL..verdict::N)
            .zip(&totals[usize::from(verdict::LOCAL)..])
            .filter_map(|(verdict, sum)| Some((words::verdict(verdict)?, of(sum))))
            .collect::<BTreeMap<_, _>>()
    };
    Ok(Status {
        healthy: findings.is_empty(),
        agent: state
            .as_ref()
            .filter(|_| agent_lives)
            .map(|state| AgentStatus {
                pid: state.pid,
                version: state.version.clone(),
                pending: state.pending,
            }),
        policy: header.map(|header| PolicyStatus {
            mode: if holds { "enforce" } else { "report" },
            enforced_until: match enforcement {
                Enforcement::Until(until_ns) if holds => {
                    Some(clock::rfc3339(BootClock::read().unix_us(until_ns)))
                }
                _ => None,
            },
            generation: header.generation,
            id: state.as_ref().map(|state| state.policy.clone()),
            source: state.as_ref().map(|state| state.policy_source.clone()),
            rules: state.as_ref().map(|state| state.rules.len()),
            geo: state.as_ref().map(|state| state.geo.clone()),
        }),
        hooks,
        attached_since: state
            .as_ref()
            .map(|state| clock::rfc3339(state.attached_us)),
        bytes_out: sums(|sum| sum.bytes_out),
        bytes_blocked: sums(|sum| sum.blocked_bytes),
        refused: sums(|sum| sum.refused),
        losses,
        attribution: state.as_ref().map_or_else(BTreeMap::new, |state| {
            ["direct", "inferred", "none"]
                .into_iter()
                .zip(state.owners)
                .collect()
        }),
        uplinks,
        findings,
        notes,
    })
}

/// An agent that lives and does not say so, for want of a file.
fn stale(state: Option<&State>) -> Option<String> {
    /// How late a busy machine may make it.
    const LATE_NS: u64 = 15_000_000_000;
    let Some(state) = state else {
        return Some(
            "the agent has left no readable state: is /run full or mounted read-only? Names, \
             sinks and limits are not known here"
                .to_owned(),
        );
    };
    let allowed_ns = LATE_NS + 2 * state.written_every_ns;
    let is_late = clock::since_boot_ns().saturating_sub(state.written_ns) > allowed_ns;
    is_late.then(|| {
        format!(
            "the agent has not written its state since {}: it is stuck, or /run is full or \
             mounted read-only",
            clock::rfc3339(state.written_us)
        )
    })
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text += &format!("{name:>12}  {value}\n");
    let agent = status
        .agent
        .as_ref()
        .map_or("not running".to_owned(), |agent| {
            format!("running, pid {}, version {}", agent.pid, agent.version)
        });
    line("agent", &agent);
    if let Some(policy) = &status.policy {
        let source = policy.source.as_deref().unwrap_or("unknown");
        let rules = policy.rules.map_or(String::new(), |rules| {
            format!(", {}", words::count(rules as u64, "rule"))
        });
        line("policy", &format!("{} mode, {source}{rules}", policy.mode));
        if let Some(until) = &policy.enforced_until {
            line(
                "",
                &format!("until {until}, unless `trefoil confirm` is run before"),
            );
        }
        if let Some(id) = &policy.id {
            line("", &format!("id {id}, generation {}", policy.generation));
        }
        line("countries", policy.geo.as_deref().unwrap_or("unknown"));
    }
    if !status.hooks.is_empty() {
        let attached = status.hooks.values().filter(|attached| **attached).count();
        let since = status.attached_since.as_deref().unwrap_or("unknown");
        line(
            "hooks",
            &format!(
                "{attached} of {} attached since {since}",
                status.hooks.len()
            ),
        );
    }
    for (name, bytes) in status.bytes_out.iter().filter(|(_, bytes)| **bytes > 0) {
        line(name, &format!("{} sent", words::bytes(*bytes)));
    }
    for (name, bytes) in status.bytes_blocked.iter().filter(|(_, bytes)| **bytes > 0) {
        line(name, &format!("{} dropped", words::bytes(*bytes)));
    }
    for (name, calls) in status.refused.iter().filter(|(_, calls)| **calls > 0) {
        line(name, &format!("{} refused", words::count(*calls, "call")));
    }
    if !status.attribution.is_empty() {
        let parts: Vec<_> = status
            .attribution
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        line("owners", &parts.join(", "));
    }
    for (name, uplink) in &status.uplinks {
        line("uplink", &format!("{name}: {}", uplinks::text(uplink)));
    }
    for note in &status.notes {
        line("note", note);
    }
    match status.findings.as_slice() {
        [] => line("health", "everything is as it should be"),
        findings => {
            for finding in findings {
                line("finding", finding);
            }
        }
    }
    text
}
