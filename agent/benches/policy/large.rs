//! A policy as large as one that a big company writes in years.

use std::fmt::Write as _;

use trefoil::{geo::Geo, policy::Geography as _};

/// Its rules.
const N_RULES: usize = 1_000;

/// Rules that tell all countries apart, and units, networks and ports besides.
pub fn policy(geo: &Geo) -> String {
    let mut countries: Vec<String> = geo
        .v4()
        .map(|(_, _, country)| country.to_string())
        .collect();
    countries.sort_unstable();
    countries.dedup();
    let mut text = "mode = \"report\"\n".to_owned();
    for number in 0..N_RULES {
        let country = &countries[number % countries.len()];
        let port = 10_000 + number;
        let (high, low) = (number / 250, number % 250);
        let (from, to) = match number % 4 {
            0 => (
                String::new(),
                format!("countries = [\"{country}\"], ports = [\"{port}/tcp\"]"),
            ),
            1 => (
                format!("from = {{ unit = \"batch-{number}@*.service\" }}\n"),
                format!("countries = [\"{country}\"]"),
            ),
            2 => (
                format!("from = {{ exe = \"/opt/app-{number}/bin/*\" }}\n"),
                format!("networks = [\"198.{high}.{low}.0/24\"]"),
            ),
            _ => (
                format!("from = {{ user = {port} }}\n"),
                format!("networks = [\"2001:db8:{number:x}::/48\"], ports = [\"{port}/udp\"]"),
            ),
        };
        writeln!(
            text,
            "[[rules]]\nname = \"r{number}\"\n{from}to = {{ {to} }}\nverdict = \"approve\""
        )
        .unwrap();
    }
    text
}
