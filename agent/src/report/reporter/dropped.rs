//! Records that found no room, and the traffic that they were the last to tell of.
//!
//! The sums are facts of the spool until they are told as lost.

use std::collections::BTreeMap;

use super::{
    super::{Field, Record, spool::Spool},
    sums::is_final,
};

/// Names of facts.
mod fact {
    /// Records that found no room so far.
    pub(super) const DROPPED: &str = "dropped";
    /// And a verdict: what they told of last, and nobody was told of.
    pub(super) const DROPPED_OF: &str = "dropped.";
}

/// Records that found no room.
#[derive(Default)]
pub(super) struct Dropped {
    total: u64,
    /// By verdict; without one, those that were not the last about something.
    untold: BTreeMap<String, Untold>,
}

/// Records and traffic that nobody was told of.
#[derive(Clone, Copy, Default)]
struct Untold {
    records: u64,
    bytes_out: u64,
    packets_out: u64,
}

impl Untold {
    fn to_fact(self) -> String {
        let Self {
            records,
            bytes_out,
            packets_out,
        } = self;
        format!("{records} {bytes_out} {packets_out}")
    }

    fn of_fact(fact: &str) -> Self {
        let mut numbers = fact.split(' ').map(|it| it.parse().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        Self {
            records: number(),
            bytes_out: number(),
            packets_out: number(),
        }
    }
}

impl Dropped {
    /// Reads them as an agent before has left them.
    pub(super) fn of_spool(spool: &Spool) -> Self {
        let total = spool.fact(fact::DROPPED).and_then(|it| it.parse().ok());
        let untold = spool.facts(fact::DROPPED_OF);
        Self {
            total: total.unwrap_or(0),
            untold: untold
                .map(|(verdict, fact)| (verdict.to_owned(), Untold::of_fact(fact)))
                .collect(),
        }
    }

    /// Bytes and packets of this verdict that are to be told as lost.
    pub(super) fn sums(&self, verdict: &str) -> (u64, u64) {
        let untold = self.untold.get(verdict).copied().unwrap_or_default();
        (untold.bytes_out, untold.packets_out)
    }

    /// Counts a record that found no room.
    pub(super) fn add(&mut self, record: &Record, spool: &mut Spool) {
        let verdict = record.text(Field::Verdict).filter(|_| is_final(record));
        let untold = self
            .untold
            .entry(verdict.unwrap_or_default().to_owned())
            .or_default();
        untold.records += 1;
        if verdict.is_some() {
            untold.bytes_out += record.number(Field::BytesOut).unwrap_or(0);
            untold.packets_out += record.number(Field::PacketsOut).unwrap_or(0);
        }
        self.total += 1;
        let name = format!("{}{}", fact::DROPPED_OF, verdict.unwrap_or_default());
        spool.set(name, Some(untold.to_fact()));
        spool.set(fact::DROPPED.to_owned(), Some(self.total.to_string()));
    }

    /// Makes records of them, which are to be emitted, and forgets what these tell.
    pub(super) fn tell(&mut self, spool: &mut Spool, time_us: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for (verdict, untold) in std::mem::take(&mut self.untold) {
            let meaning = match verdict.is_empty() {
                true => {
                    "records that were not the last about something found no room; nothing \
                     that they told of is missing from the sums"
                }
                false => {
                    "the last records of flows found no room; what they told of is in no \
                     other record"
                }
            };
            let count = untold.records;
            let mut loss = Record::loss("records-dropped", count, self.total, meaning, time_us);
            if !verdict.is_empty() {
                loss.set(Field::Verdict, verdict.as_str());
                loss.set(Field::BytesOut, untold.bytes_out);
                loss.set(Field::PacketsOut, untold.packets_out);
            }
            spool.set(format!("{}{verdict}", fact::DROPPED_OF), None);
            records.push(loss);
        }
        records
    }
}
