//! Records in, what was seen out.

mod encrypted;

use serde_json::{Value, json};

use super::*;
use crate::policy::{Policy, Surroundings, compile, geography::Nowhere};

const AT: [&str; 3] = [
    "2026-01-01T00:00:00.000000Z",
    "2026-01-01T00:00:01.000000Z",
    "2026-01-01T00:00:02.000000Z",
];

/// A record of a flow, with what differs.
pub(crate) fn record(differs: Value) -> Value {
    let mut record = json!({
        "event": "flow", "seq": 1, "time": AT[1], "boot_id": "b", "host": "h", "state": "closed",
        "flow": "1-1-1", "direction": "outbound", "protocol": "tcp",
        "dst_addr": "203.0.113.7", "dst_port": 443, "verdict": "approved", "rule": "r",
        "outcome": "passed", "bytes_out": 100, "packets_out": 2, "started": AT[0], "ended": AT[1],
        "pid": 7, "exe": "/usr/bin/x", "uid": 33, "gid": 33, "user": "www-data", "unit": "x.service",
        "cgroup": "/system.slice/x.service", "attribution": "direct", "priority": 6,
        "message": "m",
    });
    let (Value::Object(all), Value::Object(differs)) = (&mut record, differs) else {
        panic!("objects");
    };
    for (name, value) in differs {
        match value {
            Value::Null => drop(all.remove(&name)),
            value => drop(all.insert(name, value)),
        }
    }
    record
}

/// The same as journalctl prints it.
fn entry(record: &Value) -> Value {
    let mut entry = json!({ "__CURSOR": "c", "_UID": "0", "_COMM": "trefoil" });
    for (name, value) in record.as_object().unwrap() {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = match name.as_str() {
            "message" | "priority" => name.to_uppercase(),
            name => format!("TREFOIL_{}", name.to_uppercase()),
        };
        entry[name] = text.into();
    }
    entry
}

pub(crate) fn read(lines: &[Value]) -> (Vec<Observed>, Reading) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut collector = Collector::default();
    collector.add_text("file", text.as_bytes());
    collector.finish()
}

#[test]
fn what_is_wrong_with_a_line_is_shown_without_its_control_characters() {
    let foreign = record(json!({ "event": "flow\u{1b}[2J\nfine" }));
    let (_, reading) = read(&[foreign]);
    let shown = reading.faults[0].to_string();
    assert!(shown.contains("flow?[2J?fine"), "{shown:?}");
}

#[test]
fn a_rollup_without_a_number_could_be_counted_twice_and_is_refused() {
    let rollup = record(json!({ "seq": null, "state": "rollup", "flow": null, "flows": 9 }));
    let (observed, reading) = read(&[rollup]);
    assert!(observed.is_empty());
    assert_eq!((reading.records, reading.unreadable), (0, 1));
    assert!(reading.faults[0].reason.contains("`seq`"), "{reading:?}");
}

#[test]
fn of_cumulative_records_the_largest_count_once_and_in_any_order() {
    let opened = record(json!({
        "seq": 1, "time": AT[0], "state": "opened", "bytes_out": 40, "verdict": "unapproved",
        "rule": null, "event": "violation", "priority": 4, "ended": null,
    }));
    let closed = record(json!({ "seq": 2, "time": AT[2], "bytes_out": 100, "ended": AT[2] }));
    let (expected, _) = read(&[opened.clone(), closed.clone()]);
    assert_eq!(expected.len(), 1);
    let one = &expected[0];
    assert_eq!((one.amount.flows, one.amount.bytes_out), (1, 100));
    assert_eq!(
        (one.amount.first.as_deref(), one.amount.last.as_deref()),
        (Some(AT[0]), Some(AT[2]))
    );
    assert_eq!(&*one.said.verdict, "approved");
    for order in [
        [&closed, &opened, &closed],
        [&opened, &closed, &opened],
        [&closed, &closed, &opened],
    ] {
        assert_eq!(read(&order.map(Clone::clone)).0, expected);
    }
    // Another boot has flows of its own.
    let (other, _) = read(&[closed.clone(), record(json!({ "boot_id": "c" }))]);
    assert_eq!(other.iter().map(|one| one.amount.flows).sum::<u64>(), 2);
}

