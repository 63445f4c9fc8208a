//! TOML that may be broken in several places.
//!
//! Owns finding every statement with a mistake in its syntax, and handing on the
//! others. The TOML parser recovers too, but after a bracket that is never closed
//! it takes the rest of the file for its content; here each statement is parsed
//! alone, so that a mistake ends where its statement ends.

use std::net::IpAddr;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeTable;

use crate::policy::problem::{Fault, Lines, Problem};

/// Document, as far as its text could be understood.
pub(super) struct Document<'t> {
    pub(super) root: Spanned<DeTable<'t>>,
    pub(super) problems: Vec<Problem>,
    /// Tables with statements that were left out: what seems to be missing there,
    /// or to be unknown elsewhere, may not be.
    pub(super) damage: Vec<Damage>,
}

/// A top-level table, with everything below it, that is not complete.
pub(super) struct Damage {
    /// Byte offset of its header; 0 also for what comes before any header.
    pub(super) header: usize,
    /// The first name in its header; empty before any header, or if the header
    /// itself is broken.
    pub(super) name: String,
}

/// Byte offsets, and the text with statements left out if there were problems.
pub(super) fn repair(text: &str) -> (Option<String>, Vec<Problem>, Vec<Damage>) {
    if DeTable::parse(text).is_ok() {
        return (None, Vec::new(), Vec::new());
    }
    let lines = Lines::new(text);
    let mut repaired = text.to_owned();
    let mut problems = Vec::new();
    let mut damage = Vec::new();
    let mut top = Damage {
        header: 0,
        name: String::new(),
    };
    let mut header_is_broken = false;
    for statement in statements(text) {
        let source = &text[statement.clone()];
        let (_, errors) = DeTable::parse_recoverable(source);
        let is_header = source.trim_start().starts_with('[') || looks_like_header(source);
        if is_header {
            let name = header_name(source);
            // `[rules.from]` continues the rule before it.
            let is_dotted = source
                .split('#')
                .next()
                .is_some_and(|header| header.contains('.'));
            let continues = is_dotted && (header_is_broken || name == top.name);
            header_is_broken = !errors.is_empty() || continues && header_is_broken;
            if header_is_broken {
                top = Damage {
                    header: statement.start,
                    name: String::new(),
                };
            } else if !continues {
                top = Damage {
                    header: statement.start,
                    name,
                };
            }
        }
        if errors.is_empty() && !header_is_broken {
            continue;
        }
        let mut last_line = 0;
        for error in &errors {
            let offset = error.span().map_or(0, |span| span.start).min(source.len());
            let place = lines.place(statement.start + offset);
            // Further errors on a line follow from its first one.
            if place.line > last_line {
                let fault = match unquoted(source, offset) {
                    None => Fault::new(error.message()),
                    Some(network) => Fault::new(format!("`{network}` is not in quotes"))
                        .help(format!("write `\"{network}\"`")),
                };
                problems.push(fault.at(place, ""));
                last_line = place.line;
            }
        }
        blank(&mut repaired, statement);
        damage.push(Damage {
            header: top.header,
            name: top.name.clone(),
        });
    }
    (Some(repaired), problems, damage)
}

/// The network or address at this place, which TOML takes for a number that is wrong.
fn unquoted(text: &str, offset: usize) -> Option<&str> {
    let belongs = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/');
    let before = text[..offset].trim_end_matches(belongs).len();
    let behind = text[offset..].trim_start_matches(belongs).len();
    let word = &text[before..text.len() - behind];
    let is_bare = !text[..before].ends_with(['"', '\'']);
    let address = word.split_once('/').map_or(word, |(address, _)| address);
    let is_address = address.contains(['.', ':']) && address.parse::<IpAddr>().is_ok();
    (is_bare && is_address).then_some(word)
}

/// Parses a text that [`repair`] has been over. The remaining mistakes are
/// between statements, such as a key that is there twice.
pub(super) fn parse<'t>(
    text: &'t str,
    mut problems: Vec<Problem>,
    damage: Vec<Damage>,
) -> Document<'t> {
    let lines = Lines::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        problems.push(Fault::new(error.message()).at(lines.place(offset), ""));
    }
    Document {
        root,
        problems,
        damage,
    }
}

/// Spaces instead of the statement, so that the offsets behind it stay.
fn blank(text: &mut String, statement: Range<usize>) {
    let spaces: String = text[statement.clone()]
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(statement, &spaces);
}

