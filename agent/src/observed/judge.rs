//! Judgement of a policy about flows that were seen.
//!
//! Where the records have every fact that a rule asks for, the compiled policy
//! decides, as for everything else. Where one is missing, every verdict that is
//! possible is told, and none is picked.

use std::net::{IpAddr, Ipv4Addr};

use trefoil_ebpf::abi::{NO_RULE, verdict};

use super::{Observed, Source, Target};
use crate::policy::{
    Compiled, Policy, Question, Surroundings,
    explain::{ByAddress, RuleTrace, Ruling, by_address, embedded_in},
    source::{Area, Rule},
};

/// A policy to ask.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// As it is written.
    pub policy: &'a Policy,
    /// The same, compiled.
    pub compiled: &'a Compiled,
    /// Surroundings that both depend on.
    pub surroundings: &'a Surroundings<'a>,
}

/// Judgement of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judgement {
    /// This.
    Certain(Ruling),
    /// One of these: what decides between them is not in the records.
    Either {
        /// In the order of the rules.
        possible: Vec<Ruling>,
        /// Names of the unknown facts.
        lacks: Vec<&'static str>,
    },
}

impl Judgement {
    /// Every ruling that is possible; mostly one.
    #[must_use]
    pub fn possible(&self) -> &[Ruling] {
        match self {
            Self::Certain(ruling) => std::slice::from_ref(ruling),
            Self::Either { possible, .. } => possible,
        }
    }

    /// This judgement of packets, unless the call that names another address is refused for that. It
    /// is not where the host translates the address before it encrypts.
    fn unless_refused(self, call: &Self) -> Self {
        let mut possible: Vec<Ruling> = self.possible().to_vec();
        for packet in self.possible() {
            possible.extend(call.possible().iter().map(|call| packet.or_stricter(*call)));
        }
        possible.sort_by_key(|ruling| (ruling.rule.is_none(), ruling.rule, ruling.verdict));
        possible.dedup();
        if let [one] = possible[..] {
            return Self::Certain(one);
        }
        let mut lacks = vec!["whether the named address is translated"];
        lacks.extend(self.lacks().iter().chain(call.lacks()));
        lacks.sort_unstable();
        lacks.dedup();
        Self::Either { possible, lacks }
    }

    /// True if the flow may leave, false if not, `None` if that is not certain.
    #[must_use]
    pub fn approves(&self) -> Option<bool> {
        let (first, rest) = self.possible().split_first()?;
        let alike = rest
            .iter()
            .all(|other| other.approves() == first.approves());
        alike.then(|| first.approves())
    }

    /// Returns the unknown facts that would decide.
    #[must_use]
    pub fn lacks(&self) -> &[&'static str] {
        match self {
            Self::Certain(_) => &[],
            Self::Either { lacks, .. } => lacks,
        }
    }
}

