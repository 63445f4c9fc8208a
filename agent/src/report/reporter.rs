//! From records to sinks: numbers, order, back pressure.
//!
//! The rules of this stage:
//!
//! - A record gets its number when it is emitted, is handed over once it is kept in the spool,
//!   and leaves that when every sink has it ("report, then remember", see [`super::spool`]).
//!   So every sink sees every number, in order, whatever becomes of the agent.
//! - The facts that a record was made from are kept with it:
//!   [`Reporter::set_fact`] and [`Reporter::emit`] take effect together, with
//!   the next [`Reporter::keep`].
//! - The first sink is the report of record. While it takes nothing, records
//!   wait, [`Reporter::is_backed_up`] turns true, and the caller leaves events in
//!   the kernel, where numbers are cumulative and nothing gets lost. The same if the spool
//!   cannot be written.
//! - Any other sink that fails for longer than
//!   [`ReporterSettings::patience_ns`] is left aside, so that a full disk does
//!   not silence the journal. A `loss` record says how many it misses: at once, each
//!   minute, and when it takes records again; by the next agent, if this one ends before.
//! - Records that find the spool full in spite of that are dropped, and `loss` records say
//!   how many they were, and what they told of last, by verdict.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use self::{attached::Attached, dropped::Dropped, proof::Proof, sums::Sums};
use super::{Context, Origin, Record, Sealed, Sink, SpoolError, spool::Spool};
use crate::{clock, evidence::EvidenceError};

mod attached;
mod dropped;
mod proof;
#[cfg(test)]
mod proof_tests;
mod sums;

pub use attached::Stall;

/// Why there can be no reporter.
#[derive(Debug, thiserror::Error)]
pub enum ReporterError {
    /// See there.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// See there.
    #[error("evidence: {0}")]
    Evidence(#[from] EvidenceError),
}

/// Name of a fact, and of a sink: how many records that the sink missed somebody was told of.
const MISSED: &str = "missed.";

/// Where the reporter keeps what waits, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReporterSettings {
    /// Names the files of the spool, without `.0` and `.1`. Their directory must be on a file
    /// system that is empty after a boot and not after a restart of the agent: with systemd,
    /// `RuntimeDirectoryPreserve=yes`.
    pub spool: PathBuf,
    /// Most records that wait. Backed up from half of it on; the rest is for what comes from
    /// memory and not from the kernel.
    pub max_pending: usize,
    /// Most bytes of them in the spool, likewise.
    pub max_pending_bytes: usize,
    /// How long a sink, other than the first, may hold up the others.
    pub patience_ns: u64,
    /// Directory of the log of digests, and its name; `None` for none.
    pub evidence: Option<(PathBuf, String)>,
}

impl ReporterSettings {
    /// Defaults, with this spool.
    #[must_use]
    pub fn new(spool: impl Into<PathBuf>) -> Self {
        Self {
            spool: spool.into(),
            max_pending: 16_384,
            max_pending_bytes: 32 << 20,
            patience_ns: 10_000_000_000,
            evidence: None,
        }
    }
}

/// Result of a call of [`Reporter::flush`].
#[derive(Debug)]
pub struct Progress {
    /// Records that every sink has now.
    pub handed_over: usize,
    /// Records that still wait.
    pub pending: usize,
    /// Set when there is no use in trying again at once.
    pub stalled: Option<Stall>,
    /// Set while a sink is left aside, and misses records.
    pub aside: Option<Stall>,
}

/// Gives records their numbers and hands them to the sinks.
pub struct Reporter {
    settings: ReporterSettings,
    context: Context,
    sinks: Vec<Attached>,
    spool: Spool,
    origin: Origin,
    /// Records that not every sink has, in the order of numbers.
    pending: VecDeque<Sealed>,
    pending_bytes: usize,
    /// How many of them are in the spool.
    n_kept: usize,
    /// Number of the next record.
    next: u64,
    /// Sinks that have the first of `pending`, in their order.
    done: Vec<bool>,
    sums: Sums,
    dropped: Dropped,
    /// Why the spool could not be written the last time.
    unkept: Option<io::Error>,
    /// Nobody hands over what is left here.
    is_last: bool,
    proof: Option<Proof>,
}

