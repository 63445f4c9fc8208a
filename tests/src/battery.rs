//! The table of grades: every way in which bytes can leave a host past a monitor, and
//! what Trefoil makes of it. The tests that send that way hold what they observe
//! against the table, in both directions, so that it stays true.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::record::Record;

/// Where observed grades are written to, one file a way, if this is set.
const DIRECTORY: &str = "TREFOIL_BATTERY";

/// Privilege of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Privilege {
    /// A user of the host without capabilities.
    User,
    /// Root of a container or guest, with a network interface of its own.
    Container,
    /// Root of the host.
    Root,
}

impl Privilege {
    const ALL: [Self; 3] = [Self::User, Self::Container, Self::Root];

    const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Container => "container",
            Self::Root => "root",
        }
    }

    fn parse(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|it| it.name() == word);
        found.with_context(|| format!("{word:?} is no privilege"))
    }
}

/// How well one thing works for one way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// It does.
    Yes,
    /// For a part of the bytes, or not for certain.
    Part,
    /// It does not.
    No,
    /// A process that did not send is named for certain.
    Wrong,
    /// There is nothing to grade, for a reason that the table states.
    Without,
}

impl Grade {
    fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "yes" => Self::Yes,
            "part" => Self::Part,
            "no" => Self::No,
            "wrong" => Self::Wrong,
            "--" => Self::Without,
            _ => bail!("{word:?} is no grade"),
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Part => "part",
            Self::No => "no",
            Self::Wrong => "wrong",
            Self::Without => "--",
        }
    }
}

/// Everything that is observed of a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grades {
    /// Privilege of the sender.
    pub privilege: Privilege,
    /// Its bytes are in records with both ends.
    pub seen: Grade,
    /// The records name the process that sent, with attribution `direct`.
    pub owned: Grade,
    /// Attributions of the records that name the process that sent; if none does, of all. See
    /// [`Found::attribution`].
    pub attribution: String,
    /// In enforce mode nothing arrives at the far end.
    pub blocked: Grade,
    /// Enforce mode does with each call what `check --against` says of its record of report mode.
    pub foretold: Grade,
}

impl fmt::Display for Grades {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:<9}  {:<4}  {:<5}  {:<11}  {:<7}  {:<8}",
            self.privilege.name(),
            self.seen.name(),
            self.owned.name(),
            self.attribution,
            self.blocked.name(),
            self.foretold.name()
        )
    }
}

/// Facts that the final record of a flow tells.
#[derive(Clone, Debug)]
pub struct Told {
    /// Bytes that left.
    pub bytes: u64,
    /// The process; 0 if it names none.
    pub pid: u32,
    /// Quality of the name.
    pub attribution: String,
    /// Both addresses are there, and both ports if the packets had some.
    pub has_ends: bool,
}

impl Told {
    /// Reads a final record, or an entry of the journal: `prefix` stands before the names of its
    /// fields. `has_ports` is false for packets of which the ports cannot be read.
    pub fn by(record: &Record, prefix: &str, has_ports: bool) -> Result<Self> {
        let text = |field: &str| match prefix {
            "" => record.text(field),
            prefix => record.text(&format!("{prefix}{}", field.to_uppercase())),
        };
        let number = |field: &str| -> Result<u64> {
            let text = text(field);
            text.parse()
                .with_context(|| format!("no number {field} in {record}"))
        };
        let has = |fields: &[&str]| fields.iter().all(|field| !text(field).is_empty());
        let with_ports = ["tcp", "udp", "udplite", "sctp", "dccp"];
        let has_ports = has_ports && with_ports.contains(&text("protocol").as_str());
        Ok(Self {
            bytes: number("bytes_out")?,
            pid: number("pid").unwrap_or_default() as u32,
            attribution: text("attribution"),
            has_ends: has(&["src_addr", "dst_addr"])
                && (!has_ports || has(&["src_port", "dst_port"])),
        })
    }

    fn is_direct(&self) -> bool {
        self.attribution == "direct"
    }
}

