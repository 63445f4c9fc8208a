//! The table of grades: every way in which bytes can leave a host past a monitor, and
//! what Trefoil makes of it. The tests that send that way hold what they observe
//! against the table, in both directions, so that it stays true.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Where observed grades are written to, one file a way, if this is set.
const DIRECTORY: &str = "TREFOIL_BATTERY";

/// How well one thing works for one way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// It does.
    Yes,
    /// For a part of the bytes, or not for certain.
    Part,
    /// It does not.
    No,
    /// There is nothing to grade, for a reason that the table states.
    Without,
}

impl Grade {
    fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "yes" => Self::Yes,
            "part" => Self::Part,
            "no" => Self::No,
            "--" => Self::Without,
            _ => bail!("{word:?} is no grade"),
        })
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Yes => "yes",
            Self::Part => "part",
            Self::No => "no",
            Self::Without => "--",
        })
    }
}

/// The three grades of a way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grades {
    /// Its bytes are in records.
    pub seen: Grade,
    /// The records name the process that sent, with attribution `direct`.
    pub owned: Grade,
    /// In enforce mode nothing arrives at the far end.
    pub blocked: Grade,
}

impl fmt::Display for Grades {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seen,
            owned,
            blocked,
        } = self;
        write!(formatter, "{seen:<4}  {owned:<5}  {blocked:<7}")
    }
}

/// Facts that the final record of a flow tells.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Bytes that left.
    pub bytes: u64,
    /// The process; 0 if it names none.
    pub pid: u32,
    /// Attribution is `direct`.
    pub is_direct: bool,
}

/// How well records of a way tell what was sent, and by whom: `bytes` of payload by all
/// of `senders`.
pub fn seen_and_owned(told: &[Told], bytes: u64, senders: &BTreeSet<u32>) -> (Grade, Grade) {
    let amount = |sum: u64| match sum {
        0 => Grade::No,
        some if some < bytes => Grade::Part,
        _ => Grade::Yes,
    };
    let mine = || told.iter().filter(|told| senders.contains(&told.pid));
    let sum = |all: &mut dyn Iterator<Item = &Told>| all.map(|told| told.bytes).sum::<u64>();
    let named: BTreeSet<u32> = mine().map(|told| told.pid).collect();
    // A wrong name that is said to be certain is worse than none.
    let is_wrong = told
        .iter()
        .any(|told| told.bytes > 0 && told.is_direct && !senders.contains(&told.pid));
    let owned = if senders.is_empty() {
        Grade::Without
    } else if is_wrong || named.is_empty() {
        Grade::No
    } else if &named == senders && amount(sum(&mut mine().filter(|t| t.is_direct))) == Grade::Yes {
        Grade::Yes
    } else {
        Grade::Part
    };
    (amount(sum(&mut told.iter())), owned)
}

/// A line of the table.
#[derive(Clone, Debug)]
struct Line {
    id: String,
    grades: Grades,
    way: String,
    reason: String,
}

/// The table of grades.
#[derive(Debug)]
pub struct Table(Vec<Line>);

impl Table {
    /// The table of the project: `tests/battery.txt`.
    pub fn of_the_project() -> Result<Self> {
        Self::parse(include_str!("../battery.txt")).context("tests/battery.txt")
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines: Vec<Line> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = parse_line(line).with_context(|| format!("line {}", number + 1))?;
            ensure!(
                !lines.iter().any(|other| other.id == line.id),
                "line {}: {} is there twice",
                number + 1,
                line.id
            );
            lines.push(line);
        }
        Ok(Self(lines))
    }

    /// Notes what was observed of a way, and fails if the table says anything else.
    pub fn hold(&self, id: &str, observed: Grades) -> Result<()> {
        let line = self
            .0
            .iter()
            .find(|line| line.id == id)
            .with_context(|| format!("{id} is observed ({observed}) and not in the table"))?;
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            let path: PathBuf = Path::new(&directory).join(id);
            let text = format!("{id:<4}  {observed}  {:<60}  {}\n", line.way, line.reason);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        ensure!(
            line.grades == observed,
            "{id}, {}: seen, owned, blocked are\n{observed}\nand the table says\n{}",
            line.way,
            line.grades
        );
        Ok(())
    }
}

/// Columns are at least two spaces apart: `id  seen  owned  blocked  way  reason`.
fn parse_line(line: &str) -> Result<Line> {
    let columns: Vec<&str> = line
        .split("  ")
        .map(str::trim)
        .filter(|column| !column.is_empty())
        .collect();
    let (id, seen, owned, blocked, way, reason) = match columns.as_slice() {
        [id, seen, owned, blocked, way] => (id, seen, owned, blocked, way, ""),
        [id, seen, owned, blocked, way, reason] => (id, seen, owned, blocked, way, *reason),
        _ => bail!("expected: id  seen  owned  blocked  way  reason"),
    };
    let grades = Grades {
        seen: Grade::parse(seen)?,
        owned: Grade::parse(owned)?,
        blocked: Grade::parse(blocked)?,
    };
    let is_whole = [grades.seen, grades.owned, grades.blocked] == [Grade::Yes; 3];
    ensure!(is_whole || !reason.is_empty(), "{id} has no reason");
    Ok(Line {
        id: (*id).to_owned(),
        grades,
        way: (*way).to_owned(),
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_read() {
        assert!(!Table::of_the_project().unwrap().0.is_empty());
    }

    #[test]
    fn a_grade_below_yes_needs_a_reason() {
        assert!(Table::parse("1a  yes  yes  yes  TCP\n").is_ok());
        assert!(Table::parse("1a  yes  part  yes  TCP\n").is_err());
        let table = Table::parse("1a  yes  part  yes  TCP  for a reason\n").unwrap();
        assert_eq!(table.0[0].reason, "for a reason");
    }

    #[test]
    fn a_wrong_name_is_no_part_of_a_right_one() {
        let told = |pid, is_direct| Told {
            bytes: 100,
            pid,
            is_direct,
        };
        let senders = BTreeSet::from([7]);
        let grade = |all: &[Told], bytes| seen_and_owned(all, bytes, &senders);
        assert_eq!(grade(&[told(7, true)], 90), (Grade::Yes, Grade::Yes));
        assert_eq!(grade(&[told(7, true)], 200), (Grade::Part, Grade::Part));
        assert_eq!(grade(&[told(7, false)], 90), (Grade::Yes, Grade::Part));
        assert_eq!(grade(&[told(0, false)], 90), (Grade::Yes, Grade::No));
        let both = [told(7, true), told(8, true)];
        assert_eq!(grade(&both, 90), (Grade::Yes, Grade::No));
        assert_eq!(grade(&[], 90), (Grade::No, Grade::No));
        assert_eq!(
            seen_and_owned(&[told(0, false)], 90, &BTreeSet::new()),
            (Grade::Yes, Grade::Without)
        );
    }

    #[test]
    fn better_is_a_difference_too() {
        let table = Table::parse("1a  yes  no  --  TCP  for a reason\n").unwrap();
        let mut observed = Grades {
            seen: Grade::Yes,
            owned: Grade::No,
            blocked: Grade::Without,
        };
        assert!(table.hold("1a", observed).is_ok());
        observed.owned = Grade::Yes;
        assert!(table.hold("1a", observed).is_err());
        assert!(table.hold("1b", observed).is_err());
    }
}
