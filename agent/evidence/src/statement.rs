//! Statements about what left hosts in a period, as far as their records say.
//!
//! A statement adds up what verified records tell: for which share of the period each host reported, why
//! not for the rest, bytes by verdict, and what was lost. It has no persons in it.
//!
//! - Bytes are `bytes_new` of `flow` and `violation` records, which add up over any window of time.
//! - A host reported from each heartbeat until the next, if that came in twice its interval and ten
//!   seconds. While an agent was away and its kernel programs went on counting, the next one told what
//!   they counted: this is reported, too, and later.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included},
};

use crate::{entry::Entry, time::unix_us_of, verify::Series};

/// Begins the reason of a `coverage` record about a host whose kernel programs went on while no agent
/// was there.
pub const TAKEN_OVER: &str = "taken over without a gap";

/// Verdicts by which something may leave.
const PERMITTED: [&str; 4] = ["local", "gateway", "approved", "exception"];

/// Counter of losses of which the numbers come later.
const LOSES_NOTHING: &str = "events-full";

/// A heartbeat may be late by its interval and this.
const LATE_US: u64 = 10_000_000;

/// A period: from the first moment up to the last, which is outside; microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// The first moment.
    pub since_us: u64,
    /// The moment after the last.
    pub until_us: u64,
}

impl Period {
    /// Its length, microseconds.
    #[must_use]
    pub fn length_us(self) -> u64 {
        self.until_us.saturating_sub(self.since_us)
    }

    fn has(self, time_us: u64) -> bool {
        (self.since_us..self.until_us).contains(&time_us)
    }
}

/// Why nobody reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// There are no earlier records of the host.
    NotBegun,
    /// There are no later records of it.
    Silent,
    /// Its kernel began anew.
    Boot,
    /// Somebody detached the kernel programs.
    Detached,
    /// The agent did not report, and nothing says that the kernel programs went on.
    Away,
    /// An agent loaded the kernel programs anew: until then there were none.
    LoadedAnew,
}

impl Cause {
    /// Names it for a reader and for JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotBegun => "no record before",
            Self::Silent => "no record after",
            Self::Boot => "boot",
            Self::Detached => "detached",
            Self::Away => "no agent",
            Self::LoadedAnew => "loaded anew",
        }
    }
}

/// Outcome for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostStatement {
    /// Microseconds of the period for which it reported in time.
    pub reported_us: u64,
    /// Those for which the next agent told what the kernel programs had counted.
    pub told_later_us: u64,
    /// The rest, and why.
    pub gaps: Vec<(Period, Cause)>,
    /// Records of the period.
    pub n_records: u64,
    /// Bytes that left, by verdict.
    pub bytes: BTreeMap<String, u64>,
    /// Bytes whose records were lost, by verdict.
    pub lost_bytes: BTreeMap<String, u64>,
    /// Other losses than those of bytes, by counter; not those that lose nothing.
    pub losses: BTreeMap<String, u64>,
    /// Bytes that the kernel programs counted from the first heartbeat to the last, by verdict.
    pub counted_bytes: BTreeMap<String, u64>,
    /// Bytes that left by an exception, by its rule.
    pub exceptions: BTreeMap<String, u64>,
    /// Violations, by outcome.
    pub violations: BTreeMap<String, u64>,
    /// Digests of the policies that judged, and modes.
    pub policies: BTreeSet<(String, String)>,
    /// Country data that they judged by.
    pub geo: BTreeSet<String>,
    /// Subjects that were watched in part.
    pub partly: BTreeSet<String>,
    /// Subjects that were not watched.
    pub uncovered: BTreeSet<String>,
    /// Subjects that were tampered with.
    pub tampered: BTreeSet<String>,
    /// Longest time from a record to the checkpoint that covers it, microseconds.
    pub longest_unanchored_us: u64,
}

impl HostStatement {
    /// Bytes that left without an approval.
    #[must_use]
    pub fn residual_bytes(&self) -> u64 {
        let is_residual = |(verdict, _): &(&String, &u64)| !PERMITTED.contains(&verdict.as_str());
        let of = |sums: &BTreeMap<String, u64>| -> u64 {
            sums.iter()
                .filter(is_residual)
                .map(|(_, bytes)| bytes)
                .sum()
        };
        of(&self.bytes) + of(&self.lost_bytes)
    }

    /// Takes in what a record says of the coverage of a subject.
    fn covers(&mut self, subject: String, state: &str) {
        match state {
            "partly" => drop(self.partly.insert(subject)),
            // The times of the host and its agent themselves are gaps.
            "uncovered" if !subject.starts_with("this ") => drop(self.uncovered.insert(subject)),
            _ => {}
        }
    }

    /// True if the host reported all the time, nothing was unwatched, lost or tampered with, and nothing
    /// left without an approval.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.gaps.is_empty()
            && self.uncovered.is_empty()
            && self.lost_bytes.is_empty()
            && self.losses.is_empty()
            && self.tampered.is_empty()
            && self.residual_bytes() == 0
    }
}

/// A record as far as coverage goes by it.
#[derive(Debug)]
struct Mark {
    boot: String,
    kind: MarkKind,
}

