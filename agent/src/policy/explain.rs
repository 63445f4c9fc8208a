//! What a policy says about one flow, and why.
//!
//! Owns the meaning of a policy: goes through the rules from top to bottom, as
//! somebody would who reads the file, and shares nothing with the compiled form
//! but the reading of values. Both are tested against each other.

mod embedded;
mod inquiry;
mod reader;
mod text;

use std::net::IpAddr;

use serde::Serialize;
use trefoil_ebpf::abi::verdict;

pub use self::inquiry::Inquiry;
use self::reader::Reader;
use super::evaluate::Question;
use super::geography::Surroundings;
use super::service::Protocol;
use super::source::{Mode, Policy, Rule, RuleVerdict};

/// The answer to a [`Question`], with the way to it.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The policy's file.
    pub policy: String,
    /// Its mode.
    pub mode: Mode,
    /// Names the country data.
    pub geo: String,
    /// What the flow is.
    pub flow: FlowFacts,
    /// The verdict, by its name in reports.
    pub verdict: &'static str,
    /// What would become of the flow, by its name in reports.
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
    /// The IPv4 address that it embeds, by which it is judged as well.
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
    /// User id.
    pub uid: u32,
    /// Group id; none if it is not known.
    pub gid: Option<u32>,
    /// Whether there is a login session; none if it is not known.
    pub interactive: Option<bool>,
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
    /// What it decides.
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
    /// Why, or why not.
    pub reason: String,
}

/// A verdict and the index of the rule that decided, if one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// One of `abi::verdict`.
    pub verdict: u8,
    /// Index of the rule in the file.
    pub rule: Option<usize>,
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
    let outer = decide(question.destination);
    match embedded::in_address(question.destination) {
        None => outer,
        Some((inner, _)) => embedded::stricter(outer, decide(inner)).0,
    }
}

/// Says what `policy` decides about a flow, and why.
#[must_use]
pub fn explain(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    question: &Question<'_>,
) -> Explanation {
    let read = |destination| {
        let reader = Reader::new(policy, surroundings, question, destination, true);
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
        (ruling, reader.reason(ruling), rules)
    };
    let outer = read(question.destination);
    let (ruling, reason, rules, embeds) = match embedded::in_address(question.destination) {
        None => (outer.0, outer.1, outer.2, None),
        Some((address, how)) => {
            let inner = read(address);
            let (ruling, is_inner) = embedded::stricter(outer.0, inner.0);
            let (by, deciding) = if is_inner {
                (address, inner)
            } else {
                (question.destination, outer)
            };
            let reason = format!(
                "{} embeds {address} ({how}); the stricter verdict is that about {by}: {}",
                question.destination, deciding.1
            );
            (ruling, reason, deciding.2, Some(address))
        }
    };
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
            uid: question.uid,
            gid: question.gid,
            interactive: question.interactive,
        },
        verdict: verdict_name(ruling.verdict),
        outcome: outcome(policy.mode, ruling.verdict, question.protocol),
        rule: ruling.rule,
        reason,
        rules,
    }
}

/// A verdict's name in reports.
fn verdict_name(verdict: u8) -> &'static str {
    match verdict {
        verdict::LOCAL => "local",
        verdict::GATEWAY => "gateway",
        verdict::APPROVED => "approved",
        verdict::EXCEPTION => "exception",
        verdict::OVER_BUDGET => "over-budget",
        verdict::DENIED => "denied",
        verdict::UNAPPROVED => "unapproved",
        verdict::UNDETERMINED => "undetermined",
        _ => "none",
    }
}

/// What becomes of a flow. TCP and UDP are refused before there is a packet.
fn outcome(mode: Mode, verdict: u8, protocol: u8) -> &'static str {
    match mode {
        _ if verdict::is_approved(verdict) => "passed",
        Mode::Report => "would-drop",
        Mode::Enforce if matches!(protocol, 6 | 17) => "refused",
        Mode::Enforce => "dropped",
    }
}

#[cfg(test)]
mod tests;
