//! Tests of the spool: what an agent that is killed leaves to the next one.

use std::fs;

use super::*;
use crate::report::{Kind, Priority};

const BOOT: &str = "0123456789abcdef0123456789abcdef";

fn sealed(seq: u64) -> Sealed {
    let message = format!("record {seq} {}", "x".repeat(200));
    Sealed::new(
        Record::new(Kind::Heartbeat, Priority::Info, seq, message),
        seq,
    )
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("run/spool")
}

fn open(dir: &tempfile::TempDir) -> (Spool, Origin, Left) {
    Spool::open(&path(dir), BOOT).unwrap()
}

fn facts(spool: &Spool) -> Vec<(String, String)> {
    let facts = spool.facts("").filter(|(name, _)| *name != BATCH);
    facts
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn records_and_facts_are_found_as_they_were_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, origin, left) = open(&dir);
    assert_eq!((origin, left.pending.len()), (Origin::First, 0));
    let mut pending: VecDeque<_> = [sealed(1), sealed(2)].into();
    spool.set("a".into(), Some("1 2".into()));
    spool.set("b".into(), Some(String::new()));
    spool.keep(&pending, 0).unwrap();
    pending.push_back(sealed(3));
    spool.set("a".into(), None);
    spool.set("c".into(), Some("never kept".into()));
    drop(spool);
    let (mut spool, origin, left) = open(&dir);
    assert_eq!(origin, Origin::Continued);
    assert_eq!(left.pending, [sealed(1), sealed(2)]);
    assert_eq!(
        facts(&spool),
        [("a".into(), "1 2".into()), ("b".into(), String::new())]
    );
    spool.set("a".into(), None);
    spool.keep(&left.pending, 2).unwrap();
    spool.acknowledge(2, ["json"], [("json", 7)]).unwrap();
    drop(spool);
    let (spool, _, left) = open(&dir);
    assert_eq!(left.pending, [sealed(2)]);
    assert_eq!(left.done, ["json"]);
    assert_eq!(left.missed, BTreeMap::from([("json".to_owned(), 7)]));
    assert_eq!(facts(&spool), [("b".into(), String::new())]);
}

#[test]
fn numbers_go_on_when_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, ..) = open(&dir);
    let pending: VecDeque<_> = [sealed(1)].into();
    spool.keep(&pending, 0).unwrap();
    spool.acknowledge(2, [], []).unwrap();
    drop(spool);
    let (spool, origin, left) = open(&dir);
    assert_eq!((origin, spool.first()), (Origin::Continued, 2));
    assert!(left.pending.is_empty());
}

/// Killed at every byte of a batch: it is there as a whole or not at all.
#[test]
fn a_batch_that_was_cut_short_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, ..) = open(&dir);
    let pending: VecDeque<_> = [sealed(1), sealed(2)].into();
    spool.set("a".into(), Some("old".into()));
    spool.keep(&pending, 1).unwrap();
    let before = spool.len;
    spool.set("a".into(), Some("new".into()));
    spool.keep(&[sealed(2), sealed(3)].into(), 1).unwrap();
    let (current, end) = (spool.current, spool.len);
    drop(spool);
    let file = path(&dir).with_extension(current.to_string());
    let whole = fs::read(&file).unwrap();
    for cut in before..=end {
        // Whatever the file had there before.
        for rest in [&b""[..], b"\n=0 256\n", b"+a x\n=1 256\n"] {
            let kept = &whole[..usize::try_from(cut).unwrap()];
            let generation = Header::read(&whole, BOOT).unwrap().unwrap().generation;
            let content = [kept, rest].concat();
            let header = Header::read(&content, BOOT).unwrap().unwrap();
            let first = Batch::read(&content, HEADER as u64, generation).unwrap();
            assert_eq!(first.0.records.len(), 0, "the file begins with nothing");
            let mut at = HEADER as u64 + first.1;
            let (mut n_records, mut fact) = (0, None);
            while let Some((batch, len)) = Batch::read(&content, at, header.generation) {
                n_records += batch.records.len();
                fact = batch.changes.get("a").cloned().flatten();
                at += len;
            }
            let is_whole = content.starts_with(&whole[..usize::try_from(end).unwrap()]);
            let expected = match is_whole {
                true => (2, Some("new".to_owned())),
                false => (1, Some("old".to_owned())),
            };
            assert_eq!((n_records, fact), expected, "{cut} of {end}");
        }
    }
}

#[test]
fn what_no_longer_counts_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, ..) = open(&dir);
    let mut pending = VecDeque::new();
    for seq in 1..=20_000 {
        pending.push_back(sealed(seq));
        spool.set("a".into(), Some(seq.to_string()));
        spool.keep(&pending, pending.len() - 1).unwrap();
        if pending.len() > 3 {
            pending.pop_front();
            spool.acknowledge(seq - 2, [], []).unwrap();
        }
    }
    drop(spool);
    for number in ["0", "1"] {
        let len = fs::metadata(path(&dir).with_extension(number))
            .unwrap()
            .len();
        assert!(len <= ROOM, "{len}");
    }
    let (spool, _, left) = open(&dir);
    assert_eq!(left.pending, pending);
    assert_eq!(facts(&spool), [("a".into(), "20000".into())]);
}

#[test]
fn every_boot_begins_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, ..) = open(&dir);
    spool.keep(&[sealed(1)].into(), 0).unwrap();
    drop(spool);
    let other = BOOT.replace('0', "f");
    let (spool, origin, left) = Spool::open(&path(&dir), &other).unwrap();
    assert_eq!((spool.first(), origin), (1, Origin::First));
    assert!(left.pending.is_empty());
}

#[test]
fn what_makes_no_sense_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let damages: [(&[u8], &str); 4] = [
        (b"x", "header"),
        (&[b'x'; 300], "not a spool"),
        (b"trefoil-spool 9 ", "another version"),
        (
            b"trefoil-spool 1 0123456789abcdef0123456789abcdef 1 0 - -",
            "header",
        ),
    ];
    for (content, expected) in damages {
        create_dir_all(path(&dir).parent().unwrap()).unwrap();
        let mut content = content.to_vec();
        if content.len() > 1 {
            content.resize(300, b' ');
        }
        for number in ["0", "1"] {
            fs::write(path(&dir).with_extension(number), &content).unwrap();
        }
        let (_, origin, _) = open(&dir);
        let Origin::Damaged(reason) = origin else {
            panic!("{origin:?} for {expected}")
        };
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(open(&dir).1, Origin::Continued, "it is said once");
    }
}

#[test]
fn two_agents_do_not_share_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir);
    let error = Spool::open(&path(&dir), BOOT).unwrap_err();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
    drop(first);
    open(&dir);
}
