//! Answer of a policy about one flow, with its reasons.
//!
//! Owns the meaning of a policy: goes through the rules from top to bottom, as
//! somebody would who reads the file, and shares nothing with the compiled form
//! but the reading of values. Both are tested against each other.

mod embedded;
mod inquiry;
mod near_end;
mod reader;
mod session;
mod text;

use std::net::IpAddr;

use serde::Serialize;
use trefoil_ebpf::abi::verdict;

pub use self::inquiry::Inquiry;
use self::reader::Reader;
use super::evaluate::Question;
use super::geography::Surroundings;
use super::service::Protocol;
use super::source::{Direction, Mode, Policy, Rule, RuleVerdict};
use crate::geo::Country;

/// The answer to a [`Question`], with the way to it.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The policy's file.
    pub policy: String,
    /// Its mode.
    pub mode: Mode,
    /// Names the country data.
    pub geo: String,
    /// Facts of the flow.
    pub flow: FlowFacts,
    /// The verdict, by its name in reports.
    pub verdict: &'static str,
    /// Outcome for the flow, by its name in reports.
    pub outcome: &'static str,
    /// Index of the rule that decides, from 0; none if no rule matches.
    pub rule: Option<usize>,
    /// Why, in one sentence.
    pub reason: String,
    /// Every rule, in the order of the file. Those behind the one that decides are
    /// not asked, but say here whether they would match. Empty for local flows,
    /// for which no rule is asked.
    pub rules: Vec<RuleTrace>,
}

/// A flow in words, under the names that reports use.
#[derive(Clone, Debug, Serialize)]
pub struct FlowFacts {
    /// Destination, a mapped IPv4 address as IPv4.
    pub dst_addr: IpAddr,
    /// The IPv4 address that it embeds, by which it is judged as well; of several the one that
    /// decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedded_addr: Option<IpAddr>,
    /// Its port; none if there is none.
    pub dst_port: Option<u16>,
    /// Its country; none if it is not known.
    pub dst_country: Option<&'static str>,
    /// Its autonomous system; none if it is not known.
    pub dst_asn: Option<u32>,
    /// Protocol by name, or by number.
    pub protocol: String,
    /// Path of the control group; none if it is not known.
    pub cgroup: Option<String>,
    /// Path of the executable; none if it is not known.
    pub exe: Option<String>,
    /// User id; none if it is not known.
    pub uid: Option<u32>,
    /// Group id; none if it is not known.
    pub gid: Option<u32>,
    /// Whether there is a login session; none if it is not known.
    pub interactive: Option<bool>,
    /// Address that somebody logged in from; none if nobody did, or if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_addr: Option<IpAddr>,
    /// Which end opened it; none if it is not known.
    pub direction: Option<Direction>,
    /// This host's port; none if there is none yet, or if it is not known.
    pub src_port: Option<u16>,
}

/// How one rule stands to the flow.
#[derive(Clone, Debug, Serialize)]
pub struct RuleTrace {
    /// Index in the file, from 0.
    pub index: usize,
    /// The rule's name.
    pub name: String,
    /// The line on which it begins.
    pub line: u32,
    /// Verdict of the rule.
    pub verdict: RuleVerdict,
    /// True when all its conditions hold.
    pub matches: bool,
    /// Each key of the rule.
    pub conditions: Vec<Condition>,
}

/// How one key of a rule stands to the flow.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// The key, as in `to.ports`.
    pub key: &'static str,
    /// True when the flow satisfies it.
    pub holds: bool,
    /// True when that is so because something is not known, and a rule that denies then
    /// counts as one that matches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub could: bool,
    /// Why, or why not.
    pub reason: String,
}

impl RuleTrace {
    /// True if the rule matches since something is not known.
    #[must_use]
    pub fn could(&self) -> bool {
        self.matches && self.conditions.iter().any(|condition| condition.could)
    }
}

/// A verdict and the index of the rule that decided, if one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ruling {
    /// One of `abi::verdict`.
    pub verdict: u8,
    /// Index of the rule in the file.
    pub rule: Option<usize>,
}

impl Ruling {
    /// True if the flow may leave.
    #[must_use]
    pub fn approves(&self) -> bool {
        verdict::is_approved(self.verdict)
    }

    /// The verdict by its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        verdict_name(self.verdict).unwrap_or("none")
    }

    /// The stricter of this and of that about the address that is embedded.
    #[must_use]
    pub fn or_stricter(self, inner: Self) -> Self {
        embedded::stricter(self, inner).0
    }
}

/// Answer of a policy about a flow by one address alone: the one that it goes to, or the one
/// that is embedded in it.
#[derive(Clone, Debug)]
pub struct ByAddress {
    /// Ruling by this address.
    pub ruling: Ruling,
    /// Why, in one sentence.
    pub reason: String,
    /// The country of the address; none if it is not known.
    pub country: Option<Country>,
    /// As in [`Explanation`].
    pub rules: Vec<RuleTrace>,
}

