//! Answers of country data to the questions of policies.

use std::net::IpAddr;

use super::{Countries, Country, Geo};
use crate::policy::Geography;

impl Geography for Geo {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        Box::new(
            self.countries_v4()
                .iter()
                .map(|range| (range.first, range.last, range.value)),
        )
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        Box::new(
            self.countries_v6()
                .iter()
                .map(|range| (range.first, range.last, range.value)),
        )
    }

    fn several_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Countries)> + '_> {
        Box::new(Self::several_v4(self))
    }

    fn several_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Countries)> + '_> {
        Box::new(Self::several_v6(self))
    }

    fn several(&self, address: IpAddr) -> Option<Countries> {
        Self::several(self, address)
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        Self::country(self, address)
    }

    fn undetermined(&self, address: IpAddr) -> Option<String> {
        Self::undetermined(self, address).map(|why| why.to_string())
    }

    fn asns_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, u32)> + '_> {
        Box::new(
            self.asns_v4()
                .iter()
                .map(|range| (range.first, range.last, range.value)),
        )
    }

    fn asns_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, u32)> + '_> {
        Box::new(
            self.asns_v6()
                .iter()
                .map(|range| (range.first, range.last, range.value)),
        )
    }

    fn asn(&self, address: IpAddr) -> Option<u32> {
        Self::asn(self, address)
    }

    fn has_asns(&self) -> bool {
        !(self.asns_v4().is_empty() && self.asns_v6().is_empty())
    }

    fn build_id(&self) -> &str {
        Self::build_id(self)
    }
}
