//! Content of one file of country data, whatever its format.

use super::countries::Countries;
use super::country::Country;
use super::ranges::Ranges;

/// Answer of a file about where an address is. Any answer hides those of later files: an
/// address that one source knows to be in no single country is not settled by another source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Here.
    Country(Country),
    /// Here and elsewhere.
    Contradictory(Countries),
    /// In many places at once, or wherever somebody is who uses it: anycast, satellite
    /// links, anonymising proxies.
    Anywhere,
    /// Set aside, see [`super::special`]. No file says this.
    Special,
}

impl Answer {
    /// Returns the meaning of a code, if it has any; none of the others knows the place.
    pub fn parse(code: &str) -> Option<Self> {
        // Anonymous proxy, satellite provider and worldwide anycast, in the codes that
        // MaxMind began and IPFire goes on with.
        if matches!(code, "A1" | "A2" | "A3") {
            return Some(Self::Anywhere);
        }
        Country::parse(code).map(Self::Country)
    }
}

/// The content of one file.
#[derive(Debug, Default)]
pub struct Data {
    /// Maker of the file, or the name that it gives itself; one line of printable ASCII.
    pub name: String,
    /// Day it was made (`2026-06-25`), if it says so.
    pub date: Option<String>,
    /// Where IPv4 addresses are.
    pub countries_v4: Ranges<u32, Answer>,
    /// Where IPv6 addresses are.
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
    /// Those that are anywhere.
    pub n_anywhere: usize,
}

impl Data {
    /// Counts what is said about one network.
    pub fn count(&mut self, said: Option<Answer>) {
        self.n_networks += 1;
        match said {
            Some(Answer::Country(_) | Answer::Special) => {}
            Some(Answer::Contradictory(_)) => self.n_contradictory += 1,
            Some(Answer::Anywhere) => self.n_anywhere += 1,
            None => self.n_unknown += 1,
        }
    }

    /// True when the file says where at least one address is.
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
