//! References in documents lead somewhere: tests that back a claim, and files that are linked to.

use std::{collections::HashSet, fs, path::Path};

use anyhow::{Context, Result, bail};

use super::files;
use crate::workspace;

/// Names of tests have at least so many words.
const WORDS_OF_A_TEST: usize = 4;

/// Reads every document, and names each reference to nothing.
pub fn check() -> Result<()> {
    let tests = Tests::read()?;
    let mut broken = 0;
    for path in files(&["*.md"])? {
        let text = read(&path)?;
        let directory = workspace::root().join(&path);
        let directory = directory.parent().unwrap_or(Path::new("/"));
        for (index, line) in text.lines().enumerate() {
            let lost_links = links(line).filter(|link| !directory.join(link).exists());
            let lost_tests = quotes(line).filter(|quote| !tests.has(quote));
            for lost in lost_links.chain(lost_tests) {
                println!("{path}:{}: nothing is called {lost}", index + 1);
                broken += 1;
            }
        }
    }
    if broken > 0 {
        bail!("{broken} references to nothing");
    }
    Ok(())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace::root().join(path)).with_context(|| format!("read {path}"))
}

/// Functions of all Rust files.
#[derive(Default)]
struct Tests {
    functions: HashSet<String>,
    /// With their file, as documents write it: `path: test`, and of the lab's `file: test` and
    /// `folder: file::test`.
    placed: HashSet<String>,
    places: HashSet<String>,
}

impl Tests {
    fn read() -> Result<Self> {
        let mut tests = Self::default();
        for path in files(&["*.rs"])? {
            tests.add(&path, &read(&path)?);
        }
        Ok(tests)
    }

    fn add(&mut self, path: &str, text: &str) {
        let name = path.trim_end_matches(".rs");
        let in_tests = name.trim_end_matches("/main").strip_prefix("tests/tests/");
        let place = in_tests.map(|it| it.replacen('/', ": ", 1).replace('/', "::"));
        for function in text.lines().filter_map(function) {
            self.functions.insert(function.to_owned());
            self.placed.insert(format!("{path}: {function}"));
            if let Some(place) = &place {
                let joint = if place.contains(": ") { "::" } else { ": " };
                self.placed.insert(format!("{place}{joint}{function}"));
            }
        }
        self.places.extend(place);
    }

    /// True unless a quote is the name of a test, and there is none.
    fn has(&self, quote: &str) -> bool {
        let is_word = |text: &str| {
            let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            !text.is_empty() && text.chars().all(is_part)
        };
        match quote.split_once(": ") {
            Some((path, test)) if path.ends_with(".rs") && is_word(test) => {
                self.placed.contains(quote)
            }
            Some((place, test)) if is_word(place) && test.split("::").all(is_word) => {
                self.placed.contains(quote) || self.places.contains(quote) || quote == EXAMPLE
            }
            None if is_word(quote) && quote.split('_').count() >= WORDS_OF_A_TEST => {
                self.functions.contains(quote) || is_known_otherwise(quote)
            }
            _ => true,
        }
    }
}

/// Stands in documents for any.
const EXAMPLE: &str = "file: test";

/// Long names of settings of the kernel.
fn is_known_otherwise(name: &str) -> bool {
    ["net", "nf", "tcp", "ip", "bpf"].contains(&name.split('_').next().unwrap_or_default())
}

/// Name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ');
    words
        .find(|word| !["pub", "async", "const"].contains(word) && !word.starts_with("pub("))
        .filter(|word| *word == "fn")?;
    words.next()?.split(['(', '<']).next()
}

/// Relative paths that a line of Markdown links to.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let path = rest.split([')', '#']).next()?;
        (!path.is_empty() && !path.contains("://")).then_some(path)
    })
}

/// Texts between backticks.
fn quotes(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_where_they_are() {
        let mut tests = Tests::default();
        tests.add(
            "tests/tests/bytes.rs",
            "#[test]\nfn a_b_c_d() -> R {\n    fn inner() {}\n",
        );
        tests.add("tests/tests/vm/web.rs", "fn of_the_web_only() {");
        tests.add("agent/src/geo.rs", "pub const fn as_it_is_there<T>() {");
        for there in [
            "bytes: a_b_c_d",
            "vm: web::of_the_web_only",
            "vm: web",
            "as_it_is_there",
            "agent/src/geo.rs: as_it_is_there",
            "bytes_out",
            "key: value of it",
            "a b: c",
        ] {
            assert!(tests.has(there), "{there}");
        }
        for lost in [
            "bytes: a_b_c_e",
            "vm: bytes::a_b_c_d",
            "vm: net",
            "a_b_c_d_e",
        ] {
            assert!(!tests.has(lost), "{lost}");
        }
    }

    #[test]
    fn links_and_quotes_of_a_line() {
        let line = "| `a` of [b](c/d.md#e), [f](https://g) | `h: i` |";
        assert_eq!(links(line).collect::<Vec<_>>(), ["c/d.md"]);
        assert_eq!(quotes(line).collect::<Vec<_>>(), ["a", "h: i"]);
    }
}