impl Reporter {
    /// Takes over from the agent before its numbers, the records that it did not hand over, and
    /// its facts. The first sink is the report of record.
    ///
    /// # Errors
    ///
    /// When the spool or the log of digests cannot be used.
    pub fn open(
        settings: ReporterSettings,
        context: Context,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Result<Self, ReporterError> {
        let (spool, origin, left) = Spool::open(&settings.spool, &context.boot_id)?;
        let attach = |sink: Box<dyn Sink>| {
            let missed = left.missed.get(sink.name()).copied().unwrap_or(0);
            let told = spool.fact(&format!("{MISSED}{}", sink.name()));
            let told = told.and_then(|it| it.parse().ok()).unwrap_or(0);
            Attached::new(sink, missed, told)
        };
        let sinks: Vec<_> = sinks.into_iter().map(attach).collect();
        let has_it = |it: &Attached| left.done.iter().any(|name| name == it.name());
        let last = left.pending.back().map(|sealed| sealed.seq() + 1);
        let mut reporter = Self {
            done: sinks.iter().map(has_it).collect(),
            next: last.unwrap_or(spool.first()),
            pending_bytes: left.pending.iter().map(|it| it.line().len()).sum(),
            n_kept: left.pending.len(),
            sums: Sums::of_spool(&spool),
            dropped: Dropped::of_spool(&spool),
            pending: VecDeque::new(),
            settings,
            context,
            sinks,
            origin,
            unkept: None,
            is_last: false,
            proof: None,
            spool,
        };
        for sealed in left.pending {
            reporter.sums.hold(sealed.record());
            reporter.pending.push_back(sealed);
        }
        if let Origin::Damaged(reason) = &reporter.origin {
            let path = reporter.settings.spool.display().to_string();
            let reason = format!("{reason}; the numbers of records begin with 1 again");
            reporter.emit(Record::tamper(&path, &reason, clock::unix_us()));
        }
        if let Some((directory, name)) = reporter.settings.evidence.clone() {
            reporter.begin_proof(&directory, &name)?;
        }
        Ok(reporter)
    }

    /// Where the first number comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How many batches were kept in this boot: less than an agent before has said, if somebody has
    /// taken away the spool or a part of it.
    #[must_use]
    pub fn batch(&self) -> u64 {
        self.spool.batch()
    }

    /// Number of the next record.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Leaves out numbers that were given to records which are gone.
    pub fn skip_to(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// Returns the facts that go into every record from now on.
    pub fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Gives a record its number and puts it at the end of the queue.
    pub fn emit(&mut self, mut record: Record) {
        self.context.add_to(&mut record);
        if let Some(proof) = &mut self.proof {
            proof.salt(&mut record);
        }
        let sealed = Sealed::new(record, self.next);
        let bytes = self.pending_bytes + sealed.line().len();
        if self.pending.len() >= self.settings.max_pending
            || bytes > self.settings.max_pending_bytes
        {
            return self.dropped.add(sealed.record(), &mut self.spool);
        }
        self.next += 1;
        self.pending_bytes = bytes;
        self.sums.hold(sealed.record());
        self.sums.add_final(sealed.record(), &mut self.spool);
        if let Some(proof) = &mut self.proof {
            proof.add(sealed.record());
        }
        self.pending.push_back(sealed);
    }

    /// Bytes and packets that were told as sent for good since the sums were set, those among
    /// them that found no room and are to be told as lost.
    #[must_use]
    pub fn told_for_good(&self, verdict: &str) -> (u64, u64) {
        let (bytes, packets) = self.sums.of_finals(verdict);
        let dropped = self.dropped.sums(verdict);
        (
            bytes.wrapping_add(dropped.0),
            packets.wrapping_add(dropped.1),
        )
    }

    /// Sets the sums of what is told for good: other tables count from here on.
    pub fn set_told_for_good(&mut self, verdict: &str, sum: (u64, u64)) {
        self.sums.set_final(verdict, sum, &mut self.spool);
    }

    /// Bytes and packets that records tell as sent for good, and that not every sink has; those
    /// that found no room and are to be told as lost are among them.
    #[must_use]
    pub fn held(&self, verdict: &str) -> (u64, u64) {
        let (bytes, packets) = self.sums.held(verdict);
        let dropped = self.dropped.sums(verdict);
        (bytes + dropped.0, packets + dropped.1)
    }

    /// A fact, of this agent or the one before.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.spool.fact(name)
    }

    /// Facts whose names begin so; the rest of their names.
    pub fn facts<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
        self.spool.facts(prefix)
    }

    /// Remembers something beyond the life of this agent, or forgets it, together with the
    /// records that are emitted before the next [`keep`](Self::keep).
    pub fn set_fact(&mut self, name: String, value: Option<String>) {
        self.spool.set(name, value);
    }

    /// Keeps what has been emitted and set since the last time: all of it, or nothing. False if
    /// it could not be, and then it is tried again with the next call.
    pub fn keep(&mut self) -> bool {
        if let Some(proof) = &mut self.proof {
            proof.write(&mut self.spool);
        }
        self.unkept = self.spool.keep(&self.pending, self.n_kept).err();
        if self.unkept.is_none() {
            self.n_kept = self.pending.len();
        }
        self.unkept.is_none()
    }