#[test]
fn rollups_add_up_and_count_once_each() {
    let rollup = |seq: u64, flows: u64| {
        record(json!({
            "seq": seq, "state": "rollup", "flow": null, "dst_addr": null, "flows": flows,
            "bytes_out": flows * 10, "dst_country": "IE", "pid": null,
        }))
    };
    let (observed, reading) = read(&[rollup(1, 5), rollup(2, 7), rollup(1, 5)]);
    assert_eq!(observed.len(), 1);
    assert_eq!(
        (observed[0].amount.flows, observed[0].amount.bytes_out),
        (12, 120)
    );
    assert_eq!(observed[0].target.address, None);
    assert_eq!(reading.records, 3);
}

#[test]
fn entries_of_the_journal_say_the_same() {
    let records = [
        record(json!({})),
        record(json!({ "seq": 2, "flow": "2", "dst_addr": "2001:db8::1", "message": "→" })),
    ];
    let entries = records.clone().map(|record| entry(&record));
    assert_eq!(read(&records), read(&entries));
    // Text that journalctl holds for unprintable is numbers.
    let mut bytes = entry(&records[0]);
    bytes["TREFOIL_EXE"] = json!("/usr/bin/x".bytes().collect::<Vec<u8>>());
    bytes["MESSAGE"] = json!("→\u{1b}".bytes().collect::<Vec<u8>>());
    assert_eq!(read(&[bytes]).0, read(&records[..1]).0);
}

#[test]
fn whoever_is_not_root_cannot_write_records() {
    for uid in [json!("1000"), Value::Null] {
        let mut forged = entry(&record(json!({})));
        forged["_UID"] = uid;
        let (observed, reading) = read(&[forged]);
        assert!(observed.is_empty());
        assert_eq!((reading.not_trusted, reading.records), (1, 0));
        assert!(
            reading.is_faulty() && reading.complaints()[0].contains("not known to be from root")
        );
    }
}

#[test]
fn what_cannot_be_read_is_counted_and_named() {
    let good = record(json!({}));
    let other = json!({ "__CURSOR": "c", "MESSAGE": "Started." });
    let mut lines = vec![good.to_string(), other.to_string(), String::new()];
    let broken = [
        ("{\"event\":\"fl".to_owned(), "not JSON"),
        ("[1]".to_owned(), "neither a record"),
        ("{\"a\":1}".to_owned(), "neither a record"),
        ("\u{fffd}".to_owned(), "not JSON"),
        (
            record(json!({ "event": "flood" })).to_string(),
            "kind `flood`",
        ),
        (
            record(json!({ "dst_addr": "nowhere" })).to_string(),
            "`dst_addr`",
        ),
        (
            record(json!({ "dst_addr": null })).to_string(),
            "`dst_addr`",
        ),
        (
            record(json!({ "dst_port": 65_536 })).to_string(),
            "`dst_port`",
        ),
        (
            record(json!({ "dst_port": "443" })).to_string(),
            "`dst_port`",
        ),
        (record(json!({ "time": "yesterday" })).to_string(), "`time`"),
        (
            record(json!({ "dst_country": "XX" })).to_string(),
            "`dst_country`",
        ),
    ];
    lines.extend(broken.iter().map(|(line, _)| line.clone()));
    let mut left_out = entry(&good);
    left_out["TREFOIL_EXE"] = Value::Null;
    let mut twice = entry(&good);
    twice["TREFOIL_EXE"] = json!(["a", "b"]);
    let mut collector = Collector::default();
    collector.add_text("some.json", lines.join("\n").as_bytes());
    let (observed, reading) = collector.finish();
    assert_eq!(
        (observed.len(), reading.records, reading.other_entries),
        (1, 1, 1)
    );
    assert_eq!(reading.unreadable, broken.len() as u64);
    for (fault, (line, expected)) in reading.faults.iter().zip(&broken) {
        assert!(fault.to_string().contains(expected), "{line}: {fault}");
    }
    assert_eq!(
        reading.faults[0].to_string().split(' ').next(),
        Some("some.json:4:")
    );
    let (_, reading) = read(&[left_out, twice]);
    assert!(reading.faults[0].reason.contains("--all"), "{reading:?}");
    assert!(
        reading.faults[1].reason.contains("TREFOIL_EXE"),
        "{reading:?}"
    );
}

