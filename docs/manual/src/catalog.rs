//! Text of the journal's message catalog about each kind of record.
//!
//! The manual takes its words from there, so that `journalctl -x` and the manual
//! cannot differ.

use anyhow::{Context, Result, bail};
use trefoil::report::Kind;

use crate::roff;

const CATALOG: &str = include_str!("../../../packaging/trefoil.catalog");

/// Returns the catalog's text about records of this kind, for a manual page.
pub fn text(kind: Kind) -> Result<String> {
    let entry = CATALOG
        .split("\n-- ")
        .find_map(|entry| entry.strip_prefix(kind.message_id()))
        .with_context(|| format!("the catalog has no entry for {kind}"))?;
    let (_, body) = entry
        .trim_start_matches('\n')
        .split_once("\n\n")
        .with_context(|| format!("the catalog's entry for {kind} has no text"))?;
    let mut out = String::new();
    for (index, block) in body.trim().split("\n\n").enumerate() {
        if index > 0 {
            out += ".Pp\n";
        }
        out += &if block.starts_with("  ") {
            list(block).with_context(|| format!("in the catalog's entry for {kind}"))?
        } else {
            roff::prose(&named(block))
        };
    }
    Ok(out)
}

/// Lines of a name, and what it means in the column in which the first of these
/// begins; more lines of that are indented further than a name.
fn list(block: &str) -> Result<String> {
    let lines: Option<Vec<&str>> = block.lines().map(|line| line.strip_prefix("  ")).collect();
    let lines = lines.context("a line of a list is not indented")?;
    let column = lines.first().and_then(|line| {
        let gap = line.find("  ")?;
        Some(gap + line[gap..].find(|c| c != ' ')?)
    });
    let mut items: Vec<(&str, String)> = Vec::new();
    for line in lines {
        if line.starts_with(' ') {
            let Some((_, text)) = items.last_mut() else {
                bail!("a list begins with what should follow a name: {line}");
            };
            *text += " ";
            *text += line.trim();
            continue;
        }
        let (name, text) = match column {
            Some(column) if line.get(column - 1..column) == Some(" ") => line.split_at(column),
            _ => (line, ""),
        };
        items.push((name.trim_end(), text.to_owned()));
    }
    let mut out = ".Bl -tag -width undetermined -offset indent -compact\n".to_owned();
    for (name, text) in items {
        out += &format!(
            ".It Li {}\n{}",
            roff::argument(name),
            roff::prose(&named(&text))
        );
    }
    Ok(out + ".El\n")
}

/// Where the journal puts a field's value, the manual puts its name.
fn named(text: &str) -> String {
    text.replace("\"@", "`")
        .replace("@\"", "`")
        .split('@')
        .enumerate()
        .fold(String::new(), |all, (index, part)| {
            // Every second part is the name of a field.
            all + &if index % 2 == 1 {
                format!("`{part}`")
            } else {
                part.to_owned()
            }
        })
}
