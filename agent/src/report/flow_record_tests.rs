//! Tests of flow records: the fields and the words that a report becomes.

use trefoil_ebpf::abi::{Address, DECISION_ENFORCED, Flow, NO_RULE};

use super::*;
use crate::flow::{Ending, FlowMode, FlowSettings, FlowTable, Report};

const START_NS: u64 = 60_000_000_000;

fn clock() -> BootClock {
    // 2026-11-21T21:53:40Z, one minute before the flow.
    BootClock::booted_at(1_795_298_020_000_000)
}

fn tracked(verdict: u8, flags: u8) -> Tracked {
    let mut owner = Owner {
        start_ns: START_NS - 1_000_000_000,
        pid: 4711,
        ppid: 4700,
        uid: 33,
        gid: 33,
        loginuid: 1000,
        session: 2,
        quality: quality::DIRECT,
        ..Owner::default()
    };
    owner.comm[..4].copy_from_slice(b"curl");
    Tracked {
        owner,
        flow: Flow {
            cookie: 0x1a,
            started_ns: START_NS,
            peer: Peer {
                address: Address::v4(0xcb00_7109),
                port: 443,
                protocol: 6,
                ..Peer::default()
            },
            local: Address::v4(0xc000_020a),
            local_port: 40_000,
            direction: direction::OUTBOUND,
            decision: Decision {
                generation: 1,
                rule: NO_RULE,
                verdict,
                flags,
            },
            ..Flow::default()
        },
    }
}

fn report(tracked: Tracked, kind: ReportKind, stage: Stage, counted: Counters) -> FlowReport {
    FlowReport {
        kind,
        stage,
        time_ns: START_NS + 4_200_000_000,
        tracked,
        counted,
        since_last: counted,
        is_since_known: true,
        ending: (stage == Stage::Closed).then_some(Ending {
            time_ns: START_NS + 4_200_000_000,
            inferred: false,
        }),
    }
}

fn facts() -> FlowFacts {
    FlowFacts {
        exe: Some("/usr/bin/curl".into()),
        user: Some("www-data".into()),
        login: Some("admin".into()),
        unit: Some("nginx.service".into()),
        country: Country::parse("CN"),
        ..FlowFacts::default()
    }
}

fn sent(bytes_out: u64) -> Counters {
    Counters {
        bytes_out,
        packets_out: 2,
        ..Counters::default()
    }
}

fn message(report: &FlowReport, facts: &FlowFacts) -> String {
    Record::flow(report, facts, &clock()).message().to_owned()
}

#[test]
fn a_violation_has_every_fact_as_a_field() {
    let report = report(
        tracked(verdict::UNAPPROVED, 0),
        ReportKind::Violation,
        Stage::Opened,
        sent(1_234),
    );
    let record = Record::flow(&report, &facts(), &clock());
    assert_eq!(
        (record.kind(), record.priority()),
        (Kind::Violation, Priority::Warning)
    );
    let mut expected: serde_json::Value = serde_json::json!({
        "event": "violation",
        "time": "2026-11-21T21:54:44.200000Z",
        "mode": "report",
        "state": "opened",
        "direction": "outbound",
        "protocol": "tcp",
        "src_addr": "192.0.2.10",
        "src_port": 40_000,
        "dst_addr": "203.0.113.9",
        "dst_port": 443,
        "dst_country": "CN",
        "verdict": "unapproved",
        "outcome": "would-drop",
        "bytes_out": 1234,
        "packets_out": 2,
        "bytes_new": 1234,
        "packets_new": 2,
        "bytes_in": 0,
        "packets_in": 0,
        "started": "2026-11-21T21:54:40.000000Z",
        "pid": 4711,
        "start_time": "2026-11-21T21:54:39.000000Z",
        "exe": "/usr/bin/curl",
        "comm": "curl",
        "uid": 33, "gid": 33,
        "user": "www-data",
        "loginuid": 1000,
        "login": "admin",
        "session": 2,
        "unit": "nginx.service",
        "ppid": 4700,
        "attribution": "direct",
        "priority": 4,
    });
    expected["message"] = record.message().into();
    expected["flow"] = record.text(Field::Flow).into();
    expected["community_id"] = record.text(Field::CommunityId).into();
    let json: serde_json::Value = serde_json::from_str(&record.to_json()).unwrap();
    assert_eq!(json, expected);
    assert!(
        record
            .text(Field::Flow)
            .unwrap()
            .starts_with("1a-df8475800-")
    );
    assert!(record.text(Field::CommunityId).unwrap().starts_with("1:"));
}

