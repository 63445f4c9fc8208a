//! What a policy says about one flow, and why.
//!
//! Owns the meaning of a policy: goes through the rules from top to bottom, as
//! somebody would who reads the file, and shares nothing with the compiled form
//! but the reading of values. Both are tested against each other.

mod inquiry;
mod text;

use std::fmt::Display;
use std::net::IpAddr;

use serde::Serialize;
use trefoil_ebpf::abi::verdict;

pub use self::inquiry::Inquiry;
use super::evaluate::Question;
use super::geography::Surroundings;
use super::local::always_local_network_of;
use super::service::Protocol;
use super::source::{Area, Mode, Policy, Rule, RuleVerdict, User, Zone};
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
    /// Its port; none if there is none.
    pub dst_port: Option<u16>,
    /// Its country; none if it is not known.
    pub dst_country: Option<&'static str>,
    /// Protocol by name, or by number.
    pub protocol: String,
    /// Path of the control group; none if it is not known.
    pub cgroup: Option<String>,
    /// Path of the executable; none if it is not known.
    pub exe: Option<String>,
    /// User id.
    pub uid: u32,
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
    let reader = Reader::new(policy, surroundings, question, false);
    let matches = |rule: &Rule| {
        reader
            .conditions(rule)
            .iter()
            .all(|condition| condition.holds)
    };
    reader.ruling(|| policy.rules.iter().position(matches))
}

/// Says what `policy` decides about a flow, and why.
#[must_use]
pub fn explain(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    question: &Question<'_>,
) -> Explanation {
    let reader = Reader::new(policy, surroundings, question, true);
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
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Explanation {
        policy: policy.file.clone(),
        mode: policy.mode,
        geo: surroundings.geography.build_id().to_owned(),
        flow: FlowFacts {
            dst_addr: reader.destination,
            dst_port: (question.port != 0).then_some(question.port),
            dst_country: reader.country.map(|country| country.as_str()),
            protocol: Protocol(question.protocol).to_string(),
            cgroup: question.cgroup.map(text),
            exe: question.executable.map(text),
            uid: question.uid,
        },
        verdict: verdict_name(ruling.verdict),
        outcome: outcome(policy.mode, ruling.verdict, question.protocol),
        rule: ruling.rule,
        reason: reader.reason(ruling),
        rules,
    }
}

/// A verdict's name in reports.
fn verdict_name(verdict: u8) -> &'static str {
    match verdict {
        verdict::LOCAL => "local",
        verdict::GATEWAY => "gateway",
        verdict::APPROVED => "approved",
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

/// Goes through rules with one flow in mind.
struct Reader<'a> {
    policy: &'a Policy,
    surroundings: &'a Surroundings<'a>,
    question: &'a Question<'a>,
    destination: IpAddr,
    country: Option<Country>,
    /// Without, conditions have no reasons.
    says_why: bool,
}

impl<'a> Reader<'a> {
    fn new(
        policy: &'a Policy,
        surroundings: &'a Surroundings<'a>,
        question: &'a Question<'a>,
        says_why: bool,
    ) -> Self {
        let destination = question.destination.to_canonical();
        Self {
            policy,
            surroundings,
            question,
            destination,
            country: surroundings.geography.country(destination),
            says_why,
        }
    }

    /// The rule of the product: what is local is no rule's business; the first rule
    /// that matches decides; what no rule matches is not approved, and if its
    /// country is not known, that is what is said.
    fn ruling(&self, first_match: impl FnOnce() -> Option<usize>) -> Ruling {
        if self.is_own() || always_local_network_of(self.destination).is_some() {
            return Ruling {
                verdict: verdict::LOCAL,
                rule: None,
            };
        }
        let rule = first_match();
        let verdict = match rule.map(|index| &self.policy.rules[index]) {
            Some(Rule {
                verdict: RuleVerdict::Deny,
                ..
            }) => verdict::DENIED,
            Some(Rule {
                gateways: Some(_), ..
            }) => verdict::GATEWAY,
            Some(_) => verdict::APPROVED,
            None if self.country.is_none() => verdict::UNDETERMINED,
            None => verdict::UNAPPROVED,
        };
        Ruling { verdict, rule }
    }

    fn is_own(&self) -> bool {
        let own = self.surroundings.own_addresses;
        own.iter().any(|own| own.to_canonical() == self.destination)
    }

