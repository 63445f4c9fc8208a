//! Where addresses are: country data, its file formats, and named groups of
//! countries.
//!
//! Pure apart from reading the files: ranges and answers out. It never says
//! whether a destination is approved (that is `policy`'s), and it never guesses:
//! what the data does not say plainly has no country.

mod countries;
pub mod country;
mod data;
mod geography;
pub mod groups;
mod mmdb;
pub mod ranges;
pub mod special;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::bounded;

pub use countries::Countries;
pub use country::Country;
use data::{Answer, Data};
pub use mmdb::MmdbProblem;
pub use ranges::{Range, Ranges};
pub use special::Special;
pub use text::{LineError, LineProblem};

#[cfg(test)]
mod tests;

/// The data that is used when none is named: the first pair that is there. Debian's
/// package `tor-geoipdb` gets updates by itself; where it is not installed there is
/// what Trefoil's own package came with.
pub const DEFAULT_FILES: [[&str; 2]; 2] = [
    ["/usr/share/tor/geoip", "/usr/share/tor/geoip6"],
    ["/usr/share/trefoil/geoip", "/usr/share/trefoil/geoip6"],
];

/// The country data in force: which country and which autonomous system each
/// address belongs to.
///
/// An address is in a country if the first file that has an answer for it names
/// one country and no other. It is in none ("undetermined") if no file knows it, if
/// that file contradicts itself or says that the address may be anywhere, or if the
/// address is [set aside](special) for what is in no country.
#[derive(Debug)]
pub struct Geo {
    countries_v4: Ranges<u32, Country>,
    countries_v6: Ranges<u128, Country>,
    unsettled_v4: Ranges<u32, Answer>,
    unsettled_v6: Ranges<u128, Answer>,
    asns_v4: Ranges<u32, u32>,
    asns_v6: Ranges<u128, u32>,
    sources: Vec<Source>,
    build_id: String,
}

/// One file that the answers come from, for `check` and `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its maker, or the type it gives itself.
    pub name: String,
    /// The day it was made (`2026-06-25`), if it says so.
    pub date: Option<String>,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
    /// Networks or ranges in the file.
    pub n_networks: usize,
    /// Those that are placed in no country.
    pub n_unknown: usize,
    /// Those that are placed in two countries at once.
    pub n_contradictory: usize,
    /// Those that may be anywhere: anycast, satellite links, anonymising proxies.
    pub n_anywhere: usize,
}

/// Why an address is in no country.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undetermined {
    /// No file knows it.
    Unknown,
    /// A file places it in these countries.
    Contradictory(Countries),
    /// A file says that it is anycast, of a satellite link or an anonymising proxy.
    Anywhere,
    /// It was set aside.
    Special(&'static Special),
}

impl fmt::Display for Undetermined {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => formatter.write_str("the country data does not know it"),
            Self::Contradictory(countries) => {
                write!(
                    formatter,
                    "the country data places it in more than one country: {countries}"
                )
            }
            Self::Anywhere => formatter.write_str(
                "the country data says that it may be anywhere (anycast, satellite or proxy)",
            ),
            Self::Special(block) => write!(formatter, "{block} is in no country"),
        }
    }
}

/// Why country data could not be loaded, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    /// The default data is not there.
    #[error(
        "read the default country data {path}: {source}; install Trefoil's package or tor-geoipdb, or name a file with --geo"
    )]
    ReadDefault {
        /// The file.
        path: PathBuf,
        /// Error from the system.
        source: io::Error,
    },
    /// A file that was named cannot be read.
    #[error("read country data {path}: {source}; name a readable file with --geo")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error from the system.
        source: io::Error,
    },
    /// The file is of neither format.
    #[error(
        "read country data {path}: it is neither MMDB nor text; name an unpacked MMDB file, or ranges as in Debian's package tor-geoipdb"
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// A line of a text file is wrong.
    #[error("read country data {path}, {error}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, and what is wrong with it.
        error: LineError,
    },
    /// An MMDB file is damaged or unlike any that is known.
    #[error("read country data {path}: {problem}; fetch the file again, or use another database")]
    Mmdb {
        /// The file.
        path: PathBuf,
        /// Problem of the file.
        problem: MmdbProblem,
    },
    /// The file has nothing that is of use here.
    #[error(
        "read country data {path}: it has neither country codes nor AS numbers under a name that is known (country.iso_code, country_code, country, autonomous_system_number, asn); use a country or ASN database"
    )]
    Useless {
        /// The file.
        path: PathBuf,
    },
    /// Only AS numbers were given.
    #[error(
        "read country data: none of the files has country codes; name one that has them with --geo as well (the default ones are {} and {})",
        DEFAULT_FILES[0][0],
        DEFAULT_FILES[0][1]
    )]
    NoCountries,
}

