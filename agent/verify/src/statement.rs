//! `trefoil-verify statement`: what left the hosts in a period, as text and as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::{Value, json};
use trefoil_evidence::{
    statement::{HostStatement, Period, Statement},
    time::rfc3339,
    verify::Verdict,
};

use crate::{arguments, verify};

/// A host: a log of which somebody has the key.
struct Host {
    origin: String,
    /// `None` if there is no valid checkpoint of it.
    statement: Option<HostStatement>,
}

/// States it. Returns the text, and whether there is nothing to find fault with.
pub fn state(arguments: &arguments::Period) -> Result<(String, bool), String> {
    let period = Period {
        since_us: arguments.since,
        until_us: arguments.until,
    };
    if period.length_us() == 0 {
        return Err("--until is not after --since".to_owned());
    }
    // By machine, and by instance of the agent.
    let mut statements: BTreeMap<(String, String), Statement> = BTreeMap::new();
    let (verdict, unreadable) = verify(&arguments.records, |entry| {
        let text = |name: &str| entry.text(name).unwrap_or_default().to_owned();
        let key = (text("machine_id"), text("instance"));
        let statement = statements.entry(key);
        statement
            .or_insert_with(|| Statement::new(period))
            .add(entry);
    })?;
    let mut hosts = Vec::new();
    for log in &verdict.logs {
        let (own, others): (BTreeMap<_, _>, _) = statements
            .into_iter()
            .partition(|(agent, _)| log.agents.contains(agent));
        statements = others;
        hosts.extend(own.into_values().map(|statement| Host {
            origin: log.origin.clone(),
            statement: Some(statement.finish()),
        }));
    }
    let silent = arguments.records.names()?.into_iter();
    let silent = silent.filter(|name| !verdict.logs.iter().any(|log| log.origin == *name));
    hosts.extend(silent.map(|origin| Host {
        origin,
        statement: None,
    }));
    let n_findings = n_findings(&verdict) + unreadable.len() as u64;
    let is_fine = |host: &Host| host.statement.as_ref().is_some_and(HostStatement::is_clean);
    let is_clean = n_findings == 0 && hosts.iter().all(is_fine);
    let text = match arguments.records.json {
        true => format!(
            "{}\n",
            as_json(period, &hosts, &verdict, n_findings, is_clean)
        ),
        false => as_text(period, &hosts, &verdict, n_findings, is_clean),
    };
    Ok((text, is_clean))
}

fn n_findings(verdict: &Verdict) -> u64 {
    let of_logs: usize = verdict.logs.iter().map(|log| log.findings.len()).sum();
    (of_logs + verdict.findings.len()) as u64 + verdict.n_without_evidence + verdict.n_without_log
}

/// Sums of all hosts.
fn sums(
    hosts: &[Host],
    of: impl Fn(&HostStatement) -> &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, bytes) in hosts
        .iter()
        .filter_map(|it| it.statement.as_ref())
        .flat_map(of)
    {
        *sums.entry(name.clone()).or_default() += bytes;
    }
    sums
}

/// All of a set of facts.
fn all<T: Ord + Clone>(hosts: &[Host], of: impl Fn(&HostStatement) -> &BTreeSet<T>) -> Vec<T> {
    let known = hosts.iter().filter_map(|it| it.statement.as_ref());
    let all: BTreeSet<T> = known.flat_map(of).cloned().collect();
    all.into_iter().collect()
}

/// Share in percent, rounded down: all is 100 only if it is all.
fn percent(part_us: u128, whole_us: u128) -> String {
    let hundredths = part_us * 10_000 / whole_us.max(1);
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

/// Time for which hosts reported, and for which the next agent told what was counted.
fn reported_us(hosts: &[Host]) -> (u128, u128) {
    let known = hosts.iter().filter_map(|it| it.statement.as_ref());
    known.fold((0, 0), |(reported, later), it| {
        (
            reported + u128::from(it.reported_us),
            later + u128::from(it.told_later_us),
        )
    })
}

fn longest_unanchored_us(hosts: &[Host]) -> u64 {
    let known = hosts.iter().filter_map(|it| it.statement.as_ref());
    known.map(|it| it.longest_unanchored_us).max().unwrap_or(0)
}

/// Lines of a name and what there is to say about it.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, words: &str) {
        let _ = writeln!(self.0, "{name:<14}{words}");
    }
}

fn as_text(
    period: Period,
    hosts: &[Host],
    verdict: &Verdict,
    n_findings: u64,
    is_clean: bool,
) -> String {
    let mut lines = Lines::default();
    let (since, until) = (rfc3339(period.since_us), rfc3339(period.until_us));
    lines.add("period", &format!("{since} to {until}"));
    add_coverage(&mut lines, period, hosts);
    let n_records: u64 = verdict.logs.iter().map(|log| log.n_records).sum();
    let records = format!("{n_records} whole and in their places, {n_findings} findings");
    lines.add("records", &records);
    let seconds = longest_unanchored_us(hosts) / 1_000_000;
    lines.add("anchored", &format!("after {seconds} s at most"));
    add_traffic(&mut lines, hosts);
    for (policy, mode) in all(hosts, |it| &it.policies) {
        lines.add("policy", &format!("{policy}, mode {mode}"));
    }
    for geo in all(hosts, |it| &it.geo) {
        lines.add("country data", &geo);
    }
    hosts.iter().for_each(|host| add_host(&mut lines, host));
    let known = hosts.iter().filter_map(|it| it.statement.as_ref());
    let residual: u64 = known.map(HostStatement::residual_bytes).sum();
    let outcome = match is_clean {
        true => {
            "nothing left without an approval, and nothing is changed, missing or lost".to_owned()
        }
        false => format!("not proven, see above; {residual} bytes left without an approval"),
    };
    lines.add("outcome", &outcome);
    lines.0
}

