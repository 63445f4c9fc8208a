//! `trefoil query`: questions to the records of the past. So far one: does a gateway's own log say
//! the same?

use std::{
    fmt::Write as _,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Ending, Failure, say, say_json, sources};
use crate::{
    bounded::{self, Unreadable},
    cli::QueryArgs,
    gateway_log::{Account, Bytes, Ends, Flow, Held, Hosts, Ledger, Lines, Mapping, Seen},
    observed::line,
    policy::{Policy, network::Network},
    report::words,
    settings::Settings,
};

/// Lines of a file that are named when they cannot be read; the rest are counted.
const MOST_FAULTS: usize = 10;
/// Flows of a list that are shown; `--json` has all.
const MOST_SHOWN: usize = 100;

/// Output of the command; its JSON form.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    account: Account,
    /// Lines of records that could not be read.
    unreadable_records: u64,
    /// Lines of the log that could not be read.
    unreadable_lines: u64,
}

pub fn query(args: &QueryArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.config.as_deref())?;
    let ends = match &args.gateway {
        Some(name) => Some(gateway(name, args.policy.clone(), &settings)?),
        None => None,
    };
    let (hosts, unreadable_records) = records(&args.files)?;
    let mapping = &settings.gateway_log;
    let mut ledger = Ledger::new(hosts, mapping);
    let mut unreadable_lines = 0;
    for file in &args.gateway_log {
        unreadable_lines += log(file, mapping, &mut ledger)?;
    }
    let account = ledger.finish(|flow| ends.as_ref().is_none_or(|ends| ends.have(flow)));
    let answer = Answer {
        account,
        unreadable_records,
        unreadable_lines,
    };
    if args.json {
        say_json(&answer)?;
    } else {
        say(&text(&answer))?;
    }
    let is_whole = unreadable_records + unreadable_lines == 0;
    Ok(match answer.account.has_findings() || !is_whole {
        true => Ending::Findings,
        false => Ending::Fine,
    })
}

/// Where a gateway is, as the policy says.
struct GatewayEnds {
    endpoints: Vec<IpAddr>,
    clients: Vec<Network>,
}

impl GatewayEnds {
    fn have(&self, ends: &Ends) -> bool {
        let far = ends.dst_addr;
        self.endpoints.contains(&far) || self.clients.iter().any(|network| network.contains(far))
    }
}

fn gateway(
    name: &str,
    policy: Option<PathBuf>,
    settings: &Settings,
) -> Result<GatewayEnds, Failure> {
    let flags = crate::settings::Flags {
        policy,
        ..crate::settings::Flags::default()
    };
    let settings = settings
        .clone()
        .with(flags)
        .map_err(|error| Failure::Configuration(error.to_string()))?;
    let text = sources::policy_text(&settings)?;
    let policy = Policy::parse(&text.text, &text.source)
        .map_err(|problems| Failure::Configuration(problems.to_string()))?;
    let found = policy
        .gateways
        .iter()
        .find(|gateway| gateway.name.value == name);
    let Some(gateway) = found else {
        let names: Vec<&str> = policy
            .gateways
            .iter()
            .map(|gateway| &*gateway.name.value)
            .collect();
        return Err(Failure::Usage(format!(
            "--gateway: {} has no gateway `{name}`; it has: {}",
            text.source,
            names.join(", ")
        )));
    };
    Ok(GatewayEnds {
        endpoints: gateway.endpoints.iter().map(|one| one.address).collect(),
        clients: gateway.clients.clone(),
    })
}