/// `rules` of `[[rules]]` and of `[rules.from]`.
fn header_name(header: &str) -> String {
    let inner = header.trim_start().trim_start_matches('[');
    let name = inner.split(['.', ']']).next().unwrap_or_default();
    name.trim().trim_matches(['"', '\'']).to_owned()
}

/// Cuts a text into statements: table headers, and keys with their values. Values
/// may span lines as long as brackets are open; if they are never closed, or a
/// header comes first, the statement is what can be one by its looks.
fn statements(text: &str) -> Vec<Range<usize>> {
    let mut line_ranges = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        line_ranges.push(start..start + line.len());
        start += line.len();
    }
    let mut statements = Vec::new();
    let mut first = 0;
    while first < line_ranges.len() {
        let start = line_ranges[first].start;
        let mut scan = Scan::default();
        // One line behind the last of the statement.
        let mut end = None;
        let mut behind_looks = None;
        for (index, range) in line_ranges.iter().enumerate().skip(first) {
            let line = &text[range.clone()];
            if index > first {
                if looks_like_header(line) && scan.string.is_none() {
                    behind_looks = behind_looks.or(Some(index));
                    break;
                }
                if looks_like_assignment(line) {
                    behind_looks = behind_looks.or(Some(index));
                }
            }
            scan.line(line);
            if scan.is_complete() {
                end = Some(index + 1);
                break;
            }
            if scan.is_hopeless {
                break;
            }
        }
        let behind = end.or(behind_looks).unwrap_or_else(|| {
            // Hopeless, or open until the end of the text: up to the next beginning.
            let begins = |line: &str| looks_like_header(line) || looks_like_assignment(line);
            (first + 1..line_ranges.len())
                .find(|&index| begins(&text[line_ranges[index].clone()]))
                .unwrap_or(line_ranges.len())
        });
        statements.push(start..line_ranges[behind - 1].end);
        first = behind;
    }
    statements
}

/// `[name]` or `[[name]]`, even with a bracket too few.
fn looks_like_header(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim_end();
    let name = line.trim_start_matches('[').trim_end_matches(']');
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty() && name.len() < line.len() && name.chars().all(is_name)
}

/// `name =`
fn looks_like_assignment(line: &str) -> bool {
    let inner = line.trim_start();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.\"".contains(c);
    let rest = inner.trim_start_matches(is_name);
    rest.len() < inner.len() && rest.trim_start().starts_with('=')
}

/// Which brackets and strings are open.
#[derive(Default)]
struct Scan {
    open: Vec<u8>,
    /// The delimiter of a string over several lines.
    string: Option<&'static str>,
    is_hopeless: bool,
}

impl Scan {
    fn is_complete(&self) -> bool {
        self.open.is_empty() && self.string.is_none() && !self.is_hopeless
    }

    fn line(&mut self, line: &str) {
        let mut rest = line;
        while !rest.is_empty() {
            if let Some(delimiter) = self.string {
                match rest.find(delimiter) {
                    Some(at) => rest = &rest[at + delimiter.len()..],
                    None => return,
                }
                self.string = None;
                continue;
            }
            let multi_line = ["\"\"\"", "'''"].into_iter().find(|&d| rest.starts_with(d));
            if let Some(delimiter) = multi_line {
                self.string = Some(delimiter);
                rest = &rest[delimiter.len()..];
                continue;
            }
            let byte = rest.as_bytes()[0];
            match byte {
                b'#' => return,
                b'"' | b'\'' => match end_of_string(rest) {
                    Some(end) => {
                        rest = &rest[end..];
                        continue;
                    }
                    None => {
                        self.is_hopeless = true;
                        return;
                    }
                },
                b'[' | b'{' => self.open.push(byte),
                b']' | b'}' => {
                    let opening = if byte == b']' { b'[' } else { b'{' };
                    if self.open.pop() != Some(opening) {
                        self.is_hopeless = true;
                        return;
                    }
                }
                _ => {}
            }
            let n_bytes = rest.chars().next().map_or(1, char::len_utf8);
            rest = &rest[n_bytes..];
        }
    }
}

/// Where the string ends that `text` begins with, if it does on its line.
fn end_of_string(text: &str) -> Option<usize> {
    let quote = text.as_bytes()[0];
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'\n' => return None,
            _ if escaped => escaped = false,
            b'\\' if quote == b'"' => escaped = true,
            byte if byte == quote => return Some(index + 1),
            _ => {}
        }
    }
    None
}
