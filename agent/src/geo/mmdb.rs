//! MMDB, the binary format of MaxMind, in the layouts of several providers.
//!
//! | provider | country | autonomous system |
//! |---|---|---|
//! | MaxMind, DB-IP | `country.iso_code`, checked against `registered_country.iso_code` and `represented_country.iso_code` | `autonomous_system_number` |
//! | IPinfo | `country_code`, or `country` (two letters) | `asn` (`AS64496`) |
//! | npm ip-location-db | `country_code` | `autonomous_system_number` |
//!
//! `country` is where the provider places the address; `registered_country` is
//! where the holder of the network is registered, and `represented_country` whose
//! ground it is, as of a military base abroad. Where they differ, the answer is
//! [`Answer::Contradictory`]. Without a `country`, the others say nothing about the
//! place and are not taken for one.
//!
//! A network that is flagged as anycast, satellite or anonymising proxy (MaxMind in
//! `traits`, IPinfo beside the country) is [`Answer::Anywhere`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::Ipv6Addr;

use ipnetwork::IpNetwork;
use maxminddb::{MaxMindDbError, Reader};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::countries::Countries;
use super::data::{Answer, Data, printable};
use super::ranges::{Number, Range, Ranges};
use crate::bounded::MAX_RANGES;
use crate::clock;

#[cfg(test)]
mod tests;

/// Why a database could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MmdbProblem {
    /// The format is violated.
    #[error("{0}")]
    Format(#[from] MaxMindDbError),
    /// A record is damaged.
    #[error("the record of {network}: {source}")]
    Record {
        /// The network whose record it is.
        network: IpNetwork,
        /// Error from the decoder.
        source: MaxMindDbError,
    },
    /// The search tree repeats itself.
    #[error("the search tree has more networks than nodes")]
    Tree,
    /// The answers are too many, even where neighbours with the same one are put together.
    #[error(
        "there are more than {MAX_RANGES} ranges of {0}, which is the most that is read; use a \
         database of countries, or of autonomous systems, and not one of smaller places"
    )]
    TooMany(&'static str),
}

/// True if this is an MMDB file: its metadata stands behind this marker, within
/// the last 128 KiB.
pub fn is_mmdb(content: &[u8]) -> bool {
    const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
    const METADATA_MAX_BYTES: usize = 128 * 1024;
    let tail = &content[content.len().saturating_sub(METADATA_MAX_BYTES)..];
    tail.windows(MARKER.len()).any(|window| window == MARKER)
}

/// Reads a whole database.
pub fn parse(content: &[u8]) -> Result<Data, MmdbProblem> {
    let reader = Reader::from_source(content)?;
    let metadata = reader.metadata();
    let mut data = Data {
        name: printable(&metadata.database_type),
        date: Some(clock::date(metadata.build_epoch)),
        ..Data::default()
    };
    if data.name.is_empty() {
        data.name = "mmdb".to_owned();
    }

    // A tree of N nodes has N + 1 leaves. One that shares nodes can have more
    // than anyone could read; that is not a country database. Leaves without data
    // count, or a tree of nothing else would be read for ever.
    let max_leaves = metadata.node_count as usize * 3 + 2;
    let mut n_leaves = 0;
    let mut records = HashMap::new();
    let mut mapped = Tables::default();
    let mut v4 = Tables::default();
    let mut v6 = Tables::default();
    let all = maxminddb::WithinOptions::default().include_networks_without_data();
    for found in reader.networks(all)? {
        let found = found?;
        n_leaves += 1;
        if n_leaves > max_leaves {
            return Err(MmdbProblem::Tree);
        }
        let Some(offset) = found.offset() else {
            continue;
        };
        let network = found.network()?;
        // Many networks share a record: each is decoded once, as long as they are few.
        if records.len() == MAX_RECORDS {
            records.clear();
        }
        let said = match records.entry(offset) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let record: Option<AsMap<Record>> = found
                    .decode()
                    .map_err(|source| MmdbProblem::Record { network, source })?;
                *new.insert(record.map(|record| record.0.said()).unwrap_or_default())
            }
        };
        data.count(said.answer);
        match network {
            IpNetwork::V4(network) => {
                v4.add(network.network().into(), network.broadcast().into(), said)?;
            }
            IpNetwork::V6(network) => match mapped_v4(network.network(), network.prefix()) {
                Some((first, last)) => mapped.add(first, last, said)?,
                None => v6.add(network.network().into(), network.broadcast().into(), said)?,
            },
        }
        check(v4.sizes(), v6.sizes(), mapped.sizes())?;
    }
    data.countries_v4 = v4.answers.over(&mapped.answers);
    data.asns_v4 = v4.asns.over(&mapped.asns);
    data.countries_v6 = v6.answers;
    data.asns_v6 = v6.asns;
    Ok(data)
}

/// Most records that are kept decoded.
const MAX_RECORDS: usize = 1 << 18;

/// Fails if there are more ranges of countries, or of systems, than are read.
fn check(v4: [usize; 2], v6: [usize; 2], mapped: [usize; 2]) -> Result<(), MmdbProblem> {
    for (index, what) in ["countries", "autonomous systems"].into_iter().enumerate() {
        if v4[index] + v6[index] + mapped[index] > MAX_RANGES {
            return Err(MmdbProblem::TooMany(what));
        }
    }
    Ok(())
}

/// The IPv4 range that an IPv6 network means, if it lies in `::ffff:0:0/96`.
///
/// IPv4 networks stand at `::/96`, which the reader returns as IPv4. Some files
/// have them in the mapped range instead, or as well without linking the two;
/// the former place is the format's, so it wins.
fn mapped_v4(network: Ipv6Addr, prefix: u8) -> Option<(u32, u32)> {
    let first = u32::from(network.to_ipv4_mapped()?);
    let host_bits = 128_u8.checked_sub(prefix).filter(|bits| *bits <= 32)?;
    let hosts = u32::try_from((1_u64 << host_bits) - 1).unwrap_or(u32::MAX);
    Some((first, first | hosts))
}

