//! Tests of the reporter: numbering, waiting, and what is told about losses.

use std::{
    cell::RefCell,
    fs::{self, File},
    os::fd::OwnedFd,
    rc::Rc,
};

use super::*;
use crate::report::{Field, Json, Kind, Priority, sink::Lines};

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

    /// Counts of the records about what a sink missed.
    fn losses(&self) -> Vec<u64> {
        self.losses_of("records-json")
    }

    fn losses_of(&self, subject: &str) -> Vec<u64> {
        let state = self.0.borrow();
        let losses = state.records.iter().filter(|it| it.kind() == Kind::Loss);
        let of_subject = losses.filter(|it| it.text(Field::Subject) == Some(subject));
        of_subject
            .filter_map(|it| it.number(Field::Count))
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
            ..ReporterSettings::new(self.dir.path().join("spool"))
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
    record.set(Field::Verdict, "approved");
    record.set(Field::BytesOut, bytes_out);
    record.set(Field::PacketsOut, 1_u64);
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
fn what_had_to_be_dropped_is_told_exactly_and_by_verdict() {
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
    // Also if the agent is killed before it can tell.
    assert!(reporter.keep());
    drop(reporter);
    let mut reporter = world.reporter();
    world.journal.close(false);
    reporter.flush(0);
    assert_eq!(world.journal.seqs(), (1..=12).collect::<Vec<_>>());
    let told = |field| -> Vec<Option<u64>> {
        let state = world.journal.0.borrow();
        let losses = state.records.iter().filter(|it| it.kind() == Kind::Loss);
        losses.map(|it| it.number(field)).collect()
    };
    assert_eq!(told(Field::Count), [Some(2), Some(2)]);
    assert_eq!(told(Field::BytesOut), [None, Some(1_400)]);
    assert_eq!(told(Field::PacketsOut), [None, Some(2)]);
    let last = world.journal.last();
    assert_eq!(last.text(Field::Subject), Some("records-dropped"));
    assert_eq!(last.text(Field::Verdict), Some("approved"));
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

/// The bound is in bytes as well.
#[test]
fn a_spool_that_is_full_takes_no_more() {
    let world = World::new();
    let settings = ReporterSettings {
        max_pending_bytes: 1_000,
        ..ReporterSettings::new(world.dir.path().join("spool"))
    };
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Named("journal", world.journal.clone()))];
    let mut reporter = Reporter::open(settings, Context::default(), sinks).unwrap();
    world.journal.close(true);
    for _ in 0..100 {
        reporter.emit(closed(700));
    }
    assert!(reporter.is_backed_up());
    world.journal.close(false);
    reporter.flush(0);
    let told: u64 = world.journal.losses_of("records-dropped").iter().sum();
    assert_eq!(told + world.journal.seqs().len() as u64 - 1, 100);
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
    // The second is about the first record, and is itself one that the sink misses.
    assert_eq!(world.journal.seqs(), [1, 2, 3, 4, 5], "the journal goes on");
    assert_eq!(world.journal.losses(), [1], "told at once");
    assert_eq!(reporter.pending(), 0);
    world.json.close(false);
    reporter.emit(record());
    let progress = reporter.flush(13 * SECOND_NS);
    assert!(progress.aside.is_none());
    assert_eq!(world.json.seqs(), [6, 7]);
    let loss = world.json.last();
    assert_eq!(loss.text(Field::Subject), Some("records-json"));
    assert_eq!(world.journal.losses(), [1, 4]);
    assert_eq!(world.journal.last(), loss);
}

