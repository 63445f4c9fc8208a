//! Files that are read, and lines that are refused with what would be right.

use super::*;
use crate::geo::Country;

fn country(code: &str) -> Answer {
    Answer::Country(Country::parse(code).unwrap())
}

fn problem(content: &str) -> (usize, String) {
    let error = parse(content).unwrap_err();
    (error.line, error.problem.to_string())
}

#[test]
fn reads_the_header_and_all_ways_of_writing_addresses() {
    let data = parse(
        "# Location Database Export\n\
         #\n\
         # Generated: Thu, 25 Jun 2026 04:33:59 GMT\n\
         # Vendor:    IPFire Project\n\
         \n\
         16777216,16777471,AU\r\n\
         16777472,16777727,AU\n\
         192.0.2.0, 192.0.2.255, IE\n\
         2001:db8::,2001:db8:ffff:ffff:ffff:ffff:ffff:ffff,FR\n\
         3221226240,3221226495,??\n",
    )
    .unwrap();
    assert_eq!(
        (data.name.as_str(), data.date.as_deref()),
        ("IPFire Project", Some("2026-06-25"))
    );
    assert_eq!(
        data.countries_v4.as_slice(),
        [
            Range {
                first: 0x0100_0000,
                last: 0x0100_01ff,
                value: country("AU")
            },
            Range {
                first: 0xc000_0200,
                last: 0xc000_02ff,
                value: country("IE")
            },
        ]
    );
    assert_eq!(
        data.countries_v6.as_slice(),
        [Range {
            first: 0x2001_0db8 << 96,
            last: (0x2001_0db9 << 96) - 1,
            value: country("FR")
        }]
    );
    assert_eq!(
        (data.n_networks, data.n_unknown, data.n_contradictory),
        (5, 1, 0)
    );
}

#[test]
fn a_file_without_header_is_just_text() {
    let data = parse("# Generated: some day\n1,2,IE\n").unwrap();
    assert_eq!((data.name.as_str(), data.date), ("text", None));
}

#[test]
fn codes_that_are_no_country_are_unknown() {
    for code in ["??", "ZZ", "EU", "AP", "AN", "UK"] {
        let data = parse(&format!("1,2,{code}\n")).unwrap();
        assert!(data.countries_v4.is_empty(), "{code}");
        assert_eq!(data.n_unknown, 1, "{code}");
    }
}

#[test]
fn codes_for_proxies_satellites_and_anycast_are_anywhere() {
    for code in ["A1", "A2", "A3"] {
        let data = parse(&format!("1,2,{code}\n")).unwrap();
        assert_eq!(data.countries_v4.get(1), Some(Answer::Anywhere), "{code}");
        assert_eq!((data.n_unknown, data.n_anywhere), (0, 1), "{code}");
    }
}

#[test]
fn lines_may_come_in_any_order() {
    let data = parse("20,29,IE\n10,19,IE\n0,9,FR\n").unwrap();
    assert_eq!(
        data.countries_v4.as_slice(),
        [
            Range {
                first: 0,
                last: 9,
                value: country("FR")
            },
            Range {
                first: 10,
                last: 29,
                value: country("IE")
            }
        ]
    );
}

#[test]
fn one_address_has_one_line() {
    let overlap =
        |n| format!("the range overlaps the one in line {n}: keep one answer for each address");
    assert_eq!(
        problem("0,9,IE\n20,29,IE\n# comment\n9,9,IE\n"),
        (4, overlap(1))
    );
    assert_eq!(problem("10,19,IE\n0,10,FR\n"), (2, overlap(1)));
    assert_eq!(problem("10,19,??\n0,10,FR\n"), (2, overlap(1)));
    assert_eq!(problem("::5,::9,FR\n::,::5,FR\n"), (2, overlap(1)));
    assert_eq!(problem("0,100,FR\n5,6,FR\n7,8,FR\n"), (2, overlap(1)));
}

#[test]
fn a_wrong_line_is_named_with_what_would_be_right() {
    for (line, message) in [
        (
            "1,2",
            "`1,2` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
        ),
        (
            "1,2,IE,x",
            "`1,2,IE,x` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
        ),
        (
            "\u{1b}[1m",
            "`\\u{1b}[1m` is not FIRST,LAST,CODE (as in `192.0.2.0,192.0.2.255,IE`)",
        ),
        (
            "1,b,IE",
            "`b` is neither an IP address nor the decimal number of an IPv4 address",
        ),
        (
            "1,,IE",
            "`` is neither an IP address nor the decimal number of an IPv4 address",
        ),
        (
            "-1,2,IE",
            "`-1` is neither an IP address nor the decimal number of an IPv4 address",
        ),
        (
            "1,4294967296,IE",
            "`4294967296` is neither an IP address nor the decimal number of an IPv4 address",
        ),
        (
            "::ffff:192.0.2.0,::ffff:192.0.2.255,IE",
            "`::ffff:192.0.2.0` is an IPv4 address mapped into IPv6: write it as IPv4",
        ),
        ("1,::2,IE", "1 and ::2 are not of one family"),
        (
            "3,2,IE",
            "the range ends before it begins: put 2 first, 3 second",
        ),
        (
            "1,2,ie",
            "`ie` is not a country code: write the two upper-case letters of ISO 3166-1, or `??`",
        ),
        (
            "1,2,Ireland",
            "`Ireland` is not a country code: write the two upper-case letters of ISO 3166-1, or `??`",
        ),
    ] {
        assert_eq!(
            problem(&format!("# one\n{line}\n")),
            (2, message.to_owned())
        );
    }
}
