//! All that outlives the agent: records that not every sink has, and facts about what was taken in.
//!
//! Two files on a file system that does not outlive the boot, of which one is in use. Records
//! and facts are appended to it in batches: a batch is there as a whole or not at all, since it
//! counts once its last line is there. So a record and what it was made of change hands
//! together, and an agent that is killed leaves to the next one
//!
//! - each number given once, and none left out: a record is handed over after it is kept;
//! - each record that a sink may not have, to the last byte;
//! - each fact as it was when the last batch was kept.
//!
//! A record may come twice, which cannot be helped: nobody can see whether the agent was
//! killed just before or just after the system call that hands it over. A record that comes
//! twice is the same to the last byte, and (`boot_id`, `seq`) says so.
//!
//! A file that has grown is left for the other one, with what still counts. Some room of both
//! is taken up in advance, so that a full file system does not stop reports that are about it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, create_dir_all},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::fcntl::Flock;

mod file;

use self::file::{give_back, open_file};
use super::{Field, Record, Sealed};

/// First word of a file.
const MAGIC: &str = "trefoil-spool";
/// Version of the format.
const VERSION: &str = "1";
/// Bytes of the header: one line of text, filled up with blanks. It is written at once and
/// within a page, which a signal does not divide.
const HEADER: usize = 256;
/// Room of each file that is taken up in advance.
const ROOM: u64 = 1 << 20;

/// The fact that counts batches.
const BATCH: &str = "batch";

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

/// Why there is no spool, and with that no number for a record.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The directory could not be made.
    #[error("make the directory {path} for the spool: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be opened, read or written.
    #[error("open the spool {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent uses it.
    #[error(
        "lock the spool {path}: another agent uses it; stop that one, or give this one another \
         --pin-dir"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// The rest that an agent before this one has left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Records that not every sink has, as they were or would have been handed over.
    pub(super) pending: VecDeque<Sealed>,
    /// Sinks that have the first of them for certain.
    pub(super) done: Vec<String>,
    /// Records that sinks have missed so far.
    pub(super) missed: BTreeMap<String, u64>,
}

/// The files, locked.
#[derive(Debug)]
pub(super) struct Spool {
    files: [Flock<File>; 2],
    current: usize,
    boot_id: String,
    /// Moves with each change of the file in use.
    generation: u64,
    /// Where the next batch goes.
    len: u64,
    /// Length from which on the other file is used.
    full_at: u64,
    /// Number of the first record that not every sink has.
    first: u64,
    /// As of the last batch.
    facts: BTreeMap<String, String>,
    /// Their changes in the next batch.
    changes: BTreeMap<String, Option<String>>,
}

impl Spool {
    /// Opens the files `NAME.0` and `NAME.1`, or makes them.
    pub(super) fn open(path: &Path, boot_id: &str) -> Result<(Self, Origin, Left), SpoolError> {
        if let Some(dir) = path.parent() {
            create_dir_all(dir).map_err(|source| SpoolError::Directory {
                path: dir.to_owned(),
                source,
            })?;
        }
        let file = |number| open_file(&path.with_extension(number));
        let files = [file("0")?, file("1")?];
        let failed = |source| SpoolError::File {
            path: path.to_owned(),
            source,
        };
        let mut contents = [Vec::new(), Vec::new()];
        for (file, content) in files.iter().zip(&mut contents) {
            io::Read::read_to_end(&mut &**file, content).map_err(failed)?;
        }
        let mut spool = Self {
            files,
            current: 0,
            boot_id: boot_id.to_owned(),
            generation: 0,
            len: HEADER as u64,
            full_at: ROOM,
            first: 1,
            facts: BTreeMap::new(),
            changes: BTreeMap::new(),
        };
        let read = contents.each_ref().map(|it| Header::read(it, boot_id));
        let newest = read
            .iter()
            .enumerate()
            .filter_map(|(number, header)| Some((number, header.as_ref().ok()?.as_ref()?)))
            .max_by_key(|(_, header)| header.generation);
        let (origin, left) = match newest {
            Some((number, header)) => {
                spool.current = number;
                (
                    Origin::Continued,
                    spool.take_over(header, &contents[number]),
                )
            }
            None => match read.into_iter().find_map(Result::err) {
                Some(reason) => (Origin::Damaged(reason), Left::default()),
                None => (Origin::First, Left::default()),
            },
        };
        spool
            .begin_anew(&left.pending, &left.done, &left.missed)
            .map_err(failed)?;
        Ok((spool, origin, left))
    }

