//! Lines of logs are read as they are written, and hold against records as they should.

use serde_json::{Value, json};

use super::*;
use crate::report::Record;

const ZEEK: &str = "#separator \\x09
#set_separator\t,
#empty_field\t(empty)
#unset_field\t-
#path\tconn
#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_ip_bytes\tresp_ip_bytes
#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tinterval\tcount\tcount
";

fn mapping() -> Mapping {
    Mapping {
        clock_skew: std::time::Duration::from_secs(1),
        delay: std::time::Duration::ZERO,
        ..Mapping::default()
    }
}

fn read(mapping: &Mapping, text: &str) -> Result<Vec<Line>, FormError> {
    let mut lines = Lines::new(mapping);
    let read = text.lines().map(|line| lines.read(line.as_bytes()));
    read.filter_map(Result::transpose).collect()
}

/// A line of Zeek's about a flow of the host that began so many seconds after 1,800,000,000.
fn zeek(at: u32, port: u16, lasted: &str, bytes: (u64, u64)) -> String {
    format!(
        "{}.500000\tC1\t192.0.2.1\t{port}\t192.0.2.10\t443\ttcp\t{lasted}\t{}\t{}\n",
        1_800_000_000_u64 + u64::from(at),
        bytes.0,
        bytes.1
    )
}

fn recorded(at: u32, port: u16, differs: Value) -> Record {
    let moment =
        |after: u32| crate::clock::rfc3339((1_800_000_000 + u64::from(at + after)) * 1_000_000);
    let ends = Ends {
        protocol: 6,
        src_addr: "192.0.2.1".parse().unwrap(),
        src_port: port,
        dst_addr: "192.0.2.10".parse().unwrap(),
        dst_port: 443,
    };
    let mut object = json!({
        "event": "flow", "seq": at, "time": moment(2), "boot_id": "b", "state": "closed",
        "flow": format!("{at}-{port}"), "community_id": ends.community_id(),
        "direction": "outbound", "protocol": "tcp", "src_addr": "192.0.2.1", "src_port": port,
        "dst_addr": "192.0.2.10", "dst_port": 443, "verdict": "gateway", "rule": "exports",
        "outcome": "passed", "bytes_out": 1_000_000, "packets_out": 9, "bytes_in": 500,
        "packets_in": 5, "started": moment(0), "ended": moment(1), "priority": 6, "message": "m",
    });
    for (name, value) in differs.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    Record::from_object(object.as_object().unwrap()).unwrap()
}

fn account(records: &[Record], mapping: &Mapping, log: &str) -> Account {
    let mut hosts = Hosts::default();
    for record in records {
        hosts.add(record).unwrap();
    }
    let mut ledger = Ledger::new(hosts, mapping);
    for line in read(mapping, log).unwrap() {
        ledger.add(line);
    }
    ledger.finish(|_| true)
}

fn ports(flows: &[Flow]) -> Vec<u16> {
    flows.iter().map(|flow| flow.ends.src_port).collect()
}

#[test]
fn zeeks_text_is_read_by_the_names_in_its_header() {
    let mapping = mapping();
    let text = format!("{ZEEK}{}#close\t2027\n", zeek(7, 4000, "1.25", (10, 20)));
    let lines = read(&mapping, &text).unwrap();
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        line.ends.to_string(),
        "tcp 192.0.2.1:4000 -> 192.0.2.10:443"
    );
    assert_eq!(line.span.first_us, 1_800_000_007_500_000);
    assert_eq!(line.span.last_us, 1_800_000_008_750_000);
    assert_eq!(line.bytes, Some(Bytes { out: 10, back: 20 }));
    assert_eq!(line.community_ids, [line.ends.community_id().unwrap()]);
    let unset = format!("{ZEEK}{}", zeek(7, 4000, "-", (1, 1)));
    let lines = read(&mapping, &unset).unwrap();
    assert_eq!(lines[0].span.first_us, lines[0].span.last_us);
}

