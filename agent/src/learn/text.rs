//! The policy as its file says it.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
};

use super::{
    Draft, Lesson, Owner, Section,
    prose::{self, comment},
};
use crate::{
    observed::Reading,
    policy::{Users, service::Ports},
    report::words,
};

/// A line may be this long before a list is broken into several.
const WIDTH: usize = 96;
/// Most characters of a rule's name that a policy takes.
const LONGEST_NAME: usize = 128;

/// The whole file.
pub(super) fn policy(
    rules: &[Draft<'_>],
    lesson: &Lesson<'_>,
    reading: &Reading,
    users: &dyn Users,
) -> String {
    let mut text = prose::head(rules, lesson, reading);
    text += "mode = \"report\"\n";
    let names = names(rules);
    for (rule, name) in rules.iter().zip(names) {
        text.push('\n');
        text += &prose::of_rule(rule);
        let from = match &rule.owner {
            Owner::Container(name) => format!("container = {}", quoted(name)),
            Owner::Unit(unit) => format!("unit = {}", quoted(unit)),
            Owner::Process { exe, uid } => {
                let exe = exe.iter().map(|exe| format!("exe = {}", quoted(exe)));
                let uid = uid.iter().map(|&uid| {
                    let user = prose::user(rule, uid, users);
                    format!("user = {}", quoted(&user))
                });
                exe.chain(uid).collect::<Vec<_>>().join(", ")
            }
        };
        let ports = || list("ports", rule.ports().iter().map(Ports::to_string));
        let networks = rule
            .networks()
            .into_iter()
            .map(|network| network.to_string());
        let networks = list("networks", networks);
        let protocols = || {
            let protocols = rule.protocols();
            list("protocols", protocols.iter().map(ToString::to_string))
        };
        let name = quoted(&name);
        let _ = match rule.section {
            Section::Answers => write!(
                text,
                "[[rules]]\nname      = {name}\ndirection = \"accepted\"\n\
                 from      = {{ {} }}\nto        = {{ {networks} }}\nverdict   = \"approve\"\n",
                joined(&from, &ports())
            ),
            section => write!(
                text,
                "[[rules]]\nname    = {name}\nfrom    = {{ {from} }}\n\
                 to      = {{ {networks}, {} }}\nverdict = \"approve\"\n",
                match section {
                    Section::Ports => ports(),
                    _ => protocols(),
                }
            ),
        };
    }
    if !lesson.left_out.is_empty() {
        text.push('\n');
        text += &comment("No rule was made for:", "");
        for ((what, reason), amount) in &lesson.left_out {
            let amount = prose::amount(amount);
            text += &comment(&format!("- {amount}: {what}: {reason}"), "  ");
        }
    }
    text
}

/// Keys of one table.
fn joined(one: &str, other: &str) -> String {
    match one.is_empty() {
        true => other.to_owned(),
        false => format!("{one}, {other}"),
    }
}

/// Says what a rule is about, each name once.
fn names(rules: &[Draft<'_>]) -> Vec<String> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut taken = BTreeSet::new();
    let mut names = Vec::new();
    for rule in rules {
        let plain = words::clean(&prose::name(rule)).into_owned();
        let mut name = cut(&plain, "");
        while !taken.insert(name.clone()) {
            let count = known.entry(plain.clone()).or_insert(1);
            *count += 1;
            name = cut(&plain, &format!(" ({count})"));
        }
        names.push(name);
    }
    names
}

/// `text` and `end`, as long as a name may be.
fn cut(text: &str, end: &str) -> String {
    let room = LONGEST_NAME - end.chars().count();
    if text.chars().count() <= room {
        return format!("{text}{end}");
    }
    let beginning: String = text.chars().take(room - 3).collect();
    format!("{beginning}...{end}")
}

/// `key = ["a", "b"]`, on several lines if it is long.
fn list(key: &str, values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.map(|value| quoted(&value)).collect();
    let one_line = values.join(", ");
    // Bytes of its line that stand before and behind it.
    const REST: usize = 40;
    if one_line.len() + REST <= WIDTH {
        return format!("{key} = [{one_line}]");
    }
    let mut text = format!("{key} = [");
    let mut column = usize::MAX;
    for value in values {
        if column.saturating_add(value.len() + 2) > WIDTH {
            text += "\n   ";
            column = 3;
        }
        text += &format!(" {value},");
        column += value.len() + 2;
    }
    text + "\n]"
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_toml_are_read_as_they_were() {
        for text in [
            "/usr/bin/x",
            r#"a"b\c"#,
            "a\nb\u{7f}\u{1b}",
            "größe \u{202e}",
        ] {
            let table: toml::Table = format!("a = {}", quoted(text)).parse().unwrap();
            assert_eq!(table["a"].as_str(), Some(text));
        }
    }

    #[test]
    fn long_lists_are_lists() {
        let values: Vec<String> = (0..100).map(|n| format!("192.0.2.{n}/32")).collect();
        let text = format!("to = {{ {} }}", list("networks", values.iter().cloned()));
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["to"]["networks"].as_array().unwrap().len(), 100);
        assert!(text.lines().all(|line| line.len() <= WIDTH + 2), "{text}");
    }

    #[test]
    fn names_are_cut_where_policies_want_it() {
        let long = "ä".repeat(500);
        for end in ["", " (12)"] {
            let name = cut(&long, end);
            assert_eq!(name.chars().count(), LONGEST_NAME);
            assert!(name.ends_with(end));
        }
    }
}
