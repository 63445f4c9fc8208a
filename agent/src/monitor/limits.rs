//! Budgets and exceptions of the policy in force: reading what the kernel has counted,
//! and saying what is new.

use super::{Compilation, Monitor};
use crate::{
    clock::{self, BootClock},
    kernel::{Budgets, KernelError},
    limits::{Said, Used},
    policy::Budget,
    report::Record,
};

/// How far the wall's clock may be set before moments of the policy are told anew.
const MOST_DRIFT_NS: u64 = 1_000_000_000;

/// State of budgets and exceptions, as the monitor remembers it.
pub(super) struct Limits {
    budgets: Vec<Budget>,
    /// Where each is counted.
    places: Vec<u32>,
    counts: Option<Budgets>,
    /// By which the kernel was told when exceptions begin and end; `None` if there are none.
    told_by: Option<BootClock>,
    said: Said,
}

impl Limits {
    pub(super) fn new(said: Said) -> Self {
        Self {
            budgets: Vec::new(),
            places: Vec::new(),
            counts: None,
            told_by: None,
            said,
        }
    }
}

impl Monitor {
    /// Returns the reports about budgets and exceptions so far, for an agent after this one.
    pub fn said(&self) -> &Said {
        &self.limits.said
    }

    /// True once if somebody has set the clock, and the policy has times that the kernel
    /// should be told anew.
    pub fn notices_that_clock_was_set(&mut self) -> bool {
        let now = BootClock::read();
        let was_set = self
            .limits
            .told_by
            .is_some_and(|told_by| now.drift_ns(&told_by) > MOST_DRIFT_NS);
        if was_set {
            // A policy that cannot be made again is refused once, and not each second.
            self.limits.told_by = Some(now);
        }
        was_set
    }

    /// The policy in force has other limits now.
    pub(super) fn limit(
        &mut self,
        policy: &Compilation,
        places: Vec<u32>,
        clock: BootClock,
    ) -> Result<(), KernelError> {
        let limits = &mut self.limits;
        limits.budgets.clone_from(&policy.compiled.budgets);
        limits.places = places;
        limits.told_by = policy.image.is_timed().then_some(clock);
        limits.said.keep(&limits.budgets);
        limits.counts = if limits.budgets.is_empty() {
            None
        } else {
            Some(Budgets::open(self.kernel.pins())?)
        };
        self.report_limits();
        Ok(())
    }

    /// Says what is new about them.
    pub(super) fn report_limits(&mut self) {
        let Some(counts) = &self.limits.counts else {
            return;
        };
        let (now_ns, time_us) = (clock::since_boot_ns(), clock::unix_us());
        for (budget, &place) in self.limits.budgets.iter().zip(&self.limits.places) {
            let counted = counts.get(place);
            let used = Used {
                window_bytes: counted.window_bytes(now_ns),
                packets: counted.used_packets,
            };
            for stage in self.limits.said.news(budget, used, time_us) {
                self.reporter
                    .emit(Record::limit(budget, stage, used, time_us));
            }
        }
    }
}
