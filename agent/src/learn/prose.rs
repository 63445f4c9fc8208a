//! Text of the policy for its reader: names of rules, and comments.
//!
//! Units, paths and rules have names that others chose; nothing of a name ends a
//! comment's line or moves what stands beside it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Draft, Lesson, Owner, Section, owner::is_transient};
use crate::{
    observed::{Amount, Reading},
    policy::Users,
    report::words,
};

/// A comment's line may be this long.
const WIDTH: usize = 88;

/// A comment, broken into lines; all but the first begin with `indent`.
pub(super) fn comment(text: &str, indent: &str) -> String {
    let text = words::clean(text);
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if line.len() > 1 + indent.len() && line.len() + 1 + word.len() > WIDTH {
            lines += &line;
            lines.push('\n');
            line = format!("# {}", indent.trim_end_matches(' '));
            line += &" ".repeat(indent.len());
            line += word;
        } else {
            line.push(' ');
            line += word;
        }
    }
    lines + &line + "\n"
}

/// Writes the comment above everything.
pub(super) fn head(rules: &[Draft<'_>], lesson: &Lesson<'_>, reading: &Reading) -> String {
    let mut sum = Amount::default();
    for rule in rules {
        sum.add(&rule.amount());
    }
    let hosts: Vec<&str> = reading.hosts.iter().map(String::as_str).collect();
    let mut paragraphs = vec![format!(
        "Learned from what was seen{}: {}. Each rule approves of what was seen and of no other \
         destination, port or protocol, unless it says that it is wider; one for a unit holds for \
         every program in it.",
        match hosts[..] {
            [] => String::new(),
            _ => format!(" on {}", hosts.join(", ")),
        },
        amount(&sum)
    )];
    paragraphs.push(
        "Recorded traffic need not be right: read each rule, take out the traffic that should not \
         leave, and try it with `trefoil check`."
            .to_owned(),
    );
    if rules.is_empty() {
        paragraphs.push("Nothing that a rule could be made for was seen.".to_owned());
    }
    if lesson.local.flows > 0 {
        let flows = words::count(lesson.local.flows, "flow");
        paragraphs.push(format!(
            "{flows} stayed on the host or its link, and need no rule."
        ));
    }
    let complaints = reading.complaints();
    if !complaints.is_empty() {
        paragraphs.push(format!(
            "WHAT WAS SEEN IS NOT ALL THAT THERE WAS: {}.",
            complaints.join("; ")
        ));
    }
    let paragraphs: Vec<String> = paragraphs.iter().map(|text| comment(text, "")).collect();
    paragraphs.join("#\n") + "\n"
}

/// Writes the comment above a rule.
pub(super) fn of_rule(rule: &Draft<'_>) -> String {
    let mut text = comment(&format!("Seen: {}.", amount(&rule.amount())), "  ");
    let mut line = |title: &str, all: Vec<String>| {
        if !all.is_empty() {
            text += &comment(&format!("{title}: {}", all.join(", ")), "  ");
        }
    };
    let strings = |all: BTreeSet<std::sync::Arc<str>>| -> Vec<String> {
        all.iter().map(|one| one.to_string()).collect()
    };
    let units = rule.texts(|source| source.user_unit.as_ref().or(source.unit.as_ref()));
    let programs = rule.texts(|source| source.exe.as_ref());
    match rule.owner {
        Owner::Container(_) | Owner::Unit(_) => line("Programs", strings(programs)),
        Owner::Process { exe, .. } => {
            if exe.is_none() {
                line("Programs", strings(programs));
            }
            line("Units", strings(units.clone()));
        }
    }
    line(
        "Countries",
        rule.countries().into_iter().map(str::to_owned).collect(),
    );
    if rule.section == Section::Claimed {
        let answered = rule.answered().into_iter();
        let ports = answered.map(|(protocol, port)| format!("{port}/{protocol}"));
        line("Answers on", ports.collect());
    }
    let origins = rule.seen.iter().filter_map(|one| one.source.session_addr);
    let origins: BTreeSet<String> = origins.map(|address| address.to_string()).collect();
    line("Logged in from", origins.into_iter().collect());
    line("Judged then", judged(rule));

    let mut wider = Vec::new();
    match rule.owner {
        Owner::Container(name) if !short(name).1.is_empty() => {
            text += &comment(
                "A container that is made anew has another id, which this rule will not match.",
                "  ",
            );
        }
        Owner::Container(_) => {}
        Owner::Unit(unit) if is_transient(unit) => {
            text += &comment(
                "Such a unit has another name next time, which this rule will not match.",
                "  ",
            );
        }
        Owner::Unit(_) => {}
        Owner::Process { exe, uid } => {
            wider.push(match units.first() {
                None => "in any unit, while it was seen in none".to_owned(),
                Some(_) if units.iter().any(|unit| is_transient(unit)) => {
                    "in any unit, since these have other names each time".to_owned()
                }
                Some(_) => "in any unit, since no rule can name these".to_owned(),
            });
            if exe.is_none() {
                wider.push(
                    "any program, since it is not known or is no file of this host".to_owned(),
                );
            }
            if uid.is_none() {
                wider.push("any user, since it is not known".to_owned());
            }
        }
    }
    match rule.section {
        Section::Answers => {
            wider.push("any port of these clients, since a client picks its own".to_owned());
        }
        Section::Claimed => wider.push(
            "any port of these addresses, since a client picks its own; connections that are opened \
             from here are approved as well, since in another network namespace nobody can say \
             who has opened one"
                .to_owned(),
        ),
        Section::Ports | Section::Protocols => {}
    }
    let inner: BTreeSet<String> = rule
        .seen
        .iter()
        .flat_map(|one| one.target.embedded())
        .map(|inner| inner.to_string())
        .collect();
    if !inner.is_empty() {
        let inner: Vec<String> = inner.into_iter().collect();
        wider.push(format!(
            "{} by itself, since an address that embeds it is judged by both",
            inner.join(", ")
        ));
    }
    if !wider.is_empty() {
        let wider = wider.join("; ");
        text += &comment(&format!("WIDER THAN SEEN: {wider}."), "  ");
    }
    text
}

/// Lists the verdicts of the policies that were in force, the most first.
fn judged(rule: &Draft<'_>) -> Vec<String> {
    let mut flows: BTreeMap<(&str, Option<&str>), (u64, u64)> = BTreeMap::new();
    for one in &rule.seen {
        let key = (&*one.said.verdict, one.said.rule.as_deref());
        let (n, blocked) = flows.entry(key).or_default();
        *n += one.amount.flows;
        *blocked += one.amount.blocked;
    }
    let words = flows.into_iter().map(|((verdict, rule), (n, blocked))| {
        let verdict = if verdict.is_empty() {
            "not yet"
        } else {
            verdict
        };
        let rule = rule.map_or(String::new(), |rule| format!(" by \"{rule}\""));
        let blocked = match blocked {
            0 => String::new(),
            n => format!(" ({n} packets or calls blocked)"),
        };
        format!("{n} {verdict}{rule}{blocked}")
    });
    words.collect()
}

/// `12 flows, 3.4 MB out, 2026-11-21T21:53:40Z to 2026-11-21T22:53:40Z`
pub(super) fn amount(amount: &Amount) -> String {
    let mut text = format!(
        "{}, {} out",
        words::count(amount.flows, "flow"),
        words::bytes(amount.bytes_out)
    );
    // Whole seconds are enough for a person.
    let second = |time: &str| format!("{}Z", time.get(..19).unwrap_or(time));
    if let (Some(first), Some(last)) = (&amount.first, &amount.last) {
        let (first, last) = (second(first), second(last));
        text += &match first == last {
            true => format!(", {first}"),
            false => format!(", {first} to {last}"),
        };
    }
    text
}

/// The name of a rule.
pub(super) fn name(rule: &Draft<'_>) -> String {
    let who = match rule.owner {
        Owner::Container(name) => short(name).0.to_owned(),
        Owner::Unit(unit) => unit.clone(),
        Owner::Process { exe: Some(exe), .. } => exe.rsplit('/').next().unwrap_or(exe).to_owned(),
        Owner::Process { uid: Some(uid), .. } => {
            let user = rule.texts(|source| source.user.as_ref()).pop_first();
            user.map_or(format!("uid {uid}"), |user| user.to_string())
        }
        Owner::Process { .. } => "anybody".to_owned(),
    };
    let n = rule.addresses.len() as u64;
    let is_answer = matches!(rule.section, Section::Answers | Section::Claimed);
    let what = match (n, rule.addresses.first()) {
        (1, Some(address)) => address.to_string(),
        _ if is_answer => words::count(n, "client"),
        _ => format!("{n} addresses"),
    };
    let countries = rule.countries();
    let place = match (n, countries.first()) {
        (2.., Some(&country)) if countries.len() == 1 && country != "unknown" => {
            format!(" in {country}")
        }
        _ => String::new(),
    };
    let few = |all: Vec<String>, noun: &str| match all.len() {
        0 => String::new(),
        1..=3 => format!(", {}", all.join(" ")),
        n => format!(", {n} {noun}"),
    };
    match rule.section {
        Section::Ports => {
            let ports = rule.ports().iter().map(ToString::to_string).collect();
            format!("{who} to {what}{place}{}", few(ports, "ranges of ports"))
        }
        Section::Protocols => {
            let protocols = rule.protocols().iter().map(ToString::to_string).collect();
            format!("{who} to {what}{place}{}", few(protocols, "protocols"))
        }
        Section::Answers | Section::Claimed => {
            let ports = rule.answered().into_iter();
            let ports = ports.map(|(protocol, port)| format!("{port}/{protocol}"));
            format!(
                "{who} answers {what}{place}{}",
                few(ports.collect(), "ports")
            )
        }
    }
}

/// The beginning of an id that the engines' own lists show, and the rest of it; of a
/// name all.
fn short(container: &str) -> (&str, &str) {
    let is_hex = |c: char| c.is_ascii_hexdigit();
    match container.split_once(':') {
        Some((engine, id)) if id.len() == 64 && id.chars().all(is_hex) => {
            container.split_at(engine.len() + 1 + 12)
        }
        _ => (container, ""),
    }
}

/// A user as a policy names it: by login name where the host knows it as this one.
pub(super) fn user(rule: &Draft<'_>, uid: u32, users: &dyn Users) -> String {
    let names = rule.texts(|source| source.user.as_ref());
    let known = names.iter().find(|name| {
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        !is_number && users.uid(name) == Some(uid)
    });
    known.map_or(uid.to_string(), |name| name.to_string())
}
