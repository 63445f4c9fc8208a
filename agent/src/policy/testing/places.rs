//! Random country data.

use std::net::IpAddr;

use super::Random;
use super::policies::network;
use crate::geo::Country;
use crate::policy::geography::Geography;
use crate::policy::network::Extent;

/// Country data that was made up. Answers single addresses by going through the
/// list, so that it is a reference for whoever uses the ranges.
#[derive(Clone, Debug)]
pub struct Places {
    v4: Vec<(u32, u32, Country)>,
    v6: Vec<(u128, u128, Country)>,
}

/// Countries that occur: in groups and not, named by policies and not.
pub(super) const COUNTRIES: [&str; 8] = ["IE", "DE", "NO", "CH", "GB", "US", "CN", "BR"];

impl Places {
    pub(super) fn random(random: &mut Random) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for _ in 0..random.below(40) {
            let Some(country) = Country::parse(random.pick::<&str>(&COUNTRIES)) else {
                continue;
            };
            match network(random).extent() {
                Extent::V4(first, last) => v4.push((first, last, country)),
                Extent::V6(first, last) => v6.push((first, last, country)),
            }
        }
        Self {
            v4: without_overlap(v4),
            v6: without_overlap(v6),
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
        v4.chain(v6)
    }
}

/// Those of the ranges that begin behind the end of the one before.
fn without_overlap<K: Copy + Ord>(mut ranges: Vec<(K, K, Country)>) -> Vec<(K, K, Country)> {
    ranges.sort_unstable();
    let mut kept: Vec<(K, K, Country)> = Vec::new();
    for range in ranges {
        if kept.last().is_none_or(|&(_, last, _)| last < range.0) {
            kept.push(range);
        }
    }
    kept
}

impl Geography for Places {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        Box::new(self.v4.iter().copied())
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        Box::new(self.v6.iter().copied())
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        fn find<K: Copy + Ord>(ranges: &[(K, K, Country)], key: K) -> Option<Country> {
            let range = ranges
                .iter()
                .find(|&&(first, last, _)| first <= key && key <= last);
            range.map(|&(_, _, country)| country)
        }
        match address.to_canonical() {
            IpAddr::V4(v4) => find(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => find(&self.v6, v6.to_bits()),
        }
    }

    fn build_id(&self) -> &str {
        "random"
    }
}