#[test]
fn gaps_and_losses_are_told() {
    let loss = json!({
        "event": "loss", "seq": 9, "time": AT[2], "boot_id": "b", "subject": "s", "count": 3,
        "total": 3, "priority": 4, "message": "m",
    });
    let (_, reading) = read(&[record(json!({ "seq": 5 })), loss.clone(), loss]);
    assert_eq!((reading.missing_records, reading.losses), (3, 3));
    assert_eq!(reading.last.as_deref(), Some(AT[2]));
    assert_eq!(reading.complaints().len(), 2);
}

#[test]
fn times_of_other_tools_are_read_and_bad_lines_say_whose_they_are() {
    let odd = record(json!({ "seq": 1, "time": "2026-11-21t15:00:00+02:00", "host": "db1" }));
    let late = record(json!({ "seq": 2, "time": "2026-11-21T13:00:00.5Z", "host": "db1" }));
    let bad = record(json!({ "seq": 3, "time": "yesterday", "host": "db2\u{1b}[31m" }));
    let (_, reading) = read(&[late, odd, bad]);
    assert_eq!(
        reading.first.as_deref(),
        Some("2026-11-21T13:00:00.000000Z")
    );
    assert_eq!(reading.last.as_deref(), Some("2026-11-21T13:00:00.500000Z"));
    let fault = reading.faults[0].to_string();
    assert!(fault.starts_with("file:3: `time`"), "{fault}");
    assert!(fault.contains("(host db2"), "{fault}");
    assert!(!fault.contains('\u{1b}'), "{fault}");
}

#[test]
fn two_agents_of_one_host_have_numbers_of_their_own() {
    let of = |seq, instance: &str| {
        record(
            json!({ "seq": seq, "state": "rollup", "flow": null, "instance": instance,
            "host": "db1", "flows": 1, "bytes_out": 100 }),
        )
    };
    let (observed, reading) = read(&[of(1, "/a"), of(1, "/b"), of(1, "/b"), of(4, "/b")]);
    assert_eq!(observed[0].amount.bytes_out, 300, "one was there twice");
    assert_eq!(reading.missing_records, 2);
    let complaints = reading.complaints();
    assert!(complaints[0].ends_with("(db1 (/b): 2)"), "{complaints:?}");
}

#[test]
fn a_unit_that_is_gone_keeps_its_name() {
    let opened = record(json!({ "state": "opened", "seq": 1 }));
    let closed = record(json!({ "seq": 2, "unit": null, "cgroup": null, "exe": null }));
    let (observed, _) = read(&[opened.clone(), closed]);
    assert_eq!(observed[0].source.unit.as_deref(), Some("x.service"));
    assert_eq!(observed[0].source.exe.as_deref(), Some("/usr/bin/x"));
    // Another process is another owner.
    let handed_on = record(json!({ "seq": 2, "pid": 8, "unit": null, "cgroup": null }));
    let (observed, _) = read(&[opened, handed_on]);
    assert_eq!(observed[0].source.unit, None);
}

const POLICY: &str = r#"
mode = "enforce"
[[rules]]
name = "by unit"
from = { unit = "x.service" }
to = { networks = ["203.0.113.0/24"] }
verdict = "approve"
[[rules]]
name = "by country"
to = { countries = ["IE"], ports = ["443/tcp"] }
verdict = "approve"
[[rules]]
name = "by user"
from = { user = "33" }
verdict = "deny"
"#;

