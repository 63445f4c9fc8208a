//! Country data of both formats: what the reader says is what the file says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use trefoil::geo::{Country, Geo, Range, Special};

use crate::mmdb;

/// Facts that a file tells about an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The country, if the file places the address in exactly one.
    pub country: Option<Country>,
    /// The autonomous system.
    pub asn: Option<u32>,
}

/// A file, by somebody who looks up one address at a time.
pub trait Reference {
    /// Returns the facts that it tells; nothing if they cannot be told.
    fn says(&self, address: IpAddr) -> Option<Said>;

    /// True if the reader may know nothing of this address all the same.
    fn may_be_left_out(&self, _: IpAddr) -> bool {
        false
    }
}

/// Panics if a promise about text files is broken.
pub fn check_text(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        assert!(mmdb::is_one(input) || read(input).is_none());
        return;
    };
    if mmdb::is_one(input) {
        return;
    }
    if let Some(geo) = read(input) {
        let reference = TextFile::new(text);
        compare(&geo, &reference, &reference.borders());
    }
}

/// Panics if a promise about MMDB files is broken.
pub fn check_mmdb(input: &[u8]) {
    if !mmdb::is_one(input) {
        return;
    }
    if let Some(geo) = read(input) {
        let Some(reference) = mmdb::Database::new(input) else {
            panic!("read, although it is no database")
        };
        compare(&geo, &reference, &reference.samples());
    }
}

/// Reads a file, and checks what must hold of every error and of all data.
fn read(input: &[u8]) -> Option<Geo> {
    let geo = match Geo::parse(&[(Path::new("input"), input)]) {
        Ok(geo) => geo,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 2048, "{} bytes of error", text.len());
            assert!(is_one_line(&text), "{text:?}");
            return None;
        }
    };
    assert_canonical(geo.countries_v4(), |last| last.checked_add(1));
    assert_canonical(geo.countries_v6(), |last| last.checked_add(1));
    for source in geo.sources() {
        assert!(!source.name.is_empty() && source.name.len() <= 40);
        let in_none = source.n_unknown + source.n_contradictory + source.n_anywhere;
        assert!(in_none <= source.n_networks);
    }
    assert!(geo.build_id().is_ascii() && is_one_line(geo.build_id()));
    Some(geo)
}

fn is_one_line(text: &str) -> bool {
    !text.contains(char::is_control)
}

/// Ascending, disjoint, and neighbours differ.
fn assert_canonical<A: Copy + Ord>(ranges: &[Range<A, Country>], next: fn(A) -> Option<A>) {
    assert!(ranges.iter().all(|range| range.first <= range.last));
    for pair in ranges.windows(2) {
        assert!(pair[0].last < pair[1].first);
        let touch = next(pair[0].last) == Some(pair[1].first);
        assert!(!(touch && pair[0].value == pair[1].value));
    }
}

/// Every address at or beside a border has what the reference says, and what a search
/// of the ranges one by one says.
fn compare(geo: &Geo, reference: &impl Reference, more: &[IpAddr]) {
    const MOST: usize = 64;
    let v4 = geo.countries_v4().iter().take(MOST).flat_map(|range| {
        [
            range.first.wrapping_sub(1),
            range.first,
            range.last,
            range.last.wrapping_add(1),
        ]
        .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
    });
    let v6 = geo.countries_v6().iter().take(MOST).flat_map(|range| {
        [
            range.first.wrapping_sub(1),
            range.first,
            range.last,
            range.last.wrapping_add(1),
        ]
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    });
    for address in v4.chain(v6).chain(more.iter().copied()) {
        let country = geo.country(address);
        assert_eq!(country, linear(geo, address), "{address}, one by one");
        let known = Said {
            country,
            asn: geo.asn(address),
        };
        let is_left_out = known == Said::default() && reference.may_be_left_out(address);
        if let Some(mut said) = reference.says(address)
            && !is_left_out
        {
            if Special::of(address).is_some() {
                said.country = None;
            }
            assert_eq!(known, said, "{address}, by the file");
        }
        assert_eq!(country.is_none(), geo.undetermined(address).is_some());
        if let IpAddr::V4(v4) = address {
            assert_eq!(country, geo.country(IpAddr::V6(v4.to_ipv6_mapped())));
        }
    }
}

fn linear(geo: &Geo, address: IpAddr) -> Option<Country> {
    fn find<A: Ord>(ranges: &[Range<A, Country>], address: A) -> Option<Country> {
        let mut matching = ranges
            .iter()
            .filter(|range| range.first <= address && address <= range.last);
        matching.next().map(|range| range.value)
    }
    match address.to_canonical() {
        IpAddr::V4(v4) => find(geo.countries_v4(), v4.to_bits()),
        IpAddr::V6(v6) => find(geo.countries_v6(), v6.to_bits()),
    }
}

/// A text file that was accepted: every line is a range and a code.
struct TextFile {
    lines: Vec<(IpAddr, IpAddr, Option<Country>)>,
}

impl TextFile {
    fn new(text: &str) -> Self {
        let meaningful = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let lines = text.lines().map(str::trim).filter(meaningful);
        let read = |line: &str| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let [first, last, code] = fields[..] else {
                panic!("accepted, with {} fields: {line:?}", fields.len())
            };
            (address(first), address(last), Country::parse(code))
        };
        Self {
            lines: lines.map(read).collect(),
        }
    }

    fn borders(&self) -> Vec<IpAddr> {
        let ends = self.lines.iter().take(64);
        ends.flat_map(|&(first, last, _)| [first, last]).collect()
    }
}

fn address(text: &str) -> IpAddr {
    match text.parse::<u32>() {
        Ok(number) => IpAddr::V4(Ipv4Addr::from_bits(number)),
        Err(_) => text
            .parse()
            .unwrap_or_else(|_| panic!("accepted as an address: {text:?}")),
    }
}

impl Reference for TextFile {
    fn says(&self, address: IpAddr) -> Option<Said> {
        let address = address.to_canonical();
        let mut saying = self.lines.iter().filter(|(first, last, _)| {
            first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
        });
        let country = saying.next().and_then(|&(_, _, country)| country);
        assert!(saying.next().is_none(), "two lines speak of {address}");
        Some(Said { country, asn: None })
    }
}
