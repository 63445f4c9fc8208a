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

use super::country::Country;
use super::data::{Answer, Data, printable};
use super::ranges::{Number, Range, Ranges};

/// What is wrong with a line, and what would be right.
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
    /// Another line says something about the same address.
    #[error("the range overlaps the one in line {0}: keep one answer for each address")]
    Overlap(usize),
}

/// A [`LineProblem`] and where it is.
#[derive(Debug, PartialEq, Eq)]
pub struct LineError {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong there.
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
        let (range, country) = parse_line(line).map_err(|problem| LineError {
            line: number,
            problem,
        })?;
        data.n_networks += 1;
        data.n_unknown += usize::from(country.is_none());
        match range {
            Bounds::V4(first, last) => v4.push(Entry {
                first,
                last,
                country,
                line: number,
            }),
            Bounds::V6(first, last) => v6.push(Entry {
                first,
                last,
                country,
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
    country: Option<Country>,
    line: usize,
}

enum Bounds {
    V4(u32, u32),
    V6(u128, u128),
}

fn parse_line(line: &str) -> Result<(Bounds, Option<Country>), LineProblem> {
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
    Ok((range, Country::parse(code)))
}

enum Address {
    V4(u32),
    V6(u128),
}

fn parse_address(text: &str) -> Result<Address, LineProblem> {
    let wrong = || LineProblem::Address(shortened(text));
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().map_err(|_| wrong())?;
        // Such an entry would not be found: look-ups treat these addresses as IPv4.
        if address.to_ipv4_mapped().is_some() {
            return Err(LineProblem::Mapped(shortened(text)));
        }
        Ok(Address::V6(address.into()))
    } else if text.contains('.') {
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
        first,
        last,
        country,
        ..
    } in entries
    {
        if let Some(country) = country {
            let value = Answer::Country(country);
            ranges
                .push(Range { first, last, value })
                .expect("the entries are sorted and do not overlap");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn country(code: &str) -> Answer {
        Answer::Country(Country::parse(code).unwrap())
    }

    fn problem(content: &str) -> (usize, String) {
        let error = parse(content).unwrap_err();
        (error.line, error.problem.to_string())
    }

    #[test]
    fn reads_the_header_and_all_ways_of_writing_addresses() {
        let data = parse(
            "# Location Database Export\n\
             #\n\
             # Generated: Thu, 25 Jun 2026 04:33:59 GMT\n\
             # Vendor:    IPFire Project\n\
             \n\
             16777216,16777471,AU\r\n\
             16777472,16777727,AU\n\
             192.0.2.0, 192.0.2.255, IE\n\
             2001:db8::,2001:db8:ffff:ffff:ffff:ffff:ffff:ffff,FR\n\
             3221226240,3221226495,??\n",
        )
        .unwrap();
        assert_eq!(
            (data.name.as_str(), data.date.as_deref()),
            ("IPFire Project", Some("2026-06-25"))
        );
        assert_eq!(
            data.countries_v4.as_slice(),
            [
                Range {
                    first: 0x0100_0000,
                    last: 0x0100_01ff,
                    value: country("AU")
                },
                Range {
                    first: 0xc000_0200,
                    last: 0xc000_02ff,
                    value: country("IE")
                },
            ]
        );
        assert_eq!(
            data.countries_v6.as_slice(),
            [Range {
                first: 0x2001_0db8 << 96,
                last: (0x2001_0db9 << 96) - 1,
                value: country("FR")
            }]
        );
        assert_eq!(
            (data.n_networks, data.n_unknown, data.n_contradictory),
            (5, 1, 0)
        );
    }

    #[test]
    fn a_file_without_header_is_just_text() {
        let data = parse("# Generated: some day\n1,2,IE\n").unwrap();
        assert_eq!((data.name.as_str(), data.date), ("text", None));
    }

    #[test]
    fn codes_that_are_no_country_are_unknown() {
        for code in ["??", "ZZ", "A1", "A2", "EU", "AP", "AN", "UK"] {
            let data = parse(&format!("1,2,{code}\n")).unwrap();
            assert!(data.countries_v4.is_empty(), "{code}");
            assert_eq!(data.n_unknown, 1, "{code}");
        }
    }

    #[test]
    fn lines_may_come_in_any_order() {
        let data = parse("20,29,IE\n10,19,IE\n0,9,FR\n").unwrap();
        assert_eq!(
            data.countries_v4.as_slice(),
            [
                Range {
                    first: 0,
                    last: 9,
                    value: country("FR")
                },
                Range {
                    first: 10,
                    last: 29,
                    value: country("IE")
                }
            ]
        );
    }

    #[test]
    fn one_address_has_one_line() {
        let overlap =
            |n| format!("the range overlaps the one in line {n}: keep one answer for each address");
        assert_eq!(
            problem("0,9,IE\n20,29,IE\n# comment\n9,9,IE\n"),
            (4, overlap(1))
        );
        assert_eq!(problem("10,19,IE\n0,10,FR\n"), (2, overlap(1)));
        assert_eq!(problem("10,19,??\n0,10,FR\n"), (2, overlap(1)));
        assert_eq!(problem("::5,::9,FR\n::,::5,FR\n"), (2, overlap(1)));
        assert_eq!(problem("0,100,FR\n5,6,FR\n7,8,FR\n"), (2, overlap(1)));
    }

    #[test]
    fn a_wrong_line_is_named_with_what_would_be_right() {
        for (line, message) in [
            (
                "1,2",
                "`1,2` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
            ),
            (
                "1,2,IE,x",
                "`1,2,IE,x` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
            ),
            (
                "\u{1b}[1m",
                "`\\u{1b}[1m` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
            ),
            (
                "1,b,IE",
                "`b` is neither an IP address nor the decimal number of an IPv4 address",
            ),
            (
                "1,,IE",
                "`` is neither an IP address nor the decimal number of an IPv4 address",
            ),
            (
                "-1,2,IE",
                "`-1` is neither an IP address nor the decimal number of an IPv4 address",
            ),
            (
                "1,4294967296,IE",
                "`4294967296` is neither an IP address nor the decimal number of an IPv4 address",
            ),
            (
                "::ffff:192.0.2.0,::ffff:192.0.2.255,IE",
                "`::ffff:192.0.2.0` is an IPv4 address mapped into IPv6: write it as IPv4",
            ),
            ("1,::2,IE", "1 and ::2 are not of one family"),
            (
                "3,2,IE",
                "the range ends before it begins: put 2 first, 3 second",
            ),
            (
                "1,2,ie",
                "`ie` is not a country code: write the two upper-case letters of ISO 3166-1, or `??`",
            ),
            (
                "1,2,Ireland",
                "`Ireland` is not a country code: write the two upper-case letters of ISO 3166-1, or `??`",
            ),
        ] {
            assert_eq!(
                problem(&format!("# one\n{line}\n")),
                (2, message.to_owned())
            );
        }
    }
}
