//! Sums of the traffic that records tell as sent for good, by verdict: bytes and packets.
//!
//! They are those of final records and of losses: with the kernel's own sums they show if a
//! record is missing.

use std::{collections::BTreeMap, sync::Arc};

use super::super::{Field, Kind, Record, spool::Spool};

/// Name of a fact, and a verdict: sums of final records.
const FINAL: &str = "final.";

/// Sums by verdict: bytes and packets.
#[derive(Default)]
pub(super) struct Sums {
    /// Those of records that not every sink has.
    held: BTreeMap<Arc<str>, (u64, u64)>,
    /// Those of all final records, counted since the present tables exist.
    finals: BTreeMap<Arc<str>, (u64, u64)>,
}

impl Sums {
    /// Reads those of final records as an agent before has left them.
    pub(super) fn of_spool(spool: &Spool) -> Self {
        Self {
            held: BTreeMap::new(),
            finals: spool
                .facts(FINAL)
                .map(|(verdict, sums)| (verdict.into(), pair(sums)))
                .collect(),
        }
    }

    /// Adds a record that waits for its sinks.
    pub(super) fn hold(&mut self, record: &Record) {
        self.change_held(record, u64::wrapping_add);
    }

    /// Subtracts a record that every sink has.
    pub(super) fn let_go(&mut self, record: &Record) {
        self.change_held(record, u64::wrapping_sub);
    }

    fn change_held(&mut self, record: &Record, change: fn(u64, u64) -> u64) {
        if let Some((verdict, (bytes, packets))) = sent_for_good(record) {
            let held = self.held.entry(verdict.into()).or_default();
            *held = (change(held.0, bytes), change(held.1, packets));
        }
    }

    /// Adds a new record to the sums of final records.
    pub(super) fn add_final(&mut self, record: &Record, spool: &mut Spool) {
        if let Some((verdict, (bytes, packets))) = sent_for_good(record) {
            let sum = self.finals.get(verdict).copied().unwrap_or_default();
            let sum = (sum.0.wrapping_add(bytes), sum.1.wrapping_add(packets));
            self.set_final(verdict, sum, spool);
        }
    }

    /// Sets the sums of final records: other tables count from here on.
    pub(super) fn set_final(&mut self, verdict: &str, sum: (u64, u64), spool: &mut Spool) {
        self.finals.insert(verdict.into(), sum);
        let text = format!("{} {}", sum.0, sum.1);
        spool.set(format!("{FINAL}{verdict}"), Some(text));
    }

    /// Bytes and packets of records that not every sink has.
    pub(super) fn held(&self, verdict: &str) -> (u64, u64) {
        self.held.get(verdict).copied().unwrap_or_default()
    }

    /// Bytes and packets of final records.
    pub(super) fn of_finals(&self, verdict: &str) -> (u64, u64) {
        self.finals.get(verdict).copied().unwrap_or_default()
    }
}

/// Verdict, bytes and packets of a record that is final, or tells of traffic as lost.
fn sent_for_good(record: &Record) -> Option<(&str, (u64, u64))> {
    let verdict = record.text(Field::Verdict)?;
    let number = |field| record.number(field).unwrap_or(0);
    (record.kind() == Kind::Loss || is_final(record)).then(|| {
        (
            verdict,
            (number(Field::BytesOut), number(Field::PacketsOut)),
        )
    })
}

/// Two numbers.
fn pair(text: &str) -> (u64, u64) {
    let (one, other) = text.split_once(' ').unwrap_or_default();
    (one.parse().unwrap_or(0), other.parse().unwrap_or(0))
}

/// True if what a record tells of is in no other that is final.
pub(super) fn is_final(record: &Record) -> bool {
    matches!(record.kind(), Kind::Flow | Kind::Violation)
        && matches!(record.text(Field::State), Some("closed" | "rollup"))
}