/// How well records of a way tell what was sent, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// See [`Grades`].
    pub seen: Grade,
    /// See [`Grades`].
    pub owned: Grade,
    /// Attributions in records of what left, each once, with `+` between. Of those that name the
    /// process that sent, if there is any; else of all.
    pub attribution: String,
}

/// Grades what is told of `bytes` of payload by all of `senders`.
pub fn seen_and_owned(told: &[Told], bytes: u64, senders: &BTreeSet<u32>) -> Found {
    let amount = |sum: u64| match sum {
        0 => Grade::No,
        some if some < bytes => Grade::Part,
        _ => Grade::Yes,
    };
    let left = || told.iter().filter(|told| told.bytes > 0);
    let mine = || told.iter().filter(|told| senders.contains(&told.pid));
    let sum = |all: &mut dyn Iterator<Item = &Told>| all.map(|told| told.bytes).sum::<u64>();
    let named: BTreeSet<u32> = mine().map(|told| told.pid).collect();
    let owned = if left().any(|told| told.is_direct() && !senders.contains(&told.pid)) {
        Grade::Wrong
    } else if senders.is_empty() {
        Grade::Without
    } else if named.is_empty() {
        Grade::No
    } else if &named == senders && amount(sum(&mut mine().filter(|t| t.is_direct()))) == Grade::Yes
    {
        Grade::Yes
    } else {
        Grade::Part
    };
    let seen = match amount(sum(&mut told.iter())) {
        Grade::Yes if !left().all(|told| told.has_ends) => Grade::Part,
        seen => seen,
    };
    let is_named = |told: &&Told| named.is_empty() || named.contains(&told.pid);
    let attributions: BTreeSet<&str> = left()
        .filter(is_named)
        .map(|told| told.attribution.as_str())
        .collect();
    let attributions: Vec<&str> = attributions.into_iter().collect();
    Found {
        seen,
        owned,
        attribution: match attributions.join("+") {
            none if none.is_empty() => NO_ATTRIBUTION.to_owned(),
            some => some,
        },
    }
}

/// Kinds that have ways of each privilege, or a reason why not.
const WITH_EACH_PRIVILEGE: RangeInclusive<u32> = 31..=45;

/// Attribution where no record of a flow is expected.
pub const NO_ATTRIBUTION: &str = "--";

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
pub struct Table {
    lines: Vec<Line>,
    /// Kinds that a privilege has no way of.
    without: Vec<(String, Privilege)>,
}

impl Table {
    /// The table of the project: `tests/battery.txt`.
    pub fn of_the_project() -> Result<Self> {
        Self::parse(include_str!("../battery.txt"))
            .and_then(|table| {
                for kind in WITH_EACH_PRIVILEGE {
                    table.has_each_privilege(kind)?;
                }
                Ok(table)
            })
            .context("tests/battery.txt")
    }

    /// Fails unless a kind has a way of each privilege, or a reason why not.
    fn has_each_privilege(&self, kind: u32) -> Result<()> {
        let kind = kind.to_string();
        for privilege in Privilege::ALL {
            let has_way = self.lines.iter().any(|line| {
                let of = line.id.trim_end_matches(char::is_alphabetic);
                of == kind && line.grades.privilege == privilege
            });
            let is_without = self.without.contains(&(kind.clone(), privilege));
            ensure!(
                has_way != is_without,
                "{kind}, {}: has a way: {has_way}; has a reason for none: {is_without}",
                privilege.name()
            );
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut lines, mut without): (Vec<Line>, Vec<_>) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = || format!("line {}", number + 1);
            let columns: Vec<&str> = line
                .split("  ")
                .map(str::trim)
                .filter(|column| !column.is_empty())
                .collect();
            if let [kind, privilege, "none", _reason] = columns.as_slice() {
                let privilege = Privilege::parse(privilege).with_context(at)?;
                without.push(((*kind).to_owned(), privilege));
                continue;
            }
            let line = parse_line(&columns).with_context(at)?;
            let is_there = lines.iter().any(|other| other.id == line.id);
            ensure!(!is_there, "{}: {} is there twice", at(), line.id);
            lines.push(line);
        }
        Ok(Self { lines, without })
    }

    /// Notes what was observed of a way, and fails if the table says anything else.
    pub fn hold(&self, id: &str, observed: &Grades) -> Result<()> {
        let line = self
            .lines
            .iter()
            .find(|line| line.id == id)
            .with_context(|| format!("{id} is observed ({observed}) and not in the table"))?;
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            let path: PathBuf = Path::new(&directory).join(id);
            let text = format!("{id:<4}  {observed}  {:<60}  {}\n", line.way, line.reason);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        ensure!(
            &line.grades == observed,
            "{id}, {}: privilege, seen, owned, attribution, blocked, foretold are\n{observed}\n\
             and the table says\n{}",
            line.way,
            line.grades
        );
        Ok(())
    }
}

