//! Rules against one flow, key by key.
//!
//! Owns when a key of a rule holds, and how that is said.

use std::fmt::Display;
use std::net::IpAddr;

use trefoil_ebpf::abi::verdict;

use super::{Condition, RuleTrace, Ruling};
use crate::clock;
use crate::geo::Country;
use crate::owner::cgroup::{claimed_container, container_for_rules};
use crate::policy::evaluate::Question;
use crate::policy::geography::Surroundings;
use crate::policy::local::always_local_network_of;
use crate::policy::service::Protocol;
use crate::policy::source::{Area, Exception, Group, Policy, Rule, User, Zone};

/// Goes through rules with one flow in mind.
pub(super) struct Reader<'a> {
    policy: &'a Policy,
    surroundings: &'a Surroundings<'a>,
    question: &'a Question<'a>,
    pub(super) destination: IpAddr,
    pub(super) country: Option<Country>,
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
            says_why,
        }
    }

    /// The rule of the product: what is local is no rule's business; the first rule
    /// that matches decides; what no rule matches is not approved, and if its
    /// country is not known, that is what is said.
    pub(super) fn ruling(&self, first_match: impl FnOnce() -> Option<usize>) -> Ruling {
        if self.is_own() || always_local_network_of(self.destination).is_some() {
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

    fn is_own(&self) -> bool {
        let own = self.surroundings.own_addresses;
        own.iter().any(|own| own.to_canonical() == self.destination)
    }

    pub(super) fn reason(&self, ruling: Ruling) -> String {
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
                format!(
                    "rule `{}` on line {} matches first{limit}",
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
        let mut conditions = Vec::new();
        let group = |path: &[u8]| format!("control group {}", String::from_utf8_lossy(path));
        if let Some(units) = &rule.units {
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
        if let Some(paths) = &rule.cgroups {
            conditions.push(match question.cgroup {
                None => self.unknown("from.cgroup", "the control group"),
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
                None => self.unknown("from.container", "the control group"),
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
        if let Some(groups) = &rule.groups {
            let groups: Vec<&Group> = groups.iter().map(|group| &group.value).collect();
            conditions.push(match question.gid {
                None => self.unknown("from.group", "the group"),
                Some(gid) => self.one_of(
                    "from.group",
                    &groups,
                    |group| match group {
                        Group::Id(own) => *own == gid,
                        Group::Name(name) => self.surroundings.users.gid(name) == Some(gid),
                    },
                    |group| format!("group id {gid} is `{group}`"),
                    || format!("group id {gid} is no group"),
                ),
            });
        }
        if let Some(asked) = rule.interactive {
            conditions.push(match question.interactive {
                None => self.unknown("from.interactive", "whether there is a login session"),
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
        if let Some(exception) = &rule.exception {
            conditions.push(self.exception(exception));
        }
        conditions
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
