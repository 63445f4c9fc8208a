//! `trefoil status`: is everything as it should be?

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use trefoil_ebpf::abi::{MODE_ENFORCE, Policy, Totals, verdict};

mod health;
mod uplinks;

use self::{health::Health, uplinks::UplinkStatus};
use super::{Ending, Failure, say, say_json, sources, who::who};
use crate::{
    acknowledged::{Acknowledged, Acknowledgement, Covered},
    cli::StatusArgs,
    clock::{self, BootClock},
    kernel::{Enforcement, InNamespace, KernelError, Reader, UplinkTable},
    report::words,
    state::State,
};

/// Everything that `status` says; its JSON form.
#[derive(Debug, Serialize)]
struct Status {
    /// True if there are no findings.
    healthy: bool,
    /// Findings.
    findings: Vec<String>,
    /// Parts that are not covered on this kernel, and losses that somebody has
    /// acknowledged.
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
    let look = || -> Result<(Status, Vec<Covered>), Failure> {
        match Reader::open(&pins) {
            Ok(reader) => look(&reader, State::read(pin_dir), pins.has_agent()),
            Err(error @ KernelError::NothingPinned { .. }) => {
                Ok((nothing(error.to_string()), Vec::new()))
            }
            Err(error) => Err(error.into()),
        }
    };
    let (mut status, open) = look()?;
    if args.acknowledge && !open.is_empty() {
        acknowledge(pin_dir, open)?;
        status = look()?.0;
    }
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

/// Covers what was found open, and nothing that came since.
fn acknowledge(pin_dir: &Path, covered: Vec<Covered>) -> Result<(), Failure> {
    let acknowledgement = Acknowledgement {
        by: who(),
        at_us: clock::unix_us(),
        covered,
    };
    Acknowledged::add(pin_dir, &acknowledgement).map_err(|error| {
        let file = Acknowledged::file(pin_dir);
        Failure::Other(format!("write {}: {error}", file.display()))
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

fn look(
    reader: &Reader,
    state: Option<State>,
    agent_lives: bool,
) -> Result<(Status, Vec<Covered>), Failure> {
    let mut health = Health::new(Acknowledged::read(reader.pins().base()));
    let header = reader.policy()?;
    let hooks = health.look_at_hooks(reader, state.as_ref());
    let is_watched = hooks.values().any(|is_attached| *is_attached);
    if header.is_none() {
        health.find("no policy is in force: nothing is judged");
    }
    if !agent_lives {
        health.find(match is_watched {
            false => "no agent is running",
            true => {
                "no agent is running: the kernel goes on counting and deciding, but nobody reports"
            }
        });
    }
    let uplinks = look_at_uplinks(reader, state.as_ref(), &mut health)?;
    let enforcement = reader.enforcement();
    let holds = enforcement.holds_at(clock::since_boot_ns());
    if header.is_some_and(|header| header.mode == MODE_ENFORCE) && !holds {
        health.find(
            "the policy asks to be enforced, but nobody ran `trefoil confirm` in time: it only \
             reports; a reload tries it again",
        );
    }
    let losses = health.look_at_losses(reader, state.as_ref())?;
    if agent_lives {
        look_at_agent(state.as_ref(), is_watched, &mut health);
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
    let status = Status {
        healthy: health.findings.is_empty(),
        agent: state
            .as_ref()
            .filter(|_| agent_lives)
            .map(|state| AgentStatus {
                pid: state.pid,
                version: state.version.clone(),
                pending: state.pending,
            }),
        policy: header.map(|header| PolicyStatus::of(&header, enforcement, state.as_ref())),
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
        findings: health.findings,
        notes: health.notes,
    };
    Ok((status, health.open))
}

impl PolicyStatus {
    fn of(header: &Policy, enforcement: Enforcement, state: Option<&State>) -> Self {
        let holds = enforcement.holds_at(clock::since_boot_ns());
        Self {
            mode: if holds { "enforce" } else { "report" },
            enforced_until: match enforcement {
                Enforcement::Until(until_ns) if holds => {
                    Some(clock::rfc3339(BootClock::read().unix_us(until_ns)))
                }
                _ => None,
            },
            generation: header.generation,
            id: state.map(|state| state.policy.clone()),
            source: state.map(|state| state.policy_source.clone()),
            rules: state.map(|state| state.rules.len()),
            geo: state.map(|state| state.geo.clone()),
        }
    }
}

/// Interfaces are those of the agent's network namespace, wherever this runs.
fn look_at_uplinks(
    reader: &Reader,
    state: Option<&State>,
    health: &mut Health,
) -> Result<BTreeMap<String, UplinkStatus>, KernelError> {
    let namespace = state.filter(|state| state.namespace != 0);
    let entered = namespace.map(|state| InNamespace::enter(state.namespace, state.pid));
    match entered.transpose() {
        Ok(_inside) => uplinks::look(reader, health),
        Err(error) => {
            if !UplinkTable::open(reader.pins())?.all()?.is_empty() {
                health.find(format!("uplinks are not looked at: {error}"));
            }
            Ok(BTreeMap::new())
        }
    }
}

/// Adds the findings about a running agent, as it says of itself.
fn look_at_agent(state: Option<&State>, is_watched: bool, health: &mut Health) {
    if let Some(state) = state {
        if let Some(stalled) = &state.stalled {
            health.find(format!("records wait to be handed over: {stalled}"));
        }
        for (subject, reason) in &state.unwatched {
            health.find(format!("{subject} is not watched: {reason}"));
        }
        if let Some(aside) = &state.aside {
            health.find(format!(
                "a sink misses records: {aside}; the others have them"
            ));
        }
    }
    if is_watched {
        health.findings.extend(stale(state));
    }
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
