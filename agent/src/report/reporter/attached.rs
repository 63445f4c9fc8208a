//! A sink of the reporter: whether it takes records, and how many it has missed.
//!
//! It knows neither the queue nor the spool: the reporter decides which record is next.

use std::io;

use super::super::{Record, Sealed, Sink};

/// Why records wait.
#[derive(Debug)]
pub struct Stall {
    /// The sink that does not take them, or `spool`.
    pub sink: &'static str,
    /// Error of the sink.
    pub error: io::Error,
}

impl Stall {
    /// Names a sink, or `spool`, with a copy of its error.
    pub(super) fn new(sink: &'static str, error: &io::Error) -> Self {
        Self {
            sink,
            error: io::Error::new(error.kind(), error.to_string()),
        }
    }
}

/// A sink, and how it fares.
pub(super) struct Attached {
    sink: Box<dyn Sink>,
    failing_since_ns: Option<u64>,
    /// Why it is left aside.
    aside: Option<io::Error>,
    /// Records that it has missed while it was aside.
    missed: u64,
    /// Of them, those that somebody was told of.
    missed_told: u64,
    told_ns: Option<u64>,
}

/// Time between two records about a sink that is left aside.
const TELL_ASIDE_NS: u64 = 60_000_000_000;

impl Attached {
    /// Takes a sink that has missed so many records, of which so many were told as lost.
    pub(super) fn new(sink: Box<dyn Sink>, missed: u64, missed_told: u64) -> Self {
        Self {
            sink,
            failing_since_ns: None,
            aside: None,
            missed,
            missed_told,
            told_ns: None,
        }
    }

    /// Name of the sink.
    pub(super) fn name(&self) -> &'static str {
        self.sink.name()
    }

    /// Records that it has missed while it was left aside.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// The sink and its error, while it is left aside.
    pub(super) fn stall(&self) -> Option<Stall> {
        let error = self.aside.as_ref()?;
        Some(Stall::new(self.name(), error))
    }

    /// Opens anew what the sink writes to. The next record fails if that fails, and is told.
    pub(super) fn reopen(&mut self) {
        if let Err(error) = self.sink.reopen() {
            tracing::warn!("open the sink {} anew: {error}", self.name());
        }
    }

    /// Has the next record about missed ones made without waiting: the agent is about to stop.
    pub(super) fn hurry(&mut self) {
        self.told_ns = None;
    }

    /// Hands over a record. `Ok` also for a sink that is left aside: then the record counts as
    /// missed. The first sink is never left aside; another one is after `patience_ns`.
    pub(super) fn try_hand_over(
        &mut self,
        sealed: &Sealed,
        is_first: bool,
        now_ns: u64,
        patience_ns: u64,
    ) -> io::Result<()> {
        match self.sink.hand_over(sealed) {
            Ok(()) => {
                self.failing_since_ns = None;
                self.aside = None;
                Ok(())
            }
            Err(error) => {
                let since_ns = *self.failing_since_ns.get_or_insert(now_ns);
                if is_first || now_ns.saturating_sub(since_ns) < patience_ns {
                    return Err(error);
                }
                self.aside = Some(error);
                // The sink finishes a record that it has begun.
                self.missed += u64::from(!self.sink.is_partway(sealed.seq()));
                Ok(())
            }
        }
    }

    /// Makes a record of what it has missed since the last such record, if one is due. It is to
    /// be emitted, and the number of missed records kept, see [`missed`](Self::missed).
    pub(super) fn tell_missed(&mut self, now_ns: u64, time_us: u64) -> Option<Record> {
        let is_due = match (&self.aside, self.told_ns) {
            (Some(_), Some(told_ns)) => now_ns.saturating_sub(told_ns) >= TELL_ASIDE_NS,
            _ => true,
        };
        let missed = self.missed - self.missed_told.min(self.missed);
        if missed == 0 || !is_due {
            return None;
        }
        self.missed_told = self.missed;
        self.told_ns = Some(now_ns);
        let meaning = match &self.aside {
            None => "this sink took no records for a while; the others have them".into(),
            Some(error) => format!(
                "this sink takes no records ({error}), and misses those that come until \
                 it does; the others have them"
            ),
        };
        let subject = format!("records-{}", self.name());
        Some(Record::loss(
            &subject,
            missed,
            self.missed,
            &meaning,
            time_us,
        ))
    }
}