impl Judge<'_> {
    /// Judges a flow that was seen. A flow that was local when it was seen is local. Where the kernel
    /// has encrypted to another address than the call named, that is judged as well.
    #[must_use]
    pub fn judge(&self, observed: &Observed) -> Judgement {
        let packets = self.judge_target(observed);
        match observed.of_call() {
            Some(call) => packets.unless_refused(&self.judge_target(&call)),
            None => packets,
        }
    }

    fn judge_target(&self, observed: &Observed) -> Judgement {
        if observed.is_local() {
            return Judgement::Certain(Ruling {
                verdict: verdict::LOCAL,
                rule: None,
            });
        }
        let lacks = Lacks::of(self.policy, &observed.source, &observed.target);
        match observed.question() {
            Some(question) if !lacks.anything() => Judgement::Certain(self.decide(&question)),
            question => self.every_possible(observed, question, &lacks),
        }
    }

    /// The name of a rule.
    #[must_use]
    pub fn rule_name(&self, ruling: &Ruling) -> Option<&str> {
        let rule = self.compiled.rules.get(ruling.rule?)?;
        Some(&rule.name)
    }

    fn decide(&self, question: &Question<'_>) -> Ruling {
        let decision = self.compiled.judge(question);
        Ruling {
            verdict: decision.verdict,
            rule: (decision.rule != NO_RULE).then(|| usize::from(decision.rule)),
        }
    }

    /// Goes through the rules as a reader would who does not know everything.
    fn every_possible(
        &self,
        observed: &Observed,
        question: Option<Question<'_>>,
        lacks: &Lacks,
    ) -> Judgement {
        // Stands in where it is not known; what is asked about it is not looked at.
        const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0));
        let target = &observed.target;
        let question = question.unwrap_or_else(|| {
            let address = target.address.unwrap_or(ANYWHERE);
            let time_us = observed.amount.last_us();
            observed.source.asks(address, target, time_us)
        });
        let by_address = |address| {
            let by_address = by_address(self.policy, self.surroundings, &question, address);
            self.possible(observed, &by_address, lacks)
        };
        let (mut possible, mut asked) = by_address(question.destination);
        let embedded = observed.target.address.into_iter();
        for inner in embedded.flat_map(|address| embedded_in(self.policy, address)) {
            let (of_inner, also_asked) = by_address(inner);
            let both = possible
                .iter()
                .flat_map(|outer| of_inner.iter().map(|inner| outer.or_stricter(*inner)));
            possible = both.collect::<Vec<_>>();
            asked.extend(also_asked);
            // A rule is before what is decided without one.
            possible.sort_by_key(|ruling| (ruling.rule.is_none(), ruling.rule, ruling.verdict));
            possible.dedup();
        }
        match possible[..] {
            [one] => Judgement::Certain(one),
            _ => {
                asked.sort_unstable();
                asked.dedup();
                Judgement::Either {
                    possible,
                    lacks: asked,
                }
            }
        }
    }

    /// Lists the verdicts that are possible by one address, in the order of the rules,
    /// and the unknown facts that decide between them.
    fn possible(
        &self,
        observed: &Observed,
        by_address: &ByAddress,
        lacks: &Lacks,
    ) -> (Vec<Ruling>, Vec<&'static str>) {
        let is_known = observed.target.address.is_some();
        if is_known && by_address.ruling.verdict == verdict::LOCAL {
            return (vec![by_address.ruling], Vec::new());
        }
        let (mut possible, mut asked) = (Vec::new(), Vec::new());
        for trace in &by_address.rules {
            let rule = &self.policy.rules[trace.index];
            let Some(missing) = self.may_match(rule, trace, observed, lacks) else {
                continue;
            };
            possible.push(Ruling {
                verdict: rule.approval(),
                rule: Some(trace.index),
            });
            if missing.is_empty() {
                return (possible, asked);
            }
            asked.extend(missing);
        }
        let country = if is_known {
            by_address.country
        } else {
            observed.target.country
        };
        possible.push(Ruling {
            verdict: match country {
                Some(_) => verdict::UNAPPROVED,
                None => verdict::UNDETERMINED,
            },
            rule: None,
        });
        (possible, asked)
    }

    /// `None` if a rule cannot match; else what is not known that it asks for.
    fn may_match(
        &self,
        rule: &Rule,
        trace: &RuleTrace,
        observed: &Observed,
        lacks: &Lacks,
    ) -> Option<Vec<&'static str>> {
        let mut missing = Vec::new();
        for condition in &trace.conditions {
            let country = observed.target.country;
            let recorded = match (condition.key, observed.target.address, country) {
                // Where the addresses are not known, their country may be.
                ("to.countries", None, Some(country)) => {
                    let areas = rule.countries.iter().flatten();
                    Some(areas.clone().any(|area| area.has_country(country)))
                }
                ("to.zones", None, Some(country)) => {
                    let zones = rule.zones.iter().flatten();
                    let mut areas = zones.flat_map(|&zone| &self.policy.zones[zone].areas);
                    let has_country = areas.clone().any(|area| area.has_country(country));
                    let has_networks = areas.any(|area| matches!(area, Area::Network(_)));
                    match (has_country, has_networks) {
                        (true, _) => Some(true),
                        (false, true) => None,
                        (false, false) => Some(false),
                    }
                }
                (key, _, _) => match lacks.what(key) {
                    None => Some(condition.holds),
                    Some(_) => None,
                },
            };
            match recorded {
                Some(true) => {}
                Some(false) => return None,
                None => missing.push(lacks.what(condition.key).unwrap_or("the destination")),
            }
        }
        Some(missing)
    }
}

/// Which facts the records do not have.
#[derive(Clone, Copy, Debug)]
struct Lacks {
    cgroup: bool,
    exe: bool,
    uid: bool,
    gid: bool,
    interactive: bool,
    near_port: bool,
    address: bool,
    protocol: bool,
}

impl Lacks {
    fn of(policy: &Policy, source: &Source, target: &Target) -> Self {
        // Of whom the kernel knew nothing there was nothing to know.
        let has_facts = !source.is_anybody;
        Self {
            // A fact that no rule asks for need not be known.
            gid: has_facts
                && source.gid.is_none()
                && policy.rules.iter().any(|rule| rule.groups.is_some()),
            interactive: has_facts
                && source.interactive.is_none()
                && policy
                    .rules
                    .iter()
                    .any(|rule| rule.interactive.is_some() || rule.session.is_some()),
            cgroup: has_facts && source.cgroup_for_rules().is_missing(),
            exe: has_facts && source.exe_for_rules().is_missing(),
            uid: has_facts && source.uid_for_rules().is_missing(),
            near_port: target.near_port == 0
                && target.protocol.is_none_or(|protocol| protocol.has_ports())
                && policy.rules.iter().any(|rule| rule.near_ports.is_some()),
            address: target.address.is_none(),
            protocol: target.protocol.is_none(),
        }
    }

    fn anything(&self) -> bool {
        let of_source = self.cgroup || self.exe || self.uid || self.gid || self.interactive;
        of_source || self.near_port || self.address || self.protocol
    }

    /// Names the fact that is missing to say whether a key of a rule holds.
    fn what(&self, key: &str) -> Option<&'static str> {
        let (is_missing, what) = match key {
            "from.unit" => (self.cgroup, "the unit"),
            "from.cgroup" | "from.container" => (self.cgroup, "the control group"),
            "from.group" => (self.gid, "the group"),
            "from.interactive"
            | "from.session.gateway"
            | "from.session.networks"
            | "from.session.countries" => (self.interactive, "whether somebody was logged in"),
            "from.exe" => (self.exe, "the executable"),
            "from.user" => (self.uid, "the user"),
            "from.ports" => (self.near_port, "this host's port"),
            "to.ports" | "to.protocols" => (self.protocol, "the protocol"),
            // A gateway is an address with a port.
            key if key.starts_with("to.") => (self.address, "the destination"),
            // When an exception holds, the clock says.
            _ => return None,
        };
        is_missing.then_some(what)
    }
}
