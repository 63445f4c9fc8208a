//! Losses that an operator has acknowledged: a file on /run, one line for each time.
//!
//! Owns which loss is covered by that: as much as there was, and nothing that comes later. The verb
//! writes it with the agent alive or dead; the running agent, or the next one, makes a record of it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::state::State;

/// One part of what is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Covered {
    /// Subject, as records have it: a counter of losses, a hook, the books of an uplink.
    pub subject: String,
    /// How much there was: what the counter said, or bytes; 0 for a hook that the kernel lacks.
    pub amount: u64,
    /// Identity of the counter: a number that a counter which begins anew does not have.
    pub counted_by: u64,
}

/// One acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Acknowledgement {
    /// Operator who acknowledged it.
    pub by: String,
    /// When, microseconds since 1970.
    pub at_us: u64,
    /// Losses that it covers.
    pub covered: Vec<Covered>,
}

/// All that was acknowledged since the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged(pub Vec<Acknowledgement>);

impl Acknowledged {
    /// The file of the agent with this pin directory.
    #[must_use]
    pub fn file(pin_dir: &Path) -> PathBuf {
        State::dir(pin_dir).join("acknowledged")
    }

    /// Reads the file. A line that is no acknowledgement is left out.
    #[must_use]
    pub fn read(pin_dir: &Path) -> Self {
        let text = fs::read_to_string(Self::file(pin_dir)).unwrap_or_default();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines();
        Self(
            lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
        )
    }

    /// Appends to the file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn add(pin_dir: &Path, acknowledgement: &Acknowledgement) -> io::Result<()> {
        // At once, so that two who do so at a time do not mix; and what was cut short before is a
        // line of its own.
        let line = format!("\n{}\n", serde_json::to_string(acknowledgement)?);
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(Self::file(pin_dir))?
            .write_all(line.as_bytes())
    }

    /// Finds the acknowledgement that covers most of this, and how much of it.
    #[must_use]
    pub fn of(&self, subject: &str, counted_by: u64) -> Option<(&Acknowledgement, u64)> {
        let all = self.0.iter().flat_map(|acknowledgement| {
            let covered = acknowledgement.covered.iter();
            covered.map(move |it| (acknowledgement, it))
        });
        all.filter(|(_, it)| it.subject == subject && it.counted_by == counted_by)
            .map(|(acknowledgement, it)| (acknowledgement, it.amount))
            .max_by_key(|(_, amount)| *amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledgement(by: &str, amount: u64, counted_by: u64) -> Acknowledgement {
        Acknowledgement {
            by: by.to_owned(),
            at_us: 1,
            covered: vec![Covered {
                subject: "flows-full".to_owned(),
                amount,
                counted_by,
            }],
        }
    }

    #[test]
    fn an_acknowledgement_covers_what_there_was_and_nothing_else() {
        let all = [
            acknowledgement("ann", 3, 7),
            acknowledgement("bob", 5, 7),
            acknowledgement("eve", 9, 8),
        ];
        let lines = all.map(|it| serde_json::to_string(&it).unwrap());
        let text = format!(
            "{}\n{{\"by\":\"cut sh\n{}\n\n{}\n",
            lines[0], lines[1], lines[2]
        );
        let all = Acknowledged::parse(&text);
        let (by, amount) = all.of("flows-full", 7).unwrap();
        assert_eq!((by.by.as_str(), amount), ("bob", 5));
        assert_eq!(all.of("flows-full", 9), None, "a counter that is new");
        assert_eq!(all.of("tags-failed", 7), None);
    }
}
