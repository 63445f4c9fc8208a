//! The grades that the tests of the battery observe: collected while they run, and
//! printed at the end. Whether they are what `tests/battery.txt` says is for the tests
//! to hold; here only what no test observed is a problem.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::workspace;

/// Where the tests write what they observe, one file a way out.
pub const DIRECTORY: &str = "TREFOIL_BATTERY";

const TABLE: &str = "tests/battery.txt";

/// Observations of the tests.
pub struct Battery {
    /// One file for each way.
    pub directory: PathBuf,
}

impl Battery {
    /// Nothing so far.
    pub fn new() -> Result<Self> {
        let directory = workspace::target_dir().join("battery");
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.display()));
            }
            _ => {}
        }
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory })
    }

    fn lines(&self) -> Result<BTreeMap<(u32, String), String>> {
        let mut lines = BTreeMap::new();
        let directory = &self.directory;
        let list = || format!("list {}", directory.display());
        for entry in fs::read_dir(directory).with_context(list)? {
            let path = entry.with_context(list)?.path();
            let line =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            lines.insert(in_order(&path), line);
        }
        Ok(lines)
    }

    /// The table of what was observed; empty if nothing was.
    pub fn observed(&self) -> Result<String> {
        let mut lines = self.lines()?;
        let mut table = String::new();
        if lines.is_empty() {
            return Ok(table);
        }
        for line in project_table()?.lines() {
            // No test could observe these. A kind without a way of some privilege comes first.
            if let Some(id) = id(line).filter(|_| !is_graded(line)) {
                let kind = columns(line).take(2).collect::<Vec<_>>().join(" ");
                let name = if is_none(line) { &kind } else { id };
                lines.insert(in_order(Path::new(name)), line.to_owned());
            }
        }
        table.push_str(
            "id    privilege  seen  owned  attribution  blocked  foretold  \
             way out, and why it is no better\n",
        );
        for line in lines.values() {
            let _ = writeln!(table, "{}", line.trim_end());
        }
        Ok(table)
    }

    /// Ways of the project's table that have a grade and that no test went.
    pub fn missing(&self) -> Result<Vec<String>> {
        Ok(graded(&project_table()?)
            .filter(|id| !self.directory.join(id).exists())
            .map(|id| format!("{TABLE} has grades for {id}, and no test went that way"))
            .collect())
    }
}

fn project_table() -> Result<String> {
    fs::read_to_string(workspace::root().join(TABLE)).with_context(|| format!("read {TABLE}"))
}

/// The ways that have a grade other than `--`.
fn graded(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter(|line| is_graded(line)).filter_map(id)
}

fn id(line: &str) -> Option<&str> {
    line.split_whitespace()
        .next()
        .filter(|id| !id.starts_with('#'))
}

/// Columns: id, privilege, seen, owned, attribution, blocked, foretold, way, reason; or kind,
/// privilege, `none`, reason.
fn columns(line: &str) -> impl Iterator<Item = &str> {
    let columns = line.split("  ").map(str::trim);
    columns.filter(|column| !column.is_empty())
}

fn is_none(line: &str) -> bool {
    columns(line).nth(2) == Some("none")
}

fn is_graded(line: &str) -> bool {
    let mut grades = columns(line).skip(2).take(5);
    id(line).is_some() && !is_none(line) && grades.any(|grade| grade != "--")
}

/// `2b` before `10a`.
fn in_order(path: &Path) -> (u32, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
    (digits.parse().unwrap_or(u32::MAX), name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_without_any_grade_needs_no_test() {
        let table = "# id  seen\n\n1a  user  yes  yes  direct  yes  yes  TCP\n\
                     30a  root  --  --  --  --  --  RDMA  hardware\n40  user  none  root's\n";
        assert_eq!(graded(table).collect::<Vec<_>>(), ["1a"]);
    }

    #[test]
    fn rows_are_in_the_order_of_their_numbers() {
        let of = |name: &str| in_order(Path::new(name));
        assert!(of("/x/2b") < of("/x/10a") && of("/x/10a") < of("/x/10b"));
    }
}
