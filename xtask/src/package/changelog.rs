//! CHANGELOG.md in the form that Debian's tools read.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The newest part of CHANGELOG.md as the one entry for this version of the package,
/// or for the workspace's.
pub fn changelog(version: Option<&str>) -> Result<String> {
    let text =
        fs::read_to_string(workspace::root().join("CHANGELOG.md")).context("read CHANGELOG.md")?;
    // cargo-deb's own revision, where it is told none.
    let own = concat!(env!("CARGO_PKG_VERSION"), "-1");
    entry(&text, version.unwrap_or(own), &maintainer()?, &date()?)
}

/// One entry: what it is for, what changed, who says so and when.
fn entry(changes: &str, version: &str, maintainer: &str, date: &str) -> Result<String> {
    let newest = changes
        .split("\n## ")
        .nth(1)
        .context("CHANGELOG.md has no part")?;
    let mut out = format!("trefoil ({version}) unstable; urgency=medium\n\n");
    let mut n_changes = 0;
    for line in newest.lines() {
        if let Some(change) = line.strip_prefix("- ") {
            out += &format!("  * {change}\n");
            n_changes += 1;
        } else if let Some(more) = line.strip_prefix("  ") {
            out += &format!("    {more}\n");
        }
    }
    if n_changes == 0 {
        bail!("the newest part of CHANGELOG.md tells of no change");
    }
    Ok(out + &format!("\n -- {maintainer}  {date}\n"))
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
        let entry = entry(changes, "0.2.0-1", "A <a@example.org>", "today").unwrap();
        assert_eq!(
            entry,
            "trefoil (0.2.0-1) unstable; urgency=medium\n\n  * One\n    thing.\n  * Two.\n\n \
             -- A <a@example.org>  today\n"
        );
    }

    #[test]
    fn nothing_is_not_a_change() {
        assert!(entry("# Changelog\n\n## 0.2.0\n", "1", "", "").is_err());
    }
}
