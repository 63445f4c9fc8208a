//! Tests of learning: the result is a policy, and approves of the flows that were
//! seen and of nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::{
    observed::{
        Judge,
        tests::{read, record},
    },
    policy::{Compiled, Policy, Surroundings, compile, geography::Nowhere, testing::Random},
};

const WWW: &dyn Users = &|name: &str| (name == "www-data").then_some(33);

fn surroundings() -> Surroundings<'static> {
    Surroundings {
        geography: &Nowhere,
        users: WWW,
        own_addresses: &[],
        link_local: crate::policy::LinkLocal::default(),
    }
}

fn learned(lines: &[Value]) -> (Learned, Policy, Compiled) {
    let (observed, reading) = read(lines);
    assert_eq!(reading.faults, []);
    let learned = learn(&observed, &reading, WWW);
    let policy = Policy::parse(&learned.text, "learned")
        .unwrap_or_else(|problems| panic!("{problems}\n{}", learned.text));
    let compiled = compile(&policy, &surroundings(), 1)
        .unwrap_or_else(|problems| panic!("{problems}\n{}", learned.text));
    assert_eq!(policy.rules.len(), learned.rules);
    let names: BTreeSet<&str> = policy.rules.iter().map(|rule| &*rule.name.value).collect();
    assert_eq!(names.len(), learned.rules, "{}", learned.text);
    (learned, policy, compiled)
}

/// Whether a policy approves of what a record says.
fn approves(policy: &Policy, compiled: &Compiled, line: &Value) -> bool {
    let surroundings = surroundings();
    let judge = Judge {
        policy,
        compiled,
        surroundings: &surroundings,
    };
    let (observed, _) = read(std::slice::from_ref(line));
    judge.judge(&observed[0]).approves() == Some(true)
}

#[test]
fn a_service_reads_as_somebody_would_write_it() {
    let lines = [
        record(json!({ "flow": "1", "dst_country": "DE", "dst_addr": "198.51.100.4" })),
        record(json!({
            "flow": "2", "seq": 2, "dst_country": "DE", "dst_addr": "198.51.100.5", "rule": "never",
            "verdict": "denied", "refused": 1, "event": "violation", "priority": 3,
        })),
        record(json!({
            "flow": "3", "seq": 3, "dst_addr": "198.51.100.9", "dst_port": 444, "exe": "/usr/bin/y",
        })),
    ];
    let (learned, _, _) = learned(&lines);
    let rules = learned.text.split_once("mode = \"report\"\n").unwrap().1;
    assert_eq!(
        rules,
        r#"
# Seen: 2 flows, 200 B out, 2026-01-01T00:00:00Z to 2026-01-01T00:00:01Z.
# Programs: /usr/bin/x
# Countries: DE
# Judged then: 1 approved by "r", 1 denied by "never" (1 packets or calls blocked)
[[rules]]
name    = "x.service to 2 addresses in DE, 443/tcp"
from    = { unit = "x.service" }
to      = { networks = ["198.51.100.4/31"], ports = ["443/tcp"] }
verdict = "approve"

# Seen: 1 flow, 100 B out, 2026-01-01T00:00:00Z to 2026-01-01T00:00:01Z.
# Programs: /usr/bin/y
# Countries: unknown
# Judged then: 1 approved by "r"
[[rules]]
name    = "x.service to 198.51.100.9, 444/tcp"
from    = { unit = "x.service" }
to      = { networks = ["198.51.100.9/32"], ports = ["444/tcp"] }
verdict = "approve"
"#
    );
}

