//! How many of something a second.

const SECOND_NS: u64 = 1_000_000_000;

/// Lets at most `rate` things through in any second, evenly after a first burst
/// of as many.
///
/// The idle time that was saved up is what things are paid with: each costs
/// 1/rate of a second, and no more than one second can be saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    cost_ns: Option<u64>,
    saved_ns: u64,
    counted_ns: u64,
}

impl Pace {
    pub(super) fn new(rate: u32) -> Self {
        let cost_ns = (rate > 0).then(|| SECOND_NS / u64::from(rate));
        Self {
            cost_ns,
            saved_ns: SECOND_NS,
            counted_ns: 0,
        }
    }

    /// True if one more may pass now; time that runs backwards stands still.
    #[must_use]
    pub(super) fn take(&mut self, now_ns: u64) -> bool {
        let Some(cost_ns) = self.cost_ns else {
            return false;
        };
        let passed_ns = now_ns.saturating_sub(self.counted_ns);
        self.saved_ns = self.saved_ns.saturating_add(passed_ns).min(SECOND_NS);
        self.counted_ns = self.counted_ns.max(now_ns);
        match self.saved_ns.checked_sub(cost_ns) {
            Some(rest_ns) => {
                self.saved_ns = rest_ns;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_second_passes_and_then_the_rate() {
        let mut pace = Pace::new(10);
        let passed =
            |pace: &mut Pace, now_ns, tries| (0..tries).filter(|_| pace.take(now_ns)).count();
        assert_eq!(passed(&mut pace, 5 * SECOND_NS, 100), 10);
        assert_eq!(passed(&mut pace, 5 * SECOND_NS + SECOND_NS / 2, 100), 5);
        assert_eq!(passed(&mut pace, 60 * SECOND_NS, 100), 10);
    }

    #[test]
    fn time_that_runs_backwards_gives_nothing() {
        let mut pace = Pace::new(1);
        assert!(pace.take(9 * SECOND_NS));
        assert!(!pace.take(3 * SECOND_NS));
        assert!(!pace.take(9 * SECOND_NS + SECOND_NS / 2));
        assert!(pace.take(10 * SECOND_NS));
    }

    #[test]
    fn a_rate_of_zero_lets_nothing_through() {
        assert!(!Pace::new(0).take(SECOND_NS));
    }
}