/// See the head of `tests/battery.txt`.
fn parse_line(columns: &[&str]) -> Result<Line> {
    let [
        id,
        privilege,
        seen,
        owned,
        attribution,
        blocked,
        foretold,
        way,
        reason @ ..,
    ] = columns
    else {
        bail!("too few columns");
    };
    ensure!(reason.len() <= 1, "{id} has more than one reason");
    let reason = reason.first().copied().unwrap_or_default();
    let grades = Grades {
        privilege: Privilege::parse(privilege)?,
        seen: Grade::parse(seen)?,
        owned: Grade::parse(owned)?,
        attribution: (*attribution).to_owned(),
        blocked: Grade::parse(blocked)?,
        foretold: Grade::parse(foretold)?,
    };
    let all = [grades.seen, grades.owned, grades.blocked, grades.foretold];
    let is_whole = all == [Grade::Yes; 4];
    ensure!(is_whole || !reason.is_empty(), "{id} has no reason");
    ensure!(
        grades.owned != Grade::Wrong || grades.privilege == Privilege::Root,
        "{id}: no reason allows a wrong name for what a user or a container sends"
    );
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

    const WHOLE: &str = "1a  user  yes  yes  direct  yes  yes  TCP";

    #[test]
    fn the_table_can_be_read() {
        assert!(!Table::of_the_project().unwrap().lines.is_empty());
    }

    #[test]
    fn a_kind_has_a_way_of_each_privilege_or_a_reason_for_none() {
        let way = |id: &str, by: &str| format!("{id}  {by}  yes  yes  direct  yes  yes  TCP\n");
        let none = "31  root  none  for a reason\n";
        let is_whole = |text: &str| Table::parse(text).unwrap().has_each_privilege(31).is_ok();
        let two = way("31a", "user") + &way("31b", "container");
        assert!(is_whole(&(two.clone() + none)));
        assert!(is_whole(&(two.clone() + &way("31c", "root"))));
        assert!(!is_whole(&two) && !is_whole(&(two.clone() + &way("3c", "root"))));
        assert!(!is_whole(&(two + none + &way("31c", "root"))));
    }

    #[test]
    fn a_grade_below_yes_needs_a_reason() {
        assert!(Table::parse(WHOLE).is_ok());
        for grade in [1, 2, 4, 5] {
            let below = |word: &str| {
                let mut columns: Vec<&str> = WHOLE.split("  ").collect();
                columns[grade + 1] = word;
                columns.join("  ")
            };
            assert!(Table::parse(&below("part")).is_err());
            let table = Table::parse(&(below("no") + "  for a reason")).unwrap();
            assert_eq!(table.lines[0].reason, "for a reason");
        }
    }

    #[test]
    fn a_wrong_name_has_no_reason_but_where_root_sends() {
        let wrong = |privilege: &str| {
            let line = format!("1a  {privilege}  yes  wrong  direct  yes  yes  TCP  for a reason");
            Table::parse(&line)
        };
        assert!(wrong("user").is_err() && wrong("container").is_err());
        assert!(wrong("root").is_ok());
    }

    fn told(pid: u32, attribution: &str) -> Told {
        Told {
            bytes: 100,
            pid,
            attribution: attribution.to_owned(),
            has_ends: true,
        }
    }

    #[test]
    fn a_wrong_name_is_no_part_of_a_right_one() {
        let senders = BTreeSet::from([7]);
        let grade = |all: &[Told], bytes| {
            let found = seen_and_owned(all, bytes, &senders);
            (found.seen, found.owned)
        };
        let direct = told(7, "direct");
        let one = std::slice::from_ref(&direct);
        assert_eq!(grade(one, 90), (Grade::Yes, Grade::Yes));
        assert_eq!(grade(one, 200), (Grade::Part, Grade::Part));
        let inferred = told(7, "inferred");
        assert_eq!(grade(&[inferred], 90), (Grade::Yes, Grade::Part));
        assert_eq!(grade(&[told(0, "kernel")], 90), (Grade::Yes, Grade::No));
        let both = [direct.clone(), told(8, "direct")];
        assert_eq!(grade(&both, 90), (Grade::Yes, Grade::Wrong));
        assert_eq!(grade(&[told(8, "inferred")], 90), (Grade::Yes, Grade::No));
        assert_eq!(grade(&[], 90), (Grade::No, Grade::No));
        let of_nobody = |pid, attribution| {
            seen_and_owned(&[told(pid, attribution)], 90, &BTreeSet::new()).owned
        };
        assert_eq!(of_nobody(0, "forwarded"), Grade::Without);
        assert_eq!(of_nobody(8, "direct"), Grade::Wrong);
    }

    #[test]
    fn a_record_without_an_end_is_a_part_of_what_is_seen() {
        let senders = BTreeSet::from([7]);
        let without = Told {
            has_ends: false,
            ..told(7, "direct")
        };
        let found = seen_and_owned(&[told(7, "direct"), without], 90, &senders);
        assert_eq!(found.seen, Grade::Part);
    }

    #[test]
    fn ends_have_ports_where_the_protocol_has_them() {
        let ends = |protocol: &str, ports: &str| {
            let record = format!(
                "{{\"bytes_out\":1,\"attribution\":\"direct\",\"protocol\":\"{protocol}\",\
                 \"src_addr\":\"192.0.2.1\",\"dst_addr\":\"203.0.113.8\"{ports}}}"
            );
            let record = Record::parse(&record).unwrap();
            Told::by(&record, "", true).unwrap().has_ends
        };
        assert!(ends("icmp", "") && ends("udp", ",\"src_port\":1,\"dst_port\":2"));
        assert!(!ends("udp", ",\"dst_port\":2") && !ends("tcp", ""));
    }

    #[test]
    fn attributions_are_of_the_sender_if_he_is_named() {
        let senders = BTreeSet::from([7]);
        let of = |all: &[Told]| seen_and_owned(all, 90, &senders).attribution;
        let kernel = told(0, "kernel");
        assert_eq!(of(&[kernel.clone(), told(7, "direct")]), "direct");
        assert_eq!(
            of(&[told(7, "inferred"), told(7, "direct")]),
            "direct+inferred"
        );
        assert_eq!(of(&[kernel]), "kernel");
        assert_eq!(of(&[]), NO_ATTRIBUTION);
    }

    #[test]
    fn better_is_a_difference_too() {
        let line = "1a  user  yes  no  kernel  --  --  TCP  for a reason\n";
        let table = Table::parse(line).unwrap();
        let observed = table.lines[0].grades.clone();
        assert!(table.hold("1a", &observed).is_ok());
        assert!(table.hold("1b", &observed).is_err());
        let better = Grades {
            owned: Grade::Yes,
            ..observed.clone()
        };
        assert!(table.hold("1a", &better).is_err());
        let otherwise = Grades {
            attribution: "direct".to_owned(),
            ..observed
        };
        assert!(table.hold("1a", &otherwise).is_err());
    }
}