#[test]
fn messages_say_who_where_what_and_how_much() {
    use ReportKind::{Flow as F, Violation as V};
    let named = |rule: &str| FlowFacts {
        rule: Some(rule.into()),
        ..facts()
    };
    let who = "curl (pid 4711, nginx.service, user www-data, logged in as admin)";
    let to = "→ 203.0.113.9:443/tcp CN";
    let enforced = DECISION_ENFORCED;
    let refused = Counters {
        refused: 1,
        ..Counters::default()
    };
    let dropped = Counters {
        blocked_bytes: 120,
        blocked_packets: 2,
        ..Counters::default()
    };
    let cases = [
        (
            report(
                tracked(verdict::UNAPPROVED, 0),
                V,
                Stage::Opened,
                sent(1_234),
            ),
            facts(),
            format!("{who} {to}: unapproved, would be dropped; 1.2 kB so far"),
        ),
        (
            report(
                tracked(verdict::DENIED, enforced),
                V,
                Stage::Closed,
                refused,
            ),
            named("never there"),
            format!("{who} {to}: denied by rule \"never there\", refused"),
        ),
        (
            report(
                tracked(verdict::UNDETERMINED, enforced),
                V,
                Stage::Opened,
                dropped,
            ),
            facts(),
            format!(
                "{who} {to}: undetermined, since the country is not known, dropped; \
                 2 packets dropped (120 B)"
            ),
        ),
        (
            report(tracked(verdict::APPROVED, 0), F, Stage::Opened, sent(0)),
            named("database replication"),
            format!("{who} {to}: approved by rule \"database replication\""),
        ),
        (
            report(
                tracked(verdict::GATEWAY, 0),
                F,
                Stage::Closed,
                sent(12_300_000),
            ),
            named("exports"),
            format!(
                "{who} {to}: through an approved gateway (rule \"exports\"); over after 4.2 s, \
                 12 MB out, 0 B in"
            ),
        ),
    ];
    for (report, facts, expected) in cases {
        assert_eq!(message(&report, &facts), expected);
    }
}

#[test]
fn priorities_follow_the_verdict() {
    let priority = |verdict, kind| {
        let report = report(tracked(verdict, 0), kind, Stage::Opened, sent(1));
        Record::flow(&report, &facts(), &clock()).priority()
    };
    assert_eq!(
        priority(verdict::APPROVED, ReportKind::Flow),
        Priority::Info
    );
    assert_eq!(
        priority(verdict::UNAPPROVED, ReportKind::Flow),
        Priority::Info
    );
    assert_eq!(
        priority(verdict::UNAPPROVED, ReportKind::Violation),
        Priority::Warning
    );
    assert_eq!(
        priority(verdict::OVER_BUDGET, ReportKind::Violation),
        Priority::Warning
    );
    assert_eq!(
        priority(verdict::DENIED, ReportKind::Violation),
        Priority::Error
    );
}

#[test]
fn an_accepted_flow_is_an_answer() {
    let mut tracked = tracked(verdict::UNAPPROVED, 0);
    tracked.flow.direction = direction::ACCEPTED;
    tracked.flow.local_port = 22;
    tracked.flow.peer.port = 51_000;
    let report = report(tracked, ReportKind::Violation, Stage::Opened, sent(80));
    let message = message(&report, &facts());
    assert!(
        message.contains(" answers 203.0.113.9:51000/tcp CN on port 22: "),
        "{message}"
    );
}