/// Reads flows from files of records, `-` being standard input. Returns how many lines could not be
/// read as well.
fn records(files: &[PathBuf]) -> Result<(Hosts, u64), Failure> {
    let mut hosts = Hosts::default();
    let (mut n_records, mut n_unreadable) = (0_u64, 0);
    for file in files {
        n_unreadable += each_line(file, |line| {
            match line::read(line).map_err(|error| error.to_string())? {
                line::Line::Record(record) => {
                    hosts.add(&record).map_err(|error| error.to_string())?;
                    n_records += 1;
                }
                line::Line::Other => {}
                line::Line::NotTrusted => return Err("not known to be from root".to_owned()),
            }
            match hosts.is_full() {
                true => Ok(Some("more flows than are held at a time: take less time")),
                false => Ok(None),
            }
        })?;
    }
    if n_records == 0 {
        let names = files.iter().map(|file| file.display().to_string());
        let names: Vec<_> = names.collect();
        return Err(Failure::Configuration(format!(
            "there is no record of Trefoil in {}; records are what `trefoil run --json FILE` \
             writes, and `journalctl -u trefoil -o json`, as root",
            names.join(", ")
        )));
    }
    Ok((hosts, n_unreadable))
}

/// Reads a gateway's log. Returns how many lines could not be read.
fn log(file: &Path, mapping: &Mapping, ledger: &mut Ledger<'_>) -> Result<u64, Failure> {
    let mut lines = Lines::new(mapping);
    let (mut n_read, mut first) = (0_u64, None);
    let mut headers = Unreadable::default();
    let n_unreadable = each_line(file, |text| {
        let is_known = lines.is_known();
        match lines.read(text) {
            Ok(Some(line)) => {
                ledger.add(line);
                n_read += 1;
            }
            Ok(None) if headers.add(text.len()).is_err() => {
                return Ok(Some(
                    "more lines of a header than any log has; name a log that has flows",
                ));
            }
            Ok(None) => {}
            Err(error) => {
                let text = error.to_string();
                first.get_or_insert_with(|| text.clone());
                // A header that lacks a column is one fault, and not one of each line.
                return match is_known && n_read > 0 {
                    true => Err(text),
                    false => Ok(Some("")),
                };
            }
        }
        match ledger.is_full() {
            true => Ok(Some(
                "more flows that no record is about than are held at a time: take \
                             records of the same time",
            )),
            false => Ok(None),
        }
    });
    match (n_unreadable, n_read, first) {
        (_, 0, Some(why)) => Err(Failure::Configuration(format!(
            "read {}: not a log of flows: {why}",
            file.display()
        ))),
        (Ok(_), 0, None) => Err(Failure::Configuration(format!(
            "read {}: there is no flow in it",
            file.display()
        ))),
        (n_unreadable, ..) => n_unreadable,
    }
}

/// Gives each line of a file to `take`, which may say why to read no more. A line that it cannot
/// read is named on standard error. Returns how many those are.
fn each_line(
    file: &Path,
    mut take: impl FnMut(&[u8]) -> Result<Option<&'static str>, String>,
) -> Result<u64, Failure> {
    let name = match file.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let cannot_read = |error: &io::Error| {
        let text = format!("read {name}: {error}");
        match error.kind() {
            io::ErrorKind::PermissionDenied => Failure::NotPermitted(text),
            _ => Failure::Configuration(text),
        }
    };
    let mut input = bounded::lines(file).map_err(|error| cannot_read(&error))?;
    let (mut line, mut n_unreadable) = (Vec::new(), 0_u64);
    let mut unreadable = Unreadable::default();
    let mut count = |line: &[u8]| {
        let counted = unreadable.add(line.len());
        counted.map_err(|error| cannot_read(&error))
    };
    for number in 1_u64.. {
        let taken = match bounded::read_line(&mut input, &mut line) {
            Err(error) => return Err(cannot_read(&error)),
            Ok(None) => break,
            Ok(Some(true)) if line.trim_ascii().is_empty() => {
                count(&line)?;
                continue;
            }
            Ok(Some(true)) => take(&line),
            Ok(Some(false)) => Err(format!("longer than {} bytes", bounded::MAX_LINE)),
        };
        match taken {
            Ok(None) => {}
            Ok(Some(why)) => {
                return Err(Failure::Configuration(format!("{name}:{number}: {why}")));
            }
            Err(reason) => {
                count(&line)?;
                n_unreadable += 1;
                if n_unreadable <= MOST_FAULTS as u64 {
                    eprintln!("{name}:{number}: {}", words::clean(&reason));
                }
            }
        }
    }
    if n_unreadable > MOST_FAULTS as u64 {
        eprintln!("... and {} more", n_unreadable - MOST_FAULTS as u64);
    }
    Ok(n_unreadable)
}

