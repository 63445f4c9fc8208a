//! Inputs that a search begins with, apart from what it found before.

use trefoil::geo::testing::{Writer, layouts};

use crate::Target;

/// Valid inputs that are made, each with its name.
#[must_use]
pub fn of(target: &Target) -> Vec<(String, Vec<u8>)> {
    if target.name != "geo_mmdb" {
        return Vec::new();
    }
    let mut seeds = Vec::new();
    for (layout, record) in layouts() {
        for ip_version in [4, 6] {
            let mut writer = Writer::new(ip_version).network("192.0.2.0/24", record.clone());
            if ip_version == 6 {
                writer = writer.network("2001:db8::/32", record.clone());
            }
            seeds.push((format!("{layout}-{ip_version}"), writer.finish()));
        }
    }
    seeds
}
