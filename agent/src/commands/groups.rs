//! Flows that were seen, as somebody reads them: by whose they are, where they went,
//! and what policies say.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::Serialize;

use crate::{
    observed::{Amount, Judge, Judgement, Observed, Reading, Source, Target, Way},
    policy::Policy,
    report::words::{bytes, clean, count},
};

/// Lines that a list may have before the rest is a number.
const MOST_LINES: usize = 40;

/// Opinion of one policy, under the names that records use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Opinion {
    /// The verdict, or every one that is possible.
    pub verdicts: Vec<&'static str>,
    /// The rules that give them; none where no rule matches.
    pub rules: Vec<Option<String>>,
    /// Unknown facts that would decide.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<&'static str>,
}

impl Opinion {
    /// Makes the opinion from a judgement of `judge`.
    pub fn of(judge: &Judge<'_>, judgement: &Judgement) -> Self {
        let possible = judgement.possible();
        let name = |ruling| judge.rule_name(ruling).map(str::to_owned);
        Self {
            verdicts: possible.iter().map(|ruling| ruling.name()).collect(),
            rules: possible.iter().map(name).collect(),
            lacks: judgement.lacks().to_vec(),
        }
    }

    /// `denied by rule "never there"`, `approved by rule "x" or unapproved`.
    pub fn words(&self) -> String {
        let all = self.verdicts.iter().zip(&self.rules);
        let words: Vec<String> = all
            .map(|(verdict, rule)| match rule {
                Some(rule) => format!("{verdict} by rule \"{}\"", clean(rule)),
                None => (*verdict).to_owned(),
            })
            .collect();
        let lacks = match self.lacks[..] {
            [] => String::new(),
            _ => format!(" ({} is not in the records)", self.lacks.join(", ")),
        };
        words.join(" or ") + &lacks
    }
}

/// Flows that are the same to a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group<O> {
    #[serde(skip)]
    source: Arc<Source>,
    #[serde(skip)]
    target: Target,
    #[serde(flatten)]
    facts: Facts,
    /// Flows.
    pub flows: u64,
    /// Bytes that they sent.
    pub bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
    /// Opinion about them.
    #[serde(flatten)]
    pub opinion: O,
}

/// Under the names that records use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Facts {
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_addr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_country: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe_note: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
}

impl Facts {
    fn of(source: &Source, target: &Target) -> Self {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let port = |port: u16| (port != 0).then_some(port);
        Self {
            direction: target.way.name(),
            protocol: target.protocol.map(|protocol| protocol.to_string()),
            dst_addr: target.address,
            dst_port: port(target.port),
            src_port: port(target.near_port),
            dst_country: target.country.map(|country| country.as_str()),
            exe: text(&source.exe),
            exe_note: text(&source.exe_note),
            uid: source.uid,
            gid: source.gid,
            user: text(&source.user),
            unit: text(&source.unit),
            user_unit: text(&source.user_unit),
            container: text(&source.container),
            cgroup: text(&source.cgroup),
        }
    }
}

/// Puts together what is the same; the most bytes first.
pub fn groups<'o, O: Clone + Ord>(all: impl Iterator<Item = (&'o Observed, O)>) -> Vec<Group<O>> {
    let mut groups: BTreeMap<(Arc<Source>, Target, O), Amount> = BTreeMap::new();
    for (observed, opinion) in all {
        let mut target = observed.target.clone();
        if matches!(target.way, Way::Accepted | Way::Claimed) {
            // A client's port says nothing.
            target.port = 0;
        }
        let key = (Arc::clone(&observed.source), target, opinion);
        groups.entry(key).or_default().add(&observed.amount);
    }
    let mut groups: Vec<Group<O>> = groups
        .into_iter()
        .map(|((source, target, opinion), amount)| Group {
            facts: Facts::of(&source, &target),
            source,
            target,
            flows: amount.flows,
            bytes_out: amount.bytes_out,
            started: amount.first.map(|time| time.to_string()),
            ended: amount.last.map(|time| time.to_string()),
            opinion,
        })
        .collect();
    groups.sort_by_key(|group| Reverse((group.bytes_out, group.flows)));
    groups
}

/// `12 flows, 3.4 MB`, of everything.
pub fn sum<'a>(amounts: impl Iterator<Item = (u64, u64)> + 'a) -> String {
    let (flows, out) = amounts.fold((0_u64, 0_u64), |(flows, out), (more, more_out)| {
        (flows.saturating_add(more), out.saturating_add(more_out))
    });
    format!("{}, {} out", count(flows, "flow"), bytes(out))
}

/// A title and a line for each group; nothing if there is none.
pub fn text<O>(title: &str, groups: &[Group<O>], words: impl Fn(&O) -> String) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let all = groups.iter().map(|group| (group.flows, group.bytes_out));
    let mut text = format!("{title}: {}\n", sum(all));
    for group in groups.iter().take(MOST_LINES) {
        let country = group
            .target
            .country
            .filter(|_| group.target.address.is_some());
        let country = country.map_or(String::new(), |country| format!(" ({country})"));
        text += &format!(
            "  {}, {}: {} {} {}{country}: {}\n",
            count(group.flows, "flow"),
            bytes(group.bytes_out),
            group.source,
            if matches!(group.target.way, Way::Accepted | Way::Claimed) {
                "with its client"
            } else {
                "to"
            },
            group.target,
            words(&group.opinion)
        );
    }
    let n_more = groups.len().saturating_sub(MOST_LINES);
    if n_more > 0 {
        text += &format!("  ... and {n_more} more; --json lists all\n");
    }
    text
}

/// ` on web-1, 2026-11-21T21:53:40Z to 2026-11-22T21:53:40Z`, as far as it is known.
pub fn span(reading: &Reading) -> String {
    let mut text = String::new();
    if !reading.hosts.is_empty() {
        let hosts: Vec<_> = reading.hosts.iter().map(|host| clean(host)).collect();
        text += &format!(" on {}", hosts.join(", "));
    }
    if let (Some(first), Some(last)) = (&reading.first, &reading.last) {
        let second = |time: &str| time.get(..19).unwrap_or(time).to_owned();
        text += &format!(", {}Z to {}Z", second(first), second(last));
    }
    text
}

/// Returns a note about a policy's budgets; empty if it has none.
pub fn about_budgets(policies: &[&Policy]) -> &'static str {
    let has_limit = |policy: &&Policy| {
        let mut rules = policy.rules.iter();
        rules.any(|rule| rule.budget.is_some() || rule.exception.is_some())
    };
    match policies.iter().any(has_limit) {
        true => "budgets are taken to last, and exceptions hold as they did at the time\n",
        false => "",
    }
}