    fn reason(&self, ruling: Ruling) -> String {
        let destination = self.destination;
        match ruling {
            Ruling {
                rule: Some(index), ..
            } => {
                let rule = &self.policy.rules[index];
                format!(
                    "rule `{}` on line {} matches first",
                    rule.name.value, rule.place.line
                )
            }
            Ruling {
                verdict: verdict::LOCAL,
                ..
            } => match always_local_network_of(destination) {
                Some(network) => format!("{network} never leaves the host or the link"),
                None => format!("{destination} is an address of this host"),
            },
            Ruling {
                verdict: verdict::UNDETERMINED,
                ..
            } => {
                format!("no rule matches, and the country of {destination} is not known")
            }
            _ => "no rule matches".to_owned(),
        }
    }

    fn trace(&self, index: usize, rule: &Rule) -> RuleTrace {
        let conditions = self.conditions(rule);
        RuleTrace {
            index,
            name: rule.name.value.clone(),
            line: rule.place.line,
            verdict: rule.verdict,
            matches: conditions.iter().all(|condition| condition.holds),
            conditions,
        }
    }

    /// All keys of a rule, all of which must hold.
    fn conditions(&self, rule: &Rule) -> Vec<Condition> {
        let question = self.question;
        let destination = self.destination;
        let protocol = Protocol(question.protocol);
        let mut conditions = Vec::new();
        if let Some(units) = &rule.units {
            let group = |path: &[u8]| format!("control group {}", String::from_utf8_lossy(path));
            conditions.push(match question.cgroup {
                None => self.unknown("from.unit", "the unit"),
                Some(path) => self.one_of(
                    "from.unit",
                    units,
                    |unit| unit.matches(path),
                    |unit| format!("{} is in `{unit}`", group(path)),
                    || format!("{} is in no unit", group(path)),
                ),
            });
        }
        if let Some(executables) = &rule.executables {
            conditions.push(match question.executable {
                None => self.unknown("from.exe", "the executable"),
                Some(path) => self.one_of(
                    "from.exe",
                    executables,
                    |pattern| pattern.glob().matches(path),
                    |pattern| format!("{} matches `{pattern}`", String::from_utf8_lossy(path)),
                    || format!("{} matches no pattern", String::from_utf8_lossy(path)),
                ),
            });
        }
        if let Some(users) = &rule.users {
            let uid = question.uid;
            let is_it = |user: &User| match user {
                User::Id(own) => *own == uid,
                User::Name(name) => self.surroundings.users.uid(name) == Some(uid),
            };
            let users: Vec<&User> = users.iter().map(|user| &user.value).collect();
            conditions.push(self.one_of(
                "from.user",
                &users,
                |user| is_it(user),
                |user| format!("user id {uid} is `{user}`"),
                || format!("user id {uid} is no user"),
            ));
        }
        if let Some(networks) = &rule.networks {
            conditions.push(self.one_of(
                "to.networks",
                networks,
                |network| network.contains(destination),
                |network| format!("{destination} is in {network}"),
                || format!("{destination} is in no network"),
            ));
        }
        if let Some(areas) = &rule.countries {
            conditions.push(match self.country {
                None => self.unknown("to.countries", &format!("the country of {destination}")),
                Some(country) => self.one_of(
                    "to.countries",
                    areas,
                    |area| area.has_country(country),
                    |area| format!("{destination} is in {}", in_area(country, area)),
                    || format!("{destination} is in {country}, not in one"),
                ),
            });
        }
        if let Some(zones) = &rule.zones {
            let zones: Vec<&Zone> = zones.iter().map(|&zone| &self.policy.zones[zone]).collect();
            conditions.push(self.zone(&zones));
        }
        if let Some(gateways) = &rule.gateways {
            let endpoints: Vec<_> = gateways
                .iter()
                .flat_map(|&gateway| {
                    let gateway = &self.policy.gateways[gateway];
                    gateway
                        .endpoints
                        .iter()
                        .map(move |endpoint| (endpoint, &gateway.name.value))
                })
                .collect();
            let found = endpoints.iter().find(|(endpoint, _)| {
                endpoint.address == destination
                    && endpoint.protocol == protocol
                    && endpoint.port.is_none_or(|port| port == question.port)
            });
            conditions.push(
                self.condition("to.gateway", found.is_some(), || match found {
                    Some((endpoint, name)) => format!("{endpoint} is an endpoint of `{name}`"),
                    None => format!(
                        "{} is no endpoint: {}",
                        self.service_at(destination),
                        list(endpoints.iter().map(|(endpoint, _)| endpoint))
                    ),
                }),
            );
        }
        if let Some(ports) = &rule.ports {
            conditions.push(self.one_of(
                "to.ports",
                ports,
                |ports| ports.contains(protocol, question.port),
                |ports| format!("{} is in `{ports}`", self.service()),
                || format!("{} is no port", self.service()),
            ));
        }
        if let Some(protocols) = &rule.protocols {
            conditions.push(self.one_of(
                "to.protocols",
                protocols,
                |own| *own == protocol,
                |_| format!("the protocol is {protocol}"),
                || format!("{protocol} is no protocol"),
            ));
        }
        conditions
    }

