//! From TOML tables to a [`Policy`], with every problem on the way.
//!
//! Reading goes on after a problem: the value is left out and the rest is read, so
//! that one run shows everything.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::recovery::{self, Damage, Document};
use super::{Area, Gateway, Located, Mode, Policy, Rule, RuleVerdict, User, Zone, value};
use crate::geo::{Country, groups};
use crate::policy::pattern::{ExecutablePattern, UnitPattern};
use crate::policy::problem::{Fault, Lines, Place, Problem, nearest};
use crate::policy::service::{Ports, Protocol};

/// The keys of one kind of table.
struct Keys {
    known: &'static [&'static str],
    /// Keys of the design that this version does not implement. Ignoring one would
    /// approve what its author meant to limit.
    later: &'static [&'static str],
    /// Keys that belong to another table, and its name.
    elsewhere: &'static [(&'static [&'static str], &'static str)],
}

const FROM: &[&str] = &["unit", "exe", "user"];
const FROM_LATER: &[&str] = &["group", "cgroup", "container", "interactive"];
const TO: &[&str] = &[
    "networks",
    "countries",
    "zones",
    "gateway",
    "ports",
    "protocols",
];
const TO_LATER: &[&str] = &["asns", "domains"];

const ROOT_KEYS: Keys = Keys {
    known: &["mode", "zones", "gateways", "rules"],
    later: &[],
    elsewhere: &[],
};
const GATEWAY_KEYS: Keys = Keys {
    known: &["name", "endpoints"],
    later: &[],
    elsewhere: &[],
};
const RULE_KEYS: Keys = Keys {
    known: &["name", "from", "to", "verdict"],
    later: &["budget", "exception"],
    elsewhere: &[
        (FROM, "from"),
        (FROM_LATER, "from"),
        (TO, "to"),
        (TO_LATER, "to"),
    ],
};
const FROM_KEYS: Keys = Keys {
    known: FROM,
    later: FROM_LATER,
    elsewhere: &[(TO, "to"), (TO_LATER, "to")],
};
const TO_KEYS: Keys = Keys {
    known: TO,
    later: TO_LATER,
    elsewhere: &[(FROM, "from"), (FROM_LATER, "from")],
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
    let mut reader = Reader {
        lines: Lines::new(text),
        problems,
        damage,
        misspelt: Vec::new(),
    };
    let policy = reader.policy(root.get_ref());
    (policy, reader.problems)
}

struct Reader<'t> {
    lines: Lines<'t>,
    problems: Vec<Problem>,
    damage: Vec<Damage>,
    /// Keys that were probably meant by unknown ones, with the offsets of their tables.
    misspelt: Vec<(usize, &'static str)>,
}

/// A table, the key path that leads to it, and where it begins.
#[derive(Clone, Copy)]
struct At<'t> {
    table: &'t DeTable<'t>,
    path: &'t str,
    offset: usize,
}