#[derive(Debug, PartialEq, Eq)]
enum MarkKind {
    Heartbeat { interval_us: u64 },
    TakenOver,
    Begun,
    Detached,
}

/// Told of coverage before the period.
#[derive(Debug)]
enum Earlier {
    /// An agent began to watch: what it lacks it tells itself.
    Begun,
    /// A subject, and its state.
    Subject(String, String),
}

/// Takes in the records of one host, and states what they tell of a period.
#[derive(Debug)]
pub struct Statement {
    period: Period,
    host: HostStatement,
    /// By time, and by the order in which they came.
    marks: BTreeMap<(u64, usize), Mark>,
    /// By time, and by the order in which they came.
    earlier: BTreeMap<(u64, usize), Earlier>,
    /// Sums of the kernel programs: boot, time and bytes, by verdict.
    sums: BTreeMap<String, BTreeMap<u64, u64>>,
    /// Series of records, each once: numbers are of one series.
    series: Vec<Series>,
    /// When each record was made, by the index of its series and its number, and whether it is a
    /// checkpoint.
    times: BTreeMap<(usize, u64), (u64, bool)>,
}

impl Statement {
    /// About this period.
    #[must_use]
    pub fn new(period: Period) -> Self {
        Self {
            period,
            host: HostStatement::default(),
            marks: BTreeMap::new(),
            earlier: BTreeMap::new(),
            sums: BTreeMap::new(),
            series: Vec::new(),
            times: BTreeMap::new(),
        }
    }

    /// Takes in a record of the host, which may be of another time. One that comes twice counts once.
    pub fn add(&mut self, entry: &Entry) {
        let Some(time_us) = entry.text("time").and_then(unix_us_of) else {
            return;
        };
        let text = |name: &str| entry.text(name).unwrap_or_default().to_owned();
        let number = |name: &str| entry.number(name).unwrap_or_default();
        let (event, boot) = (text("event"), text("boot_id"));
        self.mark(entry, &event, &boot, time_us);
        if !self.period.has(time_us) {
            if event == "coverage" && time_us < self.period.since_us {
                self.take_earlier(time_us, text("subject"), text("state"));
            }
            return;
        }
        let is_checkpoint = event == "checkpoint";
        let place = (self.series_of(entry), number("seq"));
        if self.times.insert(place, (time_us, is_checkpoint)).is_some() {
            return;
        }
        let host = &mut self.host;
        host.n_records += 1;
        if let Some(policy) = entry.text("policy") {
            host.policies.insert((policy.to_owned(), text("mode")));
        }
        host.geo.extend(entry.text("geo").map(str::to_owned));
        match event.as_str() {
            "flow" | "violation" => {
                let (verdict, bytes) = (text("verdict"), number("bytes_new"));
                if verdict == "exception" {
                    *host.exceptions.entry(text("rule")).or_default() += bytes;
                }
                if event == "violation" {
                    *host.violations.entry(text("outcome")).or_default() += 1;
                }
                *host.bytes.entry(verdict).or_default() += bytes;
            }
            "loss" if entry.text("verdict").is_some() => {
                *host.lost_bytes.entry(text("verdict")).or_default() += number("bytes_out");
            }
            "loss" if number("count") > 0 && text("subject") != LOSES_NOTHING => {
                *host.losses.entry(text("subject")).or_default() += number("count");
            }
            "coverage" => host.covers(text("subject"), &text("state")),
            "tamper" => {
                host.tampered.insert(text("subject"));
            }
            "heartbeat" => {
                for verdict in PERMITTED.iter().chain(&RESIDUAL) {
                    let name = format!("bytes_{}", verdict.replace('-', "_"));
                    if let Some(bytes) = entry.number(&name) {
                        let sums = self.sums.entry((*verdict).to_owned()).or_default();
                        sums.insert(time_us, bytes);
                    }
                }
            }
            _ => {}
        }
    }

    fn take_earlier(&mut self, time_us: u64, subject: String, state: String) {
        let earlier = match subject == "this host" && state == "covered" {
            true => Earlier::Begun,
            false => Earlier::Subject(subject, state),
        };
        let place = (time_us, self.earlier.len());
        self.earlier.insert(place, earlier);
    }

    /// Takes over what was not watched when the period began.
    fn carry_over(&mut self) {
        let mut states: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for ((time_us, _), earlier) in std::mem::take(&mut self.earlier) {
            match earlier {
                // At the same moment it has told what it lacks.
                Earlier::Begun => states.retain(|_, (told_us, _)| *told_us >= time_us),
                Earlier::Subject(subject, state) => {
                    states.insert(subject, (time_us, state));
                }
            }
        }
        for (subject, (_, state)) in states {
            self.host.covers(subject, &state);
        }
    }

    /// Returns the index of the series that a record is of.
    fn series_of(&mut self, entry: &Entry) -> usize {
        let series = Series::of(entry);
        let known = self.series.iter().position(|it| *it == series);
        known.unwrap_or_else(|| {
            self.series.push(series);
            self.series.len() - 1
        })
    }

