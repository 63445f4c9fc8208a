//! Records as they are read back: from lines of JSON that the agent wrote, from `journalctl -o json`, and
//! from `journalctl -o export`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
};

use serde_json::{Map, Value};
use trefoil_bounded::MAX_UNREADABLE;

use crate::{
    digest::{
        OTHERS, PREFIX, RecordDigest, SALT, Salt, commitment, is_covered, is_personal, own_salt,
    },
    merkle::Hash,
};

/// Values of the field `event`, and the `MESSAGE_ID` of each, for good: a line of JSON has the former
/// alone.
pub const KINDS: [(&str, &str); 10] = [
    ("flow", "13bbcd0831164a27b54fb75be676b0de"),
    ("violation", "b286d1b1095e4b0182e8c6d8d4c79ffb"),
    ("budget", "ab522d44c9e44d3e9f390ea4f0358740"),
    ("exception", "e19098e5b8a4493db706ac70dcaa8afa"),
    ("policy", "54ff5aaa18bd4fdfaeddc27bc075a1c8"),
    ("coverage", "f87410fc44de4eaa8028e798cc6e8715"),
    ("loss", "8ed575d44ab04876887adf85fb75844e"),
    ("heartbeat", "d24eb07403e64783a331eae22ba68c28"),
    ("tamper", "c8ea5cc1bcd64ac0873cdd0ebb75846e"),
    ("checkpoint", "5a1f0c7d3d6f4a8ab0c5b53b8f0e7c42"),
];

/// The fields of a record that count for its digest, and its salt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// By their names in the journal.
    fields: BTreeMap<String, Vec<u8>>,
    /// Salts of the personal fields that a redacted copy shows.
    salts: BTreeMap<String, Salt>,
    /// Commitments to those that it hides.
    commitments: BTreeMap<String, Hash>,
}

/// Why something is no record of the agent's.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Neither an object of JSON nor an entry of the export format.
    #[error("it is neither JSON nor an entry of the journal's export format")]
    Form,
    /// More than the longest entry that is read.
    #[error("it has over {MOST_BYTES} bytes or {MOST_FIELDS} fields")]
    Long,
    /// More of the file than of any with records is none, and nothing behind that is read.
    #[error(
        "more than {} lines or {} MiB of it are no records; name a file that has nothing else in it",
        MAX_UNREADABLE.0,
        MAX_UNREADABLE.1 >> 20
    )]
    Other,
}

impl EntryError {
    /// True if there is no use in reading on.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() != io::ErrorKind::UnexpectedEof,
            Self::Other => true,
            Self::Form | Self::Long => false,
        }
    }
}

/// Most bytes of an entry. The largest records are checkpoints, of 20 KiB.
pub const MOST_BYTES: usize = 16 << 20;

/// Most fields of an entry: the journal takes 1024 of who logs, and adds a few dozen.
const MOST_FIELDS: usize = 4096;

impl Entry {
    /// A record of the agent's, from an object of JSON: its own line, or the journal's. `None` if it is
    /// somebody else's entry.
    #[must_use]
    pub fn of_json(object: &Map<String, Value>) -> Option<Self> {
        let mut entry = Self::default();
        let is_own_line = object.contains_key("event");
        for (name, value) in object {
            let name = match is_own_line {
                true => journal_name(name),
                false => name.clone(),
            };
            if let Some(value) = bytes_of(value) {
                entry.add(name, value);
            }
        }
        if is_own_line {
            let event = object.get("event")?.as_str()?;
            let (_, id) = KINDS.iter().find(|(kind, _)| *kind == event)?;
            entry.add("MESSAGE_ID".to_owned(), id.as_bytes().to_vec());
            entry.salts = bytes_by_name(object.get("salts"));
            entry.commitments = bytes_by_name(object.get("commitments"));
            // A value that is there is read, so it is the one to be proven.
            let fields = &entry.fields;
            entry
                .commitments
                .retain(|name, _| !fields.contains_key(name));
        }
        entry.get("TREFOIL_EVENT").is_some().then_some(entry)
    }

    fn add(&mut self, name: String, value: Vec<u8>) {
        if is_covered(&name) || name == SALT {
            self.fields.insert(name, value);
        }
    }

