//! Random country data.

use std::net::IpAddr;

use super::Random;
use super::policies::network;
use crate::geo::{Countries, Country};
use crate::policy::geography::Geography;
use crate::policy::network::Extent;

/// Country data that was made up. Answers single addresses by going through the
/// list, so that it is a reference for whoever uses the ranges.
#[derive(Clone, Debug)]
pub struct Places {
    v4: Vec<(u32, u32, Countries)>,
    v6: Vec<(u128, u128, Countries)>,
    asns_v4: Vec<(u32, u32, u32)>,
    asns_v6: Vec<(u128, u128, u32)>,
}

/// Autonomous systems that occur.
pub(super) const ASNS: [u32; 5] = [1, 64500, 64501, 64511, u32::MAX];

/// Countries that occur: in groups and not, named by policies and not.
pub(super) const COUNTRIES: [&str; 8] = ["IE", "DE", "NO", "CH", "GB", "US", "CN", "BR"];

impl Places {
    pub(super) fn random(random: &mut Random) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for _ in 0..random.below(40) {
            let n_countries = match random.below(4) {
                0 => 1 + random.below(3),
                _ => 1,
            };
            let codes: Vec<&str> = (0..n_countries)
                .map(|_| *random.pick::<&str>(&COUNTRIES))
                .collect();
            let and_others = random.one_in(16);
            let Some(countries) =
                Countries::new(codes.into_iter().filter_map(Country::parse), and_others)
            else {
                continue;
            };
            match network(random).extent() {
                Extent::V4(first, last) => v4.push((first, last, countries)),
                Extent::V6(first, last) => v6.push((first, last, countries)),
            }
        }
        // Policies name some, so one at least is known.
        let (mut asns_v4, mut asns_v6) = (vec![(1 << 24, 1 << 24, 1)], Vec::new());
        for _ in 0..random.below(40) {
            let asn = *random.pick(&ASNS);
            match network(random).extent() {
                Extent::V4(first, last) => asns_v4.push((first, last, asn)),
                Extent::V6(first, last) => asns_v6.push((first, last, asn)),
            }
        }
        Self {
            v4: without_overlap(v4),
            v6: without_overlap(v6),
            asns_v4: without_overlap(asns_v4),
            asns_v6: without_overlap(asns_v6),
        }
    }

    fn given(&self, address: IpAddr) -> Option<Countries> {
        match address.to_canonical() {
            IpAddr::V4(v4) => find(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => find(&self.v6, v6.to_bits()),
        }
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = Extent> {
        let v4 = self
            .v4
            .iter()
            .map(|&(first, last, _)| Extent::V4(first, last));
        let v6 = self
            .v6
            .iter()
            .map(|&(first, last, _)| Extent::V6(first, last));
        let asns_v4 = self
            .asns_v4
            .iter()
            .map(|&(first, last, _)| Extent::V4(first, last));
        let asns_v6 = self
            .asns_v6
            .iter()
            .map(|&(first, last, _)| Extent::V6(first, last));
        v4.chain(v6).chain(asns_v4).chain(asns_v6)
    }
}

/// Those of the ranges that begin behind the end of the one before.
fn without_overlap<K: Copy + Ord, T: Copy + Ord>(mut ranges: Vec<(K, K, T)>) -> Vec<(K, K, T)> {
    ranges.sort_unstable();
    let mut kept: Vec<(K, K, T)> = Vec::new();
    for range in ranges {
        if kept.last().is_none_or(|&(_, last, _)| last < range.0) {
            kept.push(range);
        }
    }
    kept
}

fn find<K: Copy + Ord, T: Copy>(ranges: &[(K, K, T)], key: K) -> Option<T> {
    let range = ranges
        .iter()
        .find(|&&(first, last, _)| first <= key && key <= last);
    range.map(|&(_, _, value)| value)
}

/// The country, if it is one alone.
fn one(countries: Countries) -> Option<Country> {
    let mut all = countries.iter();
    let first = all.next()?;
    (all.next().is_none() && !countries.and_others).then_some(first)
}

/// The ranges of which `is` makes something.
fn only<K: Copy, T>(
    ranges: &[(K, K, Countries)],
    is: impl Fn(Countries) -> Option<T>,
) -> Box<dyn Iterator<Item = (K, K, T)> + '_>
where
    T: 'static,
{
    let found: Vec<_> = ranges
        .iter()
        .filter_map(|&(first, last, countries)| Some((first, last, is(countries)?)))
        .collect();
    Box::new(found.into_iter())
}

fn several(countries: Countries) -> Option<Countries> {
    one(countries).is_none().then_some(countries)
}

impl Geography for Places {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        only(&self.v4, one)
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        only(&self.v6, one)
    }

    fn several_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Countries)> + '_> {
        only(&self.v4, several)
    }

    fn several_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Countries)> + '_> {
        only(&self.v6, several)
    }

    fn several(&self, address: IpAddr) -> Option<Countries> {
        several(self.given(address)?)
    }

    fn asns_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, u32)> + '_> {
        Box::new(self.asns_v4.iter().copied())
    }

    fn asns_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, u32)> + '_> {
        Box::new(self.asns_v6.iter().copied())
    }

    fn asn(&self, address: IpAddr) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(v4) => find(&self.asns_v4, v4.to_bits()),
            IpAddr::V6(v6) => find(&self.asns_v6, v6.to_bits()),
        }
    }

    fn has_asns(&self) -> bool {
        true
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        one(self.given(address)?)
    }

    fn build_id(&self) -> &str {
        "random"
    }
}