/// A verdict's name; `None` for what was not judged.
#[must_use]
pub fn verdict_name(verdict: u8) -> Option<&'static str> {
    Some(match verdict {
        verdict::LOCAL => "local",
        verdict::GATEWAY => "gateway",
        verdict::APPROVED => "approved",
        verdict::EXCEPTION => "exception",
        verdict::OVER_BUDGET => "over-budget",
        verdict::DENIED => "denied",
        verdict::UNAPPROVED => "unapproved",
        verdict::UNDETERMINED => "undetermined",
        _ => return None,
    })
}

/// Decides as [`explain`] does, without saying why.
#[must_use]
pub fn decide(policy: &Policy, surroundings: &Surroundings<'_>, question: &Question<'_>) -> Ruling {
    let decide = |destination| {
        let reader = Reader::new(policy, surroundings, question, destination, false);
        let matches = |rule: &Rule| {
            reader
                .conditions(rule)
                .iter()
                .all(|condition| condition.holds)
        };
        reader.ruling(|| policy.rules.iter().position(matches))
    };
    embedded_in(policy, question.destination)
        .into_iter()
        .fold(decide(question.destination), |outer, inner| {
            embedded::stricter(outer, decide(inner)).0
        })
}

/// The addresses that a destination embeds, by which a policy judges it as well.
#[must_use]
pub fn embedded_in(policy: &Policy, destination: IpAddr) -> Vec<IpAddr> {
    let all = embedded::in_address(policy, destination).into_iter();
    all.map(|(address, _)| address).collect()
}

/// Says what `policy` decides about a flow by an address, and why.
#[must_use]
pub fn by_address(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    question: &Question<'_>,
    address: IpAddr,
) -> ByAddress {
    let reader = Reader::new(policy, surroundings, question, address, true);
    let mut rules: Vec<RuleTrace> = Vec::new();
    let ruling = reader.ruling(|| {
        rules = policy
            .rules
            .iter()
            .enumerate()
            .map(|(at, rule)| reader.trace(at, rule))
            .collect();
        rules.iter().position(|rule| rule.matches)
    });
    let deciding = ruling.rule.and_then(|rule| rules.get(rule));
    let could = deciding.is_some_and(RuleTrace::could);
    ByAddress {
        ruling,
        reason: reader.reason(ruling, could),
        country: reader.country,
        rules,
    }
}

/// Says what `policy` decides about a flow, and why.
#[must_use]
pub fn explain(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    question: &Question<'_>,
) -> Explanation {
    let read = |address| by_address(policy, surroundings, question, address);
    let all = embedded::in_address(policy, question.destination);
    let mut decides = read(question.destination);
    let mut by = question.destination;
    for (address, _) in &all {
        let inner = read(*address);
        let (ruling, is_inner) = embedded::stricter(decides.ruling, inner.ruling);
        if is_inner {
            by = *address;
            decides = ByAddress { ruling, ..inner };
        }
    }
    if !all.is_empty() {
        let forms: Vec<String> = all
            .iter()
            .map(|(at, how)| format!("{at} ({how})"))
            .collect();
        decides.reason = format!(
            "{} embeds {}; the strict{} verdict is that about {by}: {}",
            question.destination,
            forms.join(" or "),
            if all.len() > 1 { "est" } else { "er" },
            decides.reason
        );
    }
    let embeds = all.iter().map(|(address, _)| *address);
    let embeds = embeds
        .clone()
        .find(|address| *address == by)
        .or(embeds.clone().next());
    let destination = question.destination.to_canonical();
    let country = surroundings.geography.country(destination);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Explanation {
        policy: policy.file.clone(),
        mode: policy.mode,
        geo: surroundings.geography.build_id().to_owned(),
        flow: FlowFacts {
            dst_addr: destination,
            embedded_addr: embeds,
            dst_port: (question.port != 0).then_some(question.port),
            dst_country: country.map(|country| country.as_str()),
            dst_asn: surroundings.geography.asn(destination),
            protocol: Protocol(question.protocol).to_string(),
            cgroup: question.cgroup.map(text),
            exe: question.executable.map(text),
            uid: (question.uid != u32::MAX).then_some(question.uid),
            gid: question.gid,
            interactive: question.interactive,
            session_addr: question.origin.map(|origin| origin.to_canonical()),
            direction: question.direction,
            src_port: question.near_port.filter(|&port| port != 0),
        },
        verdict: decides.ruling.name(),
        outcome: outcome(policy.mode, decides.ruling.verdict, question),
        rule: decides.ruling.rule,
        reason: decides.reason,
        rules: decides.rules,
    }
}

/// Names the outcome for a flow. TCP and UDP are refused before there is a packet.
fn outcome(mode: Mode, verdict: u8, question: &Question<'_>) -> &'static str {
    let names_it = question.direction == Some(Direction::Outbound);
    match mode {
        _ if verdict::is_approved(verdict) => "passed",
        Mode::Report => "would-drop",
        Mode::Enforce if names_it && matches!(question.protocol, 6 | 17) => "refused",
        Mode::Enforce => "dropped",
    }
}

#[cfg(test)]
mod tests;
