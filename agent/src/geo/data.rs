//! What one file of country data says, whatever its format.

use super::country::Country;
use super::ranges::Ranges;

/// What a file says about where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Here.
    Country(Country),
    /// Here and elsewhere. It hides what later files say: an address that one
    /// source places in two countries is not settled by another source.
    Contradictory,
}

/// The content of one file.
#[derive(Debug, Default)]
pub struct Data {
    /// Who made it or what it calls itself; one line of printable ASCII.
    pub name: String,
    /// Day it was made (`2026-06-25`), if it says so.
    pub date: Option<String>,
    /// Countries of IPv4 addresses.
    pub countries_v4: Ranges<u32, Answer>,
    /// Countries of IPv6 addresses.
    pub countries_v6: Ranges<u128, Answer>,
    /// Autonomous systems of IPv4 addresses.
    pub asns_v4: Ranges<u32, u32>,
    /// Autonomous systems of IPv6 addresses.
    pub asns_v6: Ranges<u128, u32>,
    /// Networks or ranges in the file.
    pub n_networks: usize,
    /// Those with a code that is no country, or with none.
    pub n_unknown: usize,
    /// Those with two countries.
    pub n_contradictory: usize,
}

impl Data {
    /// True when the file places at least one address in a country.
    pub fn has_countries(&self) -> bool {
        !(self.countries_v4.is_empty() && self.countries_v6.is_empty())
    }

    /// True when the file knows at least one autonomous system.
    pub fn has_asns(&self) -> bool {
        !(self.asns_v4.is_empty() && self.asns_v6.is_empty())
    }
}

/// A name as it may appear in a record: printable ASCII, not too long.
pub fn printable(name: &str) -> String {
    const LONGEST: usize = 40;
    let name: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(LONGEST)
        .collect();
    name.trim_end().to_owned()
}