    /// Keeps what coverage goes by, also of records before and after the period.
    fn mark(&mut self, entry: &Entry, event: &str, boot: &str, time_us: u64) {
        let reason = entry.text("reason").unwrap_or_default();
        let is_about_host = entry.text("subject") == Some("this host");
        let kind = match (event, entry.text("state")) {
            ("heartbeat", _) => MarkKind::Heartbeat {
                interval_us: entry.number("interval_s").unwrap_or_default() * 1_000_000,
            },
            ("coverage", Some("covered")) if is_about_host && reason.starts_with(TAKEN_OVER) => {
                MarkKind::TakenOver
            }
            ("coverage", Some("covered")) if is_about_host && reason.is_empty() => MarkKind::Begun,
            ("coverage", Some("uncovered")) if is_about_host => MarkKind::Detached,
            _ => return,
        };
        let boot = boot.to_owned();
        self.marks
            .insert((time_us, self.marks.len()), Mark { boot, kind });
    }

    /// States what the records tell.
    #[must_use]
    pub fn finish(mut self) -> HostStatement {
        self.carry_over();
        self.find_gaps();
        self.host.counted_bytes = self
            .sums
            .iter()
            .map(|(verdict, sums)| (verdict.clone(), counted(sums)))
            .collect();
        self.host.longest_unanchored_us = longest_unanchored(&self.times);
        self.host
    }

    /// Goes through the period from heartbeat to heartbeat.
    fn find_gaps(&mut self) {
        let beats: Vec<((u64, usize), u64, &str)> = self
            .marks
            .iter()
            .filter_map(|(&place, mark)| match mark.kind {
                MarkKind::Heartbeat { interval_us } => {
                    Some((place, interval_us, mark.boot.as_str()))
                }
                MarkKind::TakenOver | MarkKind::Begun | MarkKind::Detached => None,
            })
            .collect();
        let period = self.period;
        let mut spans = Vec::new();
        let first_us = beats
            .first()
            .map_or(u64::MAX, |((time_us, _), ..)| *time_us);
        spans.push((0, first_us, Some(Cause::NotBegun)));
        for pair in beats.windows(2) {
            let [(from, interval_us, boot), (to, _, next_boot)] = pair else {
                continue;
            };
            let ((from_us, _), (to_us, _)) = (from, to);
            let in_time = to_us - from_us <= 2 * interval_us + LATE_US;
            let between = || {
                self.marks
                    .range((Excluded(from), Included(to)))
                    .map(|(_, mark)| &mark.kind)
            };
            let was = |kind: &MarkKind| between().any(|it| it == kind);
            let cause = match in_time {
                _ if was(&MarkKind::Detached) => Some(Cause::Detached),
                _ if boot != next_boot => Some(Cause::Boot),
                _ if was(&MarkKind::Begun) => Some(Cause::LoadedAnew),
                true => None,
                false if was(&MarkKind::TakenOver) => {
                    self.host.told_later_us += within(period, *from_us, *to_us).length_us();
                    continue;
                }
                false => Some(Cause::Away),
            };
            spans.push((*from_us, *to_us, cause));
        }
        if let Some(((last_us, _), interval_us, _)) = beats.last() {
            let due_us = last_us + 2 * interval_us + LATE_US;
            match due_us >= period.until_us {
                true => spans.push((*last_us, u64::MAX, None)),
                false => spans.push((*last_us, u64::MAX, Some(Cause::Silent))),
            }
        }
        for (from_us, to_us, cause) in spans {
            let span = within(period, from_us, to_us);
            match cause {
                _ if span.length_us() == 0 => {}
                None => self.host.reported_us += span.length_us(),
                Some(cause) => self.host.gaps.push((span, cause)),
            }
        }
    }
}

/// Verdicts by which nothing should leave.
const RESIDUAL: [&str; 4] = ["over-budget", "denied", "unapproved", "undetermined"];

fn within(period: Period, from_us: u64, to_us: u64) -> Period {
    Period {
        since_us: from_us.clamp(period.since_us, period.until_us),
        until_us: to_us.clamp(period.since_us, period.until_us),
    }
}

/// Adds up a sum that begins anew with each load of the programs.
fn counted(sums: &BTreeMap<u64, u64>) -> u64 {
    let pairs = sums.values().zip(sums.values().skip(1));
    let steps = pairs.map(|(before, after)| match after.checked_sub(*before) {
        Some(more) => more,
        None => *after,
    });
    steps.sum()
}

/// Longest time from a record to the next checkpoint of its series.
fn longest_unanchored(times: &BTreeMap<(usize, u64), (u64, bool)>) -> u64 {
    let (mut longest, mut oldest) = (0, None::<(usize, u64)>);
    for (&(series, _), (time_us, is_checkpoint)) in times {
        let begun_us = match oldest {
            Some((of, begun_us)) if of == series => begun_us.min(*time_us),
            _ => *time_us,
        };
        match is_checkpoint {
            true => {
                longest = longest.max(time_us.saturating_sub(begun_us));
                oldest = None;
            }
            false => oldest = Some((series, begun_us)),
        }
    }
    longest
}

#[cfg(test)]
mod tests;
