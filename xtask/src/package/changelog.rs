//! CHANGELOG.md in the form that Debian's tools read.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The newest part of CHANGELOG.md as the one entry for this version of a package, or for the
/// workspace's.
pub fn changelog(package: &str, version: Option<&str>) -> Result<String> {
    let text =
        fs::read_to_string(workspace::root().join("CHANGELOG.md")).context("read CHANGELOG.md")?;
    // cargo-deb's own revision, where it is told none.
    let own = concat!(env!("CARGO_PKG_VERSION"), "-1");
    let version = format!("{package} ({})", version.unwrap_or(own));
    entry(&text, &version, &maintainer()?, &date()?)
}

/// One entry: which package and version it is for, what changed, who says so and when.
fn entry(changes: &str, version: &str, maintainer: &str, date: &str) -> Result<String> {
    let newest = changes
        .split("\n## ")
        .nth(1)
        .context("CHANGELOG.md has no part")?;
    let mut points: Vec<Vec<&str>> = Vec::new();
    for line in newest.lines() {
        if let Some(point) = line.strip_prefix("- ") {
            points.push(point.split_whitespace().collect());
        } else if let Some((more, point)) = line.strip_prefix("  ").zip(points.last_mut()) {
            point.extend(more.split_whitespace());
        }
    }
    if points.is_empty() {
        bail!("the newest part of CHANGELOG.md tells of no change");
    }
    let points: String = points.iter().map(|words| wrapped(words)).collect();
    Ok(format!(
        "{version} unstable; urgency=medium\n\n{points}\n -- {maintainer}  {date}\n"
    ))
}

/// One point of an entry, in lines as short as Debian wants them.
fn wrapped(words: &[&str]) -> String {
    const WIDTH: usize = 80;
    let mut out = String::new();
    let mut line = "  *".to_owned();
    for word in words {
        if line.len() + 1 + word.len() > WIDTH {
            out += &line;
            out.push('\n');
            line = "   ".to_owned();
        }
        line.push(' ');
        line += word;
    }
    out + &line + "\n"
}

/// As the package says it.
fn maintainer() -> Result<String> {
    let metadata = workspace::metadata(&["--no-deps"])?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|package| package["metadata"]["deb"]["maintainer"].as_str())
        .map(str::to_owned)
        .context("agent/Cargo.toml names no maintainer of the package")
}

/// When the newest change was made, so that the same sources make the same package;
/// now, for sources that are in no repository.
fn date() -> Result<String> {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%aD"]);
    let mut now = Command::new("date");
    now.arg("--rfc-email");
    for command in [&mut git, &mut now] {
        let output = command.current_dir(workspace::root()).output();
        let date = output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        });
        if !date.is_empty() {
            return Ok(date);
        }
    }
    bail!("neither git nor date(1) tells a date for the changelog")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_part_is_the_entry() {
        let changes =
            "# Changelog\n\n## 0.2.0\n\nBetter.\n\n- One\n  thing.\n- Two.\n\n## 0.1.0\n\n- Old.\n";
        let entry = entry(changes, "trefoil (0.2.0-1)", "A <a@example.org>", "today").unwrap();
        assert_eq!(
            entry,
            "trefoil (0.2.0-1) unstable; urgency=medium\n\n  * One thing.\n  * Two.\n\n \
             -- A <a@example.org>  today\n"
        );
    }

    #[test]
    fn long_points_go_on_in_another_line() {
        let words = ["five5"; 30];
        let text = wrapped(&words);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.starts_with("  * five5 five5"), "{text}");
        assert_eq!(text.lines().nth(1).unwrap().find("five5"), Some(4));
        assert_eq!(text.matches("five5").count(), 30);
    }

    #[test]
    fn nothing_is_not_a_change() {
        assert!(entry("# Changelog\n\n## 0.2.0\n", "1", "", "").is_err());
    }
}
