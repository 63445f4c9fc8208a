//! Under which licences the dependencies stand, and where they come from.
//!
//! The usual tool for this takes longer to build than everything else that CI
//! does; this is the part of it that works without an advisory database.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::workspace;

/// Licences under which a binary that contains the dependency may be
/// distributed, without more than a notice.
const ACCEPTED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Reads the whole dependency graph, of every target, and names each crate
/// whose licence or source is not accepted. Cargo.lock must be up to date for
/// that, or what is checked would not be what others build.
pub fn check() -> Result<()> {
    let metadata = workspace::metadata(&["--locked"])?;
    let mut refused = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        // The project's own crates have no source.
        let Some(source) = package["source"].as_str() else {
            continue;
        };
        let crate_name = format!("{} {}", text(&package["name"]), text(&package["version"]));
        if !source.starts_with("registry+") {
            refused.insert(format!(
                "{crate_name} comes from {source}, not from the registry"
            ));
        }
        let licence = text(&package["license"]);
        if !is_accepted(licence) {
            refused.insert(format!("{crate_name} stands under \"{licence}\""));
        }
    }
    for reason in &refused {
        println!("{reason}");
    }
    if !refused.is_empty() {
        bail!("{} dependencies are not accepted", refused.len());
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be satisfied with accepted licences alone.
fn is_accepted(expression: &str) -> bool {
    // Old crates write `MIT/Apache-2.0` for `MIT OR Apache-2.0`.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words) == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `all_of { OR all_of }`: nothing where the expression is not well formed.
fn any_of(words: &mut Words<'_>) -> Option<bool> {
    let mut accepted = all_of(words)?;
    while words.next_if_eq(&"OR").is_some() {
        accepted |= all_of(words)?;
    }
    Some(accepted)
}

/// `one { AND one }`, which binds closer than OR.
fn all_of(words: &mut Words<'_>) -> Option<bool> {
    let mut accepted = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        accepted &= one(words)?;
    }
    Some(accepted)
}

/// A licence, with its exception if it has one, or an expression in brackets.
fn one(words: &mut Words<'_>) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let accepted = any_of(words)?;
        return (words.next()? == ")").then_some(accepted);
    }
    let licence = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{word} WITH {}", words.next()?),
        None => word.to_owned(),
    };
    Some(ACCEPTED.contains(&licence.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_accepted_alternative_is_enough() {
        assert!(is_accepted("MIT"));
        assert!(is_accepted("GPL-2.0-only OR MIT"));
        assert!(is_accepted("MIT/Apache-2.0"));
        assert!(is_accepted("(MIT OR GPL-3.0-only) AND Unicode-3.0"));
        assert!(is_accepted(
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only"
        ));
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_accepted() {
        assert!(!is_accepted("MIT AND GPL-2.0-only"));
        assert!(!is_accepted("GPL-3.0-only OR MIT AND GPL-2.0-only"));
        assert!(!is_accepted("Apache-2.0 WITH Classpath-exception-2.0"));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for expression in ["", "MIT OR", "(MIT", "MIT Apache-2.0", ")"] {
            assert!(!is_accepted(expression), "{expression:?}");
        }
    }
}
