//! How many of something a second, of everybody together and of each user.

use std::collections::HashMap;

const SECOND_NS: u64 = 1_000_000_000;

/// Time in which a user may use up what all may in a second.
const SHARE_NS: u64 = 10 * SECOND_NS;

/// Users that are told apart before all begin anew.
const MOST_USERS: usize = 4_096;

/// Lets at most so many things through in any interval, evenly after a first burst
/// of as many.
///
/// The idle time that was saved up is what things are paid with: each costs
/// its part of the interval, and no more than one interval can be saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    cost_ns: Option<u64>,
    saved_ns: u64,
    most_ns: u64,
    counted_ns: u64,
}

impl Pace {
    /// Lets `rate` things through in a second.
    pub(super) fn new(rate: u32) -> Self {
        Self::over(rate, SECOND_NS)
    }

    fn over(n_things: u32, interval_ns: u64) -> Self {
        Self {
            cost_ns: (n_things > 0).then(|| interval_ns / u64::from(n_things)),
            saved_ns: interval_ns,
            most_ns: interval_ns,
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
        self.saved_ns = self.saved_ns.saturating_add(passed_ns).min(self.most_ns);
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

/// A pace that one user cannot use up for long: of each, a burst of what all may in a second, and
/// a tenth of it after that.
#[derive(Debug)]
pub(super) struct SharedPace {
    all: Pace,
    of_user: Pace,
    users: HashMap<u32, Pace>,
}

impl SharedPace {
    pub(super) fn new(rate: u32) -> Self {
        Self {
            all: Pace::new(rate),
            of_user: Pace::over(rate, SHARE_NS),
            users: HashMap::new(),
        }
    }

    /// True if one more of this user's may pass now.
    #[must_use]
    pub(super) fn take(&mut self, uid: u32, now_ns: u64) -> bool {
        if self.users.len() >= MOST_USERS && !self.users.contains_key(&uid) {
            self.users.clear();
        }
        let user = self.users.entry(uid).or_insert(self.of_user);
        user.take(now_ns) && self.all.take(now_ns)
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
    fn a_user_has_a_burst_and_then_a_tenth_and_takes_nothing_of_others() {
        let mut pace = SharedPace::new(100);
        let passed = |pace: &mut SharedPace, uid, second: u64, tries| {
            let now_ns = second * SECOND_NS;
            (0..tries).filter(|_| pace.take(uid, now_ns)).count()
        };
        assert_eq!(passed(&mut pace, 1, 100, 1_000), 100);
        assert_eq!(passed(&mut pace, 1, 101, 1_000), 10);
        assert_eq!(passed(&mut pace, 1, 102, 1_000), 10);
        assert_eq!(passed(&mut pace, 2, 102, 1_000), 90);
        assert_eq!(passed(&mut pace, 3, 200, 1_000), 100);
        assert_eq!(passed(&mut pace, 4, 200, 1_000), 0, "all together");
    }

    #[test]
    fn a_rate_of_zero_lets_nothing_through() {
        assert!(!Pace::new(0).take(SECOND_NS));
    }
}
