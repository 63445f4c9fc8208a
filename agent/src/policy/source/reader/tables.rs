//! Reading TOML tables without knowing what they are about.
//!
//! Owns the problems that any table can have: keys that are unknown, missing or of
//! the wrong type, empty lists, names that are there twice.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::problem::{Fault, Lines, Place, Problem, nearest};
use crate::policy::source::Located;
use crate::policy::source::recovery::Damage;

/// The keys of one kind of table.
pub(super) struct Keys {
    pub(super) known: &'static [&'static str],
    /// Keys of the design that this version does not implement. Ignoring one would
    /// approve what its author meant to limit.
    pub(super) later: &'static [&'static str],
    /// Keys that belong to another table, and its name.
    pub(super) elsewhere: &'static [(&'static [&'static str], &'static str)],
}

pub(super) struct Reader<'t> {
    lines: Lines<'t>,
    problems: Vec<Problem>,
    damage: Vec<Damage>,
    /// Keys that were probably meant by unknown ones, with the offsets of their tables.
    misspelt: Vec<(usize, &'static str)>,
}

/// A table, the key path that leads to it, and where it begins.
#[derive(Clone, Copy)]
pub(super) struct At<'t> {
    pub(super) table: &'t DeTable<'t>,
    pub(super) path: &'t str,
    pub(super) offset: usize,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, problems: Vec<Problem>, damage: Vec<Damage>) -> Self {
        Self {
            lines: Lines::new(text),
            problems,
            damage,
            misspelt: Vec::new(),
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        self.lines.place(offset)
    }
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, fault: Fault, offset: usize, key: impl Into<String>) {
        self.problems.push(fault.at(self.lines.place(offset), key));
    }

    pub(super) fn problem_at(&mut self, fault: Fault, place: Place, key: impl Into<String>) {
        self.problems.push(fault.at(place, key));
    }

    /// True when something that should be in the table beginning at `offset` may
    /// be missing only because its statement could not be parsed.
    pub(super) fn is_damaged(&self, offset: usize) -> bool {
        let header = |damage: &Damage| damage.header;
        self.damage
            .iter()
            .any(|damage| header(damage) == offset || damage.name.is_empty())
    }

    /// True when something in one of the tables of this name is wrong.
    pub(super) fn has_problem_with(&self, table: &str) -> bool {
        let is_of_it = |problem: &Problem| problem.key.starts_with(table);
        self.problems.iter().any(is_of_it) || self.has_lost_names(table)
    }

    /// True when a name in this table may be missing for the same reason, or because
    /// the table's own name is misspelt.
    pub(super) fn has_lost_names(&self, table: &str) -> bool {
        let is_misspelt = self.misspelt.iter().any(|&(_, meant)| meant == table);
        is_misspelt
            || self
                .damage
                .iter()
                .any(|damage| damage.name == table || damage.name.is_empty())
    }

    /// Every element of the array of tables `key`, as `read` makes it.
    pub(super) fn tables<T>(
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

    pub(super) fn sub_table<'t>(&mut self, at: At<'t>, key: &str, path: &'t str) -> Option<At<'t>> {
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
    pub(super) fn values<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let located = self.located(at, key, parse)?;
        Some(located.into_iter().map(|located| located.value).collect())
    }

    pub(super) fn located<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, Fault>,
    ) -> Option<Vec<Located<T>>> {
        let value = at.table.get(key)?;
        Some(self.list(value, &format!("{}.{key}", at.path), parse))
    }

    pub(super) fn list<T>(
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

    /// The value of a key that is true or false. `None` when it is not there.
    pub(super) fn boolean(&mut self, at: At<'_>, key: &str) -> Option<bool> {
        let value = at.table.get(key)?;
        if let DeValue::Boolean(value) = value.get_ref() {
            return Some(*value);
        }
        let fault = Fault::new(format!("is {}, not true or false", a(value.get_ref()))).help(
            format!("write `{key} = true` or `{key} = false`, without quotes"),
        );
        self.problem(fault, value.span().start, key_path(at.path, key));
        None
    }

    /// The string in `key`, which must be there, and its offset.
    pub(super) fn required_string<'t>(
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

    pub(super) fn missing(&mut self, at: At<'_>, key: &str, help: &str) {
        if !self.is_misspelt(at, key) && !self.is_damaged(at.offset) {
            let fault = Fault::new(format!("`{key}` is missing")).help(help);
            self.problem(fault, at.offset, at.path);
        }
    }

    /// True when an unknown key of this table was probably meant to be `key`.
    pub(super) fn is_misspelt(&self, at: At<'_>, key: &str) -> bool {
        self.misspelt
            .iter()
            .any(|&(offset, meant)| offset == at.offset && meant == key)
    }

    pub(super) fn check_keys(&mut self, at: At<'_>, keys: &Keys) {
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
                match meant_by(name, keys.known).or_else(|| nearest(name, keys.known)) {
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
    pub(super) fn check_names<'n>(
        &mut self,
        list: &str,
        names: impl Iterator<Item = &'n Located<String>>,
    ) {
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

/// The type of a value with its article.
pub(super) fn a(value: &DeValue<'_>) -> String {
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

/// Words of other tools for keys, and the key.
const WORDS_FOR_KEYS: [(&[&str], &str); 12] = [
    (
        &[
            "origin",
            "session_addr",
            "logged_in_from",
            "ssh",
            "came_from",
        ],
        "session",
    ),
    (&["service", "systemd_unit", "slice"], "unit"),
    (&["uid", "username", "login"], "user"),
    (&["gid"], "group"),
    (
        &["executable", "binary", "program", "process", "path", "comm"],
        "exe",
    ),
    (&["cgroup_path", "control_group"], "cgroup"),
    (&["docker", "pod", "image"], "container"),
    (
        &[
            "ip",
            "ips",
            "cidr",
            "cidrs",
            "addr",
            "address",
            "addresses",
            "subnet",
            "subnets",
            "net",
            "dst",
            "host",
            "hosts",
        ],
        "networks",
    ),
    (&["country_code", "geo", "region", "cc"], "countries"),
    (&["dport", "dst_port", "port_range"], "ports"),
    (&["proto"], "protocols"),
    (&["as", "autonomous_system"], "asns"),
];

/// The key that somebody means who writes a word of another tool, if it may stand here.
fn meant_by(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let (_, meant) = WORDS_FOR_KEYS
        .iter()
        .find(|(words, _)| words.contains(&word))?;
    known.iter().copied().find(|key| key == meant)
}