fn add_coverage(lines: &mut Lines, period: Period, hosts: &[Host]) {
    let whole_us = u128::from(period.length_us()) * hosts.len() as u128;
    let (reported_us, later_us) = reported_us(hosts);
    let n_reported = hosts.iter().filter(|it| it.statement.is_some()).count();
    lines.add(
        "hosts",
        &format!("{n_reported} of {} reported", hosts.len()),
    );
    let coverage = format!(
        "{} of the time in time, {} told later by the next agent",
        percent(reported_us, whole_us),
        percent(later_us, whole_us)
    );
    lines.add("coverage", &coverage);
}

fn add_traffic(lines: &mut Lines, hosts: &[Host]) {
    let bytes = sums(hosts, |it| &it.bytes);
    let lost = sums(hosts, |it| &it.lost_bytes);
    let counted = sums(hosts, |it| &it.counted_bytes);
    for verdict in bytes.keys().chain(lost.keys()).collect::<BTreeSet<_>>() {
        let of = |sums: &BTreeMap<String, u64>| sums.get(verdict).copied().unwrap_or(0);
        let words = format!(
            "{} bytes left, {} lost to reports, {} counted from heartbeat to heartbeat",
            of(&bytes),
            of(&lost),
            of(&counted)
        );
        lines.add(verdict, &words);
    }
    for (rule, bytes) in sums(hosts, |it| &it.exceptions) {
        lines.add("exception", &format!("{rule}: {bytes} bytes"));
    }
    for (outcome, n) in sums(hosts, |it| &it.violations) {
        lines.add("violations", &format!("{n} {outcome}"));
    }
}

fn add_host(lines: &mut Lines, host: &Host) {
    let Host { origin, statement } = host;
    let Some(statement) = statement else {
        lines.add("silent", origin);
        return;
    };
    for (gap, cause) in &statement.gaps {
        let (from, to) = (rfc3339(gap.since_us), rfc3339(gap.until_us));
        lines.add(
            "gap",
            &format!("{origin}: {from} to {to}, {}", cause.as_str()),
        );
    }
    for subject in &statement.uncovered {
        lines.add("not watched", &format!("{origin}: {subject}"));
    }
    for (counter, n) in &statement.losses {
        lines.add("losses", &format!("{origin}: {n} {counter}"));
    }
    for subject in &statement.partly {
        lines.add("in part", &format!("{origin}: {subject}"));
    }
    for subject in &statement.tampered {
        lines.add("tampering", &format!("{origin}: {subject}"));
    }
}

fn as_json(
    period: Period,
    hosts: &[Host],
    verdict: &Verdict,
    n_findings: u64,
    is_clean: bool,
) -> Value {
    let of_host = |host: &Host| {
        let Some(it) = &host.statement else {
            return json!({"log": host.origin, "silent": true});
        };
        let gaps: Vec<Value> = it
            .gaps
            .iter()
            .map(|(gap, cause)| {
                json!({
                    "since": rfc3339(gap.since_us),
                    "until": rfc3339(gap.until_us),
                    "cause": cause.as_str(),
                })
            })
            .collect();
        let policies: Vec<Value> = it
            .policies
            .iter()
            .map(|(policy, mode)| json!({"policy": policy, "mode": mode}))
            .collect();
        json!({
            "log": host.origin,
            "silent": false,
            "records": it.n_records,
            "reported_s": it.reported_us / 1_000_000,
            "told_later_s": it.told_later_us / 1_000_000,
            "gaps": gaps,
            "bytes": it.bytes,
            "bytes_lost": it.lost_bytes,
            "bytes_counted": it.counted_bytes,
            "bytes_residual": it.residual_bytes(),
            "exceptions": it.exceptions,
            "violations": it.violations,
            "policies": policies,
            "geo": it.geo,
            "losses": it.losses,
            "partly": it.partly,
            "uncovered": it.uncovered,
            "tampered": it.tampered,
            "unanchored_s": it.longest_unanchored_us / 1_000_000,
        })
    };
    let (reported_us, later_us) = reported_us(hosts);
    let sizes: BTreeMap<&str, u64> = verdict
        .logs
        .iter()
        .map(|log| (log.origin.as_str(), log.size))
        .collect();
    json!({
        "since": rfc3339(period.since_us),
        "until": rfc3339(period.until_us),
        "hosts": hosts.iter().map(of_host).collect::<Vec<_>>(),
        "reported_s": (reported_us / 1_000_000) as u64,
        "told_later_s": (later_us / 1_000_000) as u64,
        "bytes": sums(hosts, |it| &it.bytes),
        "bytes_lost": sums(hosts, |it| &it.lost_bytes),
        "sizes": sizes,
        "findings": n_findings,
        "clean": is_clean,
    })
}
