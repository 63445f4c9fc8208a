//! From TOML tables to a [`Policy`], with every problem on the way.
//!
//! Owns which keys there are and what they hold. Reading goes on after a problem:
//! the value is left out and the rest is read, so that one run shows everything.

mod limits;
mod session;
mod tables;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use self::tables::{At, Keys, Reader, a};
use super::recovery::{self, Document};
use super::{
    Area, Direction, Gateway, Group, Located, Mode, Policy, Rule, RuleVerdict, User, Zone, value,
};
use crate::geo::{Country, groups};
use crate::policy::pattern::{CgroupPattern, ContainerPattern, ExecutablePattern, UnitPattern};
use crate::policy::problem::{Fault, Problem, nearest};
use crate::policy::service::{Ports, Protocol};

const FROM: &[&str] = &[
    "unit",
    "cgroup",
    "container",
    "exe",
    "user",
    "group",
    "interactive",
    "session",
    "ports",
];
const SESSION: &[&str] = &["gateway", "networks", "countries"];
const TO: &[&str] = &[
    "networks",
    "countries",
    "zones",
    "gateway",
    "asns",
    "ports",
    "protocols",
];
const TO_LATER: &[&str] = &["domains"];

const ROOT_KEYS: Keys = Keys {
    known: &["mode", "nat64", "zones", "gateways", "rules"],
    later: &[],
    elsewhere: &[],
};
const GATEWAY_KEYS: Keys = Keys {
    known: &["name", "endpoints", "clients"],
    later: &[],
    elsewhere: &[],
};
const RULE_KEYS: Keys = Keys {
    known: &[
        "name",
        "direction",
        "from",
        "to",
        "verdict",
        "budget",
        "exception",
    ],
    later: &[],
    // `ports` of a rule are mostly those that it sends to.
    elsewhere: &[(TO, "to"), (TO_LATER, "to"), (FROM, "from")],
};
const FROM_KEYS: Keys = Keys {
    known: FROM,
    later: &[],
    elsewhere: &[(TO, "to"), (TO_LATER, "to")],
};
const SESSION_KEYS: Keys = Keys {
    known: SESSION,
    later: &[],
    elsewhere: &[(TO, "to"), (FROM, "from")],
};
const TO_KEYS: Keys = Keys {
    known: TO,
    later: TO_LATER,
    elsewhere: &[(FROM, "from")],
};

/// Reads what can be understood of `text`. File and fingerprint are left empty.
pub(super) fn read(text: &str) -> (Policy, Vec<Problem>) {
    let (repaired, problems, damage) = recovery::repair(text);
    let text = repaired.as_deref().unwrap_or(text);
    let Document {
        root,
        problems,
        damage,
    } = recovery::parse(text, problems, damage);
    let mut reader = Reader::new(text, problems, damage);
    let policy = reader.policy(root.get_ref());
    (policy, reader.into_problems())
}

