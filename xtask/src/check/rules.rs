//! The project's own rules that no lint knows, each with its reason.
//!
//! They read lines, not syntax: cheap, and good enough to catch what slips in.

use std::fs;

use anyhow::{Context, Result, bail};

use super::files;
use crate::workspace;

/// One rule about a Rust source file.
struct Rule {
    /// Fault where the rule is broken, and why it matters.
    reason: &'static str,
    /// The first line, from 1, at which this file breaks it.
    broken_at: fn(path: &str, text: &str) -> Option<usize>,
}

const RULES: [Rule; 4] = [
    Rule {
        reason: "a file begins with `//!`: what it owns, and what it must not do",
        broken_at: |_, text| (!text.starts_with("//!")).then_some(1),
    },
    Rule {
        reason: "`unsafe` in the agent belongs into agent/src/kernel/, where it is reviewed",
        broken_at: |path, text| {
            let elsewhere = path.starts_with("agent/") && !path.starts_with("agent/src/kernel/");
            elsewhere
                .then(|| first_line_with_word(text, "unsafe"))
                .flatten()
        },
    },
    Rule {
        reason: "only agent/src/kernel/ names aya, so that the rest runs without a kernel",
        broken_at: |path, text| {
            let elsewhere = !path.starts_with("agent/src/kernel/")
                && !path.starts_with("agent/benches/")
                && !path.starts_with("agent-ebpf/src/")
                && !path.starts_with("xtask/");
            elsewhere
                .then(|| first_line_with_word(text, "aya"))
                .flatten()
        },
    },
    Rule {
        reason: "a test is not ignored: what it needs and lacks makes it fail",
        broken_at: |path, text| {
            // This file has to name what it looks for.
            let elsewhere = !path.starts_with("xtask/src/check/");
            elsewhere
                .then(|| first_line_where(text, |line| line.contains("#[ignore")))
                .flatten()
        },
    },
];

/// Reads every Rust file that git knows or would add, and names each break.
pub fn check() -> Result<()> {
    let mut broken = 0;
    for path in files(&["*.rs"])? {
        let text = fs::read_to_string(workspace::root().join(&path))
            .with_context(|| format!("read {path}"))?;
        for (line, reason) in breaks(&path, &text) {
            println!("{path}:{line}: {reason}");
            broken += 1;
        }
    }
    if broken > 0 {
        bail!("{broken} breaks of the project's rules");
    }
    Ok(())
}

/// The line and the reason of every rule that this file breaks.
fn breaks(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    RULES
        .iter()
        .filter_map(|rule| Some(((rule.broken_at)(path, text)?, rule.reason)))
        .collect()
}

/// The first line of code, comments apart, with this word in it.
fn first_line_with_word(text: &str, word: &str) -> Option<usize> {
    first_line_where(text, |line| {
        let code = line.split("//").next().unwrap_or_default();
        code.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|candidate| candidate == word)
    })
}

fn first_line_where(text: &str, matches: impl Fn(&str) -> bool) -> Option<usize> {
    text.lines().position(matches).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken_lines(path: &str, text: &str) -> Vec<usize> {
        breaks(path, text)
            .into_iter()
            .map(|(line, _)| line)
            .collect()
    }

    #[test]
    fn a_file_that_keeps_every_rule_is_left_alone() {
        let text =
            "//! Owns nothing.\n// aya and unsafe are named in a comment.\nfn unsafely() {}\n";
        assert!(broken_lines("agent/src/flow.rs", text).is_empty());
    }

    #[test]
    fn each_rule_finds_its_break() {
        assert_eq!(broken_lines("agent/src/flow.rs", "use std::fs;\n"), [1]);
        assert_eq!(
            broken_lines("agent/src/flow.rs", "//! A.\n\nunsafe { f() }\n"),
            [3]
        );
        assert_eq!(
            broken_lines("tests/src/lab.rs", "//! A.\nuse aya::Ebpf;\n"),
            [2]
        );
        assert_eq!(
            broken_lines("tests/src/lab.rs", "//! A.\n#[ignore = \"slow\"]\n"),
            [2]
        );
    }

    #[test]
    fn kernel_is_where_both_belong() {
        let text = "//! A.\nuse aya::Ebpf;\nunsafe { f() }\n";
        assert!(broken_lines("agent/src/kernel/mod.rs", text).is_empty());
    }
}