fn text(answer: &Answer) -> String {
    let account = &answer.account;
    let mut text = format!(
        "{} of the log and {} are the same: {} by the hosts, {} by the gateway\n",
        words::count(account.lines, "line"),
        words::count(account.joined, "recorded flow"),
        both_ways(account.host_bytes),
        both_ways(account.gateway_bytes),
    );
    let span = |of: &Option<[String; 2]>| match of {
        Some([first, last]) => format!("{first} to {last}"),
        None => "empty".to_owned(),
    };
    let _ = writeln!(
        text,
        "log: {}; records: {}",
        span(&account.log),
        span(&account.records)
    );
    list(
        &mut text,
        "approved as gateway, and not seen by the gateway",
        &account.not_seen,
        |flow| format!("{}: {}", recorded(flow), both_ways(flow.bytes)),
    );
    list(
        &mut text,
        "seen by the gateway, and not recorded by the host",
        &account.not_recorded,
        |seen: &Seen| {
            let bytes = seen.bytes.map_or("bytes not known".to_owned(), both_ways);
            format!("{} {}: {bytes}", seen.started, seen.ends)
        },
    );
    list(
        &mut text,
        "less passed the gateway than left the host",
        &account.fewer_bytes,
        |held: &Held| {
            format!(
                "{}: {} by the host, {} by the gateway",
                recorded(&held.flow),
                both_ways(held.flow.bytes),
                both_ways(held.gateway_bytes)
            )
        },
    );
    if !account.has_findings() {
        text += "nothing is on one side alone\n";
    }
    text + &not_compared(answer)
}

/// Counts of flows and lines that could not be held against the other side.
fn not_compared(answer: &Answer) -> String {
    let account = &answer.account;
    let mut text = String::new();
    for (count, what, why) in [
        (
            account.flows_outside,
            "flow",
            "approved as gateway began before the log, or were not over at its end",
        ),
        (
            account.lines_outside,
            "line",
            "began before the records, or were not over at their end",
        ),
        (account.of_others, "line", "about no address of these hosts"),
        (
            account.rolled_up,
            "flow",
            "rolled up, so that the records do not have their addresses; with `flows = \"each\"` in trefoil.toml they do",
        ),
        (
            account.without_id,
            "flow",
            "of protocols without a community id",
        ),
        (answer.unreadable_records, "record", "could not be read"),
        (
            answer.unreadable_lines,
            "line",
            "of the log could not be read",
        ),
    ] {
        if count > 0 {
            let _ = writeln!(text, "not compared: {} {why}", words::count(count, what));
        }
    }
    text
}

fn recorded(flow: &Flow) -> String {
    let rule = match &flow.rule {
        Some(rule) => format!(", rule `{}`", words::clean(rule)),
        None => String::new(),
    };
    let host = match &flow.host {
        Some(host) => format!(" on {}", words::clean(host)),
        None => String::new(),
    };
    format!(
        "{} {} by {}{host}{rule}",
        flow.started, flow.ends, flow.owner
    )
}

fn both_ways(bytes: Bytes) -> String {
    format!(
        "{} sent, {} received",
        words::bytes(bytes.out),
        words::bytes(bytes.back)
    )
}

fn list<T>(text: &mut String, title: &str, all: &[T], line: impl Fn(&T) -> String) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{title}: {}",
        words::count(all.len() as u64, "flow")
    );
    for one in all.iter().take(MOST_SHOWN) {
        let _ = writeln!(text, "  {}", line(one));
    }
    if all.len() > MOST_SHOWN {
        let _ = writeln!(
            text,
            "  ... and {} more, see --json",
            all.len() - MOST_SHOWN
        );
    }
    text.push('\n');
}
