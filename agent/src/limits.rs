//! News about budgets and exceptions: each thing is said once.
//!
//! Pure: counts and a clock in, news out. The kernel counts and stops; nothing here
//! decides about a packet.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::Budget;

/// How long before the end of an exception it is told that it ends.
const NOTICE_US: u64 = 86_400_000_000;

/// Stage of a budget or an exception.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// An exception holds from now on.
    InForce,
    /// Something has left by an exception, for the first time.
    Used,
    /// Four fifths of the bytes have left.
    Near,
    /// Nothing more may leave.
    UsedUp,
    /// A budget that was near its end or used up has room again.
    Renewed,
    /// An exception ends within a day.
    EndsSoon,
    /// An exception has ended.
    Expired,
}

impl Stage {
    /// The value of the field `state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in-force",
            Self::Used => "used",
            Self::Near => "near",
            Self::UsedUp => "used-up",
            Self::Renewed => "renewed",
            Self::EndsSoon => "ends-soon",
            Self::Expired => "expired",
        }
    }
}

/// Counts of a budget in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes within the window that ends now.
    pub window_bytes: u64,
    /// Packets since the beginning.
    pub packets: u64,
}

/// Stages that were reported already, by the budget's id. A stage that an agent before has
/// reported is not reported again.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Said(BTreeMap<u64, BTreeSet<Stage>>);

impl Said {
    /// Returns the new stages of a budget at this moment, in microseconds since 1970.
    pub fn news(&mut self, budget: &Budget, used: Used, time_us: u64) -> Vec<Stage> {
        let said = self.0.entry(budget.id).or_default();
        let mut news = Vec::new();
        let is_near = used.window_bytes >= budget.bytes - budget.bytes / 5;
        let is_used_up = used.window_bytes >= budget.bytes;
        if !is_near && (said.remove(&Stage::Near) | said.remove(&Stage::UsedUp)) {
            news.push(Stage::Renewed);
        }
        let mut say = |stage: Stage, holds: bool| {
            if holds && said.insert(stage) {
                news.push(stage);
            }
        };
        if let Some(exception) = &budget.exception {
            let holds = exception.holds_at(time_us);
            say(Stage::InForce, holds);
            say(Stage::Used, used.packets > 0);
            let ends_soon = exception.expires_us.saturating_sub(NOTICE_US) <= time_us;
            say(Stage::EndsSoon, holds && ends_soon);
        }
        say(Stage::Near, is_near && !is_used_up);
        say(Stage::UsedUp, is_used_up);
        if let Some(exception) = &budget.exception {
            say(Stage::Expired, exception.expires_us <= time_us);
        }
        news
    }

    /// Forgets what no policy speaks of any more.
    pub fn keep(&mut self, budgets: &[Budget]) {
        self.0
            .retain(|id, _| budgets.iter().any(|budget| budget.id == *id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source::Exception;

    const DAY_US: u64 = 86_400_000_000;

    fn budget(bytes: u64) -> Budget {
        Budget {
            id: 7,
            rule: 0,
            name: "replication".to_owned(),
            bytes,
            per_ns: 1,
            written: "1000 B per 1s".to_owned(),
            exception: None,
        }
    }

    fn used(window_bytes: u64) -> Used {
        Used {
            window_bytes,
            packets: window_bytes.min(1),
        }
    }

    #[test]
    fn a_budget_is_near_and_used_up_and_renewed_once_each() {
        let (mut said, budget) = (Said::default(), budget(1_000));
        for (bytes, expected) in [
            (0, vec![]),
            (799, vec![]),
            (800, vec![Stage::Near]),
            (999, vec![]),
            (1_000, vec![Stage::UsedUp]),
            (1_500, vec![]),
            (900, vec![]),
            (100, vec![Stage::Renewed]),
            (100, vec![]),
            (2_000, vec![Stage::UsedUp]),
        ] {
            assert_eq!(said.news(&budget, used(bytes), 0), expected, "{bytes}");
        }
    }

    #[test]
    fn an_exception_says_its_life_once_each_also_over_a_restart() {
        let exception = Exception {
            id: "EX-12".to_owned(),
            basis: "Art. 49(1)(e)".to_owned(),
            reason: "disk array failure".to_owned(),
            approved_by: vec!["dpo".to_owned(), "auditor".to_owned()],
            starts_us: Some(DAY_US),
            expires_us: 5 * DAY_US,
            bytes: None,
        };
        let budget = Budget {
            exception: Some(exception),
            ..budget(u64::MAX)
        };
        let mut said = Said::default();
        for (days, bytes, expected) in [
            (0, 0, vec![]),
            (1, 0, vec![Stage::InForce]),
            (2, 9, vec![Stage::Used]),
            (3, 99, vec![]),
            (4, 99, vec![Stage::EndsSoon]),
            (5, 99, vec![Stage::Expired]),
            (6, 99, vec![]),
        ] {
            let written = serde_json::to_string(&said).unwrap();
            said = serde_json::from_str(&written).unwrap();
            let news = said.news(&budget, used(bytes), days * DAY_US);
            assert_eq!(news, expected, "day {days}");
        }
        said.keep(&[]);
        assert_eq!(said, Said::default());
    }
}
