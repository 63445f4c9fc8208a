//! Country data as a whole: several files, both formats, and what is refused.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::testing::{Value, Writer, flagged, maxmind};
use super::*;
use crate::policy::Geography;

fn geo(files: &[(&str, &[u8])]) -> Result<Geo, GeoError> {
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| (Path::new(path), content))
        .collect();
    Geo::parse(&files)
}

fn country(geo: &Geo, address: &str) -> Option<String> {
    geo.country(address.parse().unwrap())
        .map(|country| country.to_string())
}

const TEXT: &str = "\
# Generated: Thu, 25 Jun 2026 04:33:59 GMT
192.0.2.0,192.0.2.127,IE
192.0.2.128,192.0.2.255,??
198.51.100.0,198.51.100.255,FR
2001:db8::,2001:db8:0:ffff:ffff:ffff:ffff:ffff,DE
";

#[test]
fn mapped_addresses_are_ipv4_addresses() {
    let geo = geo(&[("text", TEXT.as_bytes())]).unwrap();
    for address in ["192.0.2.1", "::ffff:192.0.2.1"] {
        assert_eq!(country(&geo, address).as_deref(), Some("IE"));
    }
    assert_eq!(country(&geo, "::192.0.2.1"), None);
    assert_eq!(country(&geo, "2001:db8::1").as_deref(), Some("DE"));
    assert_eq!(country(&geo, "2001:db8:1::1"), None);
}

#[test]
fn the_first_file_that_has_an_answer_wins() {
    let second = Writer::new(4)
        .network("192.0.2.0/24", maxmind("CH", "CH"))
        .network("203.0.113.0/24", maxmind("GB", "GB"))
        .finish();
    let geo = geo(&[("first", TEXT.as_bytes()), ("second", &second)]).unwrap();
    assert_eq!(country(&geo, "192.0.2.1").as_deref(), Some("IE"));
    assert_eq!(
        country(&geo, "192.0.2.200").as_deref(),
        Some("CH"),
        "the first does not know"
    );
    assert_eq!(country(&geo, "203.0.113.1").as_deref(), Some("GB"));
    assert_eq!(country(&geo, "2001:db8::1").as_deref(), Some("DE"));
}

#[test]
fn what_is_set_aside_is_in_no_country_whatever_a_file_says() {
    let text = "10.0.0.0,10.255.255.255,IE\n192.31.0.0,192.31.255.255,US\n\
                192.0.2.0,192.0.2.255,IE\nfd00::,fdff::,DE\n2001:db8::,2001:db8::ffff,DE\n";
    let geo = geo(&[("text", text.as_bytes())]).unwrap();
    let why = |address: &str| geo.undetermined(address.parse().unwrap());
    for address in ["10.0.0.0", "::ffff:10.1.2.3", "192.31.196.7", "fd00::1"] {
        assert_eq!(country(&geo, address), None, "{address}");
        assert!(
            matches!(why(address), Some(Undetermined::Special(_))),
            "{address}"
        );
    }
    let private = why("10.0.0.1").unwrap().to_string();
    assert_eq!(
        private,
        "10.0.0.0/8 (private use, RFC 1918) is in no country"
    );
    // Around it, and where trials are made, the file is believed.
    assert_eq!(country(&geo, "192.31.195.255").as_deref(), Some("US"));
    assert_eq!(country(&geo, "192.31.197.0").as_deref(), Some("US"));
    assert_eq!(country(&geo, "192.0.2.1").as_deref(), Some("IE"));
    assert_eq!(country(&geo, "2001:db8::1").as_deref(), Some("DE"));
    assert_eq!(why("2001:db8::1"), None);
    assert_eq!(why("1.1.1.1"), Some(Undetermined::Unknown));
}

#[test]
fn what_may_be_anywhere_is_not_placed_by_a_later_file() {
    let first =
        "192.0.2.0,192.0.2.127,A3\n192.0.2.128,192.0.2.255,EU\n198.51.100.0,198.51.100.9,IE\n";
    let second = Writer::new(4)
        .network("192.0.2.0/24", maxmind("FR", "FR"))
        .network("203.0.113.0/24", flagged(maxmind("FR", "FR"), "is_anycast"))
        .finish();
    let geo = geo(&[("first", first.as_bytes()), ("second", &second)]).unwrap();
    let why = |address: &str| geo.undetermined(address.parse().unwrap());
    assert_eq!(country(&geo, "192.0.2.1"), None);
    assert_eq!(why("192.0.2.1"), Some(Undetermined::Anywhere));
    // Somewhere in Europe is not known, but can be.
    assert_eq!(country(&geo, "192.0.2.200").as_deref(), Some("FR"));
    assert_eq!(why("203.0.113.1"), Some(Undetermined::Anywhere));
    assert_eq!(geo.sources()[0].n_anywhere, 1);
    assert_eq!(geo.sources()[0].n_unknown, 1);
    assert_eq!(geo.sources()[1].n_anywhere, 1);
}