    /// A field, by its name in the journal.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    /// A field that is text, by its name in JSON.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.fields.get(&journal_name(name))?).ok()
    }

    /// A field that is a number, by its name in JSON.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The fields that count for the digest and are there, by their names in the journal.
    pub fn values(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let fields = self.fields.iter().filter(|(name, _)| *name != SALT);
        fields.map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Commitments to the values that a redacted copy hides, by the fields' names in the journal.
    pub fn commitments(&self) -> impl Iterator<Item = (&str, &Hash)> {
        self.commitments
            .iter()
            .map(|(name, commitment)| (name.as_str(), commitment))
    }

    /// Returns the salt of a personal field. `None` if nothing says it.
    #[must_use]
    pub fn own_salt(&self, name: &str) -> Option<Salt> {
        match self.get(SALT) {
            Some(text) => Some(own_salt(&from_hex(text)?, name)),
            None => self.salts.get(name).copied(),
        }
    }

    /// The digest. `None` if the record has no salt, and is no redacted copy: evidence was off when it
    /// was made.
    ///
    /// A personal value whose salt is missing has a digest that no log has.
    #[must_use]
    pub fn digest(&self) -> Option<Hash> {
        let salt = self.get(SALT);
        if salt.is_none() && self.salts.is_empty() && self.commitments.is_empty() {
            return None;
        }
        let salt = salt.map(from_hex);
        let mut digest = RecordDigest::new(match salt {
            Some(salt) => salt?,
            None => Salt::default(),
        });
        let mut hidden = self.commitments().peekable();
        for (name, value) in self.values() {
            while let Some((name, commitment)) = hidden.next_if(|(other, _)| *other < name) {
                digest.add_commitment(name, commitment);
            }
            match salt.is_none() && is_personal(name) {
                true => {
                    let own = self.own_salt(name).unwrap_or_default();
                    digest.add_commitment(name, &commitment(&own, name, value));
                }
                false => digest.add(name, value),
            }
        }
        hidden.for_each(|(name, commitment)| digest.add_commitment(name, commitment));
        Some(digest.finish())
    }
}

/// Name in the journal of a field of a line of JSON.
#[must_use]
pub fn journal_name(name: &str) -> String {
    match OTHERS.iter().find(|it| it.eq_ignore_ascii_case(name)) {
        Some(name) => (*name).to_owned(),
        None => format!("{PREFIX}{}", name.to_ascii_uppercase()),
    }
}

/// Name in a line of JSON of a field of the journal.
#[must_use]
pub fn json_name(name: &str) -> String {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    name.to_ascii_lowercase()
}

/// Reads an object of JSON whose values are bytes as hexadecimal digits; others are passed over.
fn bytes_by_name<const N: usize>(object: Option<&Value>) -> BTreeMap<String, [u8; N]> {
    let object = object.and_then(Value::as_object);
    let read = |(name, value): (&String, &Value)| {
        let name = journal_name(name);
        let value = from_hex(value.as_str()?.as_bytes())?;
        is_personal(&name).then_some((name, value))
    };
    object.into_iter().flatten().filter_map(read).collect()
}

/// A value as bytes: journald writes one that is no text as an array of numbers. The agent sends no field
/// twice, and none that is too large for `journalctl --all`.
fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Number(number) => Some(number.to_string().into_bytes()),
        Value::Array(bytes) => {
            let byte = |it: &Value| it.as_u64().and_then(|it| u8::try_from(it).ok());
            bytes.iter().map(byte).collect()
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => None,
    }
}

/// Reads so many bytes, two hexadecimal digits each.
fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    bytes_from_hex(text)?.try_into().ok()
}

/// The same for any number of bytes.
fn bytes_from_hex(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for digits in text.chunks_exact(2) {
        let mut byte = 0;
        for &digit in digits {
            byte = byte << 4 | char::from(digit).to_digit(16)?;
        }
        bytes.push(byte as u8);
    }
    Some(bytes)
}

/// Writes bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend(char::from_digit(u32::from(byte >> 4), 16));
        text.extend(char::from_digit(u32::from(byte & 15), 16));
    }
    text
}

/// Writes a salt as its field has it.
#[must_use]
pub fn salt_text(salt: &Salt) -> String {
    hex(salt)
}

/// Fields of which every entry of the journal has one, and every line of an agent's.
const MARKS: [&str; 5] = [
    "event",
    "__CURSOR",
    "__REALTIME_TIMESTAMP",
    "_BOOT_ID",
    "MESSAGE",
];

