//! The numbers of records: gapless within a boot, whatever happens to the agent.
//!
//! One small file on a file system that does not outlive the boot says which
//! number is next. Before a record is handed over it is written there, number
//! and all; after every sink has it, the number is given up. An agent that is
//! killed in between finds the record and hands it over again, so that
//!
//! - no number is left out, and
//! - no number is ever given to two different records.
//!
//! What cannot be had is that a record never comes twice: nobody can see whether
//! the agent was killed just before or just after the system call that hands it
//! over. A record that comes twice is the same to the last byte, and
//! (`boot_id`, `seq`) says so.

use std::{
    fs::{File, OpenOptions, create_dir_all},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::Record;

/// First word of the file.
const MAGIC: &str = "trefoil-seq";
/// Version of the file's format.
const VERSION: &str = "1";
/// Bytes of the header: one line of text, filled up with blanks. It is written
/// at once and within a page, which a signal does not divide.
const HEADER: usize = 256;
/// Room that is taken up in advance, so that a full file system does not stop
/// reports that are about it. No record has so much.
const ROOM: usize = 64 << 10;

/// Where the first number of this agent comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was no file, or one of another boot: numbers begin with 1.
    First,
    /// They go on after those of an agent before this one.
    Continued,
    /// There was a file, and it made no sense: numbers begin with 1, although
    /// they may have been given before.
    Damaged(String),
}

/// Why there are no numbers to be had.
#[derive(Debug, thiserror::Error)]
pub enum SequenceError {
    /// The directory could not be made.
    #[error("make the directory {path} for the sequence file: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be opened, read or written.
    #[error("open the sequence file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent numbers its records with it.
    #[error(
        "lock the sequence file {path}: another agent uses it; stop that one, or give this one \
         another --pin-dir"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// A record whose hand-over was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// As it was handed over.
    pub(super) record: Record,
    /// Sinks that have it for certain.
    pub(super) done: Vec<String>,
}

/// The file, locked.
#[derive(Debug)]
pub(super) struct Sequence {
    file: Flock<File>,
    boot_id: String,
    next: u64,
    body_len: usize,
    /// Records that sinks miss and nobody was told of, as `json:3`, separated by commas.
    missed: String,
}

impl Sequence {
    /// Opens the file, or makes it.
    pub(super) fn open(
        path: &Path,
        boot_id: &str,
    ) -> Result<(Self, Origin, Option<Unfinished>), SequenceError> {
        let failed = |source| SequenceError::File {
            path: path.to_owned(),
            source,
        };
        if let Some(dir) = path.parent() {
            create_dir_all(dir).map_err(|source| SequenceError::Directory {
                path: dir.to_owned(),
                source,
            })?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            SequenceError::InUse {
                path: path.to_owned(),
            }
        })?;

        let mut content = Vec::new();
        io::Read::read_to_end(&mut &*file, &mut content).map_err(failed)?;
        let mut sequence = Self {
            file,
            boot_id: boot_id.to_owned(),
            next: 1,
            body_len: 0,
            missed: "-".to_owned(),
        };
        let (origin, unfinished) = match read(&content, boot_id) {
            Ok(None) => (Origin::First, None),
            Ok(Some(found)) => {
                sequence.next = found.next;
                sequence.body_len = found.body_len;
                sequence.missed = found.missed;
                (Origin::Continued, found.unfinished)
            }
            Err(reason) => (Origin::Damaged(reason), None),
        };
        if content.len() < HEADER + ROOM {
            let room = vec![b' '; HEADER + ROOM - content.len()];
            sequence
                .file
                .write_all_at(&room, content.len() as u64)
                .map_err(failed)?;
        }
        if unfinished.is_none() {
            sequence.write_header("-").map_err(failed)?;
        }
        Ok((sequence, origin, unfinished))
    }

    /// The number of the next record, or of the one that is being handed over.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Records that this sink misses and nobody was told of.
    pub(super) fn missed(&self, sink: &str) -> u64 {
        let missed = self.missed.split(',').filter_map(|it| it.split_once(':'));
        let of_sink = missed.filter(|(name, _)| *name == sink);
        of_sink.filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
    }

    /// Remembers, with the next change of the file, how many records sinks miss that
    /// nobody was told of.
    pub(super) fn set_missed<'a>(&mut self, missed: impl Iterator<Item = (&'a str, u64)>) {
        let missed = missed.filter(|(_, n)| *n > 0);
        let words: Vec<_> = missed.map(|(sink, n)| format!("{sink}:{n}")).collect();
        self.missed = match words.is_empty() {
            true => "-".to_owned(),
            false => words.join(","),
        };
    }

    /// Remembers the record with the next number: it may be handed over now.
    pub(super) fn begin(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all_at(line.as_bytes(), HEADER as u64)?;
        self.body_len = line.len();
        self.write_header("-")
    }

    /// These sinks, separated by commas, have it.
    pub(super) fn note(&mut self, done: &str) -> io::Result<()> {
        self.write_header(done)
    }

    /// Every sink has it: the number is used up.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let body_len = std::mem::take(&mut self.body_len);
        self.next += 1;
        let result = self.write_header("-");
        if result.is_err() {
            self.next -= 1;
            self.body_len = body_len;
        }
        result
    }

    fn write_header(&self, done: &str) -> io::Result<()> {
        let Self {
            boot_id,
            next,
            body_len,
            missed,
            ..
        } = self;
        let header = format!("{MAGIC} {VERSION} {boot_id} {next} {body_len} {done} {missed}");
        let width = HEADER - 1;
        self.file
            .write_all_at(format!("{header:<width$}\n").as_bytes(), 0)
    }
}

