//! What policies ask of country data.

use std::net::IpAddr;

use super::{Country, Geo};
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

    fn country(&self, address: IpAddr) -> Option<Country> {
        Self::country(self, address)
    }

    fn undetermined(&self, address: IpAddr) -> Option<String> {
        Self::undetermined(self, address).map(|why| why.to_string())
    }

    fn build_id(&self) -> &str {
        Self::build_id(self)
    }
}
