//! Owns the rule of the project's English that a program can check: a sentence names its thing
//! first.
//!
//! It reads the comments of sources, the pages of the manual and the documents. It reads lines,
//! not syntax: a comment is a line that begins with `//`, or what follows ` // ` on a line.

use anyhow::{Context, Result, bail};

use super::files;
use crate::workspace;

/// Words that no sentence opens with: the reader would have to wait for the subject.
const OPENERS: [&str; 5] = ["What", "Who", "Whom", "Whose", "That"];

/// Marks that may stand before the first word of a sentence.
const BEFORE_WORD: [char; 6] = ['*', '_', '"', '(', '[', '\''];

/// Reads every source and document that git knows or would add, and names each break.
pub fn check() -> Result<()> {
    let mut broken = 0;
    for path in files(&["*.rs", "*.md", "docs/man/*.[1578]"])? {
        let text = std::fs::read_to_string(workspace::root().join(&path))
            .with_context(|| format!("read {path}"))?;
        for (line, opener) in breaks(&path, &text) {
            println!("{path}:{line}: a sentence opens with \"{opener}\": name its subject first");
            broken += 1;
        }
    }
    if broken > 0 {
        bail!("{broken} sentences open with a word that has no subject");
    }
    Ok(())
}

/// Line, from 1, and first word of each sentence that opens with one of [`OPENERS`].
fn breaks(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    let prose_of: fn(&str) -> Option<&str> = match path.rsplit('.').next() {
        Some("rs") => comment,
        Some("5" | "7" | "8") => running_text,
        _ => document_text,
    };
    let mut found = Vec::new();
    let mut sentence = Sentences::default();
    for (index, line) in text.lines().enumerate() {
        let Some(prose) = prose_of(line) else {
            sentence.begin();
            continue;
        };
        for opener in sentence.openers(prose) {
            found.push((index + 1, opener));
        }
    }
    found
}

/// Text of a comment that has its line to itself, or stands behind code.
fn comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    match line.strip_prefix("//") {
        Some(text) => Some(text.trim_start_matches(['/', '!'])),
        // A quote behind it would make it part of a string.
        None => line
            .split_once(" // ")
            .map(|(_, text)| text)
            .filter(|text| !text.contains('"')),
    }
}

/// Text of a line of a manual page: requests of the formatter apart.
fn running_text(line: &str) -> Option<&str> {
    (!line.starts_with(['.', '\'']) && !line.is_empty()).then_some(line)
}

/// Text of a line of a document: headings apart, whose words are questions at times.
fn document_text(line: &str) -> Option<&str> {
    (!line.starts_with('#') && !line.is_empty()).then_some(line)
}

/// Finds where sentences begin, line by line.
struct Sentences {
    /// True if the next word begins a sentence.
    begins: bool,
    /// True between two lines of three backticks: that text is no prose.
    is_fenced: bool,
}

impl Default for Sentences {
    fn default() -> Self {
        Self {
            begins: true,
            is_fenced: false,
        }
    }
}

impl Sentences {
    /// Notes that a text ended: the next word begins a sentence.
    fn begin(&mut self) {
        self.begins = true;
    }

    /// Words of [`OPENERS`] that begin a sentence on this line.
    fn openers(&mut self, line: &str) -> Vec<&'static str> {
        let line = line.trim();
        if line.starts_with("```") {
            self.is_fenced = !self.is_fenced;
            self.begins = true;
            return Vec::new();
        }
        if self.is_fenced {
            return Vec::new();
        }
        if line.is_empty() || starts_item(line) {
            self.begins = true;
        }
        let mut found = Vec::new();
        for word in line.split_whitespace() {
            if is_mark_of_item(word) {
                self.begins |= word == "|";
                continue;
            }
            if self.begins {
                found.extend(opener(word));
            }
            self.begins = ends_sentence(word);
        }
        found
    }
}

/// True for a line of a list.
fn starts_item(line: &str) -> bool {
    line.split_whitespace().next().is_some_and(is_mark_of_item)
}

/// True for a bullet, a number of a list, and the border of a cell.
fn is_mark_of_item(word: &str) -> bool {
    let is_number = word
        .strip_suffix('.')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
    matches!(word, "-" | "*" | "|") || is_number
}

/// The word of [`OPENERS`] that this is, with what punctuation stands around it.
fn opener(word: &str) -> Option<&'static str> {
    let word = word.trim_start_matches(BEFORE_WORD);
    OPENERS.into_iter().find(|opener| {
        word.strip_prefix(opener)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

/// True if a sentence ends with this word.
fn ends_sentence(word: &str) -> bool {
    word.trim_end_matches([')', '"', '*', '_', '`'])
        .ends_with(['.', '?', '!'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        breaks(path, text)
            .into_iter()
            .map(|(line, _)| line)
            .collect()
    }

    #[test]
    fn a_comment_that_opens_without_its_subject_is_found() {
        for opener in OPENERS {
            let text = format!("//! A file.\n/// {opener} is kept.\nfn keep() {{}}\n");
            assert_eq!(breaks("a.rs", &text), [(2, opener)]);
        }
        assert_eq!(lines("a.rs", "    //! What it is.\n"), [1]);
        assert_eq!(lines("a.rs", "let a = 1; // What it is.\n"), [1]);
    }

    #[test]
    fn every_sentence_of_a_comment_is_read() {
        assert_eq!(lines("a.rs", "/// Adds it. What was there stays.\n"), [1]);
        assert_eq!(
            lines("a.rs", "/// Adds it (always).\n/// That is all.\n"),
            [2]
        );
        assert_eq!(lines("a.rs", "/// Adds it\n///\n/// Who asks?\n"), [3]);
        assert_eq!(lines("a.rs", "/// - **What** it is.\n"), [1]);
        assert_eq!(lines("a.rs", "/// A.\n/// 2. Whose it is\n"), [2]);
    }

    #[test]
    fn the_words_are_free_within_a_sentence() {
        let text = "/// Says what it is, and\n/// What is a word. `What` is code.\n";
        assert!(lines("a.rs", text).is_empty());
        assert!(lines("a.rs", "/// Whatever it is. Whoever asks.\n").is_empty());
        assert!(lines("a.rs", "let text = \"x // What is this\";\n").is_empty());
        assert!(lines("a.rs", "let what = What::new();\n").is_empty());
    }

    #[test]
    fn an_example_is_no_prose() {
        let text = "/// Adds it.\n/// ```\n/// What(1)\n/// ```\n/// What is left.\n";
        assert_eq!(lines("a.rs", text), [5]);
    }

    #[test]
    fn pages_and_documents_are_read_without_their_markup() {
        assert_eq!(
            lines("docs/man/a.8", ".SH What it is\nWhat is left.\n"),
            [2]
        );
        assert_eq!(lines("docs/man/a.8", "The page.\n.PP\nThat is all.\n"), [3]);
        assert_eq!(lines("A.md", "# What it is\n\nIt is. That is all.\n"), [3]);
        assert_eq!(lines("A.md", "| a | What it is |\n"), [1]);
    }
}