#[test]
fn a_sink_that_is_left_aside_for_good_is_told_each_minute_and_at_the_end() {
    let world = World::new();
    let mut reporter = world.reporter();
    world.json.close(true);
    for second in 0..200 {
        reporter.emit(record());
        let progress = reporter.flush(second * SECOND_NS);
        assert_eq!(progress.aside.is_some(), second >= 10, "{second}");
    }
    assert_eq!(
        world.journal.losses().len(),
        4,
        "at 10, 70, 130 and 190 seconds"
    );
    reporter.finish(Duration::ZERO, false);
    let n_records = world.journal.seqs().len() as u64;
    let told: u64 = world.journal.losses().iter().sum();
    assert_eq!(told, n_records - 1, "all but the last, which tells of them");
    // And that one by the next agent, which was told nothing but the file.
    drop(reporter);
    world.json.close(false);
    world.reporter().flush(0);
    let told: u64 = world.journal.losses().iter().sum();
    assert_eq!(told, n_records);
    assert_eq!(world.json.seqs(), [n_records + 1]);
}

#[test]
fn a_line_that_was_begun_hides_no_record_that_is_missed() {
    let world = World::new();
    let (mut reader, writer) = io::pipe().unwrap();
    let settings = ReporterSettings::new(world.dir.path().join("spool"));
    let lines = Lines::new(File::from(OwnedFd::from(writer))).unwrap();
    let sinks: Vec<Box<dyn Sink>> = vec![
        Box::new(Named("journal", world.journal.clone())),
        Box::new(Json::of(lines)),
    ];
    let mut reporter = Reporter::open(settings, Context::default(), sinks).unwrap();
    let long = || Record::new(Kind::Heartbeat, Priority::Info, 0, "x".repeat(100_000));
    for second in [0, 20, 21, 22] {
        reporter.emit(long());
        reporter.flush(second * SECOND_NS);
    }
    let reader = thread::spawn(move || {
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).map(|_| text)
    });
    reporter.emit(record());
    while reporter.flush(23 * SECOND_NS).aside.is_some() || reporter.pending() > 0 {
        reporter.emit(record());
    }
    drop(reporter);
    let n_lines = reader.join().unwrap().unwrap().lines().count() as u64;
    let told: u64 = world.journal.losses().iter().sum();
    assert_eq!(n_lines + told, world.journal.seqs().len() as u64);
    assert!(told >= 3, "{told}");
}

#[test]
fn what_a_sink_missed_of_an_agent_that_was_killed_the_next_one_tells() {
    let world = World::new();
    let mut reporter = world.reporter();
    world.json.close(true);
    for second in [1, 20, 21, 22] {
        reporter.emit(record());
        reporter.flush(second * SECOND_NS);
    }
    drop(reporter);
    world.json.close(false);
    world.reporter().flush(0);
    let told: u64 = world.journal.losses().iter().sum();
    assert_eq!(told, world.journal.seqs().len() as u64 - 1);
    assert_eq!(world.json.seqs().len(), 1);
}

#[test]
fn the_agent_after_this_one_goes_on_with_the_records_of_this_one() {
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
    assert_eq!(world.journal.seqs(), [1, 2, 3, 4]);
    assert_eq!(
        world.json.seqs(),
        [1, 2, 3, 4],
        "what it had already it does not get again"
    );
}

/// Facts that were set and records that were emitted are there together, or neither.
#[test]
fn what_was_not_kept_is_not_handed_over_and_forgotten_with_its_facts() {
    let world = World::new();
    let mut reporter = world.reporter();
    reporter.emit(record());
    reporter.set_fact("position".into(), Some("1".into()));
    assert!(reporter.keep());
    reporter.emit(record());
    reporter.set_fact("position".into(), Some("2".into()));
    drop(reporter);
    let mut reporter = world.reporter();
    assert_eq!(reporter.fact("position"), Some("1"));
    reporter.flush(0);
    assert_eq!(world.journal.seqs(), [1]);
}

#[test]
fn a_damaged_spool_is_itself_a_report() {
    let world = World::new();
    fs::write(world.dir.path().join("spool.0"), "1234").unwrap();
    let mut reporter = world.reporter();
    reporter.flush(0);
    assert_eq!(world.journal.last().kind(), Kind::Tamper);
    assert_eq!(world.journal.seqs(), [1]);
}
