//! Mistakes in a text, and their places.
//!
//! Owns how a mistake is said: one [`Problem`] each, with its place and, where it
//! can be told, what would be right. Must not decide what a mistake is.

use std::fmt;

use serde::Serialize;

/// A position in a text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// Line, from 1. A problem of the file as a whole is at line 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

impl Place {
    /// Where a problem of the file as a whole is said to be.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// The key it belongs to, as in `rules[2].to.ports`; empty for the file as a
    /// whole. Indexes count from 0.
    pub key: String,
    /// Description of the mistake.
    pub message: String,
    /// Advice on the correct form.
    pub help: Option<String>,
}

impl Problem {
    /// The problem as a compiler would say it, with the name of the file before it.
    pub fn in_file<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        InFile {
            problem: self,
            file,
            severity: "error",
        }
    }

    /// The same as a warning.
    pub fn as_warning<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        InFile {
            problem: self,
            file,
            severity: "warning",
        }
    }

    fn write(&self, formatter: &mut fmt::Formatter<'_>, severity: &str) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(formatter, "{line}:{column}: {severity}: ")?;
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(formatter, "\n  help: {help}")?;
        }
        Ok(())
    }
}

struct InFile<'a> {
    problem: &'a Problem,
    file: &'a str,
    severity: &'static str,
}

impl fmt::Display for InFile<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.file)?;
        self.problem.write(formatter, self.severity)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(formatter, "error")
    }
}

/// Everything that is wrong with one file, in the order of the text; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file's name, as its user gave it.
    pub file: String,
    /// The mistakes.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Puts `list` in the order of the text, each problem once.
    #[must_use]
    pub fn new(file: &str, mut list: Vec<Problem>) -> Self {
        list.sort();
        list.dedup();
        Self {
            file: file.to_owned(),
            list,
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            problem.in_file(&self.file).fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Mistake in one value, before it is known where the value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As in [`Problem`].
    pub message: String,
    /// As in [`Problem`].
    pub help: Option<String>,
}

impl From<crate::quantity::QuantityError> for Fault {
    fn from(error: crate::quantity::QuantityError) -> Self {
        Self::new(error.message).help(error.help)
    }
}

impl Fault {
    /// A fault without advice.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The problem that this fault is at `place`, in `key`.
    #[must_use]
    pub fn at(self, place: Place, key: impl Into<String>) -> Problem {
        Problem {
            place,
            key: key.into(),
            message: self.message,
            help: self.help,
        }
    }
}

/// Turns byte offsets of a text into places.
pub(crate) struct Lines<'t> {
    text: &'t str,
    /// Byte offset at which each line begins.
    starts: Vec<usize>,
    /// Characters before each [`STEP`]-th byte: a line may be all of the file.
    characters: Vec<usize>,
}

const STEP: usize = 256;

/// Characters that begin in these bytes.
fn n_characters(bytes: &[u8]) -> usize {
    let begins = |byte: &&u8| **byte & 0b1100_0000 != 0b1000_0000;
    bytes.iter().filter(begins).count()
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let mut characters = vec![0];
        let mut sum = 0;
        for step in text.as_bytes().chunks(STEP) {
            sum += n_characters(step);
            characters.push(sum);
        }
        Self {
            text,
            starts: std::iter::once(0).chain(after_newlines).collect(),
            characters,
        }
    }

    /// Characters before a byte of the text.
    fn characters_before(&self, offset: usize) -> usize {
        let step = offset / STEP;
        self.characters[step] + n_characters(&self.text.as_bytes()[step * STEP..offset])
    }

    pub(crate) fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= offset).max(1);
        let start = self.starts[line - 1];
        let column = match self.text.is_char_boundary(offset) {
            true => self.characters_before(offset) - self.characters_before(start) + 1,
            // Behind the end of the text, or inside a character.
            false => 1,
        };
        Place {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

/// The one of `known` that `word` was probably meant to be.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let bearable = 1 + word.chars().count() / 4;
    known
        .iter()
        .map(|&candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, _)| distance <= bearable)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Characters to insert, delete or replace, or neighbours to swap, to get from one
/// to the other.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_from_one() {
        let lines = Lines::new("ab\nä€c\n");
        assert_eq!(lines.place(0), Place { line: 1, column: 1 });
        assert_eq!(lines.place(2), Place { line: 1, column: 3 });
        assert_eq!(lines.place(3), Place { line: 2, column: 1 });
        assert_eq!(lines.place(8), Place { line: 2, column: 3 });
        assert_eq!(lines.place(10), Place { line: 3, column: 1 });
        assert_eq!(Lines::new("").place(0), Place::START);
    }

    #[test]
    fn a_line_of_100_000_values_is_placed_as_one_would_count() {
        let text = "\u{e4}b\n".to_owned() + &"\u{20ac}\"x\", ".repeat(100_000);
        let lines = Lines::new(&text);
        // One by one, this went through the line from its beginning each time: for a minute.
        for (column, (offset, _)) in (1..).zip(text.char_indices().skip(3)) {
            assert_eq!(lines.place(offset), Place { line: 2, column });
        }
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(
            nearest("netwroks", &["networks", "ports"]),
            Some("networks")
        );
        assert_eq!(nearest("tpc", &["icmp", "tcp"]), Some("tcp"));
        assert_eq!(nearest("UNIT", &["unit", "user"]), Some("unit"));
        assert_eq!(nearest("budgets", &["networks", "ports"]), None);
        assert_eq!(nearest("x", &["networks"]), None);
    }

    #[test]
    fn problems_read_like_a_compilers() {
        let problem = Fault::new("is wrong").help("write it right").at(
            Place {
                line: 12,
                column: 9,
            },
            "rules[0].to",
        );
        assert_eq!(
            problem.in_file("policy.toml").to_string(),
            "policy.toml:12:9: error: rules[0].to: is wrong\n  help: write it right",
        );
    }
}