impl Reader<'_> {
    fn policy(&mut self, root: &DeTable<'_>) -> Policy {
        let at = At {
            table: root,
            path: "",
            offset: 0,
        };
        self.check_keys(at, &ROOT_KEYS);
        let mode = self.mode(at);
        let nat64 = match root.get("nat64") {
            Some(prefixes) => self.list(prefixes, "nat64", value::nat64),
            None => Vec::new(),
        };
        let zones = match root.get("zones") {
            Some(zones) => self.zones(zones),
            None => Vec::new(),
        };
        let gateways = self.tables(at, "gateways", Reader::gateway);
        self.check_names("gateways", gateways.iter().map(|gateway| &gateway.name));
        let rules = self.tables(at, "rules", |reader, at| reader.rule(at, &zones, &gateways));
        self.check_names("rules", rules.iter().map(|rule| &rule.name));
        self.check_exceptions(&rules);
        Policy {
            mode,
            nat64: nat64.into_iter().map(|prefix| prefix.value).collect(),
            zones,
            gateways,
            rules,
            file: String::new(),
            fingerprint: String::new(),
        }
    }

    fn mode(&mut self, at: At<'_>) -> Mode {
        const HELP: &str = "write `mode = \"report\"` to let everything pass and report it, or \
                            `mode = \"enforce\"` to drop what is not approved";
        let Some((text, place)) = self.required_string(at, "mode", HELP) else {
            return Mode::Report;
        };
        match text {
            "report" => Mode::Report,
            "enforce" => Mode::Enforce,
            _ => {
                let fault = Fault::new(format!("`{text}` is not a mode")).help(HELP);
                self.problem(fault, place, "mode");
                Mode::Report
            }
        }
    }

    fn zones(&mut self, zones: &Spanned<DeValue<'_>>) -> Vec<Zone> {
        let DeValue::Table(table) = zones.get_ref() else {
            let fault = Fault::new(format!("is {}, not a table", a(zones.get_ref())))
                .help("write `[zones]`, and below it `name = [\"IE\", \"192.0.2.0/24\"]`");
            self.problem(fault, zones.span().start, "zones");
            return Vec::new();
        };
        let names: Vec<&str> = table.keys().map(|key| key.get_ref().as_ref()).collect();
        let mut read = Vec::new();
        for (name, areas) in table {
            let path = format!("zones.{}", name.get_ref());
            if let Err(fault) = value::name(name.get_ref()) {
                self.problem(fault, name.span().start, &path);
            }
            let areas = self.list(areas, &path, |text| {
                value::area(text).map_err(|fault| {
                    if names.contains(&text) {
                        Fault::new(format!("`{text}` is a zone"))
                            .help("a zone is made of countries and networks: list them here")
                    } else {
                        fault
                    }
                })
            });
            read.push(Zone {
                name: name.get_ref().clone().into_owned(),
                areas: areas.into_iter().map(|area| area.value).collect(),
            });
        }
        read
    }

    fn gateway(&mut self, at: At<'_>) -> Gateway {
        self.check_keys(at, &GATEWAY_KEYS);
        let name = self.name(at);
        let endpoints = self.values(at, "endpoints", value::endpoint);
        let clients = self.values(at, "clients", value::network);
        if endpoints.is_none() && clients.is_none() && !self.is_misspelt(at, "clients") {
            let help = "write `endpoints = [\"192.0.2.10:443/tcp\"]` for where hosts send, \
                        `clients = [\"192.0.2.16/28\"]` for where it opens sessions from, or both";
            self.missing(at, "endpoints", help);
        }
        Gateway {
            name,
            endpoints: endpoints.unwrap_or_default(),
            clients: clients.unwrap_or_default(),
        }
    }

    fn rule(&mut self, at: At<'_>, zones: &[Zone], gateways: &[Gateway]) -> Rule {
        self.check_keys(at, &RULE_KEYS);
        let mut rule = Rule {
            place: self.place(at.offset),
            name: self.name(at),
            direction: self.direction(at),
            near_ports: None,
            units: None,
            cgroups: None,
            containers: None,
            executables: None,
            users: None,
            groups: None,
            interactive: None,
            session: None,
            networks: None,
            countries: None,
            zones: None,
            gateways: None,
            asns: None,
            ports: None,
            protocols: None,
            verdict: self.verdict(at),
            budget: None,
            exception: None,
        };
        let from_path = format!("{}.from", at.path);
        let from = self.sub_table(at, "from", &from_path);
        if let Some(from) = from {
            self.check_keys(from, &FROM_KEYS);
            rule.units = self.values(from, "unit", UnitPattern::parse);
            rule.cgroups = self.values(from, "cgroup", CgroupPattern::parse);
            rule.containers = self.values(from, "container", ContainerPattern::parse);
            rule.executables = self.values(from, "exe", ExecutablePattern::parse);
            rule.users = self.located::<User>(from, "user", value::user);
            rule.groups = self.located::<Group>(from, "group", value::group);
            rule.interactive = self.boolean(from, "interactive");
            rule.near_ports = self.values(from, "ports", Ports::parse);
            rule.session = self.session(from, &rule, zones, gateways);
        }
        let to_path = format!("{}.to", at.path);
        let to = self.sub_table(at, "to", &to_path);
        if let Some(to) = to {
            self.check_keys(to, &TO_KEYS);
            rule.networks = self.values(to, "networks", value::network);
            rule.countries = self.values(to, "countries", |text| countries_of_rule(text, zones));
            let zone_names: Vec<&str> = zones.iter().map(|zone| &*zone.name).collect();
            rule.zones = self.references(to, "zones", &zone_names);
            let gateway_names: Vec<&str> = gateways
                .iter()
                .map(|gateway| &*gateway.name.value)
                .collect();
            rule.gateways = self.references(to, "gateway", &gateway_names);
            self.check_gateways(to, &rule, gateways);
            rule.asns = self.located(to, "asns", value::asn);
            rule.ports = self.values(to, "ports", Ports::parse);
            rule.protocols = self.values(to, "protocols", Protocol::parse);
        }
        self.limits(at, &mut rule);
        let is_there = |key| at.table.contains_key(key) || self.is_misspelt(at, key);
        if !is_there("from") && !is_there("to") && !self.is_damaged(at.offset) {
            let fault = Fault::new(
                "the rule has neither `from` nor `to`: it would match everything",
            )
            .help("if that is meant, write `to = { networks = [\"0.0.0.0/0\", \"::/0\"] }`");
            self.problem(fault, at.offset, at.path);
        }
        rule
    }

    fn direction(&mut self, at: At<'_>) -> Option<Direction> {
        const HELP: &str = "write `direction = \"accepted\"` for sessions that others open to this \
                            host, or `direction = \"outbound\"` for what this host begins";
        at.table.get("direction")?;
        let (text, place) = self.required_string(at, "direction", HELP)?;
        match text {
            "accepted" => Some(Direction::Accepted),
            "outbound" => Some(Direction::Outbound),
            _ => {
                let fault = Fault::new(format!("`{text}` is not a direction")).help(HELP);
                self.problem(fault, place, format!("{}.direction", at.path));
                None
            }
        }
    }

    /// The gateways of a rule have what it means: clients, or endpoints.
    fn check_gateways(&mut self, to: At<'_>, rule: &Rule, gateways: &[Gateway]) {
        // A key that is missing may have been there, and been wrong.
        if self.has_problem_with("gateways") {
            return;
        }
        let Some(value) = to.table.get("gateway") else {
            return;
        };
        for &index in rule.gateways.iter().flatten() {
            let gateway = &gateways[index];
            let name = &gateway.name.value;
            let fault = match rule.means_clients() {
                true if gateway.clients.is_empty() => {
                    Fault::new(format!("gateway `{name}` opens no sessions to hosts"))
                        .help("give it `clients`, the networks from which it does")
                }
                false if gateway.endpoints.is_empty() => {
                    Fault::new(format!("gateway `{name}` has no endpoints to send to")).help(
                        "give it `endpoints`; or write `direction = \"accepted\"` in the rule, for \
                         the sessions that it opens",
                    )
                }
                _ => continue,
            };
            self.problem(fault, value.span().start, format!("{}.gateway", to.path));
        }
    }

    fn verdict(&mut self, at: At<'_>) -> RuleVerdict {
        const HELP: &str = "write `verdict = \"approve\"` or `verdict = \"deny\"`";
        let Some((text, place)) = self.required_string(at, "verdict", HELP) else {
            return RuleVerdict::Deny;
        };
        match text {
            "approve" => RuleVerdict::Approve,
            "deny" => RuleVerdict::Deny,
            _ => {
                let help = match text {
                    "allow" | "accept" | "permit" | "pass" | "ok" => {
                        "write `verdict = \"approve\"`"
                    }
                    "block" | "drop" | "reject" | "refuse" => "write `verdict = \"deny\"`",
                    _ => HELP,
                };
                let fault = Fault::new(format!("`{text}` is not a verdict")).help(help);
                self.problem(fault, place, format!("{}.verdict", at.path));
                RuleVerdict::Deny
            }
        }
    }

    fn name(&mut self, at: At<'_>) -> Located<String> {
        let help = "reports say the name: give it one";
        let (text, place) = self
            .required_string(at, "name", help)
            .unwrap_or(("", at.offset));
        if let Err(fault) = value::name(text)
            && place != at.offset
        {
            self.problem(fault, place, format!("{}.name", at.path));
        }
        Located {
            value: text.to_owned(),
            place: self.place(place),
        }
    }

    /// A list of names of things that the policy defines, as indexes into `names`.
    fn references(&mut self, at: At<'_>, key: &str, names: &[&str]) -> Option<Vec<usize>> {
        let (table, what) = match key {
            "zones" => ("zones", "zone"),
            _ => ("gateways", "gateway"),
        };
        let may_be_lost = self.has_lost_names(table);
        let found = self.values(at, key, |text| {
            match names.iter().position(|&name| name == text) {
                Some(index) => Ok(Some(index)),
                None if may_be_lost => Ok(None),
                None => Err(unknown_reference(text, names, what)),
            }
        });
        found.map(|found| found.into_iter().flatten().collect())
    }
}

fn countries_of_rule(text: &str, zones: &[Zone]) -> Result<Area, Fault> {
    value::countries(text).map_err(|fault| {
        if zones.iter().any(|zone| zone.name == text) {
            Fault::new(format!("`{text}` is a zone")).help(format!("write `zones = [\"{text}\"]`"))
        } else {
            fault
        }
    })
}

fn unknown_reference(text: &str, names: &[&str], what: &str) -> Fault {
    let fault = Fault::new(format!("there is no {what} `{text}`"));
    let is_country = Country::parse(text).is_some() || groups::members(text).is_some();
    if let Some(name) = nearest(text, names) {
        fault.help(format!("did you mean `{name}`?"))
    } else if is_country {
        fault.help(format!(
            "write `countries = [\"{text}\"]` for the place itself"
        ))
    } else if names.is_empty() {
        fault.help(match what {
            "zone" => format!("define it: `[zones]`, and below it `{text} = [...]`"),
            _ => format!("define it: `[[gateways]]`, and below it `name = \"{text}\"`"),
        })
    } else {
        fault.help(format!("the policy has: {}", names.join(", ")))
    }
}
