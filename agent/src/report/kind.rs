//! Kinds of records, and how urgent they are.

use std::fmt;

use trefoil_evidence::entry::KINDS;

/// Subject of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A flow opened, went on or ended; or many of them, rolled up.
    Flow,
    /// Something left, or tried to, that the policy does not approve.
    Violation,
    /// A budget is nearly or wholly used up, or has room again.
    Budget,
    /// An exception came into force, was used, ends soon, or expired.
    Exception,
    /// A policy came into force, or was refused.
    Policy,
    /// Coverage: what is watched and judged, and what is not.
    Coverage,
    /// Something got lost, and how much.
    Loss,
    /// The agent lives, and these are its sums.
    Heartbeat,
    /// Somebody changed what only Trefoil should change.
    Tamper,
    /// Records are signed for: evidence that none of them is changed or taken away.
    Checkpoint,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Flow,
        Self::Violation,
        Self::Budget,
        Self::Exception,
        Self::Policy,
        Self::Coverage,
        Self::Loss,
        Self::Heartbeat,
        Self::Tamper,
        Self::Checkpoint,
    ];

    /// The value of the field `event`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The journal's `MESSAGE_ID`, for good: people filter by it, and
    /// packaging/trefoil.catalog explains each.
    #[must_use]
    pub const fn message_id(self) -> &'static str {
        self.row().1
    }

    /// The kind with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The priorities that its records may have, and when they have them.
    #[must_use]
    pub const fn priorities(self) -> &'static [(Priority, &'static str)] {
        match self {
            Self::Flow | Self::Heartbeat | Self::Checkpoint => &[(Priority::Info, "")],
            Self::Violation => &[
                (Priority::Error, "a rule denies it"),
                (Priority::Warning, "no rule approves of it"),
            ],
            Self::Budget | Self::Exception => &[
                (Priority::Warning, "nothing more may leave by it"),
                (Priority::Notice, "else"),
            ],
            Self::Policy => &[
                (Priority::Error, "it was refused"),
                (
                    Priority::Warning,
                    "it is not enforced any more, or connections cannot be cut",
                ),
                (Priority::Notice, "it is in force, or connections were cut"),
            ],
            Self::Coverage => &[
                (Priority::Warning, "something is not watched"),
                (
                    Priority::Notice,
                    "all is watched, or somebody has acknowledged what is not",
                ),
                (Priority::Info, "the books of an uplink balance"),
            ],
            Self::Loss => &[
                (Priority::Warning, "something got lost"),
                (Priority::Notice, "somebody has acknowledged it"),
            ],
            Self::Tamper => &[(Priority::Critical, "")],
        }
    }

    /// Its name and id, in the table that verifiers read as well: one of each kind, in their order.
    const fn row(self) -> (&'static str, &'static str) {
        KINDS[self as usize]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// How urgent a record is: the journal's `PRIORITY`, as in syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// The monitor itself is under attack.
    Critical = 2,
    /// The policy's authors said no, and it happened or was tried.
    Error = 3,
    /// Somebody should look at it.
    Warning = 4,
    /// Normal, and worth knowing.
    Notice = 5,
    /// Normal.
    Info = 6,
}

impl Priority {
    /// The priority with this number.
    #[must_use]
    pub fn parse(number: u64) -> Option<Self> {
        [
            Self::Critical,
            Self::Error,
            Self::Warning,
            Self::Notice,
            Self::Info,
        ]
        .into_iter()
        .find(|priority| *priority as u64 == number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_kind_has_its_own_name() {
        for kind in Kind::ALL {
            assert_eq!(format!("{kind:?}").to_lowercase(), kind.name());
        }
        assert_eq!(Kind::ALL.len(), KINDS.len());
    }

    #[test]
    fn names_and_ids_are_unique_and_ids_are_those_of_the_journal() {
        let names: HashSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let ids: HashSet<_> = Kind::ALL.iter().map(|kind| kind.message_id()).collect();
        assert_eq!((names.len(), ids.len()), (Kind::ALL.len(), Kind::ALL.len()));
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
            let id = kind.message_id();
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(id.len() == 32 && id.chars().all(is_hex), "{id}");
        }
    }
}