    fn zone(&self, zones: &[&Zone]) -> Condition {
        let destination = self.destination;
        let holds = |area: &Area| match area {
            Area::Network(network) => network.contains(destination),
            area => self
                .country
                .is_some_and(|country| area.has_country(country)),
        };
        let found = zones
            .iter()
            .find_map(|zone| Some((zone, zone.areas.iter().find(|area| holds(area))?)));
        self.condition("to.zones", found.is_some(), || {
            match (found, self.country) {
                (Some((zone, Area::Network(network))), _) => {
                    format!("{destination} is in zone `{}`, in {network}", zone.name)
                }
                (Some((zone, area)), Some(country)) => {
                    format!(
                        "{destination} is in zone `{}`, in {}",
                        zone.name,
                        in_area(country, area)
                    )
                }
                (_, country) => {
                    let place = match country {
                        Some(country) => format!("{destination} in {country}"),
                        None => format!("{destination}, whose country is not known,"),
                    };
                    let names = list(zones.iter().map(|zone| format!("`{}`", zone.name)));
                    format!("{place} is in no zone of {names}")
                }
            }
        })
    }

    /// A condition of alternatives: `holds` for one, which `why` names; `why_not` is
    /// followed by all of them.
    fn one_of<T: Display>(
        &self,
        key: &'static str,
        alternatives: &[T],
        holds: impl Fn(&T) -> bool,
        why: impl Fn(&T) -> String,
        why_not: impl Fn() -> String,
    ) -> Condition {
        let found = alternatives.iter().find(|alternative| holds(alternative));
        self.condition(key, found.is_some(), || match found {
            Some(alternative) => why(alternative),
            None => {
                let all = alternatives
                    .iter()
                    .map(|alternative| format!("`{alternative}`"));
                format!("{} of {}", why_not(), list(all))
            }
        })
    }

    fn unknown(&self, key: &'static str, what: &str) -> Condition {
        self.condition(key, false, || format!("{what} is not known"))
    }

    fn condition(&self, key: &'static str, holds: bool, why: impl FnOnce() -> String) -> Condition {
        let reason = if self.says_why { why() } else { String::new() };
        Condition { key, holds, reason }
    }

    fn service(&self) -> String {
        let protocol = Protocol(self.question.protocol);
        match self.question.port {
            0 => format!("{protocol} without a port"),
            port => format!("{port}/{protocol}"),
        }
    }

    fn service_at(&self, address: IpAddr) -> String {
        let protocol = Protocol(self.question.protocol);
        match (address, self.question.port) {
            (address, 0) => format!("{address}/{protocol}"),
            (IpAddr::V4(v4), port) => format!("{v4}:{port}/{protocol}"),
            (IpAddr::V6(v6), port) => format!("[{v6}]:{port}/{protocol}"),
        }
    }
}

fn in_area(country: Country, area: &Area) -> String {
    match area {
        Area::Group(name, _) => format!("{country}, which is in {name}"),
        _ => country.to_string(),
    }
}

/// The first few of them.
fn list<T: Display>(all: impl ExactSizeIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let n_hidden = all.len().saturating_sub(SHOWN);
    let mut text = all
        .take(SHOWN)
        .map(|one| one.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if n_hidden > 0 {
        text.push_str(&format!(" and {n_hidden} more"));
    }
    text
}

#[cfg(test)]
mod tests;
