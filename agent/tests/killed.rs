//! Numbers of records are gapless, whenever the agent is killed.
//!
//! The test program starts itself as the agent that is killed.

#![expect(clippy::unwrap_used, reason = "what cannot go on has failed the test")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use trefoil::report::{
    Context, Field, Journal, JournalSettings, Json, Kind, Priority, Record, Reporter,
    ReporterSettings,
};

/// Set for the program that is to be killed: where it works.
const ROLE: &str = "TREFOIL_TEST_DIRECTORY";

#[test]
fn no_number_is_left_out_or_given_twice() {
    if let Some(dir) = env::var_os(ROLE) {
        agent(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let journald = UnixDatagram::bind(dir.path().join("journal")).unwrap();
    journald.set_nonblocking(true).unwrap();
    let mut received = Vec::new();

    for round in 0..60_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "no_number_is_left_out_or_given_twice",
                "--nocapture",
            ])
            .env(ROLE, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Not before it has begun, and then at an odd moment.
        let before = received.len();
        while received.len() == before {
            receive(&journald, &mut received);
        }
        for _ in 0..round * 7 % 40 {
            receive(&journald, &mut received);
            thread::sleep(Duration::from_micros(97));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        receive(&journald, &mut received);
    }

    let in_journal = check(received.iter().map(|entry| seq_of(entry)).zip(&received));
    let text = fs::read_to_string(dir.path().join("records.json")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let records: Vec<Record> = lines
        .iter()
        .map(|line| Record::from_json(line).unwrap_or_else(|| panic!("{line}")))
        .collect();
    let seqs = records
        .iter()
        .map(|record| record.number(Field::Seq).unwrap());
    let in_file = check(seqs.zip(&lines));
    assert!(
        in_journal.abs_diff(in_file) <= 1,
        "{in_journal} and {in_file}"
    );
    assert!(
        in_journal > 1_000,
        "{in_journal} records are too few to say anything"
    );
}

/// Reports as fast as it can, until it is killed.
fn agent(dir: &Path) -> ! {
    let journal = Journal::open(JournalSettings::new(dir.join("journal"))).unwrap();
    let json = Json::file(&dir.join("records.json")).unwrap();
    let mut reporter = Reporter::open(
        ReporterSettings::new(dir.join("agent.seq")),
        Context::of_this_host().unwrap(),
        vec![Box::new(journal), Box::new(json)],
    )
    .unwrap();
    for number in 0_u64.. {
        // No two records are alike.
        let message = format!("record {number} of process {}", std::process::id());
        reporter.emit(Record::new(
            Kind::Heartbeat,
            Priority::Info,
            number,
            message,
        ));
        while reporter.flush(number).pending > 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
    unreachable!("it does not stop by itself")
}

fn receive(journald: &UnixDatagram, received: &mut Vec<Vec<u8>>) {
    let mut buffer = [0; 65_536];
    loop {
        match journald.recv(&mut buffer) {
            Ok(n) => received.push(buffer[..n].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn seq_of(entry: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(entry);
    text.lines()
        .find_map(|line| line.strip_prefix("TREFOIL_SEQ="))
        .unwrap_or_else(|| panic!("{text}"))
        .parse()
        .unwrap()
}

/// Every number from 1 on, in order; one that comes twice comes twice in a row and
/// with the same content. Returns the last.
fn check<T: PartialEq + std::fmt::Debug>(numbered: impl Iterator<Item = (u64, T)>) -> u64 {
    let mut seen: BTreeMap<u64, T> = BTreeMap::new();
    let mut last = 0;
    for (seq, content) in numbered {
        assert!(seq == last || seq == last + 1, "{seq} after {last}");
        last = seq;
        if let Some(first) = seen.get(&seq) {
            assert_eq!(first, &content, "two records have number {seq}");
        }
        seen.insert(seq, content);
    }
    last
}