    /// Hands over everything, and waits for the sinks until `patience` is over:
    /// for an agent that is about to stop. After the last one, nobody finds in the kernel what the
    /// spool has no room for: then it is handed over from memory.
    pub fn finish(&mut self, patience: Duration, is_last: bool) -> Progress {
        const PAUSE: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + patience;
        self.is_last = is_last;
        for attached in &mut self.sinks {
            attached.hurry();
        }
        self.sign_the_rest(clock::since_boot_ns());
        loop {
            let progress = self.flush(clock::since_boot_ns());
            if progress.pending == 0 {
                self.finish_proof();
                return progress;
            }
            if Instant::now() >= deadline {
                return progress;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Hands over as much as the sinks take, without waiting for them. `now_ns`
    /// is a clock that does not run backwards.
    pub fn flush(&mut self, now_ns: u64) -> Progress {
        let (mut handed_over, mut stalled) = (0, None);
        loop {
            self.tell_losses(now_ns);
            self.sign(now_ns);
            if self.n_kept == 0 && !self.keep() {
                stalled = self.unkept.as_ref().map(|error| Stall::new("spool", error));
                if !self.is_last || self.pending.is_empty() {
                    break;
                }
                self.n_kept = self.pending.len();
            }
            if self.n_kept == 0 {
                break;
            }
            match self.hand_over(now_ns) {
                Ok(()) => handed_over += 1,
                Err(stall) => {
                    stalled = Some(stall);
                    break;
                }
            }
        }
        Progress {
            handed_over,
            pending: self.pending(),
            stalled,
            aside: self.sinks.iter().find_map(Attached::stall),
        }
    }

    /// Opens anew what sinks write to.
    pub fn reopen(&mut self) {
        for attached in &mut self.sinks {
            attached.reopen();
        }
    }

    /// Records that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// True when the caller should leave events where they are.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.room() == 0
    }

    /// Records that may be emitted before it is backed up.
    #[must_use]
    pub fn room(&self) -> usize {
        let is_full = self.pending_bytes >= self.settings.max_pending_bytes / 2;
        if self.unkept.is_some() || is_full {
            return 0;
        }
        (self.settings.max_pending / 2).saturating_sub(self.pending.len())
    }

    /// Hands the first record to those sinks that do not have it.
    fn hand_over(&mut self, now_ns: u64) -> Result<(), Stall> {
        let Some(first) = self.pending.front() else {
            return Ok(());
        };
        let (mut stalled, mut moved) = (None, false);
        for (index, attached) in self.sinks.iter_mut().enumerate() {
            if self.done[index] {
                continue;
            }
            match attached.try_hand_over(first, index == 0, now_ns, self.settings.patience_ns) {
                Ok(()) => {
                    self.done[index] = true;
                    moved = true;
                }
                Err(error) => stalled = stalled.or(Some(Stall::new(attached.name(), &error))),
            }
        }
        let seq = first.seq();
        let acknowledged = match &stalled {
            None => self.acknowledge(seq + 1, false),
            Some(_) if moved => self.acknowledge(seq, true),
            Some(_) => Ok(()),
        };
        acknowledged.map_err(|error| Stall::new("spool", &error))?;
        if let Some(stall) = stalled {
            return Err(stall);
        }
        if let Some(sealed) = self.pending.pop_front() {
            self.pending_bytes -= sealed.line().len();
            self.sums.let_go(sealed.record());
        }
        self.n_kept -= 1;
        self.done.fill(false);
        Ok(())
    }

    /// Notes that all sinks have what comes before record `first`, and some sinks that one.
    fn acknowledge(&mut self, first: u64, has_some: bool) -> io::Result<()> {
        let done = self.sinks.iter().zip(&self.done);
        let done = done.filter(|(_, done)| has_some && **done);
        let missed = self.sinks.iter().map(|it| (it.name(), it.missed()));
        let done = done.map(|(attached, _)| attached.name());
        self.spool.acknowledge(first, done, missed)
    }

    /// Makes records of what was lost here, once there is room for them.
    fn tell_losses(&mut self, now_ns: u64) {
        let time_us = clock::unix_us();
        let half = self.settings.max_pending / 2;
        let half_bytes = self.settings.max_pending_bytes / 2;
        if self.pending.len() > half || self.pending_bytes > half_bytes {
            return;
        }
        for loss in self.dropped.tell(&mut self.spool, time_us) {
            self.emit(loss);
        }
        for index in 0..self.sinks.len() {
            let attached = &mut self.sinks[index];
            let Some(loss) = attached.tell_missed(now_ns, time_us) else {
                continue;
            };
            let (name, missed) = (attached.name(), attached.missed().to_string());
            self.spool.set(format!("{MISSED}{name}"), Some(missed));
            self.emit(loss);
        }
    }
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
