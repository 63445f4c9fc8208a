//! Records in a real journald, read back with journalctl.
//!
//! Needs root: journald is started with a journal namespace of the test's own,
//! which is removed afterwards.

#![expect(clippy::unwrap_used, reason = "what cannot go on has failed the test")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use trefoil::report::{
    Context, Field, Journal, JournalSettings, Kind, Priority, Record, Reporter, ReporterSettings,
};
use trefoil_lab::{journal::Journal as Journald, wait::wait_for};

/// A reporter with a journald behind it.
struct World {
    dir: tempfile::TempDir,
    journald: Journald,
}

impl World {
    fn new(name: &str) -> Self {
        let journald = Journald::start(&format!("trefoil-{name}")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, journald }
    }

    fn reporter(&self) -> Reporter {
        self.reporter_with(false)
    }

    fn reporter_with(&self, object_pid: bool) -> Reporter {
        let mut settings = JournalSettings::new(self.journald.socket());
        settings.object_pid = object_pid;
        let journal = Journal::open(settings).unwrap();
        let sequence_file = self.dir.path().join("agent.seq");
        Reporter::open(
            ReporterSettings::new(sequence_file),
            Context::of_this_host().unwrap(),
            vec![Box::new(journal)],
        )
        .unwrap()
    }

    /// Waits for this number of entries.
    fn entries(&self, matches: &[&str], n: usize) -> Vec<trefoil_lab::record::Record> {
        wait_for(&format!("{n} entries with {matches:?}"), || {
            let entries = self.journald.entries(matches)?;
            Ok((entries.len() >= n).then_some(entries))
        })
        .unwrap()
    }
}

fn report(reporter: &mut Reporter, record: Record) {
    reporter.emit(record);
    let progress = reporter.finish(Duration::from_secs(30), false);
    assert_eq!(progress.pending, 0, "{:?}", progress.stalled);
}

fn violation(message: &str) -> Record {
    let mut record = Record::new(
        Kind::Violation,
        Priority::Warning,
        1_795_298_020_000_007,
        message,
    );
    record.set(Field::State, "opened");
    record.set(Field::Verdict, "unapproved");
    record.set(Field::Outcome, "would-drop");
    record.set(Field::BytesOut, 1_234_u64);
    record.set(Field::Unit, "trefoil-test.service");
    record
}

/// A process with something on its command line that is nobody's business.
struct Secretive(Child);

