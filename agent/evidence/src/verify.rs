//! Proof that records give of themselves: each is whole and in its place, none is missing, and
//! every checkpoint is of the same log.
//!
//! A checkpoint record has the signed note, the digests of the records since the checkpoint before, and
//! the edge of the tree before these. So any part of a log can be verified by itself, and a record that
//! is missing is known by its index and digest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

mod finding;

pub use finding::{Finding, Series};

use crate::{
    checkpoint::{Checkpoint, CheckpointError, from_text},
    entry::Entry,
    merkle::{Frontier, Hash, leaf},
    note::VerifyingKey,
};

/// Outcome for one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogVerdict {
    /// Its name.
    pub origin: String,
    /// Agents that the records of its checkpoints are of, by machine id and instance: one, if no host was
    /// copied.
    pub agents: BTreeSet<(String, String)>,
    /// Index of the first leaf that is looked at.
    pub first: u64,
    /// Number of leaves that the last checkpoint here covers.
    pub size: u64,
    /// Checkpoints that are whole.
    pub n_checkpoints: u64,
    /// Records that are in their place.
    pub n_records: u64,
    /// Records behind the last checkpoint, which the next one will cover.
    pub n_unanchored: u64,
    /// All that is wrong, sorted.
    pub findings: Vec<Finding>,
}

/// Outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Each log.
    pub logs: Vec<LogVerdict>,
    /// Records without a salt: made while evidence was off.
    pub n_without_evidence: u64,
    /// Records of hosts without a valid checkpoint.
    pub n_without_log: u64,
    /// Checkpoint records that belong to no log, since their notes are not valid.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// True if all that was made is there, whole, and covered.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let is_clean = |log: &LogVerdict| log.findings.is_empty();
        self.findings.is_empty()
            && self.n_without_evidence == 0
            && self.n_without_log == 0
            && self.logs.iter().all(is_clean)
    }
}

/// A record as far as it matters here.
#[derive(Debug)]
struct Seen {
    series: Series,
    seq: u64,
    digest: Hash,
    source: usize,
}

/// A checkpoint whose note is valid.
#[derive(Debug)]
struct Signed {
    checkpoint: Checkpoint,
    before: Frontier,
    digests: Vec<Hash>,
    series: Series,
    seq: u64,
}

impl Signed {
    /// The tree with its digests; `None` if that is not what was signed.
    fn tree(&self) -> Option<Frontier> {
        let mut tree = self.before.clone();
        self.digests
            .iter()
            .for_each(|digest| tree.push(leaf(digest)));
        let is_same = tree.size() == self.checkpoint.size && tree.root() == self.checkpoint.root;
        is_same.then_some(tree)
    }
}

impl Signed {
    /// Root of the tree when it had this size, which is one of those that the digests lead through.
    fn root_at(&self, size: u64) -> Hash {
        let mut tree = self.before.clone();
        let n_more = usize::try_from(size - tree.size()).unwrap_or(usize::MAX);
        let more = self.digests.iter().take(n_more);
        more.for_each(|digest| tree.push(leaf(digest)));
        tree.root()
    }
}

/// Takes in records, and says what they prove.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    seen: Vec<Seen>,
    signed: BTreeMap<String, Vec<Signed>>,
    source: usize,
    begins: HashMap<String, u64>,
    kept: HashMap<String, BTreeMap<u64, Hash>>,
    verdict: Verdict,
}