    fn take_over(&mut self, header: &Header, content: &[u8]) -> Left {
        self.generation = header.generation;
        self.first = header.first;
        let mut left = Left {
            done: header.done.clone(),
            missed: header.missed.clone(),
            ..Left::default()
        };
        while let Some((batch, len)) = Batch::read(content, self.len, header.generation) {
            self.len += len;
            for record in batch.records {
                let seq = record.number(Field::Seq).unwrap_or_default();
                if seq >= self.first {
                    left.pending.push_back(Sealed::new(record, seq));
                }
            }
            self.changes = batch.changes;
            self.apply_changes();
        }
        left
    }

    /// Number of the first record that not every sink has; if all have all, of the next.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// A fact, as of the last batch.
    pub(super) fn fact(&self, name: &str) -> Option<&str> {
        self.facts.get(name).map(String::as_str)
    }

    /// Facts whose names begin so, as of the last batch; the rest of their names.
    pub(super) fn facts<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
        self.facts
            .range(prefix.to_owned()..)
            .map_while(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// How many batches were kept in this boot.
    pub(super) fn batch(&self) -> u64 {
        let number = self.fact(BATCH).and_then(|it| it.parse().ok());
        number.unwrap_or(0)
    }

    /// Changes a fact with the next batch. Neither name nor value has a line's end, and a name
    /// has no blank.
    pub(super) fn set(&mut self, name: String, value: Option<String>) {
        // A fact that comes and goes within a batch is not written at all.
        if value.is_none() && !self.facts.contains_key(&name) {
            self.changes.remove(&name);
            return;
        }
        self.changes.insert(name, value);
    }

    /// Keeps the changed facts, and the records of `pending` from `n_kept` on.
    ///
    /// When it fails, nothing of it is kept, and the next call tries again.
    pub(super) fn keep(&mut self, pending: &VecDeque<Sealed>, n_kept: usize) -> io::Result<()> {
        if self.changes.is_empty() && n_kept == pending.len() {
            return Ok(());
        }
        self.changes
            .insert(BATCH.to_owned(), Some((self.batch() + 1).to_string()));
        let new = pending.iter().skip(n_kept);
        let batch = Batch::text(new, &self.changes, self.generation, self.len);
        let end = self.len + batch.len() as u64;
        let written = match end <= self.full_at {
            true => self.files[self.current].write_all_at(batch.as_bytes(), self.len),
            false => Err(io::ErrorKind::StorageFull.into()),
        };
        match written {
            Ok(()) => {
                self.len = end;
                self.apply_changes();
                Ok(())
            }
            // There is room in the other one for what still counts, if anywhere.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                give_back(&self.files[self.current], self.len);
                let before = self.header(self.current)?;
                self.begin_anew(pending, &before.done, &before.missed)
            }
            Err(error) => Err(error),
        }
    }

    /// These sinks have the record with this number; all have those before it. So many records
    /// the sinks have missed.
    pub(super) fn acknowledge<'a>(
        &mut self,
        first: u64,
        done: impl IntoIterator<Item = &'a str>,
        missed: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> io::Result<()> {
        let header = Header {
            generation: self.generation,
            first,
            done: done.into_iter().map(str::to_owned).collect(),
            missed: missed
                .into_iter()
                .map(|(sink, n)| (sink.to_owned(), n))
                .collect(),
        };
        header.write(&self.files[self.current], &self.boot_id)?;
        self.first = first;
        Ok(())
    }

    fn header(&self, number: usize) -> io::Result<Header> {
        let mut header = [0; HEADER];
        self.files[number].read_exact_at(&mut header, 0)?;
        let read = Header::read(&header, &self.boot_id).map_err(io::Error::other)?;
        read.ok_or_else(|| io::Error::other("somebody has changed the spool"))
    }

    /// Goes on in the other file, with all that counts.
    fn begin_anew(
        &mut self,
        pending: &VecDeque<Sealed>,
        done: &[String],
        missed: &BTreeMap<String, u64>,
    ) -> io::Result<()> {
        let mut all: BTreeMap<String, Option<String>> = self
            .facts
            .iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect();
        all.extend(self.changes.clone());
        all.retain(|_, value| value.is_some());
        let header = Header {
            generation: self.generation + 1,
            first: self.first,
            done: done.to_owned(),
            missed: missed.clone(),
        };
        let batch = Batch::text(pending.iter(), &all, header.generation, HEADER as u64);
        let next = &self.files[1 - self.current];
        if let Err(error) = next.write_all_at(batch.as_bytes(), HEADER as u64) {
            give_back(next, HEADER as u64);
            return Err(error);
        }
        header.write(next, &self.boot_id)?;
        give_back(&self.files[self.current], 0);
        self.current = 1 - self.current;
        self.generation = header.generation;
        self.len = HEADER as u64 + batch.len() as u64;
        self.full_at = ROOM.max(2 * self.len);
        self.apply_changes();
        Ok(())
    }