#[test]
fn a_contradiction_is_not_settled_by_a_later_file() {
    let first = Writer::new(4)
        .network("192.0.2.0/24", maxmind("IE", "US"))
        .finish();
    let geo = geo(&[("first", &first), ("second", TEXT.as_bytes())]).unwrap();
    assert_eq!(country(&geo, "192.0.2.1"), None);
    let address = "192.0.2.1".parse().unwrap();
    assert_eq!(
        geo.undetermined(address).unwrap().to_string(),
        "the country data places it in more than one country: IE, US"
    );
    assert_eq!(geo.several(address).unwrap().to_string(), "IE, US");
    assert_eq!(geo.several_v4().count(), 1);
    assert_eq!(country(&geo, "198.51.100.1").as_deref(), Some("FR"));
    assert_eq!(geo.sources()[0].n_contradictory, 1);
    assert_eq!(geo.sources()[1].n_unknown, 1);
}

#[test]
fn autonomous_systems_come_from_whichever_file_has_them() {
    let asn = Value::Map(vec![("autonomous_system_number", Value::U32(64496))]);
    let asns = Writer::new(6).network("192.0.2.0/24", asn).finish();
    let geo = geo(&[("asns", &asns), ("text", TEXT.as_bytes())]).unwrap();
    assert_eq!(geo.asn("192.0.2.1".parse().unwrap()), Some(64496));
    assert_eq!(geo.asn("::ffff:192.0.2.1".parse().unwrap()), Some(64496));
    assert_eq!(geo.asn("198.51.100.1".parse().unwrap()), None);
    assert_eq!(country(&geo, "192.0.2.1").as_deref(), Some("IE"));
}

#[test]
fn a_policy_sees_the_ranges_that_look_ups_search() {
    let geo = geo(&[("text", TEXT.as_bytes())]).unwrap();
    let geography: &dyn Geography = &geo;
    let code = |country: Country| country.as_str();
    let v4: Vec<_> = geography
        .v4()
        .map(|(a, b, country)| (a, b, code(country)))
        .collect();
    assert_eq!(
        v4,
        [
            (0xc000_0200, 0xc000_027f, "IE"),
            (0xc633_6400, 0xc633_64ff, "FR")
        ],
        "and not what is unknown"
    );
    let v6: Vec<_> = geography
        .v6()
        .map(|(a, b, country)| (a, b, code(country)))
        .collect();
    assert_eq!(
        v6,
        [(0x2001_0db8 << 96, (0x2001_0db8_0001_u128 << 80) - 1, "DE")]
    );
    let address = "192.0.2.1".parse().unwrap();
    assert_eq!(geography.country(address).map(code), Some("IE"));
    assert_eq!(geography.build_id(), geo.build_id());
}

#[test]
fn the_build_id_names_every_file() {
    let mmdb = Writer::new(4)
        .network("192.0.2.0/24", maxmind("IE", "IE"))
        .finish();
    let both = geo(&[("a", TEXT.as_bytes()), ("b", &mmdb)]).unwrap();
    let short = |index: usize| &both.sources()[index].sha256[..12];
    assert_eq!(
        both.build_id(),
        format!(
            "text 2026-06-25 {}; Test-Country 2026-06-25 {}",
            short(0),
            short(1)
        )
    );
    // printf '1,2,IE\n' | sha256sum
    let text = geo(&[("a", b"1,2,IE\n")]).unwrap();
    assert_eq!(text.build_id(), "text undated fa5b83b542fb");
}

