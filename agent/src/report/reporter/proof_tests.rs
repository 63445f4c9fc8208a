//! Records of agents that end at any moment, over boots, held against what they have signed.

use std::{cell::RefCell, io, path::Path, rc::Rc};

use proptest::prelude::*;
use trefoil_evidence::{
    entry::Entries,
    note::VerifyingKey,
    verify::{Finding, Verdict, Verifier},
};

use super::*;
use crate::evidence::Evidence;
use crate::report::{Context, Field, Kind, Priority, Sealed, Sink, reporter::ReporterSettings};

const SECOND_NS: u64 = 1_000_000_000;

/// A file of JSON lines.
#[derive(Clone, Default)]
struct Lines(Rc<RefCell<String>>);

impl Sink for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        let mut text = self.0.borrow_mut();
        text.push_str(sealed.line());
        text.push('\n');
        Ok(())
    }
}

struct World {
    dir: tempfile::TempDir,
    lines: Lines,
    boot: u32,
    now_ns: u64,
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            lines: Lines::default(),
            boot: 0,
            now_ns: SECOND_NS,
        }
    }

    fn evidence(&self) -> PathBuf {
        self.dir.path().join("evidence")
    }

    fn reporter(&self) -> Reporter {
        let context = Context {
            host: "dc1".into(),
            machine_id: Some("0123".into()),
            boot_id: format!("b{}", self.boot).into(),
            ..Context::default()
        };
        let settings = ReporterSettings {
            evidence: Some((self.evidence(), context.log_name())),
            ..ReporterSettings::new(self.dir.path().join(format!("spool-{}", self.boot)))
        };
        Reporter::open(settings, context, vec![Box::new(self.lines.clone())]).unwrap()
    }

    fn verdict(&self) -> Verdict {
        verdict(&self.evidence(), &self.lines.0.borrow())
    }
}

fn verdict(directory: &Path, lines: &str) -> Verdict {
    let key = std::fs::read_to_string(directory.join("key.pub")).unwrap();
    let mut verifier = Verifier::new(vec![VerifyingKey::parse(&key).unwrap()]);
    let mut entries = Entries::new(lines.as_bytes());
    while let Some(entry) = entries.read().unwrap() {
        verifier.add(&entry);
    }
    verifier.finish()
}

fn flow(bytes_out: u64) -> Record {
    let message = format!("a line\nof a \"person\" {bytes_out} \u{1f300}");
    let mut record = Record::new(Kind::Flow, Priority::Info, 0, message);
    record.set(Field::Exe, "/opt/a b=c");
    record.set(Field::BytesOut, bytes_out);
    record
}

#[test]
fn checkpoints_come_when_there_is_something_new() {
    let mut world = World::new();
    let mut reporter = world.reporter();
    let checkpoints = |world: &World| world.lines.0.borrow().matches("\"checkpoint\"").count();
    reporter.flush(world.now_ns);
    assert_eq!(checkpoints(&world), 0);
    reporter.emit(flow(1));
    reporter.flush(11 * SECOND_NS);
    assert_eq!(checkpoints(&world), 1);
    for seconds in 11..100 {
        reporter.flush(seconds * SECOND_NS);
    }
    assert_eq!(checkpoints(&world), 1, "its own record is nothing new");
    reporter.emit(Record::new(Kind::Heartbeat, Priority::Info, 0, "lives"));
    reporter.flush(100 * SECOND_NS);
    assert_eq!(checkpoints(&world), 2, "a heartbeat is signed at once");
    for number in 0..600 {
        reporter.emit(flow(number));
        reporter.flush(100 * SECOND_NS);
    }
    assert_eq!(checkpoints(&world), 4, "many are signed at once");
    world.now_ns = 100 * SECOND_NS;
    reporter.finish(Duration::ZERO, false);
    let verdict = world.verdict();
    assert!(verdict.is_clean(), "{verdict:#?}");
    assert_eq!(verdict.logs[0].n_unanchored, 1, "the last checkpoint");
}