impl Verifier {
    /// With the keys of the logs.
    #[must_use]
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self {
            keys,
            seen: Vec::new(),
            signed: BTreeMap::new(),
            source: 0,
            begins: HashMap::new(),
            kept: HashMap::new(),
            verdict: Verdict::default(),
        }
    }

    /// Takes in a checkpoint that somebody has kept elsewhere: the log must have gone on from it.
    ///
    /// # Errors
    ///
    /// When it is no checkpoint that a known key has signed.
    pub fn expect(&mut self, note: &str) -> Result<(), CheckpointError> {
        let kept = Checkpoint::open(note, &self.keys)?;
        let log = self.kept.entry(kept.origin).or_default();
        match log.insert(kept.size, kept.root) {
            Some(other) if other != kept.root => {
                self.verdict
                    .findings
                    .push(Finding::Fork { size: kept.size });
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves of this log before `index` are of no interest: they were verified before.
    pub fn begin_log_at(&mut self, origin: String, index: u64) {
        self.begins.insert(origin, index);
    }

    /// The records that follow are of another file, which may be older than the one before.
    pub fn begin_source(&mut self) {
        self.source += 1;
    }

    /// Takes in a record.
    pub fn add(&mut self, entry: &Entry) {
        let series = Series::of(entry);
        let seq = entry.number("seq").unwrap_or_default();
        let Some(digest) = entry.digest() else {
            self.verdict.n_without_evidence += 1;
            return;
        };
        if entry.text("event") == Some("checkpoint") {
            match self.signed(entry, &series, seq) {
                Ok(signed) => {
                    let origin = signed.checkpoint.origin.clone();
                    self.signed.entry(origin).or_default().push(signed);
                }
                Err(error) => self.verdict.findings.push(Finding::Note {
                    series: series.clone(),
                    seq,
                    reason: error.to_string(),
                }),
            }
        }
        self.seen.push(Seen {
            series,
            seq,
            digest,
            source: self.source,
        });
    }

    fn signed(&self, entry: &Entry, series: &Series, seq: u64) -> Result<Signed, CheckpointError> {
        let text = |name: &str| entry.text(name).ok_or(CheckpointError::Form);
        let checkpoint = Checkpoint::open(text("note")?, &self.keys)?;
        let hashes = |name: &str| match entry.text(name) {
            Some(text) => from_text(text).ok_or(CheckpointError::Form),
            // The journal has no empty fields.
            None => Ok(Vec::new()),
        };
        let digests = hashes("digests")?;
        let first = checkpoint.size.checked_sub(digests.len() as u64);
        let before = first.and_then(|first| Some((first, hashes("frontier").ok()?)));
        let before = before.and_then(|(first, peaks)| Frontier::new(first, peaks));
        Ok(Signed {
            before: before.ok_or(CheckpointError::Form)?,
            checkpoint,
            digests,
            series: series.clone(),
            seq,
        })
    }

    /// Says what all of it proves.
    #[must_use]
    pub fn finish(self) -> Verdict {
        let Self {
            seen,
            signed,
            begins,
            mut kept,
            keys,
            mut verdict,
            ..
        } = self;
        for key in keys.iter().filter(|key| !signed.contains_key(key.name())) {
            let origin = key.name().to_owned();
            verdict.findings.push(Finding::Silent { origin });
        }
        let mut rest: Vec<Seen> = seen;
        for (origin, mut signed) in signed {
            signed.sort_by_key(|it| (it.checkpoint.size, it.before.size()));
            let begin = begins.get(&origin).copied().unwrap_or(0);
            let kept = kept.remove(&origin).unwrap_or_default();
            let mut log = Log::new(origin, begin, kept);
            for it in &signed {
                log.cover(it);
            }
            // A record is of the log that its agent's checkpoints are of.
            let agents: BTreeSet<_> = signed.iter().map(|it| it.series.agent()).collect();
            let (own, others) = rest
                .into_iter()
                .partition(|it| agents.contains(&it.series.agent()));
            rest = others;
            verdict.logs.push(LogVerdict {
                agents,
                ..log.hold(own)
            });
        }
        verdict.n_without_log = rest.len() as u64;
        verdict
    }
}

/// One log, while its checkpoints and records are held against each other.
struct Log {
    verdict: LogVerdict,
    /// Digests that a checkpoint covers, by index.
    covered: BTreeMap<u64, Hash>,
    /// The tree that the last checkpoint has signed.
    tree: Option<Frontier>,
    /// Roots that somebody has kept, by size.
    kept: BTreeMap<u64, Hash>,
    /// Series of the record of the last checkpoint: what follows is of it.
    newest: Option<Series>,
}

impl Log {
    fn new(origin: String, begin: u64, kept: BTreeMap<u64, Hash>) -> Self {
        let verdict = LogVerdict {
            origin,
            first: begin,
            ..LogVerdict::default()
        };
        Self {
            verdict,
            covered: BTreeMap::new(),
            tree: None,
            kept,
            newest: None,
        }
    }

    fn find(&mut self, finding: Finding) {
        self.verdict.findings.push(finding);
    }

    /// Takes in the next checkpoint, by size.
    fn cover(&mut self, signed: &Signed) {
        let size = signed.checkpoint.size;
        let Some(tree) = signed.tree() else {
            let (series, seq) = (signed.series.clone(), signed.seq);
            return self.find(Finding::Tree { size, series, seq });
        };
        let series = Some(signed.series.clone());
        match &self.tree {
            None if signed.before.size() > self.verdict.first => {
                let (first, last) = (self.verdict.first, signed.before.size() - 1);
                self.find(Finding::Gap { first, last });
            }
            None => {}
            // The same once more: its record is found to be there twice.
            Some(last) if *last == tree => return self.newest = series,
            Some(last) if last.size() < signed.before.size() => {
                let (first, last) = (last.size(), signed.before.size() - 1);
                self.find(Finding::Gap { first, last });
            }
            Some(last) if *last != signed.before => return self.find(Finding::Fork { size }),
            Some(_) => {}
        }
        let sizes = signed.before.size()..=size;
        for (&size, root) in self.kept.range(sizes) {
            if signed.root_at(size) != *root {
                self.verdict.findings.push(Finding::Fork { size });
            }
        }
        self.covered
            .extend((signed.before.size()..).zip(signed.digests.iter().copied()));
        self.verdict.n_checkpoints += 1;
        self.verdict.size = size;
        self.newest = series;
        self.tree = Some(tree);
    }

    /// Finds the numbers between these of which nothing is there.
    fn find_missing(&mut self, numbers: BTreeMap<Series, BTreeSet<u64>>) {
        for (series, numbers) in numbers {
            let pairs = numbers.iter().zip(numbers.iter().skip(1));
            for (before, after) in pairs.filter(|(before, after)| *before + 1 < **after) {
                let (first, last) = (before + 1, after - 1);
                self.find(Finding::NumbersMissing {
                    series: series.clone(),
                    first,
                    last,
                });
            }
        }
    }

    /// Holds records against what is covered.
    fn hold(mut self, records: Vec<Seen>) -> LogVerdict {
        let by_digest: HashMap<Hash, u64> = self
            .covered
            .iter()
            .map(|(index, digest)| (*digest, *index))
            .collect();
        let mut places = Places::default();
        let mut others = Vec::new();
        let mut last: Option<(usize, u64)> = None;
        for record in records {
            let Some(&index) = by_digest.get(&record.digest) else {
                others.push(record);
                continue;
            };
            if !places.add(&record, index) {
                self.find(Finding::Repeated { index });
                continue;
            }
            self.verdict.n_records += 1;
            match last {
                Some((source, after)) if source == record.source && after > index => {
                    self.find(Finding::OutOfOrder { index, after });
                }
                _ => last = Some((record.source, index)),
            }
        }
        if let Some((&size, _)) = self.kept.last_key_value()
            && size > self.verdict.size
        {
            self.find(Finding::CutOff { size });
        }
        let mut altered = BTreeSet::new();
        let mut numbers: BTreeMap<Series, BTreeSet<u64>> = BTreeMap::new();
        for Seen { series, seq, .. } in others {
            let place = places.expected(&series, seq);
            numbers.entry(series.clone()).or_default().insert(seq);
            match place {
                Some(index) if self.covered.contains_key(&index) => {
                    if !places.has(index) && altered.insert(index) {
                        self.find(Finding::Altered { index, series, seq });
                    } else if places.is_within(&series, seq) {
                        self.find(Finding::Inserted { index, series, seq });
                    } else {
                        self.find(Finding::Unproven { series, seq });
                    }
                }
                // After the last checkpoint.
                index
                    if self.newest.as_ref() == Some(&series)
                        && index.is_none_or(|index| index >= self.verdict.size) =>
                {
                    self.verdict.n_unanchored += 1;
                }
                _ => self.find(Finding::Unproven { series, seq }),
            }
        }
        let covered = std::mem::take(&mut self.covered);
        for (&index, &digest) in covered.range(self.verdict.first..) {
            if places.has(index) || altered.contains(&index) {
                continue;
            }
            let seq = places.number_of(index);
            if let Some((series, seq)) = &seq {
                numbers.entry(series.clone()).or_default().insert(*seq);
            }
            self.find(Finding::Missing { index, digest, seq });
        }
        places.add_numbers_to(&mut numbers);
        self.find_missing(numbers);
        self.verdict.findings.sort();
        self.verdict
    }
}

/// Records in their places: numbers and indices count up together within a series.
#[derive(Default)]
struct Places {
    by_index: BTreeMap<u64, (Series, u64)>,
    by_number: BTreeMap<Series, BTreeMap<u64, u64>>,
}

impl Places {
    /// False if there is one already.
    fn add(&mut self, record: &Seen, index: u64) -> bool {
        let place = (record.series.clone(), record.seq);
        if self.by_index.insert(index, place).is_some() {
            return false;
        }
        let numbers = self.by_number.entry(record.series.clone()).or_default();
        numbers.insert(record.seq, index);
        true
    }

    fn has(&self, index: u64) -> bool {
        self.by_index.contains_key(&index)
    }

    /// Index that the record with this number has: as far from its neighbour's as the numbers are.
    fn expected(&self, series: &Series, seq: u64) -> Option<u64> {
        let numbers = self.by_number.get(series)?;
        if let Some((lower, index)) = numbers.range(..=seq).next_back() {
            return index.checked_add(seq - lower);
        }
        let (higher, index) = numbers.range(seq..).next()?;
        index.checked_sub(higher - seq)
    }

    /// True if records with lower and with higher numbers are in their places.
    fn is_within(&self, series: &Series, seq: u64) -> bool {
        self.by_number.get(series).is_some_and(|numbers| {
            numbers.range(..=seq).next().is_some() && numbers.range(seq..).next().is_some()
        })
    }

    /// Number of the record that has this index, as far as it follows from the one before it.
    fn number_of(&self, index: u64) -> Option<(Series, u64)> {
        let (before, (series, seq)) = self.by_index.range(..index).next_back()?;
        let seq = seq + (index - before);
        // Behind the last of a boot, the next one's follow.
        self.is_within(series, seq).then(|| (series.clone(), seq))
    }

    fn add_numbers_to(&self, numbers: &mut BTreeMap<Series, BTreeSet<u64>>) {
        for (series, own) in &self.by_number {
            numbers
                .entry(series.clone())
                .or_default()
                .extend(own.keys());
        }
    }
}

#[cfg(test)]
mod tests;