impl Geo {
    /// Loads these files, or the [default ones](DEFAULT_FILES) if none is named. Earlier
    /// files win over later ones, address by address.
    pub fn load(paths: &[PathBuf]) -> Result<Self, GeoError> {
        let is_default = paths.is_empty();
        let defaults = DEFAULT_FILES
            .iter()
            .find(|pair| pair.iter().all(|file| Path::new(file).is_file()))
            .unwrap_or(&DEFAULT_FILES[0])
            .map(PathBuf::from);
        let paths = if is_default { &defaults[..] } else { paths };
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let content =
                bounded::read(path, bounded::MAX_GEO).map_err(|source| match is_default {
                    true => GeoError::ReadDefault {
                        path: path.clone(),
                        source,
                    },
                    false => GeoError::Read {
                        path: path.clone(),
                        source,
                    },
                })?;
            files.push((path.as_path(), content));
        }
        Self::parse(&files)
    }

    /// As [`load`](Self::load), from contents that were read already.
    pub fn parse<C: AsRef<[u8]>>(files: &[(&Path, C)]) -> Result<Self, GeoError> {
        let mut sources = Vec::with_capacity(files.len());
        let mut sum = Data::default();
        for (path, content) in files {
            let data = parse_file(path, content.as_ref())?;
            sum.countries_v4 = sum.countries_v4.over(&data.countries_v4);
            sum.countries_v6 = sum.countries_v6.over(&data.countries_v6);
            sum.asns_v4 = sum.asns_v4.over(&data.asns_v4);
            sum.asns_v6 = sum.asns_v6.over(&data.asns_v6);
            sources.push(Source::new(path, content.as_ref(), data));
        }
        if !sum.has_countries() {
            return Err(GeoError::NoCountries);
        }
        sum.countries_v4 = special::all_v4().over(&sum.countries_v4);
        sum.countries_v6 = special::all_v6().over(&sum.countries_v6);
        let settled = |answer| match answer {
            Answer::Country(country) => Some(country),
            Answer::Contradictory(_) | Answer::Anywhere | Answer::Special => None,
        };
        let unsettled = |answer| match answer {
            Answer::Contradictory(_) | Answer::Anywhere => Some(answer),
            Answer::Country(_) | Answer::Special => None,
        };
        let build_id = sources
            .iter()
            .map(Source::build_id)
            .collect::<Vec<_>>()
            .join("; ");
        Ok(Self {
            countries_v4: sum.countries_v4.filter_map(settled),
            countries_v6: sum.countries_v6.filter_map(settled),
            unsettled_v4: sum.countries_v4.filter_map(unsettled),
            unsettled_v6: sum.countries_v6.filter_map(unsettled),
            asns_v4: sum.asns_v4,
            asns_v6: sum.asns_v6,
            sources,
            build_id,
        })
    }

    /// The country of this address; `None` if it is undetermined. An IPv6
    /// address that is a mapped IPv4 address is treated as that.
    #[must_use]
    pub fn country(&self, address: IpAddr) -> Option<Country> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.countries_v4.get(address.into()),
            IpAddr::V6(address) => self.countries_v6.get(address.into()),
        }
    }

    /// Why this address is in no country; `None` if it is in one.
    #[must_use]
    pub fn undetermined(&self, address: IpAddr) -> Option<Undetermined> {
        if self.country(address).is_some() {
            return None;
        }
        let answer = match address.to_canonical() {
            IpAddr::V4(address) => self.unsettled_v4.get(address.into()),
            IpAddr::V6(address) => self.unsettled_v6.get(address.into()),
        };
        Some(match (answer, Special::of(address)) {
            (_, Some(block)) => Undetermined::Special(block),
            (Some(Answer::Contradictory(countries)), _) => Undetermined::Contradictory(countries),
            (Some(Answer::Anywhere), _) => Undetermined::Anywhere,
            _ => Undetermined::Unknown,
        })
    }

    /// The autonomous system that announces this address, if a file knows it.
    #[must_use]
    pub fn asn(&self, address: IpAddr) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.asns_v4.get(address.into()),
            IpAddr::V6(address) => self.asns_v6.get(address.into()),
        }
    }

    /// IPv4 addresses (as numbers in host byte order) by country: ascending,
    /// disjoint, neighbours of one country merged.
    #[must_use]
    pub fn countries_v4(&self) -> &[Range<u32, Country>] {
        self.countries_v4.as_slice()
    }

    /// As [`countries_v4`](Self::countries_v4), for IPv6. Whatever it says about
    /// `::ffff:0:0/96` is not in force: mapped addresses are IPv4.
    #[must_use]
    pub fn countries_v6(&self) -> &[Range<u128, Country>] {
        self.countries_v6.as_slice()
    }

    /// The countries of this address, if a file gives more than one for it.
    #[must_use]
    pub fn several(&self, address: IpAddr) -> Option<Countries> {
        match self.undetermined(address)? {
            Undetermined::Contradictory(countries) => Some(countries),
            _ => None,
        }
    }

    /// IPv4 addresses for which a file gives more than one country.
    pub fn several_v4(&self) -> impl Iterator<Item = (u32, u32, Countries)> {
        several(self.unsettled_v4.as_slice())
    }

    /// As [`several_v4`](Self::several_v4), for IPv6.
    pub fn several_v6(&self) -> impl Iterator<Item = (u128, u128, Countries)> {
        several(self.unsettled_v6.as_slice())
    }

    /// IPv4 addresses by autonomous system, as [`countries_v4`](Self::countries_v4).
    #[must_use]
    pub fn asns_v4(&self) -> &[Range<u32, u32>] {
        self.asns_v4.as_slice()
    }

    /// As [`asns_v4`](Self::asns_v4), for IPv6.
    #[must_use]
    pub fn asns_v6(&self) -> &[Range<u128, u32>] {
        self.asns_v6.as_slice()
    }

    /// Names the data for good: what each file is, the day it was made, and the
    /// first twelve digits of its SHA-256. Part of every verdict's record.
    #[must_use]
    pub fn build_id(&self) -> &str {
        &self.build_id
    }

    /// The files in the order in which they are asked.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }
}