/// Facts of a record that are of interest here.
#[derive(Clone, Copy, Default)]
struct Said {
    answer: Option<Answer>,
    asn: Option<u32>,
}

struct Tables<A> {
    answers: Ranges<A, Answer>,
    asns: Ranges<A, u32>,
}

impl<A> Default for Tables<A> {
    fn default() -> Self {
        Self {
            answers: Ranges::default(),
            asns: Ranges::default(),
        }
    }
}

impl<A: Number> Tables<A> {
    /// How many ranges of countries there are, and of systems.
    fn sizes(&self) -> [usize; 2] {
        [self.answers.as_slice().len(), self.asns.as_slice().len()]
    }

    /// The reader walks the tree depth first, so networks come in ascending
    /// order; a file for which this is not true is broken.
    fn add(&mut self, first: A, last: A, said: Said) -> Result<(), MmdbProblem> {
        if let Some(value) = said.answer {
            let range = Range { first, last, value };
            self.answers.push(range).map_err(|_| MmdbProblem::Tree)?;
        }
        if let Some(value) = said.asn {
            self.asns
                .push(Range { first, last, value })
                .map_err(|_| MmdbProblem::Tree)?;
        }
        Ok(())
    }
}

/// The fields that any of the known layouts uses. Everything else is skipped,
/// and so is a value of an unexpected kind: other products use the same names.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    country: Option<CountryField<'a>>,
    registered_country: Option<CountryField<'a>>,
    represented_country: Option<CountryField<'a>>,
    country_code: Option<CountryField<'a>>,
    traits: Option<TraitsField<'a>>,
    is_anycast: Option<Flag<'a>>,
    is_satellite: Option<Flag<'a>>,
    autonomous_system_number: Option<AsnField<'a>>,
    asn: Option<AsnField<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CountryField<'a> {
    Map {
        iso_code: Option<&'a str>,
    },
    /// A code (IPinfo), or a name where `country_code` has the code (IPinfo Lite).
    Text(&'a str),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TraitsField<'a> {
    Map {
        #[serde(borrow)]
        is_anycast: Option<Flag<'a>>,
        is_satellite_provider: Option<Flag<'a>>,
        is_anonymous_proxy: Option<Flag<'a>>,
    },
    Other(IgnoredAny),
}

/// IPinfo has databases in which everything is text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag<'a> {
    Bool(bool),
    Text(&'a str),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AsnField<'a> {
    Number(u32),
    Text(&'a str),
    Other(IgnoredAny),
}

impl CountryField<'_> {
    fn answer(&self) -> Option<Answer> {
        match *self {
            Self::Map { iso_code } => Answer::parse(iso_code?),
            Self::Text(text) => Answer::parse(text),
            Self::Other(_) => None,
        }
    }
}

impl TraitsField<'_> {
    fn flags(&self) -> [Option<&Flag<'_>>; 3] {
        match self {
            Self::Map {
                is_anycast,
                is_satellite_provider,
                is_anonymous_proxy,
            } => [is_anycast, is_satellite_provider, is_anonymous_proxy].map(Option::as_ref),
            Self::Other(_) => [None; 3],
        }
    }
}

impl Flag<'_> {
    fn is_set(&self) -> bool {
        match *self {
            Self::Bool(is_set) => is_set,
            Self::Text(text) => text == "true",
            Self::Other(_) => false,
        }
    }
}

impl AsnField<'_> {
    fn number(&self) -> Option<u32> {
        match *self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.strip_prefix("AS").unwrap_or(text).parse().ok(),
            Self::Other(_) => None,
        }
    }
}

impl Record<'_> {
    fn said(&self) -> Said {
        let asn = [&self.autonomous_system_number, &self.asn]
            .into_iter()
            .find_map(|field| field.as_ref().and_then(AsnField::number));
        let answer = if self.is_anywhere() {
            Some(Answer::Anywhere)
        } else {
            self.place()
        };
        Said { answer, asn }
    }

    fn is_anywhere(&self) -> bool {
        let of_traits = self.traits.as_ref().map(TraitsField::flags);
        let own = [self.is_anycast.as_ref(), self.is_satellite.as_ref()];
        let mut flags = of_traits.into_iter().flatten().chain(own).flatten();
        flags.any(Flag::is_set)
    }

    fn place(&self) -> Option<Answer> {
        let answer =
            |field: &Option<CountryField<'_>>| field.as_ref().and_then(CountryField::answer);
        let (code, place) = (answer(&self.country_code), answer(&self.country));
        let first = code.or(place)?;
        let others = [
            place,
            answer(&self.registered_country),
            answer(&self.represented_country),
        ];
        let agree = others.into_iter().flatten().all(|other| other == first);
        if agree || !matches!(first, Answer::Country(_)) {
            return Some(first);
        }
        let all = || others.into_iter().flatten().chain([first]);
        let country = |answer| match answer {
            Answer::Country(country) => Some(country),
            _ => None,
        };
        let and_others = all().any(|answer| country(answer).is_none());
        Countries::new(all().filter_map(country), and_others).map(Answer::Contradictory)
    }
}

/// A map and nothing else: what is derived would read an array as the values of the
/// fields in their order.
struct AsMap<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AsMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = AsMap<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AsMap<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(AsMap)
            }
        }

        deserializer.deserialize_map(Map(std::marker::PhantomData))
    }
}