#[test]
fn nobody_is_invented() {
    let mut tracked = tracked(verdict::UNAPPROVED, 0);
    tracked.owner = Owner {
        loginuid: NOBODY_LOGGED_IN,
        session: NOBODY_LOGGED_IN,
        uid: 33,
        ..Owner::default()
    };
    tracked.flow.local = Address::default();
    tracked.flow.local_port = 0;
    tracked.flow.direction = direction::UNKNOWN;
    let report = report(tracked, ReportKind::Violation, Stage::Opened, sent(80));
    let record = Record::flow(&report, &FlowFacts::default(), &clock());
    assert_eq!(
        record.message(),
        "unknown process → 203.0.113.9:443/tcp: unapproved, would be dropped; 80 B so far"
    );
    use Field::{
        Comm, CommunityId, Direction, Exe, Gid, Loginuid, Pid, Ppid, Session, SrcAddr, SrcPort,
        StartTime, Uid,
    };
    for field in [
        Comm,
        CommunityId,
        Direction,
        Exe,
        Gid,
        Loginuid,
        Pid,
        Ppid,
        Session,
        SrcAddr,
        SrcPort,
        StartTime,
        Uid,
    ] {
        assert_eq!(record.get(field), None, "{}", field.name());
    }
    assert_eq!(record.text(Field::Attribution), Some("none"));
}

#[test]
fn names_that_others_chose_are_harmless_in_messages_and_whole_in_fields() {
    let report = report(
        tracked(verdict::UNAPPROVED, 0),
        ReportKind::Violation,
        Stage::Opened,
        sent(1),
    );
    let facts = FlowFacts {
        exe: Some("/tmp/a\nb\u{1b}[0m".into()),
        ..facts()
    };
    let record = Record::flow(&report, &facts, &clock());
    assert!(
        record.message().starts_with("a?b?[0m (pid 4711"),
        "{}",
        record.message()
    );
    assert_eq!(record.text(Field::Exe), Some("/tmp/a\nb\u{1b}[0m"));
}

#[test]
fn an_inferred_end_says_so() {
    let mut report = report(
        tracked(verdict::APPROVED, 0),
        ReportKind::Flow,
        Stage::Closed,
        sent(100),
    );
    report.ending = Some(Ending {
        time_ns: START_NS,
        inferred: true,
    });
    let record = Record::flow(&report, &facts(), &clock());
    assert_eq!(record.text(Field::End), Some("inferred"));
    assert!(
        record.message().ends_with(", end not seen"),
        "{}",
        record.message()
    );
}

/// A rollup has the facts that its flows have in common, and no others.
#[test]
fn a_rollup_says_what_its_flows_have_in_common() {
    let settings = FlowSettings {
        mode: FlowMode::Rollup,
        ..FlowSettings::default()
    };
    let mut table = FlowTable::new(settings, |_| Country::parse("IE"));
    let mut out = Vec::new();
    table.tick(START_NS, usize::MAX, &mut out);
    for cookie in 0..312 {
        let mut tracked = tracked(verdict::APPROVED, 0);
        tracked.flow.cookie = cookie;
        tracked.owner.pid = 5000 + cookie as u32;
        tracked.flow.counters = sent(1_000);
        let event = trefoil_ebpf::abi::Event {
            time_ns: START_NS,
            reason: trefoil_ebpf::abi::reason::CLOSED,
            pad: 0,
            tracked,
        };
        table.observe(&event, &mut out);
    }
    table.flush(START_NS + 60_000_000_000, &mut out);
    let [Report::Rollup(rollup)] = &out[..] else {
        panic!("{out:?}")
    };
    let facts = FlowFacts {
        rule: Some("web".into()),
        login: None,
        country: None,
        ..facts()
    };
    let record = Record::rollup(rollup, &facts, &clock());
    assert_eq!(
        record.message(),
        "curl (nginx.service, user www-data) → IE 443/tcp: approved by rule \"web\"; 312 flows over \
         in 1 min 0 s, 312 kB out"
    );
    assert_eq!(record.number(Field::Flows), Some(312));
    assert_eq!(record.text(Field::DstCountry), Some("IE"));
    assert_eq!(record.text(Field::State), Some("rollup"));
    use Field::{Comm, DstAddr, Flow, FlowsOpen, Pid, SrcAddr, StartTime};
    for field in [Comm, DstAddr, Flow, FlowsOpen, Pid, SrcAddr, StartTime] {
        assert_eq!(record.get(field), None, "{}", field.name());
    }
}