#[test]
fn lines_of_json_are_read_by_the_names_of_the_settings() {
    let zeeks = r#"{"ts":1800000007.5,"id.orig_h":"2001:db8::1","id.orig_p":1,"id.resp_h":"2001:db8::2","id.resp_p":443,"proto":"tcp","community_id":"1:x"}"#;
    let default = mapping();
    let lines = read(&default, zeeks).unwrap();
    assert_eq!(lines[0].community_ids[0], "1:x");
    assert_eq!(lines[0].bytes, None);
    let mapping = Mapping {
        time: "start".to_owned(),
        src_addr: "flow.client".to_owned(),
        src_port: "flow.port".to_owned(),
        ..default
    };
    let own = r#"{"start":"2027-01-15T08:00:07.5Z","flow":{"client":"192.0.2.1","port":"9"},"id.resp_h":"192.0.2.10","id.resp_p":443,"proto":"6"}"#;
    let lines = read(&mapping, own).unwrap();
    assert_eq!(
        lines[0].ends.to_string(),
        "tcp 192.0.2.1:9 -> 192.0.2.10:443"
    );
    assert_eq!(lines[0].span.first_us, 1_800_000_007_500_000);
}

#[test]
fn a_log_that_cannot_be_read_says_why() {
    let mapping = mapping();
    let without = ZEEK.replace("\tproto", "\tprotocol");
    for (text, expected) in [
        ("\u{1f}\u{8b}", "neither Zeek's text"),
        ("ts,uid", "neither Zeek's text"),
        (&*without, "no column `proto`"),
        (
            "#separator \\x09\n#path\tconn\n1\t2\n",
            "no `#fields` before",
        ),
        (&*format!("{ZEEK}1\t2\n"), "2 columns instead of 10"),
        (
            &*format!("{ZEEK}{}", zeek(7, 4000, "soon", (1, 1))),
            "`duration` is `soon`",
        ),
        ("{\"ts\":1}", "`proto` is missing"),
        ("{} {}", "not a JSON object"),
    ] {
        let error = read(&mapping, text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_is_on_one_side_alone_is_found_and_nothing_else() {
    let mapping = mapping();
    let flows: Vec<Record> = (0..50)
        .map(|at| recorded(at * 4, 4000 + at as u16, json!({})))
        .collect();
    let line = |at: u32| zeek(at * 4, 4000 + at as u16, "1.0", (1_000_000, 500));
    let all: String = (0..50).map(line).collect();
    let whole = account(&flows, &mapping, &format!("{ZEEK}{all}"));
    assert!(!whole.has_findings(), "{whole:?}");
    assert_eq!((whole.joined, whole.lines), (50, 50));
    assert_eq!(whole.host_bytes, whole.gateway_bytes);

    let without: String = (0..50).filter(|at| *at != 20).map(line).collect();
    let found = account(&flows, &mapping, &format!("{ZEEK}{without}"));
    assert_eq!(ports(&found.not_seen), [4020]);
    assert!(found.not_recorded.is_empty());

    let fewer: Vec<Record> = [&flows[..30], &flows[31..]].concat();
    let found = account(&fewer, &mapping, &format!("{ZEEK}{all}"));
    assert!(found.not_seen.is_empty());
    assert_eq!(found.not_recorded[0].ends.src_port, 4030);
    assert_eq!(found.not_recorded[0].bytes.unwrap().out, 1_000_000);

    // The same ends an hour later are another flow.
    let late = account(
        &flows,
        &mapping,
        &format!("{ZEEK}{without}{}", zeek(3_600, 4020, "1.0", (1, 1))),
    );
    assert_eq!(ports(&late.not_seen), [4020]);
}

#[test]
fn what_went_round_the_gateway_in_the_midst_of_a_flow_is_found() {
    let mapping = mapping();
    let flows = [
        recorded(0, 4000, json!({})),
        recorded(10, 4001, json!({})),
        recorded(20, 4002, json!({})),
    ];
    let log = [
        zeek(0, 4000, "1.0", (1_000_000, 500)),
        zeek(10, 4001, "1.0", (300_000, 500)),
        // Packets that were sent again were lost before the gateway.
        zeek(20, 4002, "1.0", (930_000, 500)),
    ];
    let found = account(&flows, &mapping, &format!("{ZEEK}{}", log.concat()));
    let held: Vec<u16> = found
        .fewer_bytes
        .iter()
        .map(|one| one.flow.ends.src_port)
        .collect();
    assert_eq!(held, [4001]);
    assert_eq!(found.fewer_bytes[0].gateway_bytes.out, 300_000);
}

#[test]
fn what_the_other_side_cannot_have_yet_is_not_said_to_be_missing() {
    let mapping = Mapping {
        delay: std::time::Duration::from_secs(30),
        ..mapping()
    };
    let open = json!({ "state": "update", "ended": null });
    let flows = [
        recorded(0, 4000, json!({})),
        recorded(50, 4001, json!({})),
        recorded(60, 4002, open),
        recorded(95, 4003, json!({})),
        recorded(100, 4004, json!({})),
        // Approved by another rule, and not by the gateway.
        recorded(55, 4005, json!({ "verdict": "approved" })),
    ];
    let log = [
        zeek(20, 5000, "1.0", (1, 1)),
        zeek(100, 4004, "1.0", (1_000_000, 1)),
    ];
    let found = account(&flows, &mapping, &format!("{ZEEK}{}", log.concat()));
    assert_eq!(ports(&found.not_seen), [4001]);
    assert_eq!(found.flows_outside, 3);
    assert_eq!(found.not_recorded.len(), 1);
}

#[test]
fn translated_ends_are_held_against_those_that_hosts_have() {
    let translation = Translation::parse("203.0.113.50:8443 -> 192.0.2.10:443").unwrap();
    let mapping = Mapping {
        translations: vec![
            translation,
            Translation::parse("198.51.100.1 -> 192.0.2.1").unwrap(),
        ],
        ..mapping()
    };
    let log = zeek(0, 4000, "1.0", (1_000_000, 500))
        .replace("192.0.2.10\t443", "203.0.113.50\t8443")
        .replace("192.0.2.1\t", "198.51.100.1\t");
    let found = account(
        &[recorded(0, 4000, json!({}))],
        &mapping,
        &format!("{ZEEK}{log}"),
    );
    assert_eq!((found.joined, found.of_others), (1, 0));
    for wrong in [
        "",
        "192.0.2.1",
        "a -> b",
        "192.0.2.1 -> 192.0.2.2:1",
        "192.0.2.1:1 -> 192.0.2.2",
    ] {
        assert!(Translation::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn sessions_that_a_gateway_opens_are_counted_from_the_hosts_side() {
    let mapping = mapping();
    let session = recorded(
        0,
        22,
        json!({
            "direction": "accepted", "dst_port": 5000, "bytes_out": 200, "bytes_in": 100,
            "community_id": Ends {
                protocol: 6,
                src_addr: "192.0.2.1".parse().unwrap(),
                src_port: 22,
                dst_addr: "192.0.2.10".parse().unwrap(),
                dst_port: 5000,
            }.community_id(),
        }),
    );
    let log = format!(
        "{ZEEK}1800000000.5\tC\t192.0.2.10\t5000\t192.0.2.1\t22\ttcp\t1\t100\t200\n\
         1800000000.5\tC\t203.0.113.7\t5000\t203.0.113.8\t22\ttcp\t1\t100\t200\n"
    );
    let found = account(&[session], &mapping, &log);
    assert_eq!((found.joined, found.of_others), (1, 1));
    assert_eq!(found.gateway_bytes, found.host_bytes);
}
