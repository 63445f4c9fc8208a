//! Owns the limits of length: a file that is read at one sitting, a function that is seen as a
//! whole.
//!
//! It reads lines, as rustfmt lays them out: a function ends at the first `}` that stands as far
//! to the left as its `fn`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail};

use super::files;
use crate::workspace;

/// Most lines of a file.
const FILE_LINES: usize = 500;
/// Most lines of a function, from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 80;

/// Longer ones, one a line: lines, and path with or without `::function`. None may grow, and one
/// that is short again has to be struck out.
const DECLARED: &str = include_str!("longer.txt");
const DECLARED_IN: &str = "xtask/src/check/longer.txt";

/// Measures every Rust source that git knows or would add, and names what is too long.
pub fn check() -> Result<()> {
    let mut found = BTreeMap::new();
    for path in files(&["*.rs"])? {
        let text = fs::read_to_string(workspace::root().join(&path))
            .with_context(|| format!("read {path}"))?;
        found.extend(too_long(&path, &text));
    }
    let faults = faults(&declared(DECLARED)?, &found);
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults of length", faults.len());
    }
    Ok(())
}

/// Lines by path, or by path and function.
type Lengths = BTreeMap<String, usize>;

/// Reads the list of declared lengths.
fn declared(text: &str) -> Result<Lengths> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entries = lines.filter(|line| !line.is_empty()).map(|line| {
        let (lines, what) = line.split_once(' ').context("lines, a blank, and a path")?;
        let lines = lines.parse().with_context(|| format!("lines of {what}"))?;
        Ok((what.to_owned(), lines))
    });
    entries
        .collect::<Result<_>>()
        .with_context(|| format!("read {DECLARED_IN}"))
}

/// Faults of the sources against the list, and of the list against the sources.
fn faults(declared: &Lengths, found: &Lengths) -> Vec<String> {
    let mut faults = Vec::new();
    for (what, &lines) in found {
        let most = match what.contains("::") {
            true => FUNCTION_LINES,
            false => FILE_LINES,
        };
        match declared.get(what) {
            None => faults.push(format!(
                "{what} has {lines} lines, and may have {most}: split it by concepts"
            )),
            Some(&most) if lines > most => faults.push(format!(
                "{what} has {lines} lines, and {DECLARED_IN} declares {most}: it may not grow"
            )),
            Some(_) => {}
        }
    }
    for what in declared.keys().filter(|what| !found.contains_key(*what)) {
        faults.push(format!(
            "{what} is short now, or gone: strike it out of {DECLARED_IN}"
        ));
    }
    faults
}

/// Measures a file and its functions; returns those that are too long.
fn too_long(path: &str, text: &str) -> Lengths {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Lengths::new();
    if lines.len() > FILE_LINES {
        found.insert(path.to_owned(), lines.len());
    }
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        let body = &lines[index..];
        let Some(end) = body.iter().position(|line| *line == closing) else {
            continue;
        };
        // A declaration without a body ends before the next one begins.
        let is_declared_only = body
            .iter()
            .take(end)
            .any(|line| *line == format!("{indent});"));
        if end + 1 > FUNCTION_LINES && !is_declared_only {
            let longest = found.entry(format!("{path}::{name}")).or_default();
            *longest = (*longest).max(end + 1);
        }
    }
    found
}

/// Name of the function that begins on this line, if its body does not end on it.
fn function(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let before = code.split("fn ").next()?;
    let is_qualified = before.split_whitespace().all(|word| {
        matches!(word, "const" | "async" | "unsafe" | "extern")
            || word.starts_with("pub")
            || word.starts_with("in")
            || word.starts_with('"')
    });
    let rest = code.get(before.len()..)?.strip_prefix("fn ")?;
    let ends_here = line.ends_with('}') || line.ends_with(';');
    let name = rest.split(['(', '<']).next()?;
    (is_qualified && !ends_here).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lines(name: &str, lines: usize) -> String {
        let body = "        a();\n".repeat(lines - 2);
        format!("    pub(super) fn {name}(\n{body}    }}\n")
    }

    #[test]
    fn a_function_is_measured_from_its_name_to_its_brace() {
        let text = format!(
            "impl A {{\n{}{}}}\n",
            of_lines("short", 80),
            of_lines("long", 81)
        );
        let found = too_long("a.rs", &text);
        assert_eq!(found, Lengths::from([("a.rs::long".to_owned(), 81)]));
    }

    #[test]
    fn a_file_is_measured_as_a_whole() {
        assert!(too_long("a.rs", &"//\n".repeat(500)).is_empty());
        let found = too_long("a.rs", &"//\n".repeat(501));
        assert_eq!(found, Lengths::from([("a.rs".to_owned(), 501)]));
    }

    #[test]
    fn a_declared_one_may_not_grow_and_is_struck_out_when_it_is_short() {
        let lengths = |lines: usize| Lengths::from([("a.rs".to_owned(), lines)]);
        assert!(faults(&lengths(600), &lengths(600)).is_empty());
        assert!(faults(&lengths(600), &lengths(550)).is_empty());
        assert!(faults(&lengths(600), &lengths(601))[0].contains("may not grow"));
        assert!(faults(&lengths(600), &Lengths::new())[0].contains("strike it out"));
        assert!(faults(&Lengths::new(), &lengths(501))[0].contains("may have 500"));
    }

    #[test]
    fn the_list_is_read() -> Result<()> {
        let list = declared("# Why.\n\n600 a.rs\n90 a.rs::f\n")?;
        assert_eq!(list.get("a.rs::f"), Some(&90));
        assert!(declared("a.rs 600\n").is_err());
        Ok(())
    }
}