/// Content of a file from one entry to the next.
enum Found {
    Record(Entry),
    /// An entry of the journal that is not from the agent, or a record of a kind that is not known.
    OfOthers,
    /// An empty line, or what has the form of an entry and is none.
    Nothing,
    End,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub struct Entries<R> {
    source: R,
    /// Number of the line that was read last.
    line: u64,
    /// Bytes that were read.
    n_bytes: u64,
    /// Lines and bytes among them that are nothing.
    other: (u64, u64),
}

impl<R: BufRead> Entries<R> {
    /// Of this file, which is of one of the three formats.
    #[must_use]
    pub fn new(source: R) -> Self {
        Self {
            source,
            line: 0,
            n_bytes: 0,
            other: (0, 0),
        }
    }

    /// Number of the line that was read last, from 1.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Reads the next record of the agent's, `None` at the end. Entries of others are passed over.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or what follows is no entry. The next call goes on behind it,
    /// unless the error [is final](EntryError::is_final).
    pub fn read(&mut self) -> Result<Option<Entry>, EntryError> {
        loop {
            if self.other.0 > MAX_UNREADABLE.0 || self.other.1 > MAX_UNREADABLE.1 {
                return Err(EntryError::Other);
            }
            let begun = (self.line, self.n_bytes);
            let read = self.read_one();
            if !matches!(read, Ok(Found::Record(_) | Found::OfOthers)) {
                self.other.0 += self.line - begun.0;
                self.other.1 += self.n_bytes - begun.1;
            }
            match read? {
                Found::Record(entry) => return Ok(Some(entry)),
                Found::End => return Ok(None),
                Found::OfOthers | Found::Nothing => {}
            }
        }
    }

    fn read_one(&mut self) -> Result<Found, EntryError> {
        let Some(line) = self.read_line()? else {
            return Ok(Found::End);
        };
        let (entry, is_marked) = match line.first() {
            None => return Ok(Found::Nothing),
            Some(b'{') => {
                let object: Map<String, Value> =
                    serde_json::from_slice(&line).map_err(|_| EntryError::Form)?;
                let is_marked = MARKS.iter().any(|name| object.contains_key(*name));
                (Entry::of_json(&object), is_marked)
            }
            Some(_) => self.read_export(line)?,
        };
        Ok(match entry {
            Some(entry) => Found::Record(entry),
            None if is_marked => Found::OfOthers,
            None => Found::Nothing,
        })
    }

    /// Reads the rest of an entry of the export format, and whether it has a mark of the journal's.
    fn read_export(&mut self, first: Vec<u8>) -> Result<(Option<Entry>, bool), EntryError> {
        let (mut entry, mut line, mut n_bytes) = (Entry::default(), first, 0);
        let (mut is_marked, mut n_fields) = (false, 0);
        while !line.is_empty() {
            let (name, value) = match line.iter().position(|byte| *byte == b'=') {
                Some(at) => (line[..at].to_vec(), line[at + 1..].to_vec()),
                None => (std::mem::take(&mut line), self.read_binary()?),
            };
            n_bytes += name.len() + value.len();
            n_fields += 1;
            if n_bytes > MOST_BYTES || n_fields > MOST_FIELDS {
                return Err(EntryError::Long);
            }
            let name = String::from_utf8(name).map_err(|_| EntryError::Form)?;
            is_marked |= MARKS.contains(&&*name);
            entry.add(name, value);
            line = self.read_line()?.unwrap_or_default();
        }
        let is_record = entry.get("TREFOIL_EVENT").is_some();
        Ok((is_record.then_some(entry), is_marked))
    }

    /// Reads a value with its length before it: u64, little endian.
    fn read_binary(&mut self) -> Result<Vec<u8>, EntryError> {
        let mut length = [0; 8];
        self.source.read_exact(&mut length)?;
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > MOST_BYTES {
            return Err(EntryError::Long);
        }
        let mut value = vec![0; length + 1];
        self.source.read_exact(&mut value)?;
        self.n_bytes += value.len() as u64;
        self.line += value.iter().filter(|byte| **byte == b'\n').count() as u64;
        match value.pop() {
            Some(b'\n') => Ok(value),
            _ => Err(EntryError::Form),
        }
    }

    /// Reads a line without its end, `None` at the end of the file.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>, EntryError> {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut self.source, MOST_BYTES as u64);
        let n_read = limited.read_until(b'\n', &mut line)?;
        self.line += 1;
        self.n_bytes += n_read as u64;
        if n_read == 0 {
            return Ok(None);
        }
        match line.pop_if(|last| *last == b'\n') {
            None if n_read == MOST_BYTES => Err(EntryError::Long),
            _ => Ok(Some(line)),
        }
    }
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