/// What a file says: nothing of this boot; or the next number, and the record that
/// has it already; or nonsense.
fn read(content: &[u8], boot_id: &str) -> Result<Option<Found>, String> {
    if content.iter().all(|byte| *byte == b' ') {
        return Ok(None);
    }
    let nonsense = || "its header is damaged".to_owned();
    let header = content.get(..HEADER).ok_or_else(nonsense)?;
    let header = std::str::from_utf8(header).map_err(|_| nonsense())?;
    let mut words = header.split_whitespace();
    if words.next() != Some(MAGIC) {
        return Err("it is not a sequence file".to_owned());
    }
    if words.next() != Some(VERSION) {
        return Err("another version wrote it".to_owned());
    }
    if words.next().ok_or_else(nonsense)? != boot_id {
        return Ok(None);
    }
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let next = number().filter(|next| *next > 0).ok_or_else(nonsense)?;
    let body_len = number()
        .and_then(|len| usize::try_from(len).ok())
        .ok_or_else(nonsense)?;
    let done = words.next().ok_or_else(nonsense)?;
    // Not there if a version wrote it that did not count them.
    let missed = words.next().unwrap_or("-").to_owned();
    if body_len == 0 {
        return Ok(Some(Found {
            next,
            body_len,
            unfinished: None,
            missed,
        }));
    }
    let record = content
        .get(HEADER..HEADER + body_len)
        .and_then(|body| std::str::from_utf8(body).ok())
        .and_then(Record::from_json)
        .filter(|record| record.number(super::Field::Seq) == Some(next))
        .ok_or("the record in it is damaged")?;
    let done = done
        .split(',')
        .filter(|name| *name != "-")
        .map(str::to_owned)
        .collect();
    Ok(Some(Found {
        next,
        body_len,
        unfinished: Some(Unfinished { record, done }),
        missed,
    }))
}

/// What an agent before this one left.
struct Found {
    next: u64,
    body_len: usize,
    unfinished: Option<Unfinished>,
    missed: String,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::{Kind, Priority, Sealed};

    const BOOT: &str = "0123456789abcdef0123456789abcdef";

    fn sealed(seq: u64) -> Sealed {
        Sealed::new(
            Record::new(Kind::Heartbeat, Priority::Info, seq, "lives"),
            seq,
        )
    }

    fn path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("run/agent.seq")
    }

    #[test]
    fn numbers_go_on_where_they_stopped() {
        let dir = tempfile::tempdir().unwrap();
        for first in [1, 4, 7] {
            let (mut sequence, origin, unfinished) = Sequence::open(&path(&dir), BOOT).unwrap();
            assert_eq!(
                origin,
                if first == 1 {
                    Origin::First
                } else {
                    Origin::Continued
                }
            );
            assert_eq!(unfinished, None);
            for seq in first..first + 3 {
                assert_eq!(sequence.next(), seq);
                sequence.begin(sealed(seq).line()).unwrap();
                sequence.finish().unwrap();
            }
        }
    }

    #[test]
    fn a_record_that_was_on_its_way_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut sequence, ..) = Sequence::open(&path(&dir), BOOT).unwrap();
        sequence.begin(sealed(1).line()).unwrap();
        sequence.finish().unwrap();
        sequence.begin(sealed(2).line()).unwrap();
        drop(sequence);
        for done in ["", "journal", "journal,json"] {
            let (mut sequence, origin, unfinished) = Sequence::open(&path(&dir), BOOT).unwrap();
            let unfinished = unfinished.unwrap();
            assert_eq!((origin, sequence.next()), (Origin::Continued, 2));
            assert_eq!(&unfinished.record, sealed(2).record());
            assert_eq!(unfinished.done.join(","), done);
            let next = if done.is_empty() {
                "journal"
            } else {
                "journal,json"
            };
            sequence.note(next).unwrap();
        }
    }

    #[test]
    fn every_boot_begins_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut sequence, ..) = Sequence::open(&path(&dir), BOOT).unwrap();
        sequence.begin(sealed(1).line()).unwrap();
        drop(sequence);
        let other = BOOT.replace('0', "f");
        let (sequence, origin, unfinished) = Sequence::open(&path(&dir), &other).unwrap();
        assert_eq!(
            (sequence.next(), origin, unfinished),
            (1, Origin::First, None)
        );
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let damages: [(&[u8], &str); 5] = [
            (b"x", "header"),
            (&[b'x'; 300], "not a sequence file"),
            (b"trefoil-seq 9 ", "another version"),
            (
                b"trefoil-seq 1 0123456789abcdef0123456789abcdef 0 0 -",
                "header",
            ),
            (
                b"trefoil-seq 1 0123456789abcdef0123456789abcdef 5 20 -",
                "record",
            ),
        ];
        for (content, expected) in damages {
            create_dir_all(path(&dir).parent().unwrap()).unwrap();
            let mut content = content.to_vec();
            if content.len() > 1 {
                content.resize(300, b' ');
            }
            fs::write(path(&dir), content).unwrap();
            let (_, origin, _) = Sequence::open(&path(&dir), BOOT).unwrap();
            let Origin::Damaged(reason) = origin else {
                panic!("{origin:?} for {expected}")
            };
            assert!(reason.contains(expected), "{reason}");
            let (_, origin, _) = Sequence::open(&path(&dir), BOOT).unwrap();
            assert_eq!(origin, Origin::Continued, "it is said once");
        }
    }

    #[test]
    fn two_agents_do_not_share_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let first = Sequence::open(&path(&dir), BOOT).unwrap();
        let error = Sequence::open(&path(&dir), BOOT).unwrap_err();
        assert!(matches!(error, SequenceError::InUse { .. }), "{error}");
        drop(first);
        Sequence::open(&path(&dir), BOOT).unwrap();
    }
}
