//! The text form of Debian's `tor-geoipdb`: a range and a country code a line.
//!
//! ```text
//! # comment
//! 16777216,16777471,AU
//! 192.0.2.0,192.0.2.255,IE
//! 2001:200::,2001:200:ffff:ffff:ffff:ffff:ffff:ffff,JP
//! ```
//!
//! `geoip` writes IPv4 addresses as decimal numbers and `geoip6` writes IPv6
//! addresses; here both may be in one file, and IPv4 addresses may also be
//! written with dots, so that a person can write a small file. Lines may come in
//! any order, but no two may speak of the same address: a file that gives two
//! answers is refused, with both lines.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::data::{Answer, Data, printable};
use super::ranges::{Number, Range, Ranges};
use crate::bounded::MAX_RANGES;

#[cfg(test)]
mod tests;

/// Mistake in a line, and the correct form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// The line has not three fields.
    #[error("`{0}` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)")]
    Fields(String),
    /// The first or second field is not an address.
    #[error("`{0}` is neither an IP address nor the decimal number of an IPv4 address")]
    Address(String),
    /// An IPv4 address written as an IPv6 one.
    #[error("`{0}` is an IPv4 address mapped into IPv6: write it as IPv4")]
    Mapped(String),
    /// The fields are addresses of two families.
    #[error("{0} and {1} are not of one family")]
    Families(String, String),
    /// The range ends before it begins.
    #[error("the range ends before it begins: put {1} first, {0} second")]
    Backwards(String, String),
    /// The third field does not look like a country code.
    #[error("`{0}` is not a country code: write the two upper-case letters of ISO 3166-1, or `??`")]
    Code(String),
    /// The file has too many ranges.
    #[error(
        "there are more than {MAX_RANGES} ranges, which is the most that is read; use an MMDB file"
    )]
    TooMany,
    /// Another line says something about the same address.
    #[error("the range overlaps the one in line {0}: keep one answer for each address")]
    Overlap(usize),
}

/// A [`LineProblem`] and where it is.
#[derive(Debug, PartialEq, Eq)]
pub struct LineError {
    /// Line number, from 1.
    pub line: usize,
    /// Mistake in that line.
    pub problem: LineProblem,
}

impl fmt::Display for LineError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.problem)
    }
}

/// Reads a whole file.
pub fn parse(content: &str) -> Result<Data, LineError> {
    let mut data = Data {
        name: "text".to_owned(),
        ..Data::default()
    };
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            read_header(comment.trim(), &mut data);
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let (range, said) = parse_line(line).map_err(|problem| LineError {
            line: number,
            problem,
        })?;
        data.count(said);
        if data.n_networks > MAX_RANGES {
            return Err(LineError {
                line: number,
                problem: LineProblem::TooMany,
            });
        }
        match range {
            Bounds::V4(first, last) => v4.push(Entry {
                first,
                last,
                said,
                line: number,
            }),
            Bounds::V6(first, last) => v6.push(Entry {
                first,
                last,
                said,
                line: number,
            }),
        }
    }
    data.countries_v4 = table(v4)?;
    data.countries_v6 = table(v6)?;
    Ok(data)
}

/// A line's range, lines of unknown country included: they must not overlap either.
struct Entry<A> {
    first: A,
    last: A,
    said: Option<Answer>,
    line: usize,
}

enum Bounds {
    V4(u32, u32),
    V6(u128, u128),
}

fn parse_line(line: &str) -> Result<(Bounds, Option<Answer>), LineProblem> {
    let mut fields = line.split(',').map(str::trim);
    let (Some(first), Some(last), Some(code), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(LineProblem::Fields(shortened(line)));
    };
    let range = match (parse_address(first)?, parse_address(last)?) {
        (Address::V4(a), Address::V4(b)) if a <= b => Bounds::V4(a, b),
        (Address::V6(a), Address::V6(b)) if a <= b => Bounds::V6(a, b),
        (Address::V4(_), Address::V4(_)) | (Address::V6(_), Address::V6(_)) => {
            return Err(LineProblem::Backwards(first.to_owned(), last.to_owned()));
        }
        _ => return Err(LineProblem::Families(first.to_owned(), last.to_owned())),
    };
    let is_letter = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'?';
    if code.len() != 2 || !code.bytes().all(is_letter) {
        return Err(LineProblem::Code(shortened(code)));
    }
    Ok((range, Answer::parse(code)))
}

enum Address {
    V4(u32),
    V6(u128),
}

fn parse_address(text: &str) -> Result<Address, LineProblem> {
    let wrong = || LineProblem::Address(shortened(text));
    // Millions of times: a search that is made for long texts would take longer.
    let has = |byte| text.bytes().any(|own| own == byte);
    if has(b':') {
        let address: Ipv6Addr = text.parse().map_err(|_| wrong())?;
        // Such an entry would not be found: look-ups treat these addresses as IPv4.
        if address.to_ipv4_mapped().is_some() {
            return Err(LineProblem::Mapped(shortened(text)));
        }
        Ok(Address::V6(address.into()))
    } else if has(b'.') {
        let address: Ipv4Addr = text.parse().map_err(|_| wrong())?;
        Ok(Address::V4(address.into()))
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map(Address::V4).map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

/// Checks that no two lines speak of one address, and drops what they do not know.
fn table<A: Number>(mut entries: Vec<Entry<A>>) -> Result<Ranges<A, Answer>, LineError> {
    entries.sort_by_key(|entry| entry.first);
    for pair in entries.windows(2) {
        if pair[1].first <= pair[0].last {
            let (earlier, later) = (
                pair[0].line.min(pair[1].line),
                pair[0].line.max(pair[1].line),
            );
            return Err(LineError {
                line: later,
                problem: LineProblem::Overlap(earlier),
            });
        }
    }
    let mut ranges = Ranges::default();
    for Entry {
        first, last, said, ..
    } in entries
    {
        if let Some(value) = said {
            ranges.append(Range { first, last, value });
        }
    }
    Ok(ranges)
}

/// Takes maker and date from the header that the IPFire export has:
/// `Vendor:    IPFire Project`, `Generated: Thu, 25 Jun 2026 04:33:59 GMT`.
fn read_header(comment: &str, data: &mut Data) {
    if let Some(vendor) = comment.strip_prefix("Vendor:") {
        let vendor = printable(vendor);
        if !vendor.is_empty() {
            data.name = vendor;
        }
    } else if let Some(generated) = comment.strip_prefix("Generated:") {
        data.date = parse_http_date(generated).or(data.date.take());
    }
}

fn parse_http_date(text: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_whitespace().skip(1);
    let day: u8 = words
        .next()?
        .parse()
        .ok()
        .filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|known| *known == month)? + 1;
    let year: u16 = words.next()?.parse().ok()?;
    Some(format!("{year:04}-{month:02}-{day:02}"))
}

/// Text from a file as it may appear in a message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_default)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}