impl Secretive {
    fn new() -> Self {
        let child = Command::new("sh")
            .args(["-c", "read line", "password-0451"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Secretive {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_fact_arrives_as_it_was_sent() {
    let world = World::new("facts");
    let mut reporter = world.reporter();
    let mut record = violation("curl → 203.0.113.9\nand a second line");
    record.set(Field::Exe, "/opt/naïve = program\nwith\u{1b} more");
    record.set(Field::Cgroup, "x".repeat(4 << 20));
    report(&mut reporter, record.clone());

    let entries = world.entries(&["TREFOIL_EVENT=violation"], 1);
    let [entry] = &entries[..] else {
        panic!("{} entries", entries.len())
    };
    assert_eq!(entry.text("MESSAGE"), record.message());
    assert_eq!(entry.text("PRIORITY"), "4");
    assert_eq!(entry.text("MESSAGE_ID"), Kind::Violation.message_id());
    assert_eq!(entry.text("SYSLOG_IDENTIFIER"), "trefoil");
    assert_eq!(entry.text("TREFOIL_SEQ"), "1");
    assert_eq!(entry.text("TREFOIL_TIME"), "2026-11-21T21:53:40.000007Z");
    assert_eq!(entry.text("TREFOIL_BOOT_ID"), entry.text("_BOOT_ID"));
    assert_eq!(entry.text("TREFOIL_BYTES_OUT"), "1234");
    assert_eq!(
        Some(entry.text("TREFOIL_CGROUP").as_str()),
        record.text(Field::Cgroup)
    );
    // A value that journalctl cannot show as text is shown as a list of bytes.
    let (_, exe) = entry
        .facts()
        .find(|(name, _)| *name == "TREFOIL_EXE")
        .unwrap();
    let exe = match exe.as_array() {
        Some(bytes) => String::from_utf8(
            bytes
                .iter()
                .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
                .collect(),
        )
        .unwrap(),
        None => exe.as_str().unwrap().to_owned(),
    };
    assert_eq!(Some(exe.as_str()), record.text(Field::Exe));
}

/// The unit's own log is where its administrator looks.
#[test]
fn the_log_of_a_unit_shows_what_is_said_about_it() {
    let world = World::new("unit");
    let process = Secretive::new();
    let pids = [u64::from(process.0.id()), 4_194_000];
    for object_pid in [false, true] {
        let mut reporter = world.reporter_with(object_pid);
        for pid in pids {
            let mut record = violation("about the unit");
            record.set(Field::Pid, pid);
            report(&mut reporter, record);
        }
        let mut record = violation("about another unit");
        record.set(Field::Unit, "user@1000.service");
        record.set(Field::UserUnit, "trefoil-test.service");
        report(&mut reporter, record);
    }
    assert_eq!(world.entries(&["-u", "trefoil-test.service"], 4).len(), 4);
    assert_eq!(world.entries(&["-u", "user@1000.service"], 2).len(), 2);
    assert_eq!(
        world
            .entries(&["--user-unit", "trefoil-test.service"], 2)
            .len(),
        2
    );
}

/// journald records the command line of a process whose pid it is told to look
/// up, so it is not told unless somebody wants it.
#[test]
fn command_lines_stay_out_of_the_journal() {
    let world = World::new("secret");
    let process = Secretive::new();
    let pid = u64::from(process.0.id());
    let mut record = violation("about the process");
    record.set(Field::Pid, pid);
    report(&mut world.reporter(), record.clone());
    world.entries(&[&format!("TREFOIL_PID={pid}")], 1);
    assert!(
        !world
            .journald
            .text(&["-o", "json"])
            .unwrap()
            .contains("password-0451")
    );

    report(&mut world.reporter_with(true), record);
    let entries = world.entries(&[&format!("OBJECT_PID={pid}")], 1);
    assert!(
        entries[0].text("OBJECT_CMDLINE").contains("password-0451"),
        "{}",
        entries[0]
    );
}

#[test]
fn records_wait_for_a_journald_that_is_restarted() {
    let mut world = World::new("restart");
    let name = world.journald.name().to_owned();
    let mut reporter = world.reporter();
    report(&mut reporter, violation("before"));
    world.entries(&["TREFOIL_SEQ=1"], 1);

    drop(world.journald);
    for _ in 0..100 {
        reporter.emit(violation("without a journald"));
    }
    let progress = reporter.flush(0);
    assert_eq!((progress.handed_over, progress.pending), (0, 100));
    assert_eq!(progress.stalled.unwrap().sink, "journal");

    world.journald = Journald::start(&name).unwrap();
    report(&mut reporter, violation("after"));
    let entries = world.entries(&["TREFOIL_EVENT=violation"], 101);
    let seqs: Vec<_> = entries
        .iter()
        .map(|entry| entry.number("TREFOIL_SEQ").unwrap())
        .collect();
    assert_eq!(seqs, (2..=102).collect::<Vec<_>>());
}

/// `journalctl -x`, with the catalog of this source tree in place of the system's.
#[test]
fn the_catalog_explains_a_record() {
    const DATABASE: &str = "/var/lib/systemd/catalog";
    let world = World::new("catalog");
    let mut reporter = world.reporter();
    report(&mut reporter, violation("unapproved"));
    report(
        &mut reporter,
        Record::loss("events-full", 3, 7, "numbers come later", 0),
    );
    world.entries(&["TREFOIL_EVENT=loss"], 1);

    let root = world.dir.path().join("root");
    let catalog = root.join("usr/lib/systemd/catalog");
    fs::create_dir_all(&catalog).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/trefoil.catalog");
    fs::copy(source, catalog.join("trefoil.catalog")).unwrap();
    let updated = Command::new("journalctl")
        .arg("--update-catalog")
        .arg(format!("--root={}", root.display()))
        .output()
        .unwrap();
    assert!(
        updated.status.success() && updated.stderr.is_empty(),
        "{updated:?}"
    );

    fs::create_dir_all(DATABASE).unwrap();
    let script = format!(
        "mount --bind {}{DATABASE} {DATABASE} && \
         journalctl --namespace={} --no-pager -x -o short SYSLOG_IDENTIFIER=trefoil",
        root.display(),
        world.journald.name(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for expected in [
        "Subject: Traffic that the policy does not approve",
        "verdict is \"unapproved\"",
        "The outcome is \"would-drop\"",
        "Subject: 3 lost: events-full",
        "numbers come later",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    assert!(!text.contains("TREFOIL_VERDICT"), "{text}");
}