impl Reader<'_> {
    fn problem(&mut self, fault: Fault, offset: usize, key: impl Into<String>) {
        self.problems.push(fault.at(self.lines.place(offset), key));
    }

    /// True when something that should be in the table beginning at `offset` may
    /// be missing only because its statement could not be parsed.
    fn is_damaged(&self, offset: usize) -> bool {
        let header = |damage: &Damage| damage.header;
        self.damage
            .iter()
            .any(|damage| header(damage) == offset || damage.name.is_empty())
    }

    /// True when a name in this table may be missing for the same reason, or because
    /// the table's own name is misspelt.
    fn has_lost_names(&self, table: &str) -> bool {
        let is_misspelt = self.misspelt.iter().any(|&(_, meant)| meant == table);
        is_misspelt
            || self
                .damage
                .iter()
                .any(|damage| damage.name == table || damage.name.is_empty())
    }

    fn policy(&mut self, root: &DeTable<'_>) -> Policy {
        let at = At {
            table: root,
            path: "",
            offset: 0,
        };
        self.check_keys(at, &ROOT_KEYS);
        let mode = self.mode(at);
        let zones = match root.get("zones") {
            Some(zones) => self.zones(zones),
            None => Vec::new(),
        };
        let gateways = self.tables(at, "gateways", Reader::gateway);
        self.check_names("gateways", gateways.iter().map(|gateway| &gateway.name));
        let rules = self.tables(at, "rules", |reader, at| reader.rule(at, &zones, &gateways));
        self.check_names("rules", rules.iter().map(|rule| &rule.name));
        Policy {
            mode,
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
        let endpoints = match at.table.get("endpoints") {
            Some(endpoints) => self.list(
                endpoints,
                &format!("{}.endpoints", at.path),
                value::endpoint,
            ),
            None => {
                let help = "write `endpoints = [\"192.0.2.10:443/tcp\"]`";
                self.missing(at, "endpoints", help);
                Vec::new()
            }
        };
        Gateway {
            name,
            endpoints: endpoints
                .into_iter()
                .map(|endpoint| endpoint.value)
                .collect(),
        }
    }

    fn rule(&mut self, at: At<'_>, zones: &[Zone], gateways: &[Gateway]) -> Rule {
        self.check_keys(at, &RULE_KEYS);
        let mut rule = Rule {
            place: self.lines.place(at.offset),
            name: self.name(at),
            units: None,
            executables: None,
            users: None,
            networks: None,
            countries: None,
            zones: None,
            gateways: None,
            ports: None,
            protocols: None,
            verdict: self.verdict(at),
        };
        let from_path = format!("{}.from", at.path);
        let from = self.sub_table(at, "from", &from_path);
        if let Some(from) = from {
            self.check_keys(from, &FROM_KEYS);
            rule.units = self.values(from, "unit", UnitPattern::parse);
            rule.executables = self.values(from, "exe", ExecutablePattern::parse);
            rule.users = self.located::<User>(from, "user", value::user);
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
            rule.ports = self.values(to, "ports", Ports::parse);
            rule.protocols = self.values(to, "protocols", Protocol::parse);
        }
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

    fn verdict(&mut self, at: At<'_>) -> RuleVerdict {
        const HELP: &str = "write `verdict = \"approve\"` or `verdict = \"deny\"`";
        let Some((text, place)) = self.required_string(at, "verdict", HELP) else {
            return RuleVerdict::Deny;
        };
        match text {
            "approve" => RuleVerdict::Approve,
            "deny" => RuleVerdict::Deny,
            _ => {
                let fault = Fault::new(format!("`{text}` is not a verdict")).help(HELP);
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
            place: self.lines.place(place),
        }
    }

    /// Every element of the array of tables `key`, as `read` makes it.
    fn tables<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        mut read: impl FnMut(&mut Self, At<'_>) -> T,
    ) -> Vec<T> {
        let Some(value) = at.table.get(key) else {
            return Vec::new();
        };
        let help = format!("write `[[{key}]]` above each");
        let DeValue::Array(elements) = value.get_ref() else {
            let fault = Fault::new(format!("is {}, not a list of tables", a(value.get_ref())));
            self.problem(fault.help(help), value.span().start, key);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{key}[{index}]");
            let offset = element.span().start;
            match element.get_ref() {
                DeValue::Table(table) => {
                    let at = At {
                        table,
                        path: &path,
                        offset,
                    };
                    tables.push(read(self, at));
                }
                other => {
                    let fault = Fault::new(format!("is {}, not a table", a(other)));
                    self.problem(fault.help(help.clone()), offset, path);
                }
            }
        }
        tables
    }

    fn sub_table<'t>(&mut self, at: At<'t>, key: &str, path: &'t str) -> Option<At<'t>> {
        let value = at.table.get(key)?;
        let offset = value.span().start;
        match value.get_ref() {
            DeValue::Table(table) if table.is_empty() => {
                if !self.is_damaged(at.offset) {
                    let fault = Fault::new("is empty: it would match everything")
                        .help(format!("leave out `{key}` if that is meant"));
                    self.problem(fault, offset, path);
                }
                None
            }
            DeValue::Table(table) => Some(At {
                table,
                path,
                offset,
            }),
            other => {
                let fault = Fault::new(format!("is {}, not a table", a(other)))
                    .help(format!("write it as in `{key} = {{ ... }}`"));
                self.problem(fault, offset, path);
                None
            }
        }
    }

    /// The values of a list, or of a single value in its place. `None` when the key
    /// is not there.
    fn values<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let located = self.located(at, key, parse)?;
        Some(located.into_iter().map(|located| located.value).collect())
    }

    fn located<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, Fault>,
    ) -> Option<Vec<Located<T>>> {
        let value = at.table.get(key)?;
        Some(self.list(value, &format!("{}.{key}", at.path), parse))
    }

    fn list<T>(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        mut parse: impl FnMut(&str) -> Result<T, Fault>,
    ) -> Vec<Located<T>> {
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements.iter().collect(),
            _ => vec![value],
        };
        if elements.is_empty() {
            let fault = Fault::new("the list is empty: it would match nothing")
                .help("list at least one value, or leave the key out");
            self.problem(fault, value.span().start, path);
        }
        let mut values = Vec::new();
        for element in elements {
            let offset = element.span().start;
            let text = match element.get_ref() {
                DeValue::String(text) => text.as_ref(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
                other => {
                    let fault = Fault::new(format!("is {}, not a string", a(other)))
                        .help("put the value in quotes");
                    self.problem(fault, offset, path);
                    continue;
                }
            };
            match parse(text) {
                Ok(value) => values.push(Located {
                    value,
                    place: self.lines.place(offset),
                }),
                Err(fault) => self.problem(fault, offset, path),
            }
        }
        values
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

    /// The string in `key`, which must be there, and its offset.
    fn required_string<'t>(
        &mut self,
        at: At<'t>,
        key: &str,
        help: &str,
    ) -> Option<(&'t str, usize)> {
        let Some(value) = at.table.get(key) else {
            self.missing(at, key, help);
            return None;
        };
        let offset = value.span().start;
        match value.get_ref() {
            DeValue::String(text) => Some((text, offset)),
            other => {
                let fault = Fault::new(format!("is {}, not a string", a(other))).help(help);
                self.problem(fault, offset, key_path(at.path, key));
                None
            }
        }
    }

    fn missing(&mut self, at: At<'_>, key: &str, help: &str) {
        if !self.is_misspelt(at, key) && !self.is_damaged(at.offset) {
            let fault = Fault::new(format!("`{key}` is missing")).help(help);
            self.problem(fault, at.offset, at.path);
        }
    }

    /// True when an unknown key of this table was probably meant to be `key`.
    fn is_misspelt(&self, at: At<'_>, key: &str) -> bool {
        self.misspelt
            .iter()
            .any(|&(offset, meant)| offset == at.offset && meant == key)
    }

    fn check_keys(&mut self, at: At<'_>, keys: &Keys) {
        for (key, _) in at.table {
            let name: &str = key.get_ref();
            if keys.known.contains(&name) {
                continue;
            }
            let fault = if keys.later.contains(&name) {
                Fault::new(format!("`{name}` is not supported by this version yet"))
                    .help("take it out; without it the rule must not approve more than is meant")
            } else if let Some((_, table)) = keys
                .elsewhere
                .iter()
                .find(|(names, _)| names.contains(&name))
            {
                Fault::new(format!("`{name}` does not belong here")).help(format!(
                    "it is a key of `{table}`: write `{table} = {{ {name} = ... }}`"
                ))
            } else {
                let fault = Fault::new(format!("`{name}` is not a known key"));
                match nearest(name, keys.known) {
                    Some(meant) => {
                        self.misspelt.push((at.offset, meant));
                        fault.help(format!("did you mean `{meant}`?"))
                    }
                    None => fault.help(format!("known keys here: {}", keys.known.join(", "))),
                }
            };
            self.problem(fault, key.span().start, key_path(at.path, name));
        }
    }

    /// Names must be different: reports and references use them.
    fn check_names<'n>(&mut self, list: &str, names: impl Iterator<Item = &'n Located<String>>) {
        let mut first_places: HashMap<&str, Place> = HashMap::new();
        for (index, Located { value: name, place }) in names.enumerate() {
            if name.is_empty() {
                continue;
            }
            let first = *first_places.entry(name).or_insert(*place);
            if first != *place {
                let fault = Fault::new(format!("the name `{name}` is already used")).help(format!(
                    "the other is on line {}; give each its own name",
                    first.line
                ));
                self.problems
                    .push(fault.at(*place, format!("{list}[{index}].name")));
            }
        }
    }
}

fn key_path(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
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

/// The type of a value with its article.
fn a(value: &DeValue<'_>) -> String {
    let name = match value {
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "list",
        other => other.type_str(),
    };
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {name}")
}
