//! Findings of a verification.

use std::fmt;

use crate::{entry::Entry, merkle::Hash};

/// Numbers that records count up: a boot of a host, and the instance of the agent, which is empty
/// for the usual one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// `machine_id`
    pub machine: String,
    /// `boot_id`
    pub boot: String,
    /// `instance`
    pub instance: String,
}

impl Series {
    /// The series that a record is of.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        let text = |name: &str| entry.text(name).unwrap_or_default().to_owned();
        Self {
            machine: text("machine_id"),
            boot: text("boot_id"),
            instance: text("instance"),
        }
    }

    /// The agent that the series is of: machine and instance.
    #[must_use]
    pub fn agent(&self) -> (String, String) {
        (self.machine.clone(), self.instance.clone())
    }
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "boot {}", self.boot)?;
        match self.instance.as_str() {
            "" => Ok(()),
            instance => write!(formatter, " of {instance}"),
        }
    }
}

/// Something that is not as it should be. Indices are those of the log's leaves, from 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Finding {
    /// A record differs from what was made.
    #[error("altered: record {seq} of {series}, index {index}")]
    Altered {
        /// Index of the leaf.
        index: u64,
        /// See there.
        series: Series,
        /// Its number.
        seq: u64,
    },
    /// A record is not there.
    #[error("missing: index {index}, digest {}{}", hex(digest), number(seq.as_ref()))]
    Missing {
        /// Index of the leaf.
        index: u64,
        /// Its digest.
        digest: Hash,
        /// Its number, if that follows from the records before it.
        seq: Option<(Series, u64)>,
    },
    /// A record was never made: another one has its place.
    #[error("inserted: record {seq} of {series}, whose place is index {index}")]
    Inserted {
        /// Index of the leaf that has its number.
        index: u64,
        /// See there.
        series: Series,
        /// Its number.
        seq: u64,
    },
    /// No checkpoint covers a record, and none will: somebody has added it, or its host went down
    /// before it was signed for.
    #[error("unproven: record {seq} of {series} is covered by no checkpoint")]
    Unproven {
        /// See there.
        series: Series,
        /// Its number.
        seq: u64,
    },
    /// The records end before a checkpoint that somebody has kept.
    #[error("cut off: a checkpoint of {size} records was kept, and they end before")]
    CutOff {
        /// Number of leaves that it covers.
        size: u64,
    },
    /// A key was given, and no valid checkpoint of its log is there.
    #[error("silent: there is no valid checkpoint of `{origin}`")]
    Silent {
        /// Name of the log.
        origin: String,
    },
    /// A record is there several times.
    #[error("repeated: index {index}")]
    Repeated {
        /// Index of the leaf.
        index: u64,
    },
    /// A record comes after one that was made later.
    #[error("out of order: index {index} comes after index {after}")]
    OutOfOrder {
        /// Index of the leaf.
        index: u64,
        /// Index of the record before it.
        after: u64,
    },
    /// Numbers of which no record is there, and which no checkpoint covers.
    #[error("missing: records {first} to {last} of {series}")]
    NumbersMissing {
        /// See there.
        series: Series,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Checkpoints are missing: nothing is known of these leaves.
    #[error("gap: no checkpoint covers index {first} to {last}")]
    Gap {
        /// The first leaf.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A checkpoint does not go on from what was signed before, or another one of the same size has
    /// another root.
    #[error("fork: the checkpoint of {size} records contradicts another")]
    Fork {
        /// Number of leaves that it covers.
        size: u64,
    },
    /// The digests of a checkpoint record do not give the root that was signed.
    #[error("the checkpoint of {size} records does not fit its digests (record {seq} of {series})")]
    Tree {
        /// Number of leaves that it covers.
        size: u64,
        /// See there.
        series: Series,
        /// Number of the record.
        seq: u64,
    },
    /// A checkpoint record has no valid note.
    #[error("checkpoint record {seq} of {series}: {reason}")]
    Note {
        /// See there.
        series: Series,
        /// Number of the record.
        seq: u64,
        /// Why.
        reason: String,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(seq: Option<&(Series, u64)>) -> String {
    seq.map_or(String::new(), |(series, seq)| {
        format!(", record {seq} of {series}")
    })
}