#[test]
fn errors_name_the_file_and_the_next_step() {
    let message = |name: &str, content: &[u8]| geo(&[(name, content)]).unwrap_err().to_string();
    assert_eq!(
        message("/data/x.csv", b"1,2,IE\n1,2\n"),
        "read country data /data/x.csv, line 2: `1,2` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)"
    );
    assert_eq!(
        message("/data/x.mmdb.gz", b"\x1f\x8b\x08\x00"),
        "read country data /data/x.mmdb.gz: it is neither MMDB nor text; name an unpacked MMDB file, or ranges as in Debian's package tor-geoipdb"
    );
    let useless = "it has neither country codes nor AS numbers";
    assert!(message("/data/x", b"").contains(useless));
    assert!(message("/data/x", b"1,2,??\n").contains(useless));
    let city = Value::Map(vec![("city", Value::Text("Dublin"))]);
    let city = Writer::new(4).network("192.0.2.0/24", city).finish();
    assert!(message("/data/x", &city).contains(useless));

    let asn = Value::Map(vec![("asn", Value::Text("AS64496"))]);
    let asn = Writer::new(4).network("192.0.2.0/24", asn).finish();
    let no_countries = message("/data/asn.mmdb", &asn);
    assert!(
        no_countries.contains("/usr/share/tor/geoip6"),
        "{no_countries}"
    );

    let mut cut = Writer::new(4)
        .network("192.0.2.0/24", maxmind("IE", ""))
        .finish();
    cut.drain(..100);
    let damaged = message("/data/x.mmdb", &cut);
    assert!(
        damaged.starts_with("read country data /data/x.mmdb: "),
        "{damaged}"
    );
    assert!(
        damaged.ends_with("; fetch the file again, or use another database"),
        "{damaged}"
    );
}

#[test]
fn loads_from_files() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(TEXT.as_bytes()).unwrap();
    let geo = Geo::load(&[file.path().to_owned()]).unwrap();
    assert_eq!(geo.sources()[0].path, file.path());
    assert_eq!(country(&geo, "198.51.100.7").as_deref(), Some("FR"));

    let missing = file.path().with_extension("missing");
    let message = Geo::load(std::slice::from_ref(&missing))
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        format!(
            "read country data {}: No such file or directory (os error 2); name a readable file with --geo",
            missing.display()
        )
    );
}

#[test]
fn a_default_that_is_missing_names_the_package() {
    let error = GeoError::ReadDefault {
        path: DEFAULT_FILES[0][0].into(),
        source: io::ErrorKind::NotFound.into(),
    };
    assert!(
        error
            .to_string()
            .contains("install Trefoil's package or tor-geoipdb")
    );
}

/// Lines of a text file over a few addresses, none overlapping.
fn lines() -> impl Strategy<Value = Vec<(u32, u32, &'static str)>> {
    let code = prop::sample::select(vec!["IE", "FR", "??", "EU"]);
    proptest::collection::vec((0_u32..3, 1_u32..4, code), 0..12).prop_map(|parts| {
        let mut next = 0;
        let mut lines = Vec::new();
        for (gap, length, code) in parts {
            lines.push((next + gap, next + gap + length - 1, code));
            next += gap + length;
        }
        lines
    })
}

proptest! {
    #[test]
    fn look_up_finds_what_the_lines_say(
        files in proptest::collection::vec(lines().prop_shuffle(), 1..4),
    ) {
        let text = |lines: &Vec<(u32, u32, &str)>| {
            // A line far away in both families, so that no file is without an answer.
            let mut text = String::from("1.0.0.255,1.0.0.255,CH\n2a00::999,2a00::999,CH\n");
            for (first, last, code) in lines {
                text += &format!("1.0.0.{first},1.0.0.{last},{code}\n2a00::{first:x},2a00::{last:x},{code}\n");
            }
            text
        };
        let contents: Vec<_> = files.iter().map(text).collect();
        let parsed: Vec<_> = contents.iter().map(|c| (Path::new("file"), c)).collect();
        let geo = Geo::parse(&parsed).unwrap();
        for address in 0..60_u8 {
            let expected = files.iter().flatten().find_map(|&(first, last, code)| {
                (first..=last).contains(&address.into()).then(|| Country::parse(code)).flatten()
            });
            prop_assert_eq!(geo.country(Ipv4Addr::new(1, 0, 0, address).into()), expected);
            let v6 = Ipv6Addr::from((0x2a00_u128 << 112) | u128::from(address));
            prop_assert_eq!(geo.country(v6.into()), expected);
        }
    }

    #[test]
    fn whatever_the_text_it_is_read_or_refused(text in "([0-9a-f.:]{0,9},){0,3}[A-Z?]{0,3}\n?") {
        let _ = Geo::parse(&[(Path::new("file"), text)]);
    }
}
