//! Decisions of clauses, and their limits.

use sha2::{Digest as _, Sha256};

use crate::policy::source::{Exception, Policy};

/// Decision of a clause, and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Index of its rule in the policy file, from 0.
    pub rule: u16,
    /// One of `abi::verdict`.
    pub verdict: u8,
    /// When it matches; `None`: always.
    pub holds: Option<Period>,
    /// Index of the budget that what leaves by it is counted in.
    pub budget: Option<usize>,
}

/// A time, by the wall's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// First microsecond since 1970.
    pub starts_us: u64,
    /// First microsecond since 1970 after it.
    pub expires_us: u64,
}

impl Period {
    /// True if this moment, in microseconds since 1970, is in it.
    #[must_use]
    pub fn contains(&self, time_us: u64) -> bool {
        (self.starts_us..self.expires_us).contains(&time_us)
    }
}

/// Budget of one rule, or its exception, whose uses are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Names it for good, policies may come and go: a hash of the rule's name, or of the
    /// exception's id. Not 0.
    pub id: u64,
    /// Index of its rule in the policy file, from 0.
    pub rule: u16,
    /// The rule's name.
    pub name: String,
    /// Bytes that may leave within the window; [`u64::MAX`]: any number.
    pub bytes: u64,
    /// Length of the window in nanoseconds; 0: it never ends.
    pub per_ns: u64,
    /// Both as the policy writes them; empty for an exception.
    pub written: String,
    /// The exception whose uses are counted, if it is one.
    pub exception: Option<Exception>,
}

/// Returns the budgets of a policy, in the order of the rules.
pub(super) fn budgets(policy: &Policy) -> Vec<Budget> {
    let counted = policy.rules.iter().zip(0..).filter_map(|(rule, number)| {
        let (id, bytes, per_ns) = match (&rule.exception, &rule.budget) {
            (Some(exception), _) => {
                let bytes = exception.bytes.unwrap_or(u64::MAX);
                (id_of("exception", &exception.id), bytes, 0)
            }
            (None, Some(budget)) => {
                let per_ns = u64::try_from(budget.per.as_nanos()).unwrap_or(u64::MAX);
                (id_of("budget", &rule.name.value), budget.bytes, per_ns)
            }
            (None, None) => return None,
        };
        Some(Budget {
            id,
            rule: number,
            name: rule.name.value.clone(),
            bytes,
            per_ns,
            written: rule
                .budget
                .as_ref()
                .map_or_else(String::new, |budget| budget.written.clone()),
            exception: rule.exception.clone(),
        })
    });
    counted.collect()
}

fn id_of(kind: &str, name: &str) -> u64 {
    let digest = Sha256::digest(format!("{kind} {name}"));
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    // 0 is nobody's.
    u64::from_le_bytes(id).max(1)
}