fn judged(text: &str, differs: Value) -> (Judgement, Vec<String>) {
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: crate::policy::LinkLocal::default(),
    };
    let policy = Policy::parse(text, "policy").unwrap();
    let compiled = compile(&policy, &surroundings, 1).unwrap();
    let judge = Judge {
        policy: &policy,
        compiled: &compiled,
        surroundings: &surroundings,
    };
    let (observed, reading) = read(&[record(differs)]);
    assert_eq!(reading.faults, []);
    let judgement = judge.judge(&observed[0]);
    let names = judgement.possible().iter();
    let names = names.map(|ruling| judge.rule_name(ruling).unwrap_or(ruling.name()).to_owned());
    let names = names.collect();
    (judgement, names)
}

#[test]
fn what_is_known_decides() {
    let (judgement, names) = judged(POLICY, json!({}));
    assert_eq!(
        (judgement.approves(), names),
        (Some(true), vec!["by unit".to_owned()])
    );
    let (judgement, names) = judged(POLICY, json!({ "dst_addr": "192.0.2.1" }));
    assert_eq!(
        (judgement.approves(), names),
        (Some(false), vec!["by user".to_owned()])
    );
    let (judgement, _) = judged(
        POLICY,
        json!({ "verdict": "local", "dst_addr": "192.0.2.1" }),
    );
    assert_eq!(judgement.approves(), Some(true));
}

#[test]
fn of_whom_the_kernel_knew_nothing_is_judged_as_there() {
    let policy = POLICY.replace(
        "from = { user = \"33\" }",
        "from = { user = \"33\" }\nto = { networks = [\"203.0.113.0/24\"] }",
    );
    let policy = policy
        + "[[rules]]\nname = \"all else\"\nto = { networks = [\"203.0.113.0/24\"] }\n\
           verdict = \"approve\"\n";
    for (attribution, rule) in [
        ("forwarded", "by user"),
        ("none", "by user"),
        ("kernel", "by user"),
    ] {
        let nobody = json!({
            "unit": null, "cgroup": null, "exe": null, "uid": null, "gid": null, "user": null,
            "pid": null, "attribution": attribution,
        });
        let (judgement, names) = judged(&policy, nobody);
        assert_eq!(names, [rule], "{attribution}");
        assert!(judgement.lacks().is_empty());
    }
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let nobody = json!({ "unit": null, "cgroup": null, "exe": null, "uid": null, "pid": null });
    let (judgement, names) = judged(POLICY, nobody);
    assert_eq!(judgement.approves(), None);
    assert_eq!(names, ["by unit", "by user", "undetermined"]);
    assert_eq!(judgement.lacks(), ["the unit", "the user"]);
    // No rule asks for what is not known here.
    let (judgement, _) = judged(POLICY, json!({ "exe": null }));
    assert_eq!(
        (judgement.approves(), judgement.lacks().len()),
        (Some(true), 0)
    );
    // All that is possible is refused.
    let differs = json!({ "uid": null, "dst_addr": "192.0.2.1" });
    let (judgement, names) = judged(POLICY, differs);
    assert_eq!(judgement.approves(), Some(false));
    assert_eq!(names, ["by user", "undetermined"]);
    // A path that is no file of the host is known to match no rule.
    let by_exe = POLICY.replace("unit = \"x.service\"", "exe = \"/usr/bin/x\"");
    let (judgement, names) = judged(&by_exe, json!({ "exe_note": "foreign" }));
    assert_eq!(
        (judgement.approves(), names),
        (Some(false), vec!["by user".to_owned()])
    );
    // Nor has a file in memory, which has no path, one that a rule could match.
    let in_memory = json!({ "exe": null, "exe_note": "foreign" });
    let (judgement, names) = judged(&by_exe, in_memory.clone());
    assert_eq!(
        (judgement.approves(), names),
        (Some(false), vec!["by user".to_owned()])
    );
    let denied = by_exe.replacen("\"approve\"", "\"deny\"", 1);
    let (judgement, names) = judged(&denied, in_memory);
    assert_eq!(
        (judgement.lacks().len(), names),
        (0, vec!["by user".to_owned()])
    );
    let (judgement, _) = judged(&by_exe, json!({ "exe": "/usr/bin/\u{fffd}" }));
    assert_eq!(judgement.approves(), None);
}

