//! Rules against one flow, key by key.
//!
//! Owns when a key of a rule holds, and how that is said.

use std::fmt::Display;
use std::net::IpAddr;

use trefoil_ebpf::abi::verdict;

use super::{Condition, RuleTrace, Ruling};
use crate::clock;
use crate::geo::{Countries, Country};
use crate::owner::cgroup::{claimed_container, container_for_rules};
use crate::policy::evaluate::Question;
use crate::policy::geography::Surroundings;
use crate::policy::local;
use crate::policy::network::Network;
use crate::policy::pattern::ExecutablePattern;
use crate::policy::service::Protocol;
use crate::policy::source::{
    Area, Exception, Gateway, Group, Policy, Rule, RuleVerdict, User, Zone,
};

/// Goes through rules with one flow in mind.
pub(super) struct Reader<'a> {
    pub(super) policy: &'a Policy,
    pub(super) surroundings: &'a Surroundings<'a>,
    pub(super) question: &'a Question<'a>,
    pub(super) destination: IpAddr,
    pub(super) country: Option<Country>,
    /// Where the data gives more than one.
    several: Option<Countries>,
    /// Without, conditions have no reasons.
    says_why: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        surroundings: &'a Surroundings<'a>,
        question: &'a Question<'a>,
        destination: IpAddr,
        says_why: bool,
    ) -> Self {
        let destination = destination.to_canonical();
        Self {
            policy,
            surroundings,
            question,
            destination,
            country: surroundings.geography.country(destination),
            several: surroundings.geography.several(destination),
            says_why,
        }
    }

    /// The rule of the product: what is local is no rule's business; the first rule
    /// that matches decides; what no rule matches is not approved, and if its
    /// country is not known, that is what is said.
    pub(super) fn ruling(&self, first_match: impl FnOnce() -> Option<usize>) -> Ruling {
        if self.local_network().is_some() || self.may_stay() && self.is_own() {
            return Ruling {
                verdict: verdict::LOCAL,
                rule: None,
            };
        }
        let rule = first_match();
        let verdict = match rule.map(|index| &self.policy.rules[index]) {
            Some(rule) => rule.approval(),
            None if self.country.is_none() => verdict::UNDETERMINED,
            None => verdict::UNAPPROVED,
        };
        Ruling { verdict, rule }
    }

    /// The network of those that are always local that has the destination.
    fn local_network(&self) -> Option<Network> {
        let mut local = self.surroundings.link_local.local();
        local.find(|network| network.contains(self.destination))
    }

    /// True if the packet may stay on the link. A packet to an address that is embedded in
    /// another is on its way elsewhere.
    fn may_stay(&self) -> bool {
        self.question.may_stay && self.question.destination.to_canonical() == self.destination
    }

    fn is_own(&self) -> bool {
        let own = self.surroundings.own_addresses;
        local::own().any(|network| network.contains(self.destination))
            || own.iter().any(|own| own.to_canonical() == self.destination)
    }

    /// `could` is whether the rule matches since something is not known.
    pub(super) fn reason(&self, ruling: Ruling, could: bool) -> String {
        let destination = self.destination;
        match ruling {
            Ruling {
                rule: Some(index), ..
            } => {
                let rule = &self.policy.rules[index];
                let limit = match (&rule.budget, &rule.exception) {
                    (Some(budget), _) => format!(", as long as its budget of {budget} lasts"),
                    (
                        _,
                        Some(Exception {
                            bytes: Some(bytes), ..
                        }),
                    ) => {
                        format!(", as long as its {bytes} bytes last")
                    }
                    _ => String::new(),
                };
                let matches = match could {
                    true => "could match, and what is not known counts against the sender",
                    false => "matches first",
                };
                format!(
                    "rule `{}` on line {} {matches}{limit}",
                    rule.name.value, rule.place.line
                )
            }
            Ruling {
                verdict: verdict::LOCAL,
                ..
            } => match self.local_network() {
                Some(network) => format!("{network} never leaves the link"),
                None => format!(
                    "{destination} is an address of this host; what leaves for it nevertheless is \
                     judged by the rules"
                ),
            },
            Ruling {
                verdict: verdict::UNDETERMINED,
                ..
            } => {
                let unknown =
                    format!("no rule matches, and the country of {destination} is not known");
                match self.surroundings.geography.undetermined(destination) {
                    Some(why) => format!("{unknown}: {why}"),
                    None => unknown,
                }
            }
            _ => "no rule matches".to_owned(),
        }
    }

    pub(super) fn trace(&self, index: usize, rule: &Rule) -> RuleTrace {
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
    pub(super) fn conditions(&self, rule: &Rule) -> Vec<Condition> {
        let question = self.question;
        let destination = self.destination;
        let protocol = Protocol(question.protocol);
        let denies = rule.verdict == RuleVerdict::Deny;
        let mut conditions = Vec::new();
        let group = |path: &[u8]| format!("control group {}", String::from_utf8_lossy(path));
        if let Some(units) = &rule.units {
            conditions.push(match question.cgroup {
                None => self.unknown_sender("from.unit", "the unit", rule),
                Some(path) => self.one_of(
                    "from.unit",
                    units,
                    |unit| unit.matches(path),
                    |unit| format!("{} is in `{unit}`", group(path)),
                    || format!("{} is in no unit", group(path)),
                ),
            });
        }
        if let Some(paths) = &rule.cgroups {
            conditions.push(match question.cgroup {
                None => self.unknown_sender("from.cgroup", "the control group", rule),
                Some(path) => self.one_of(
                    "from.cgroup",
                    paths,
                    |pattern| pattern.matches(path),
                    |pattern| format!("{} is in `{pattern}`", group(path)),
                    || format!("{} is in none", group(path)),
                ),
            });
        }
        if let Some(containers) = &rule.containers {
            conditions.push(match question.cgroup {
                None => self.unknown_sender("from.container", "the control group", rule),
                Some(path) => self.one_of(
                    "from.container",
                    containers,
                    |pattern| pattern.matches(path),
                    |pattern| format!("{} is in `{pattern}`", group(path)),
                    || {
                        let path_text = String::from_utf8_lossy(path);
                        match container_for_rules(&path_text) {
                            Some(own) => format!("container {own} is none"),
                            None => match claimed_container(&path_text) {
                                Some(named) => format!(
                                    "{} may have been named {named} by a user or a service, so \
                                     it is none",
                                    group(path)
                                ),
                                None => format!("{} is in no container", group(path)),
                            },
                        }
                    },
                ),
            });
        }
        if let Some(executables) = &rule.executables {
            conditions.push(match question.executable {
                None => self.unknown_sender("from.exe", "the executable", rule),
                Some(path) => self.executable(path, executables, rule),
            });
        }
        if let Some(users) = &rule.users {
            let users: Vec<&User> = users.iter().map(|user| &user.value).collect();
            conditions.push(match question.uid {
                u32::MAX => self.unknown_sender("from.user", "the user", rule),
                uid => self.one_of(
                    "from.user",
                    &users,
                    |user| is_one_of(user.ids(self.surroundings.users, denies), uid),
                    |user| match is_one_of(user.ids(self.surroundings.users, false), uid) {
                        true => format!("user id {uid} is `{user}`"),
                        false => format!("user id {uid} is a subordinate id of `{user}`"),
                    },
                    || format!("user id {uid} is no user"),
                ),
            });
        }
        if let Some(groups) = &rule.groups {
            let groups: Vec<&Group> = groups.iter().map(|group| &group.value).collect();
            conditions.push(match question.gid {
                None | Some(u32::MAX) => self.unknown_sender("from.group", "the group", rule),
                Some(gid) => self.one_of(
                    "from.group",
                    &groups,
                    |group| is_one_of(group.ids(self.surroundings.users, denies), gid),
                    |group| match is_one_of(group.ids(self.surroundings.users, false), gid) {
                        true => format!("group id {gid} is `{group}`"),
                        false => {
                            format!("group id {gid} is a subordinate id, so it could be `{group}`")
                        }
                    },
                    || format!("group id {gid} is no group"),
                ),
            });
        }
        if let Some(asked) = rule.interactive {
            conditions.push(match question.interactive {
                None => self.unknown_sender(
                    "from.interactive",
                    "whether there is a login session",
                    rule,
                ),
                Some(is_interactive) => {
                    self.condition("from.interactive", asked == is_interactive, || {
                        match is_interactive {
                            true => "there is a login session".to_owned(),
                            false => "there is no login session".to_owned(),
                        }
                    })
                }
            });
        }
        conditions.extend(self.session(rule));
        conditions.extend(self.near_end(rule));
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
            conditions.push(match (self.several, self.country) {
                (Some(several), _) => {
                    let is_named = |country| areas.iter().any(|area| area.has_country(country));
                    self.condition("to.countries", counts(several, rule, is_named), || {
                        self.of_several(destination, several, rule, is_named)
                    })
                }
                (None, None) => {
                    self.unknown("to.countries", &format!("the country of {destination}"))
                }
                (None, Some(country)) => self.one_of(
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
            conditions.push(self.zone(&zones, rule));
        }
        if let Some(asns) = &rule.asns {
            let asns: Vec<String> = asns.iter().map(|asn| format!("AS{}", asn.value)).collect();
            conditions.push(match self.surroundings.geography.asn(destination) {
                None => self.unknown(
                    "to.asns",
                    &format!("the autonomous system of {destination}"),
                ),
                Some(asn) => {
                    let own = format!("AS{asn}");
                    self.one_of(
                        "to.asns",
                        &asns,
                        |asn| *asn == own,
                        |asn| format!("{destination} is in {asn}"),
                        || format!("{destination} is in {own}, not in one"),
                    )
                }
            });
        }
        if let Some(gateways) = &rule.gateways {
            let gateways = gateways
                .iter()
                .map(|&gateway| &self.policy.gateways[gateway]);
            let gateways: Vec<&Gateway> = gateways.collect();
            conditions.push(match rule.means_clients() {
                true => self.client_of(&gateways),
                false => self.endpoint_of(&gateways),
            });
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
        if let Some(exception) = &rule.exception {
            conditions.push(self.exception(exception));
        }
        conditions
    }

    /// A path that says nothing about the host's files matches what denies it alone.
    fn executable(&self, path: &[u8], patterns: &[ExecutablePattern], rule: &Rule) -> Condition {
        let name = String::from_utf8_lossy(path);
        let by_path = self.one_of(
            "from.exe",
            patterns,
            |pattern| pattern.glob().matches(path),
            |pattern| format!("{name} matches `{pattern}`"),
            || format!("{name} matches no pattern"),
        );
        if !self.question.is_foreign || !by_path.holds {
            return by_path;
        }
        let reason = by_path.reason;
        match rule.verdict {
            RuleVerdict::Deny => self.condition("from.exe", true, || {
                format!("{reason}, seen through mounts that a user may have made")
            }),
            RuleVerdict::Approve => self.condition("from.exe", false, || {
                format!(
                    "{name} was seen through mounts that a user may have made, and says nothing \
                     about the host's files"
                )
            }),
        }
    }

    /// Makes the condition of a key about a sender of whom the fact is unknown. An unknown
    /// fact counts against the sender: a rule that denies holds, since it could.
    pub(super) fn unknown_sender(&self, key: &'static str, what: &str, rule: &Rule) -> Condition {
        match rule.verdict {
            RuleVerdict::Approve => self.unknown(key, what),
            RuleVerdict::Deny => Condition {
                could: true,
                ..self.condition(key, true, || {
                    format!("{what} is not known, so it could match")
                })
            },
        }
    }

    fn exception(&self, exception: &Exception) -> Condition {
        let time_us = self.question.time_us;
        self.condition("exception", exception.holds_at(time_us), || {
            let id = &exception.id;
            match exception.starts_us {
                Some(starts_us) if time_us < starts_us => {
                    format!("`{id}` begins at {}", clock::rfc3339(starts_us))
                }
                _ if exception.holds_at(time_us) => {
                    format!(
                        "`{id}` holds until {}",
                        clock::rfc3339(exception.expires_us)
                    )
                }
                _ => format!(
                    "`{id}` has expired at {}",
                    clock::rfc3339(exception.expires_us)
                ),
            }
        })
    }

    /// Several countries, in words.
    pub(super) fn of_several(
        &self,
        address: IpAddr,
        several: Countries,
        rule: &Rule,
        is_named: impl Fn(Country) -> bool,
    ) -> String {
        let place = format!("the country data places {address} in {several}");
        match (counts(several, rule, &is_named), rule.verdict) {
            (true, RuleVerdict::Deny) => format!("{place}, and one of these is enough to deny it"),
            (true, RuleVerdict::Approve) => format!("{place}, all of which are named"),
            (false, RuleVerdict::Approve) if several.any(is_named) => {
                format!("{place}, and not all of these are named")
            }
            (false, _) => format!("{place}, and none of these is named"),
        }
    }

    fn zone(&self, zones: &[&Zone], rule: &Rule) -> Condition {
        let destination = self.destination;
        let is_named = |country| {
            let mut areas = zones.iter().flat_map(|zone| &zone.areas);
            areas.any(|area| area.has_country(country))
        };
        let in_network = zones.iter().any(|zone| {
            let mut areas = zone.areas.iter();
            areas
                .any(|area| matches!(area, Area::Network(network) if network.contains(destination)))
        });
        if let Some(several) = self.several
            && !in_network
        {
            return self.condition("to.zones", counts(several, rule, is_named), || {
                self.of_several(destination, several, rule, is_named)
            });
        }
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
    pub(super) fn one_of<T: Display>(
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

    pub(super) fn condition(
        &self,
        key: &'static str,
        holds: bool,
        why: impl FnOnce() -> String,
    ) -> Condition {
        let reason = if self.says_why { why() } else { String::new() };
        Condition {
            key,
            holds,
            could: false,
            reason,
        }
    }

    fn service(&self) -> String {
        let protocol = Protocol(self.question.protocol);
        match self.question.port {
            0 => format!("{protocol} without a port"),
            port => format!("{port}/{protocol}"),
        }
    }

    pub(super) fn service_at(&self, address: IpAddr) -> String {
        let protocol = Protocol(self.question.protocol);
        match (address, self.question.port) {
            (address, 0) => format!("{address}/{protocol}"),
            (IpAddr::V4(v4), port) => format!("{v4}:{port}/{protocol}"),
            (IpAddr::V6(v6), port) => format!("[{v6}]:{port}/{protocol}"),
        }
    }
}

/// Whether a rule's countries are met where the data gives several: one of them is enough to
/// deny, and all have to be approved.
pub(super) fn counts(several: Countries, rule: &Rule, is_named: impl Fn(Country) -> bool) -> bool {
    match rule.verdict {
        RuleVerdict::Deny => several.any(is_named),
        RuleVerdict::Approve => several.all(is_named),
    }
}

pub(super) fn in_area(country: Country, area: &Area) -> String {
    match area {
        Area::Group(name, _) => format!("{country}, which is in {name}"),
        _ => country.to_string(),
    }
}

/// The first few of them.
pub(super) fn list<T: Display>(all: impl ExactSizeIterator<Item = T>) -> String {
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

/// True if an id is in one of these ranges.
fn is_one_of(ranges: Vec<(u32, u32)>, id: u32) -> bool {
    let mut ranges = ranges.into_iter();
    ranges.any(|(first, last)| (first..=last).contains(&id))
}