#[test]
fn two_agents_do_not_share_a_log() {
    let world = World::new();
    let first = world.reporter();
    let settings = ReporterSettings {
        evidence: Some((world.evidence(), "trefoil/other".to_owned())),
        ..ReporterSettings::new(world.dir.path().join("other"))
    };
    let second = Reporter::open(settings, Context::default(), Vec::new());
    let error = second.err().unwrap().to_string();
    assert!(error.contains("in use by another agent"), "{error}");
    drop(first);
}

#[test]
fn a_log_that_lacks_what_was_signed_is_refused() {
    let world = World::new();
    let mut reporter = world.reporter();
    reporter.emit(flow(1));
    reporter.finish(Duration::ZERO, false);
    drop(reporter);
    std::fs::write(world.evidence().join("leaves"), "").unwrap();
    let error = Evidence::open(&world.evidence(), "trefoil/0123", None).unwrap_err();
    assert!(
        error.to_string().contains("keep it for the auditor"),
        "{error}"
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_told_and_signed_for_later() {
    let world = World::new();
    let mut reporter = world.reporter();
    reporter.emit(flow(1));
    reporter.flush(11 * SECOND_NS);
    // Nothing can be renamed onto a directory.
    let state = world.evidence().join("state");
    let kept = std::fs::read(&state).unwrap();
    std::fs::remove_file(&state).unwrap();
    std::fs::create_dir_all(state.join("x")).unwrap();
    reporter.emit(flow(2));
    reporter.flush(22 * SECOND_NS);
    reporter.flush(33 * SECOND_NS);
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, kept).unwrap();
    reporter.flush(44 * SECOND_NS);
    reporter.finish(Duration::ZERO, false);
    let states: Vec<String> = world
        .lines
        .0
        .borrow()
        .lines()
        .filter_map(Record::from_json)
        .filter(|record| record.text(Field::Subject) == Some("evidence"))
        .filter_map(|record| record.text(Field::State).map(str::to_owned))
        .collect();
    assert_eq!(states, ["uncovered", "covered"]);
    let verdict = world.verdict();
    assert!(verdict.is_clean(), "{verdict:#?}");
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Act {
    Emit,
    Keep,
    Flush,
    Wait,
    Kill,
    Stop,
    /// The host loses its power.
    PowerLoss,
    /// The host is shut down, and boots.
    Reboot,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => Just(Act::Emit),
        2 => Just(Act::Keep),
        4 => Just(Act::Flush),
        2 => Just(Act::Wait),
        2 => Just(Act::Kill),
        1 => Just(Act::Stop),
        1 => Just(Act::PowerLoss),
        1 => Just(Act::Reboot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Nothing is lost while the host has power: whatever has a number is handed over and signed for. With the
    /// power, the records go that were kept for the next agent.
    #[test]
    fn agents_that_end_at_any_moment_go_on_with_the_log(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        let mut reporter = Some(world.reporter());
        let mut number = 0;
        let has_lost_power = acts.iter().any(|act| matches!(act, Act::PowerLoss));
        for act in acts {
            let now = reporter.as_mut().unwrap();
            match act {
                Act::Emit => {
                    number += 1;
                    now.emit(flow(number));
                }
                Act::Keep => {
                    now.keep();
                }
                Act::Flush => {
                    now.flush(world.now_ns);
                }
                Act::Wait => world.now_ns += 11 * SECOND_NS,
                Act::Kill | Act::Stop | Act::PowerLoss | Act::Reboot => {
                    if matches!(act, Act::Stop | Act::Reboot) {
                        now.finish(Duration::ZERO, false);
                    }
                    world.boot += u32::from(matches!(act, Act::PowerLoss | Act::Reboot));
                    drop(reporter.take());
                    reporter = Some(world.reporter());
                }
            }
        }
        reporter.unwrap().finish(Duration::ZERO, false);
        let verdict = world.verdict();
        let findings = &verdict.logs[0].findings;
        // Records that were signed for, and not handed over when the host went down; or the other way round.
        let is_of_boot = |finding: &Finding| {
            let is_lost = matches!(finding, Finding::Missing { .. } | Finding::Unproven { .. });
            has_lost_power && is_lost
        };
        prop_assert!(findings.iter().all(is_of_boot), "{verdict:#?}");
        prop_assert!(verdict.findings.is_empty() && verdict.n_without_evidence == 0);
    }
}
