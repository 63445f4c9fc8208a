//! Evidence of the records that a reporter emits: each gets a salt and a place in the log of digests, and
//! what was kept is signed from time to time, with a record of its own.

use std::path::Path;

use trefoil_evidence::{digest::RecordDigest, entry::salt_text};

use super::Reporter;
use crate::{
    clock,
    evidence::{Evidence, EvidenceError, Signed},
    report::{Coverage, Field, Kind, Record, Value, field::JOURNAL_NAMES, spool::Spool},
};

/// Facts: leaves in the log with the records that were kept, and of the checkpoint whose record
/// was kept last.
const LEAVES: &str = "evidence.leaves";
const TOLD: &str = "evidence.told";

/// The log of digests, while records are made.
pub(super) struct Proof {
    evidence: Evidence,
    salt: [u8; 16],
    /// Leaves in the file, as the spool knows.
    n_known: u64,
    /// Why nothing can be signed, once that was told.
    fault: Option<String>,
    /// The same, before.
    news: Option<Option<String>>,
}

impl Proof {
    fn open(directory: &Path, name: &str, spool: &Spool) -> Result<Self, EvidenceError> {
        let known = spool.fact(LEAVES).and_then(|text| text.parse().ok());
        let evidence = Evidence::open(directory, name, known)?;
        Ok(Self {
            n_known: evidence.size_in_file(),
            evidence,
            salt: [0; 16],
            fault: None,
            news: None,
        })
    }

    /// Gives a record its salt.
    pub(super) fn salt(&mut self, record: &mut Record) {
        match self.evidence.salt() {
            Ok(salt) => self.salt = salt,
            // The one before: it hides less, and proves as much.
            Err(error) => self.note(Some(error.to_string())),
        }
        record.set(Field::Salt, salt_text(&self.salt));
    }

    /// Takes in a record that has its number and salt.
    pub(super) fn add(&mut self, record: &Record) {
        self.evidence
            .add(digest(record, self.salt), record.kind() == Kind::Checkpoint);
        if record.kind() == Kind::Heartbeat {
            self.evidence.set_due();
        }
    }

    /// Writes digests, before the records that they are of are kept.
    pub(super) fn write(&mut self, spool: &mut Spool) {
        match self.evidence.write() {
            Ok(()) if self.evidence.size_in_file() != self.n_known => {
                self.n_known = self.evidence.size_in_file();
                spool.set(LEAVES.to_owned(), Some(self.n_known.to_string()));
            }
            Ok(()) => {}
            Err(error) => self.note(Some(error.to_string())),
        }
    }

    /// Notes whether it can be signed now.
    fn note(&mut self, fault: Option<String>) {
        if fault.is_some() != self.fault.is_some() {
            self.fault.clone_from(&fault);
            self.news = Some(fault);
        }
    }
}

impl Reporter {
    /// Begins to prove what is emitted.
    pub(super) fn begin_proof(
        &mut self,
        directory: &Path,
        name: &str,
    ) -> Result<(), EvidenceError> {
        let proof = Proof::open(directory, name, &self.spool)?;
        let is_told = self.spool.fact(TOLD) == Some(&proof.evidence.size_signed().to_string());
        let last = match is_told {
            true => None,
            // Nobody may have got it.
            false => proof.evidence.last().map_err(|source| EvidenceError::Io {
                what: "read the leaves in",
                path: directory.to_owned(),
                source,
            })?,
        };
        self.proof = Some(proof);
        if let Some(last) = last {
            self.tell_checkpoint(&last);
        }
        Ok(())
    }

    /// Signs what was emitted, if it is time, and tells it.
    pub(super) fn sign(&mut self, now_ns: u64) {
        let is_due = |it: &Proof| it.evidence.is_due(now_ns);
        if !self.proof.as_ref().is_some_and(is_due) || !self.keep() {
            return;
        }
        let Some(proof) = &mut self.proof else { return };
        let signed = proof.evidence.sign(now_ns);
        proof.note(signed.as_ref().err().map(ToString::to_string));
        if let Some(news) = proof.news.take() {
            let state = match news {
                Some(_) => Coverage::Uncovered,
                None => Coverage::Covered,
            };
            let record = Record::coverage("evidence", state, news.as_deref(), clock::unix_us());
            self.emit(record);
        }
        if let Ok(signed) = signed {
            self.tell_checkpoint(&signed);
        }
    }

    /// Signs all that was emitted: there will be nothing more.
    pub(super) fn sign_the_rest(&mut self, now_ns: u64) {
        if let Some(proof) = &mut self.proof {
            proof.evidence.set_due();
        }
        self.sign(now_ns);
    }

    /// All that was emitted is handed over.
    pub(super) fn finish_proof(&mut self) {
        if let Some(proof) = &mut self.proof
            && let Err(error) = proof.evidence.finish()
        {
            proof.note(Some(error.to_string()));
        }
    }

    fn tell_checkpoint(&mut self, signed: &Signed) {
        self.spool
            .set(TOLD.to_owned(), Some(signed.size.to_string()));
        self.emit(Record::checkpoint(signed, clock::unix_us()));
    }
}

/// Digest of a record that is to be sent.
fn digest(record: &Record, salt: [u8; 16]) -> [u8; 32] {
    let mut digest = RecordDigest::new(salt);
    digest.add("MESSAGE", record.message().as_bytes());
    digest.add("MESSAGE_ID", record.kind().message_id().as_bytes());
    digest.add("PRIORITY", (record.priority() as u8).to_string().as_bytes());
    let mut fields: Vec<(&str, &Value)> = Vec::with_capacity(record.fields().len());
    for (field, value) in record
        .fields()
        .iter()
        .filter(|(field, _)| *field != Field::Salt)
    {
        fields.push((&JOURNAL_NAMES[*field as usize], value));
    }
    fields.sort_unstable_by_key(|(name, _)| *name);
    for (name, value) in fields {
        match value {
            Value::Text(text) => digest.add(name, text.as_bytes()),
            Value::Number(number) => digest.add(name, number.to_string().as_bytes()),
        }
    }
    digest.finish()
}
