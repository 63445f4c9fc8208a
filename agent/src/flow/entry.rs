//! One flow of the table: its newest state, and what was told of it.

use std::cmp::Ordering;

use trefoil_ebpf::abi::{Counters, Owner, Tracked, quality, verdict};

use super::{Ending, FlowReport, Report, ReportKind, Stage, counted, minus, zip};
use crate::geo::Country;

/// Where a state is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Written by the kernel program that changed the flow.
    Event,
    /// Read while kernel programs may have been changing it.
    Sweep,
}

/// A flow that is open.
pub(super) struct Entry {
    /// Newest state, merged from all that came.
    pub(super) tracked: Tracked,
    pub(super) country: Option<Country>,
    pub(super) first_seen_ns: u64,
    /// When the newest state was taken.
    pub(super) seen_ns: u64,
    /// When its numbers moved last.
    pub(super) moved_ns: u64,
    pub(super) missed: u8,
    /// Reported by itself; else it is rolled up.
    pub(super) single: bool,
    /// Some record told of it.
    pub(super) told: bool,
    pub(super) told_ns: u64,
    pub(super) told_counted: Counters,
    /// An agent before may have told of more than that.
    pub(super) told_more: bool,
    pub(super) told_quality: u8,
    /// Something besides the numbers changed since then.
    pub(super) changed: bool,
}

impl Entry {
    pub(super) fn new(
        tracked: &Tracked,
        country: Option<Country>,
        time_ns: u64,
        single: bool,
    ) -> Self {
        Self {
            tracked: *tracked,
            country,
            first_seen_ns: time_ns,
            seen_ns: time_ns,
            moved_ns: time_ns,
            missed: 0,
            single,
            told: false,
            told_ns: 0,
            told_counted: Counters::default(),
            told_more: false,
            told_quality: quality::NONE,
            changed: false,
        }
    }

    /// Brings in another state of the same flow, newer or older. False if it
    /// contradicts what is known.
    ///
    /// A flow's base never changes. A sweep that reads another one has read the
    /// slot while the next flow was beginning in it; an event is right.
    pub(super) fn merge(&mut self, tracked: &Tracked, time_ns: u64, origin: Origin) -> bool {
        let is_torn = tracked.flow.base != self.tracked.flow.base;
        if is_torn && origin == Origin::Sweep {
            return false;
        }
        let (known, new) = (&mut self.tracked.flow, &tracked.flow);
        if is_torn {
            known.base = new.base;
            known.counters = new.counters;
        }
        let before = known.counters;
        let highest = highest(&before, &new.counters);
        if highest != before {
            self.moved_ns = self.moved_ns.max(time_ns);
        }
        known.counters = highest;
        let is_newer = match packets(&new.counters).cmp(&packets(&before)) {
            Ordering::Greater => true,
            Ordering::Equal => time_ns >= self.seen_ns,
            Ordering::Less => false,
        };
        if is_newer {
            if !new.local.is_unspecified() {
                (known.local, known.local_port) = (new.local, new.local_port);
            }
            self.changed |= known.decision != new.decision;
            (known.decision, known.direction) = (new.decision, new.direction);
            // A known owner is not forgotten.
            if tracked.owner.quality != quality::NONE || self.tracked.owner.quality == quality::NONE
            {
                let epoch = tracked.owner.epoch;
                let before = Owner {
                    epoch,
                    ..self.tracked.owner
                };
                self.changed |= before != tracked.owner;
                self.tracked.owner = tracked.owner;
            }
        }
        known.state |= new.state;
        self.seen_ns = self.seen_ns.max(time_ns);
        !is_torn
    }

    /// True if something has changed since it was told of, or if it never was.
    pub(super) fn is_news(&self) -> bool {
        !self.told || self.changed || counted(&self.tracked.flow) != self.told_counted
    }

    /// Returns the counters since the flow was last told of, in whatever record, and
    /// notes that it is told now. `None` if that is not known.
    pub(super) fn take_new(&mut self) -> Option<Counters> {
        let counted = counted(&self.tracked.flow);
        let new = minus(&counted, &self.told_counted);
        self.told_counted = counted;
        (!std::mem::take(&mut self.told_more)).then_some(new)
    }

    /// Makes a report, and notes what was told.
    pub(super) fn report(
        &mut self,
        kind: ReportKind,
        stage: Stage,
        time_ns: u64,
        ending: Option<Ending>,
    ) -> Report {
        let counted = counted(&self.tracked.flow);
        let since_last = minus(&counted, &self.told_counted);
        let is_since_known = !std::mem::take(&mut self.told_more);
        self.told = true;
        self.told_ns = time_ns;
        self.told_counted = counted;
        self.told_quality = self.tracked.owner.quality;
        self.changed = false;
        let tracked = self.tracked;
        Report::Flow(FlowReport {
            kind,
            stage,
            time_ns,
            tracked,
            counted,
            since_last,
            is_since_known,
            ending,
        })
    }
}

pub(super) fn kind_of(tracked: &Tracked) -> ReportKind {
    if is_violation(tracked) {
        ReportKind::Violation
    } else {
        ReportKind::Flow
    }
}

/// Not approved. A flow that nobody judged yet is no violation.
pub(super) fn is_violation(tracked: &Tracked) -> bool {
    let verdict = tracked.flow.decision.verdict;
    verdict != verdict::NONE && !verdict::is_approved(verdict)
}

/// Something left, or would have.
pub(super) fn has_happened(counted: &Counters) -> bool {
    counted.packets_out > 0 || counted.blocked_packets > 0 || counted.refused > 0
}

pub(super) fn is_only_refused(counted: &Counters) -> bool {
    *counted
        == Counters {
            refused: counted.refused,
            ..Counters::default()
        }
        && counted.refused > 0
}

fn packets(counters: &Counters) -> u64 {
    counters.packets_out + counters.packets_in + counters.blocked_packets + counters.refused
}

fn highest(one: &Counters, other: &Counters) -> Counters {
    zip(one, other, u64::max)
}
