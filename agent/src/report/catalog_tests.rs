//! The message catalog explains every kind of record, with fields that are there.

use std::collections::HashMap;

use trefoil_ebpf::abi::{Totals, Tracked, verdict};

use super::{Coverage, Field, FlowFacts, Heartbeat, Kind, PolicyNews, Record};
use crate::{
    clock::BootClock,
    evidence::Signed,
    flow::{FlowReport, FlowStats, ReportKind, Stage},
    limits::{self, Used},
    policy::{Budget, source::Exception},
};

const CATALOG: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../packaging/trefoil.catalog"
));

struct Entry {
    headers: HashMap<&'static str, &'static str>,
    body: String,
}

/// Reads the catalog as systemd does: entries that begin with `-- ID`, headers up
/// to an empty line, text up to the next entry.
fn entries() -> HashMap<&'static str, Entry> {
    let mut entries: HashMap<&str, Entry> = HashMap::new();
    let (mut current, mut in_headers) = (None, false);
    for line in CATALOG.lines() {
        assert!(line.trim_end() == line, "blanks at the end of {line:?}");
        if let Some(id) = line.strip_prefix("-- ") {
            let entry = Entry {
                headers: HashMap::new(),
                body: String::new(),
            };
            assert!(entries.insert(id, entry).is_none(), "{id} is there twice");
            (current, in_headers) = (Some(id), true);
            continue;
        }
        let Some(id) = current else {
            assert!(
                line.is_empty() || line.starts_with('#'),
                "{line} is before the first entry"
            );
            continue;
        };
        let entry = entries.get_mut(id).unwrap();
        if in_headers && line.is_empty() {
            in_headers = false;
        } else if in_headers {
            let (name, value) = line.split_once(": ").unwrap();
            entry.headers.insert(name, value);
        } else {
            entry.body += line;
            entry.body.push('\n');
        }
    }
    entries
}

/// A record of each kind with as few facts as it can have.
fn least(kind: Kind) -> Record {
    let flow = |kind| {
        let mut tracked = Tracked::default();
        tracked.flow.decision.verdict = verdict::UNAPPROVED;
        let report = FlowReport {
            kind,
            stage: Stage::Opened,
            time_ns: 0,
            tracked,
            counted: Default::default(),
            since_last: Default::default(),
            is_since_known: true,
            ending: None,
        };
        Record::flow(&report, &FlowFacts::default(), &BootClock::booted_at(0))
    };
    match kind {
        Kind::Flow => flow(ReportKind::Flow),
        Kind::Violation => flow(ReportKind::Violation),
        Kind::Policy => Record::policy(
            &PolicyNews::InForce {
                n_rules: 0,
                source: "x",
                until_us: None,
            },
            0,
        ),
        Kind::Coverage => Record::coverage("x", Coverage::Covered, None, 0),
        Kind::Loss => Record::loss("x", 1, 1, "x", 0),
        Kind::Heartbeat => {
            let totals = [Totals::default(); verdict::N as usize];
            let flows = FlowStats::default();
            let beat = Heartbeat {
                interval_s: 60,
                totals: &totals,
                flows,
                losses: 0,
                pending: 0,
            };
            Record::heartbeat(&beat, 0)
        }
        Kind::Tamper => Record::tamper("x", "x", 0),
        Kind::Checkpoint => {
            let signed = Signed {
                note: "x".to_owned(),
                digests: String::new(),
                frontier: String::new(),
                first: 0,
                size: 0,
            };
            Record::checkpoint(&signed, 0)
        }
        Kind::Budget => Record::limit(&limit(None), limits::Stage::Near, Used::default(), 0),
        Kind::Exception => {
            let exception = Exception {
                id: "x".to_owned(),
                basis: "x".to_owned(),
                reason: "x".to_owned(),
                approved_by: vec!["x".to_owned()],
                starts_us: None,
                expires_us: 0,
                bytes: None,
            };
            Record::limit(
                &limit(Some(exception)),
                limits::Stage::Used,
                Used::default(),
                0,
            )
        }
    }
}

fn limit(exception: Option<Exception>) -> Budget {
    Budget {
        id: 1,
        rule: 0,
        name: "x".to_owned(),
        bytes: 1,
        per_ns: 1,
        written: "x".to_owned(),
        exception,
    }
}

#[test]
fn every_kind_has_an_entry_and_no_entry_is_left_over() {
    let entries = entries();
    assert_eq!(entries.len(), Kind::ALL.len());
    for kind in Kind::ALL {
        let entry = entries
            .get(kind.message_id())
            .unwrap_or_else(|| panic!("{kind}"));
        for header in ["Subject", "Defined-By", "Support"] {
            assert!(entry.headers.contains_key(header), "{kind} has no {header}");
        }
        assert_eq!(entry.headers["Defined-By"], "trefoil");
        assert!(entry.body.trim().len() > 100, "{kind} says too little");
        // A line of its own that looks like the begin of an entry would be one.
        assert!(entry.body.lines().all(|line| !line.starts_with("--")));
    }
}

#[test]
fn what_the_catalog_quotes_is_in_every_record_of_the_kind() {
    for (id, entry) in entries() {
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.message_id() == id)
            .unwrap();
        let least = least(kind);
        let text = format!("{}\n{}", entry.headers["Subject"], entry.body);
        let quoted: Vec<_> = text.split('@').skip(1).step_by(2).collect();
        assert_eq!(
            text.matches('@').count(),
            2 * quoted.len(),
            "{kind}: an odd number of @"
        );
        for name in quoted {
            let field = name
                .strip_prefix("TREFOIL_")
                .and_then(|name| Field::parse(&name.to_ascii_lowercase()))
                .unwrap_or_else(|| panic!("{kind}: {name} is no field"));
            assert!(least.get(field).is_some(), "{kind}: {name} may be missing");
        }
    }
}