fn several<A: Copy>(ranges: &[Range<A, Answer>]) -> impl Iterator<Item = (A, A, Countries)> {
    ranges.iter().filter_map(|range| match range.value {
        Answer::Contradictory(countries) => Some((range.first, range.last, countries)),
        _ => None,
    })
}

impl Source {
    fn new(path: &Path, content: &[u8], data: Data) -> Self {
        let digest = Sha256::digest(content);
        Self {
            path: path.to_owned(),
            name: data.name,
            date: data.date,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            n_networks: data.n_networks,
            n_unknown: data.n_unknown,
            n_contradictory: data.n_contradictory,
            n_anywhere: data.n_anywhere,
        }
    }

    fn build_id(&self) -> String {
        let date = self.date.as_deref().unwrap_or("undated");
        format!("{} {date} {}", self.name, &self.sha256[..12])
    }
}

fn parse_file(path: &Path, content: &[u8]) -> Result<Data, GeoError> {
    let path = || path.to_owned();
    let data = if mmdb::is_mmdb(content) {
        mmdb::parse(content).map_err(|problem| GeoError::Mmdb {
            path: path(),
            problem,
        })?
    } else {
        let text = str::from_utf8(content).map_err(|_| GeoError::Format { path: path() })?;
        text::parse(text).map_err(|error| GeoError::Line {
            path: path(),
            error,
        })?
    };
    if data.has_countries() || data.has_asns() {
        Ok(data)
    } else {
        Err(GeoError::Useless { path: path() })
    }
}
