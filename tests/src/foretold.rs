//! Records of report mode, and `check --against` of them, for tests that hold both against what
//! enforce mode does, call by call.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::record::Record;

/// Outcome of a call in enforce mode, as a record of it in report mode foretells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Foretold {
    /// All of it leaves.
    Leaves,
    /// The record does not say which of both.
    Uncertain,
    /// It is refused or dropped.
    Blocked,
}

/// Facts of a group of flows that are those of its records. The near port is there for accepted
/// flows alone, whose far port is not.
const FACTS: [&str; 13] = [
    "direction",
    "protocol",
    "dst_addr",
    "dst_country",
    "exe",
    "exe_note",
    "uid",
    "gid",
    "user",
    "unit",
    "user_unit",
    "container",
    "cgroup",
];

/// Outcomes foretold by each of these final records: by its own outcome, and by what
/// `check --against` says of it. Fails if these differ, or if it is not known which group of
/// flows a record is in.
///
/// `prefix` stands before the names of fields in the journal; `check` returns what
/// `trefoil check --json --against` prints of all of the records.
pub fn foretold(
    records: &[&Record],
    prefix: &str,
    check: impl FnOnce(&[&Record]) -> Result<String>,
) -> Result<Vec<Foretold>> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let said = check(records)?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    let against = &said["against"];
    let flows = against["flows"].as_u64().context("how many flows")?;
    ensure!(
        flows == records.len() as u64,
        "{} records are read as {flows} flows: {records:#?}",
        records.len()
    );
    let mut foretold = vec![Foretold::Leaves; records.len()];
    for (list, outcome) in [
        ("would_drop", Foretold::Blocked),
        ("may_drop", Foretold::Uncertain),
    ] {
        let groups = against[list].as_array().context("no list of groups")?;
        for (index, group) in groups.iter().enumerate() {
            // Groups may differ by what a record says of its sender alone, as by its attribution.
            let alike = |other: &&Value| same_facts(group, other);
            if groups[..index].iter().any(|other| alike(&other)) {
                continue;
            }
            let flows = groups[index..].iter().filter(alike);
            let flows: u64 = flows.filter_map(|it| it["flows"].as_u64()).sum();
            let mut in_group = 0;
            for (record, foretold) in records.iter().zip(&mut foretold) {
                if is_in(record, prefix, group) {
                    ensure!(
                        *foretold == Foretold::Leaves,
                        "{record} may be in {group} or in another group"
                    );
                    *foretold = outcome;
                    in_group += 1;
                }
            }
            ensure!(
                flows == in_group,
                "{in_group} records may be in {group}: {records:#?}"
            );
        }
    }
    for (record, foretold) in records.iter().zip(&foretold) {
        let passes = field(record, prefix, "outcome") == "passed";
        ensure!(
            *foretold == Foretold::Uncertain || passes == (*foretold == Foretold::Leaves),
            "`check --against` says {foretold:?} of {record}"
        );
    }
    Ok(foretold)
}

/// Outcome of a call that has several records: each hook that a packet passes may block it.
pub fn of_call(records: impl IntoIterator<Item = Foretold>) -> Option<Foretold> {
    records.into_iter().max()
}

fn field(record: &Record, prefix: &str, name: &str) -> String {
    match prefix {
        "" => record.text(name),
        prefix => record.text(&format!("{prefix}{}", name.to_uppercase())),
    }
}

fn is_in(record: &Record, prefix: &str, group: &Value) -> bool {
    let of_group = |name: &str| match &group[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let of_record = |name: &str| {
        let text = field(record, prefix, name);
        match name {
            "direction" if text.is_empty() => "unknown".to_owned(),
            _ => text,
        }
    };
    let port = match of_group("direction").as_str() {
        "accepted" | "claimed" => "src_port",
        _ => "dst_port",
    };
    let mut facts = FACTS.iter().chain([&port]);
    facts.all(|name| of_group(name) == of_record(name))
}

/// True if two groups are alike by all facts that a record is found by.
fn same_facts(one: &Value, other: &Value) -> bool {
    let ports = ["dst_port", "src_port"];
    let mut facts = FACTS.iter().chain(&ports);
    facts.all(|name| one[name] == other[name])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(port: u16, outcome: &str) -> Record {
        let text = format!(
            "{{\"direction\":\"outbound\",\"dst_addr\":\"203.0.113.9\",\"dst_port\":{port},\
             \"uid\":7,\"outcome\":\"{outcome}\"}}"
        );
        Record::parse(&text).unwrap()
    }

    fn group(port: u16, flows: u64) -> String {
        format!(
            "{{\"direction\":\"outbound\",\"dst_addr\":\"203.0.113.9\",\"dst_port\":{port},\
             \"uid\":7,\"flows\":{flows}}}"
        )
    }

    fn said(flows: u64, would: &str, may: &str) -> Result<String> {
        Ok(format!(
            "{{\"against\":{{\"flows\":{flows},\"would_drop\":[{would}],\"may_drop\":[{may}]}}}}"
        ))
    }

    #[test]
    fn each_record_has_the_opinion_about_its_own_flow() {
        let all = [
            record(1, "passed"),
            record(2, "would-drop"),
            record(3, "would-drop"),
        ];
        let all: Vec<&Record> = all.iter().collect();
        let check = |_: &[&Record]| said(3, &group(2, 1), &group(3, 1));
        let outcomes = foretold(&all, "", check).unwrap();
        let expected = [Foretold::Leaves, Foretold::Blocked, Foretold::Uncertain];
        assert_eq!(outcomes, expected);
        assert_eq!(of_call(outcomes), Some(Foretold::Blocked));
        // Two groups that differ by something else.
        let twice = format!("{},{}", group(2, 1), group(2, 1));
        let all = [record(2, "would-drop"), record(2, "would-drop")];
        let all: Vec<&Record> = all.iter().collect();
        let outcomes = foretold(&all, "", |_| said(2, &twice, "")).unwrap();
        assert_eq!(outcomes, [Foretold::Blocked; 2]);
        assert_eq!(of_call([]), None);
    }

    #[test]
    fn an_opinion_that_no_record_explains_is_an_error() {
        let all = [record(1, "passed")];
        let all: Vec<&Record> = all.iter().collect();
        let of = |said: Result<String>| foretold(&all, "", |_| said);
        assert!(of(said(1, "", "")).is_ok());
        // Another number of flows, another flow, and another outcome than the record has.
        assert!(of(said(2, "", "")).is_err());
        assert!(of(said(1, &group(2, 1), "")).is_err());
        assert!(of(said(1, &group(1, 1), "")).is_err());
    }
}