#[test]
fn an_address_that_embeds_another_is_judged_by_both_whatever_is_not_known() {
    const OUTER: &str = r#"
mode = "enforce"
[[rules]]
name = "outer"
from = { exe = "/usr/bin/x" }
to = { networks = ["2002::/16"] }
verdict = "approve"
"#;
    let to_6to4 = json!({ "dst_addr": "2002:cb00:7107::1", "unit": null, "cgroup": null });
    let (judgement, names) = judged(OUTER, to_6to4.clone());
    assert_eq!(judgement.approves(), Some(false));
    assert_eq!(names, ["undetermined"]);
    let inner = |from: &str| {
        format!(
            "{OUTER}[[rules]]\nname = \"inner\"\nfrom = {{ {from} }}\n\
             to = {{ networks = [\"203.0.113.7/32\"] }}\nverdict = \"approve\"\n"
        )
    };
    let (judgement, names) = judged(&inner("exe = \"/usr/bin/x\""), to_6to4.clone());
    assert_eq!(judgement.approves(), Some(true));
    assert_eq!(names, ["outer"]);
    let (judgement, names) = judged(&inner("unit = \"x.service\""), to_6to4);
    assert_eq!(judgement.approves(), None);
    assert_eq!(names, ["outer", "undetermined"]);
    assert_eq!(judgement.lacks(), ["the unit"]);
}

#[test]
fn groups_and_sessions_are_judged_where_records_have_them() {
    let by_group = POLICY.replace(
        "unit = \"x.service\"",
        "group = \"33\", interactive = false",
    );
    let (judgement, _) = judged(&by_group, json!({}));
    assert_eq!(judgement.approves(), Some(true));
    let (judgement, _) = judged(&by_group, json!({ "session": 3 }));
    assert_eq!(judgement.approves(), Some(false));
    let (judgement, _) = judged(&by_group, json!({ "gid": null, "pid": null }));
    assert_eq!(judgement.approves(), None);
    assert_eq!(
        judgement.lacks(),
        ["the group", "whether somebody was logged in"]
    );
}

#[test]
fn of_a_rollup_the_country_is_known_and_the_address_is_not() {
    let rollup = |country: &str, unit: &str, uid: u32| {
        json!({
            "state": "rollup", "flow": null, "dst_addr": null, "dst_country": country, "uid": uid,
            "unit": unit, "cgroup": format!("/system.slice/{unit}"), "flows": 3,
        })
    };
    let (judgement, names) = judged(POLICY, rollup("IE", "y.service", 1));
    assert_eq!(
        (judgement.approves(), names),
        (Some(true), vec!["by country".to_owned()])
    );
    let (judgement, names) = judged(POLICY, rollup("IE", "x.service", 1));
    assert_eq!(judgement.approves(), Some(true));
    assert_eq!(names, ["by unit", "by country"]);
    let (judgement, names) = judged(POLICY, rollup("CN", "x.service", 1));
    assert_eq!(judgement.approves(), None);
    assert_eq!(names, ["by unit", "unapproved"]);
    assert_eq!(judgement.lacks(), ["the destination"]);
    let (judgement, names) = judged(POLICY, rollup("CN", "y.service", 33));
    assert_eq!(
        (judgement.approves(), names),
        (Some(false), vec!["by user".to_owned()])
    );
}

#[test]
fn odd_lines_are_no_trouble() {
    // The fuzzer does the same at length.
    let base = record(json!({})).to_string().into_bytes();
    for at in 0..base.len() {
        for byte in [0, b'"', b'{', b'9', 0xff] {
            let mut line = base.clone();
            line[at] = byte;
            let mut collector = Collector::default();
            collector.add_text("f", &line);
            collector.add_text("f", &line[..at]);
            let _ = collector.finish();
        }
    }
}
