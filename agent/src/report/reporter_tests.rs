//! Tests of the reporter: numbering, waiting, and what is told about losses.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::report::Priority;

const SECOND_NS: u64 = 1_000_000_000;

/// A sink that takes records while it is `open`.
#[derive(Clone, Default)]
struct Shelf(Rc<RefCell<ShelfState>>);

#[derive(Default)]
struct ShelfState {
    is_closed: bool,
    records: Vec<Record>,
}

impl Shelf {
    fn close(&self, is_closed: bool) {
        self.0.borrow_mut().is_closed = is_closed;
    }

    fn seqs(&self) -> Vec<u64> {
        self.0
            .borrow()
            .records
            .iter()
            .filter_map(|record| record.number(Field::Seq))
            .collect()
    }

    fn last(&self) -> Record {
        self.0.borrow().records.last().unwrap().clone()
    }
}

struct Named(&'static str, Shelf);

impl Sink for Named {
    fn name(&self) -> &'static str {
        self.0
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        let mut state = self.1.0.borrow_mut();
        if state.is_closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.records.push(sealed.record().clone());
        Ok(())
    }
}

struct World {
    dir: tempfile::TempDir,
    journal: Shelf,
    json: Shelf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            dir,
            journal: Shelf::default(),
            json: Shelf::default(),
        }
    }

    fn reporter(&self) -> Reporter {
        let settings = ReporterSettings {
            max_pending: 10,
            ..ReporterSettings::new(self.dir.path().join("agent.seq"))
        };
        let context = Context {
            host: "dc1".into(),
            boot_id: "b00t".into(),
            ..Context::default()
        };
        let sinks: Vec<Box<dyn Sink>> = vec![
            Box::new(Named("journal", self.journal.clone())),
            Box::new(Named("json", self.json.clone())),
        ];
        Reporter::open(settings, context, sinks).unwrap()
    }
}

fn record() -> Record {
    Record::new(Kind::Heartbeat, Priority::Info, 0, "lives")
}

fn closed(bytes_out: u64) -> Record {
    let mut record = Record::new(Kind::Flow, Priority::Info, 0, "over");
    record.set(Field::State, "closed");
    record.set(Field::BytesOut, bytes_out);
    record
}

#[test]
fn records_get_their_number_and_context_in_order() {
    let world = World::new();
    let mut reporter = world.reporter();
    assert_eq!(reporter.origin(), &Origin::First);
    reporter.emit(record());
    reporter.context_mut().policy = Some("abc".into());
    reporter.emit(record());
    let progress = reporter.flush(0);
    assert_eq!((progress.handed_over, progress.pending), (2, 0));
    assert_eq!(world.journal.seqs(), [1, 2]);
    assert_eq!(world.json.seqs(), [1, 2]);
    let last = world.journal.last();
    assert_eq!(last.text(Field::Host), Some("dc1"));
    assert_eq!(last.text(Field::Policy), Some("abc"));
    assert_eq!(world.journal.0.borrow().records[0].get(Field::Policy), None);
}

#[test]
fn a_policy_that_judged_is_not_replaced_by_that_of_today() {
    let world = World::new();
    let mut reporter = world.reporter();
    reporter.context_mut().policy = Some("new".into());
    let mut record = record();
    record.set(Field::Policy, "old");
    reporter.emit(record);
    reporter.flush(0);
    assert_eq!(world.journal.last().text(Field::Policy), Some("old"));
}

#[test]
fn what_no_sink_takes_waits_and_turns_the_caller_away() {
    let world = World::new();
    let mut reporter = world.reporter();
    world.journal.close(true);
    for _ in 0..5 {
        assert!(!reporter.is_backed_up());
        reporter.emit(record());
    }
    assert!(reporter.is_backed_up());
    let progress = reporter.flush(0);
    assert_eq!((progress.handed_over, progress.pending), (0, 5));
    assert_eq!(progress.stalled.unwrap().sink, "journal");
    assert_eq!(
        world.json.seqs(),
        [1],
        "the other sink is one ahead at most"
    );
    reporter.flush(100 * SECOND_NS);
    assert_eq!(
        world.json.seqs(),
        [1],
        "and does not get it twice; the journal has no deadline"
    );
    world.journal.close(false);
    reporter.flush(100 * SECOND_NS);
    assert_eq!(world.journal.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(world.json.seqs(), [1, 2, 3, 4, 5]);
    assert!(!reporter.is_backed_up());
}

#[test]
fn what_had_to_be_dropped_is_told_exactly() {
    let world = World::new();
    let mut reporter = world.reporter();
    world.journal.close(true);
    for _ in 0..10 {
        reporter.emit(record());
    }
    for _ in 0..2 {
        reporter.emit(closed(700));
        reporter.emit(record());
    }
    world.journal.close(false);
    reporter.flush(0);
    assert_eq!(world.journal.seqs(), (1..=11).collect::<Vec<_>>());
    // In its place, not at the end: five records were still waiting.
    let loss = world.journal.last();
    assert_eq!(loss.kind(), Kind::Loss);
    assert_eq!(loss.text(Field::Subject), Some("records-dropped"));
    assert_eq!(loss.number(Field::Count), Some(4));
    assert_eq!(loss.number(Field::BytesOut), Some(1_400));
    world.journal.close(true);
    for _ in 0..11 {
        reporter.emit(record());
    }
    world.journal.close(false);
    reporter.flush(0);
    let loss = world.journal.last();
    assert_eq!(
        (loss.number(Field::Count), loss.number(Field::Total)),
        (Some(1), Some(5))
    );
}

#[test]
fn a_sink_that_fails_for_long_is_left_aside_and_told_what_it_missed() {
    let world = World::new();
    let mut reporter = world.reporter();
    world.json.close(true);
    reporter.emit(record());
    assert_eq!(reporter.flush(SECOND_NS).handed_over, 0);
    assert_eq!(world.journal.seqs(), [1]);
    for seconds in [10, 11, 12] {
        reporter.emit(record());
        reporter.flush(seconds * SECOND_NS);
    }
    assert_eq!(world.journal.seqs(), [1, 2, 3, 4], "the journal goes on");
    assert_eq!(reporter.pending(), 0);
    world.json.close(false);
    reporter.emit(record());
    reporter.flush(13 * SECOND_NS);
    assert_eq!(world.json.seqs(), [5, 6]);
    let loss = world.json.last();
    assert_eq!(loss.text(Field::Subject), Some("records-json"));
    assert_eq!(loss.number(Field::Count), Some(4));
    assert_eq!(world.journal.last(), loss);
}

#[test]
fn the_agent_after_this_one_goes_on_with_the_same_record() {
    let world = World::new();
    let mut reporter = world.reporter();
    reporter.emit(record());
    reporter.flush(0);
    world.journal.close(true);
    reporter.emit(record());
    reporter.emit(record());
    reporter.flush(0);
    drop(reporter);
    world.journal.close(false);
    let mut reporter = world.reporter();
    assert_eq!(reporter.origin(), &Origin::Continued);
    reporter.emit(record());
    reporter.flush(0);
    assert_eq!(world.journal.seqs(), [1, 2, 3]);
    assert_eq!(
        world.json.seqs(),
        [1, 2, 3],
        "what it had already it does not get again"
    );
}

#[test]
fn a_damaged_sequence_file_is_itself_a_report() {
    let world = World::new();
    fs::write(world.dir.path().join("agent.seq"), "1234").unwrap();
    let mut reporter = world.reporter();
    reporter.flush(0);
    assert_eq!(world.journal.last().kind(), Kind::Tamper);
    assert_eq!(world.journal.seqs(), [1]);
}