#[test]
fn who_is_named_by_what_is_still_true_tomorrow() {
    let from = |differs: Value| {
        let (learned, _, _) = learned(&[record(differs)]);
        let from = learned.text.lines().find(|line| line.starts_with("from"));
        let wider = learned.text.contains("WIDER THAN SEEN");
        (from.unwrap_or_default().to_owned(), wider, learned.left_out)
    };
    let within = |unit: &str| json!({ "unit": unit, "cgroup": format!("/system.slice/{unit}") });
    let (exact, wider, _) = from(within("export@7.service"));
    assert_eq!(
        (exact.as_str(), wider),
        (r#"from    = { unit = "export@7.service" }"#, false)
    );
    let (session, wider, _) = from(within("session-3.scope"));
    assert_eq!(
        (session.as_str(), wider),
        (
            r#"from    = { exe = "/usr/bin/x", user = "www-data" }"#,
            true
        )
    );
    let (user_unit, wider, _) = from(json!({
        "unit": "user@33.service", "user_unit": "user@33.service/b.service",
        "cgroup": "/user.slice/user-33.slice/user@33.service/app.slice/b.service",
    }));
    assert_eq!(
        (user_unit.as_str(), wider),
        (r#"from    = { unit = "user@33.service/b.service" }"#, false)
    );
    let id = "4f2a9c01b7de".repeat(6)[..64].to_owned();
    let (container, wider, _) = from(json!({
        "unit": format!("docker-{id}.scope"), "container": format!("docker:{id}"),
        "cgroup": format!("/system.slice/docker-{id}.scope"), "exe_note": "foreign",
    }));
    assert_eq!(
        (container, wider),
        (
            format!("from    = {{ container = \"docker:{id}\" }}"),
            false
        )
    );
    let nowhere = |more: Value| {
        let mut differs = json!({ "unit": null, "cgroup": "/odd" });
        for (name, value) in more.as_object().unwrap() {
            differs[name] = value.clone();
        }
        from(differs)
    };
    // No login name of this host, or one of somebody else.
    let (by_number, wider, _) = nowhere(json!({ "user": "gone" }));
    assert_eq!(
        (by_number.as_str(), wider),
        (r#"from    = { exe = "/usr/bin/x", user = "33" }"#, true)
    );
    let (user_only, wider, _) = nowhere(json!({ "exe_note": "foreign" }));
    assert_eq!(
        (user_only.as_str(), wider),
        (r#"from    = { user = "www-data" }"#, true)
    );
    let (program_only, wider, _) = nowhere(json!({ "uid": null, "user": null }));
    assert_eq!(
        (program_only.as_str(), wider),
        (r#"from    = { exe = "/usr/bin/x" }"#, true)
    );
    let (nobody, _, left_out) = nowhere(json!({ "uid": null, "user": null, "exe": null }));
    assert_eq!((nobody.as_str(), left_out), ("", 1));
}

#[test]
fn answers_hold_for_any_port_of_the_client_and_say_so() {
    let accepted = |flow: &str, address: &str, port: u16| {
        record(json!({
            "flow": flow, "direction": "accepted", "src_port": 22, "dst_addr": address,
            "dst_port": port,
        }))
    };
    let lines = [
        accepted("1", "203.0.113.7", 40_000),
        accepted("2", "203.0.113.9", 40_001),
    ];
    let (learned, policy, compiled) = learned(&lines);
    assert_eq!(learned.rules, 1);
    for part in [
        "x.service answers 2 clients, 22/tcp",
        "any port of these clients",
        "direction = \"accepted\"",
        "unit = \"x.service\", ports = [\"22/tcp\"]",
    ] {
        assert!(learned.text.contains(part), "{}", learned.text);
    }
    assert!(approves(
        &policy,
        &compiled,
        &accepted("3", "203.0.113.9", 50_000)
    ));
    assert!(!approves(
        &policy,
        &compiled,
        &accepted("3", "203.0.113.8", 40_000)
    ));
    // Neither another service nor what is opened from here, be it from that port.
    let with = |name: &str, value: Value| {
        let mut line = accepted("3", "203.0.113.9", 50_000);
        line[name] = value;
        line
    };
    for other in [
        with("src_port", 23.into()),
        with("direction", "outbound".into()),
    ] {
        assert!(!approves(&policy, &compiled, &other), "{other}");
    }
}

#[test]
fn answers_of_another_namespace_are_approved_by_address_and_protocol() {
    let claimed = |port: u16| {
        record(json!({
            "direction": "claimed", "src_port": 22, "dst_addr": "203.0.113.7", "dst_port": port,
        }))
    };
    let (learned, policy, compiled) = learned(&[claimed(40_000)]);
    for part in ["x.service answers 203.0.113.7, 22/tcp", "nobody can say"] {
        assert!(learned.text.contains(part), "{}", learned.text);
    }
    assert!(approves(&policy, &compiled, &claimed(50_000)));
}

#[test]
fn an_address_that_embeds_another_is_approved_with_it() {
    for address in ["64:ff9b::cb00:7107", "2002:cb00:7107::1"] {
        let line = record(json!({ "dst_addr": address }));
        let (learned, policy, compiled) = learned(std::slice::from_ref(&line));
        assert!(approves(&policy, &compiled, &line), "{}", learned.text);
        assert!(
            learned.text.contains("203.0.113.7 by itself"),
            "{}",
            learned.text
        );
        assert!(
            learned.text.contains("Seen: 1 flow, 100 B"),
            "{}",
            learned.text
        );
    }
}

#[test]
fn what_no_rule_can_say_is_a_comment() {
    let lines = [
        record(json!({ "flow": "1", "dst_port": null })),
        record(
            json!({ "flow": null, "seq": 2, "state": "rollup", "dst_addr": null, "flows": 4,
            "dst_country": "IE" }),
        ),
        record(json!({ "flow": "3", "verdict": "local" })),
        record(json!({ "flow": "4", "dst_addr": "127.0.0.1" })),
    ];
    let (learned, _, _) = learned(&lines);
    assert_eq!((learned.rules, learned.left_out), (0, 5));
    for part in [
        "2 flows stayed on the host",
        "Nothing that a rule could be made for",
        "4 flows, 100 B out",
        "addresses in IE, 443/tcp: rolled up",
        "the packets named none",
    ] {
        let flat = learned.text.replace("\n#  ", "").replace("\n#", "");
        assert!(flat.contains(part), "{part}: {}", learned.text);
    }
}

#[test]
fn what_was_not_read_is_said_in_the_policy() {
    let mut lines = vec![record(json!({ "seq": 1 })), record(json!({ "seq": 3 }))];
    lines.push(json!({ "neither": 1 }));
    let (observed, reading) = read(&lines);
    let text = learn(&observed, &reading, WWW).text;
    assert!(text.contains("WHAT WAS SEEN IS NOT ALL"), "{text}");
    let (observed, reading) = read(&lines[..1]);
    assert!(!learn(&observed, &reading, WWW).text.contains("NOT ALL"));
}

#[test]
fn names_of_others_end_no_comment_and_no_string() {
    let odd = "/opt/a\"\\\n[[rules]]\nname = 'b'\r\u{202e}";
    let lines = [
        record(json!({ "flow": "1", "exe": odd, "rule": "r\nmode = 1" })),
        record(json!({ "flow": "2", "exe": odd, "unit": null, "cgroup": "/odd" })),
        record(json!({ "flow": "3", "exe": odd, "dst_port": null, "unit": "a\nb.service" })),
        record(json!({ "flow": "4", "unit": "a\nb.service", "cgroup": "/a\nb.service" })),
    ];
    let (learned, policy, compiled) = learned(&lines);
    for line in &lines[..2] {
        assert!(approves(&policy, &compiled, line), "{}", learned.text);
    }
    assert!(!learned.text.contains(['\r', '\u{202e}']) || learned.text.contains("\\u000D"));
}

/// A day of a host in a few random lines.
fn random_line(random: &mut Random, number: usize) -> Value {
    let units = [
        "a.service",
        "b@1.service",
        "session-1.scope",
        "",
        "user@1.service",
    ];
    let unit = *random.pick(&units);
    let address = match random.one_in(3) {
        true => format!("2001:db8::{:x}", random.below(40)),
        false => format!("192.0.2.{}", random.below(40)),
    };
    let (protocol, port) = *random.pick(&[
        ("tcp", 443),
        ("tcp", 80),
        ("tcp", 81),
        ("udp", 53),
        ("icmp", 0),
        ("esp", 0),
        ("sctp", 9),
    ]);
    let accepted = protocol == "tcp" && random.one_in(4);
    let mut line = record(json!({
        "flow": number.to_string(), "seq": number, "dst_addr": address, "protocol": protocol,
        "unit": unit, "cgroup": match unit {
            "" => "/".to_owned(),
            unit => format!("/system.slice/{unit}"),
        },
        "exe": format!("/bin/{}", random.below(3)), "uid": random.below(3), "user": null,
        "direction": if accepted { "accepted" } else { "outbound" },
        "src_port": random.pick(&[22, 443, 444]),
    }));
    line["dst_port"] = port.into();
    line
}

#[test]
fn the_same_again_is_approved_and_anything_else_is_not() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let n = 1 + random.below(300);
        let seen: Vec<Value> = (0..n)
            .map(|number| random_line(&mut random, number))
            .collect();
        let (learned, policy, compiled) = learned(&seen);
        assert_eq!(learned.left_out, 0);
        for line in &seen {
            assert!(
                approves(&policy, &compiled, line),
                "{line}\n{}",
                learned.text
            );
        }
        // The text is the same whatever the order was.
        let mut shuffled = seen.clone();
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, random.below(at + 1));
        }
        let (observed, reading) = read(&shuffled);
        assert_eq!(learn(&observed, &reading, WWW).text, learned.text);

        let key = |line: &Value, what: &[&str]| -> String {
            what.iter()
                .map(|name| line[*name].to_string() + " ")
                .collect()
        };
        // A rule for a program holds in units, too.
        let is_unit = |line: &Value| {
            let unit = line["unit"].as_str();
            matches!(unit, Some("a.service" | "b@1.service" | "user@1.service"))
        };
        let who = |line: &Value, by_unit: bool| match by_unit {
            true => key(line, &["unit"]),
            false => key(line, &["exe", "uid"]),
        };
        const SENT: [&str; 3] = ["dst_addr", "protocol", "dst_port"];
        const ANSWERED: [&str; 4] = ["direction", "dst_addr", "protocol", "src_port"];
        let mut known = BTreeSet::new();
        for line in &seen {
            let named = match line["direction"] == "accepted" {
                true => key(line, &ANSWERED),
                false => key(line, &SENT),
            };
            known.insert(who(line, is_unit(line)) + &named);
        }
        for number in 0..300 {
            let line = random_line(&mut random, number);
            let expected = [true, false].into_iter().any(|by_unit| {
                // A session that was opened from here says nothing of who opens it
                // next time.
                [key(&line, &SENT), key(&line, &ANSWERED)]
                    .into_iter()
                    .any(|named| known.contains(&(who(&line, by_unit) + &named)))
            });
            assert_eq!(
                approves(&policy, &compiled, &line),
                expected,
                "{line}\n{}",
                learned.text
            );
        }
    }
}