    fn apply_changes(&mut self) {
        for (name, value) in std::mem::take(&mut self.changes) {
            match value {
                Some(value) => self.facts.insert(name, value),
                None => self.facts.remove(&name),
            };
        }
    }
}

/// The beginning of a file.
#[derive(Debug)]
struct Header {
    generation: u64,
    first: u64,
    done: Vec<String>,
    missed: BTreeMap<String, u64>,
}

impl Header {
    /// `None` if there is nothing of this boot; else what makes no sense.
    fn read(content: &[u8], boot_id: &str) -> Result<Option<Self>, String> {
        if content.iter().all(|byte| matches!(byte, b' ' | 0)) {
            return Ok(None);
        }
        let nonsense = || "its header is damaged".to_owned();
        let header = content.get(..HEADER).ok_or_else(nonsense)?;
        if header.iter().all(|byte| *byte == 0) {
            // The agent was killed before it had written what comes first.
            return Ok(None);
        }
        let header = std::str::from_utf8(header).map_err(|_| nonsense())?;
        let mut words = header.split_whitespace();
        if words.next() != Some(MAGIC) {
            return Err("it is not a spool".to_owned());
        }
        if words.next() != Some(VERSION) {
            return Err("another version wrote it".to_owned());
        }
        if words.next().ok_or_else(nonsense)? != boot_id {
            return Ok(None);
        }
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let generation = number().ok_or_else(nonsense)?;
        let first = number().filter(|first| *first > 0).ok_or_else(nonsense)?;
        let mut list = || {
            let list = words.next().ok_or_else(nonsense)?;
            Ok::<_, String>(list.split(',').filter(|word| *word != "-"))
        };
        let done = list()?.map(str::to_owned).collect();
        let missed = list()?.filter_map(|word| {
            let (sink, n) = word.split_once(':')?;
            Some((sink.to_owned(), n.parse().ok()?))
        });
        let missed = missed.collect();
        Ok(Some(Self {
            generation,
            first,
            done,
            missed,
        }))
    }

    fn write(&self, file: &File, boot_id: &str) -> io::Result<()> {
        let or_none = |list: Vec<String>| match list.is_empty() {
            true => "-".to_owned(),
            false => list.join(","),
        };
        let missed = self.missed.iter().filter(|(_, n)| **n > 0);
        let missed = or_none(missed.map(|(sink, n)| format!("{sink}:{n}")).collect());
        let done = or_none(self.done.clone());
        let Self {
            generation, first, ..
        } = self;
        let header = format!("{MAGIC} {VERSION} {boot_id} {generation} {first} {done} {missed}");
        let width = HEADER - 1;
        file.write_all_at(format!("{header:<width$}\n").as_bytes(), 0)
    }
}

/// A batch is kept at once: lines of records, of facts that are set (`+name value`) or forgotten
/// (`-name`), and a last one with the file's generation and the place of the first.
struct Batch {
    records: Vec<Record>,
    changes: BTreeMap<String, Option<String>>,
}

impl Batch {
    fn text<'a>(
        records: impl Iterator<Item = &'a Sealed>,
        changes: &BTreeMap<String, Option<String>>,
        generation: u64,
        at: u64,
    ) -> String {
        let mut text = String::new();
        for record in records {
            text += record.line();
            text.push('\n');
        }
        for (name, value) in changes {
            text += &match value {
                Some(value) => format!("+{name} {value}\n"),
                None => format!("-{name}\n"),
            };
        }
        text + &format!("={generation} {at}\n")
    }

    /// The batch that begins there, and its length; `None` if it is not whole. The agent was
    /// killed while it wrote it, or what is there is of a generation before.
    fn read(content: &[u8], at: u64, generation: u64) -> Option<(Self, u64)> {
        let rest = content.get(usize::try_from(at).ok()?..)?;
        let last = format!("={generation} {at}");
        let mut batch = Self {
            records: Vec::new(),
            changes: BTreeMap::new(),
        };
        let mut len = 0;
        for line in rest.split_inclusive(|byte| *byte == b'\n') {
            len += line.len() as u64;
            let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
            if line == last {
                return Some((batch, len));
            }
            match line.split_at_checked(1)? {
                ("+", change) => {
                    let (name, value) = change.split_once(' ')?;
                    batch
                        .changes
                        .insert(name.to_owned(), Some(value.to_owned()));
                }
                ("-", name) => {
                    batch.changes.insert(name.to_owned(), None);
                }
                _ => batch.records.push(Record::from_json(line)?),
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
