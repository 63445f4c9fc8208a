//! Compiled policies, held against what their rules say.

use std::collections::HashMap;
use std::net::IpAddr;

use trefoil_ebpf::abi::{Decision, NO_RULE, verdict};

use super::*;
use crate::geo::Country;
use crate::policy::geography::{Geography, Nowhere};
use crate::policy::source::Direction;
use crate::policy::{LinkLocal, Question};

fn users(name: &str) -> Option<u32> {
    HashMap::from([("root", 0), ("postgres", 26)])
        .get(name)
        .copied()
}

/// 192.0.2.0/24 is in Ireland, 198.51.100.0/24 in the United States,
/// 2001:db8:1::/48 in Ireland, 2001:db8:2::/48 in the United States.
struct Places;

impl Geography for Places {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        let ranges = [
            (0xc000_0200, 0xc000_02ff, "IE"),
            (0xc633_6400, 0xc633_64ff, "US"),
        ];
        Box::new(
            ranges
                .into_iter()
                .map(|(a, b, code)| (a, b, Country::parse(code).unwrap())),
        )
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        let ranges = [(0x2001_0db8_0001_u128, "IE"), (0x2001_0db8_0002_u128, "US")];
        Box::new(ranges.into_iter().map(|(prefix, code)| {
            (
                prefix << 80,
                ((prefix + 1) << 80) - 1,
                Country::parse(code).unwrap(),
            )
        }))
    }

    fn country(&self, _: IpAddr) -> Option<Country> {
        unimplemented!("compiling asks for ranges only")
    }

    fn build_id(&self) -> &str {
        "places"
    }
}

fn compiled_with(text: &str, own_addresses: &[IpAddr]) -> Compiled {
    let surroundings = Surroundings {
        geography: &Places,
        users: &users,
        own_addresses,
        link_local: LinkLocal::default(),
    };
    load(text, "policy.toml", &surroundings, 7).unwrap_or_else(|problems| panic!("{problems}"))
}

fn compiled(text: &str) -> Compiled {
    compiled_with(text, &[])
}

/// Judges root's curl in nginx.service, to `destination`.
fn judge(policy: &Compiled, destination: &str, protocol: u8, port: u16) -> (u8, u16) {
    let Decision {
        verdict,
        rule,
        generation,
        ..
    } = policy.judge(&Question {
        cgroup: Some(b"/system.slice/nginx.service"),
        executable: Some(b"/usr/bin/curl"),
        is_foreign: false,
        uid: 0,
        gid: Some(0),
        interactive: Some(false),
        origin: None,
        direction: Some(Direction::Outbound),
        near_port: None,
        destination: destination.parse().unwrap(),
        may_stay: true,
        protocol,
        port,
        time_us: 0,
    });
    assert_eq!(generation, 7);
    (verdict, rule)
}

#[test]
fn without_rules_the_country_decides_what_is_said() {
    let policy = compiled("mode = \"report\"");
    assert_eq!(policy.header.n_words, 0);
    assert_eq!(
        judge(&policy, "192.0.2.1", 6, 443),
        (verdict::UNAPPROVED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "203.0.113.1", 6, 443),
        (verdict::UNDETERMINED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "2001:db8:1::1", 6, 443),
        (verdict::UNAPPROVED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "2001:db8:3::1", 6, 443),
        (verdict::UNDETERMINED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "127.0.0.1", 6, 443),
        (verdict::LOCAL, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "ff02::fb", 17, 5353),
        (verdict::LOCAL, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "::ffff:192.0.2.1", 6, 443),
        (verdict::UNAPPROVED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "::ffff:127.0.0.1", 6, 443),
        (verdict::LOCAL, NO_RULE)
    );
}

#[test]
fn own_addresses_are_local_whatever_rules_say() {
    let text = "mode = \"enforce\"\n[[rules]]\nname = \"no\"\nverdict = \"deny\"\n\
                to = { networks = [\"0.0.0.0/0\", \"::/0\"] }";
    let policy = compiled_with(
        text,
        &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    );
    assert_eq!(judge(&policy, "192.0.2.1", 6, 443).0, verdict::LOCAL);
    assert_eq!(judge(&policy, "2001:db8::1", 6, 443).0, verdict::LOCAL);
    assert_eq!(judge(&policy, "192.0.2.2", 6, 443), (verdict::DENIED, 0));
    assert_eq!(judge(&policy, "2001:db8::", 6, 443), (verdict::DENIED, 0));
    // A packet that leaves for them nevertheless is judged.
    let leaves = |destination: &str| {
        policy.judge(&Question {
            cgroup: None,
            executable: None,
            is_foreign: false,
            uid: 0,
            gid: None,
            interactive: None,
            origin: None,
            direction: Some(Direction::Outbound),
            near_port: None,
            destination: destination.parse().unwrap(),
            may_stay: false,
            protocol: 6,
            port: 443,
            time_us: 0,
        })
    };
    for own in [
        "192.0.2.1",
        "2001:db8::1",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
    ] {
        assert_eq!(leaves(own).verdict, verdict::DENIED, "{own}");
    }
    for scope in ["224.0.0.1", "255.255.255.255", "ff02::1"] {
        assert_eq!(leaves(scope).verdict, verdict::LOCAL, "{scope}");
    }
}

#[test]
fn unicast_to_the_link_is_judged_unless_it_is_set_otherwise() {
    let text = "mode = \"enforce\"\n[[rules]]\nname = \"no\"\nverdict = \"deny\"\n\
                to = { networks = [\"169.254.169.254\", \"fe80::/10\"] }";
    for (link_local, denied, other) in [
        (LinkLocal::Judged, verdict::DENIED, verdict::UNDETERMINED),
        (LinkLocal::Local, verdict::LOCAL, verdict::LOCAL),
    ] {
        let surroundings = Surroundings {
            geography: &Places,
            users: &users,
            own_addresses: &[],
            link_local,
        };
        let policy = load(text, "policy.toml", &surroundings, 7).unwrap();
        assert_eq!(judge(&policy, "169.254.169.254", 6, 80).0, denied);
        assert_eq!(judge(&policy, "fe80::1", 6, 80).0, denied);
        assert_eq!(judge(&policy, "169.254.1.1", 6, 80).0, other);
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = compiled(
        r#"
        mode = "enforce"
        [zones]
        home = ["EEA", "203.0.113.0/28"]
        [[rules]]
        name = "not this one"
        to = { networks = "192.0.2.128/25", ports = "443/tcp" }
        verdict = "deny"
        [[rules]]
        name = "home"
        from = { unit = "nginx.service", exe = "/usr/bin/*", user = ["root"] }
        to = { zones = "home", ports = 443 }
        verdict = "approve"
        [[rules]]
        name = "others"
        from = { user = "postgres" }
        to = { zones = "home" }
        verdict = "approve"
        [[rules]]
        name = "ping"
        to = { protocols = ["icmp", "icmpv6"], countries = ["IE", "US"] }
        verdict = "approve"
        "#,
    );
    assert_eq!(policy.mode(), Mode::Enforce);
    assert_eq!(judge(&policy, "192.0.2.200", 6, 443), (verdict::DENIED, 0));
    assert_eq!(
        judge(&policy, "192.0.2.200", 17, 443),
        (verdict::APPROVED, 1)
    );
    assert_eq!(judge(&policy, "192.0.2.1", 6, 443), (verdict::APPROVED, 1));
    assert_eq!(
        judge(&policy, "192.0.2.1", 6, 80),
        (verdict::UNAPPROVED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "203.0.113.15", 6, 443),
        (verdict::APPROVED, 1)
    );
    assert_eq!(
        judge(&policy, "203.0.113.16", 6, 443),
        (verdict::UNDETERMINED, NO_RULE)
    );
    assert_eq!(
        judge(&policy, "198.51.100.1", 6, 443),
        (verdict::UNAPPROVED, NO_RULE)
    );
    assert_eq!(judge(&policy, "198.51.100.1", 1, 0), (verdict::APPROVED, 3));
    assert_eq!(
        judge(&policy, "2001:db8:1::1", 6, 443),
        (verdict::APPROVED, 1)
    );

    let unknown = Question {
        cgroup: None,
        executable: None,
        is_foreign: false,
        uid: 0,
        gid: Some(0),
        interactive: Some(false),
        origin: None,
        direction: Some(Direction::Outbound),
        near_port: None,
        destination: "192.0.2.1".parse().unwrap(),
        may_stay: true,
        protocol: 6,
        port: 443,
        time_us: 0,
    };
    assert_eq!(policy.judge(&unknown).verdict, verdict::UNAPPROVED);
    assert_eq!(policy.judge(&Question { uid: 26, ..unknown }).rule, 2);
}

#[test]
fn a_gateway_is_its_endpoints_and_nothing_between_them() {
    let policy = compiled(
        r#"
        mode = "report"
        [[gateways]]
        name = "dublin"
        endpoints = ["192.0.2.10:443/tcp", "192.0.2.11:443/tcp", "[2001:db8:1::10]:8443/tcp",
                     "192.0.2.12:51820/udp", "192.0.2.12:443/tcp", "192.0.2.13/esp"]
        [[rules]]
        name = "out"
        to = { gateway = "dublin" }
        verdict = "approve"
        [[rules]]
        name = "never by tcp"
        to = { gateway = ["dublin"], ports = "443/tcp" }
        verdict = "deny"
        "#,
    );
    let through = (verdict::GATEWAY, 0);
    let not = (verdict::UNAPPROVED, NO_RULE);
    assert_eq!(judge(&policy, "192.0.2.10", 6, 443), through);
    assert_eq!(judge(&policy, "192.0.2.11", 6, 443), through);
    assert_eq!(judge(&policy, "192.0.2.12", 17, 51820), through);
    assert_eq!(judge(&policy, "192.0.2.12", 6, 443), through);
    assert_eq!(judge(&policy, "192.0.2.13", 50, 0), through);
    assert_eq!(judge(&policy, "2001:db8:1::10", 6, 8443), through);
    assert_eq!(judge(&policy, "2001:db8:1::10", 6, 443), not);
    assert_eq!(judge(&policy, "192.0.2.10", 6, 8443), not);
    assert_eq!(judge(&policy, "192.0.2.10", 17, 51820), not);
    assert_eq!(judge(&policy, "192.0.2.14", 6, 443), not);
    assert_eq!(policy.clauses.len(), 6);
    let rules: Vec<u16> = policy.clauses.iter().map(|clause| clause.rule).collect();
    assert_eq!(rules, [0, 0, 0, 0, 1, 1]);
}

#[test]
fn every_table_begins_at_zero_and_rises() {
    let policy = compiled(
        "mode = \"report\"\n[[rules]]\nname = \"x\"\nverdict = \"deny\"\n\
                           from = { user = 5 }\nto = { ports = 53, networks = [\"192.0.2.0/30\", \"::/0\"] }",
    );
    for table in [&policy.v4, &policy.services, &policy.users] {
        assert_eq!(table[0].first, 0);
        assert!(table.windows(2).all(|pair| pair[0].first < pair[1].first));
        let content = |range: &Range32| (range.class, range.fallback, range.marks);
        assert!(
            table
                .windows(2)
                .all(|pair| content(&pair[0]) != content(&pair[1]))
        );
    }
    assert_eq!(policy.v6[0].first, 0);
    // The number of a user who is not known has one of its own.
    assert_eq!(policy.users.len(), 4);
    // Each of five protocols has a range for port 53, and one behind it.
    assert_eq!(policy.services.len(), 11);
}

#[test]
fn problems_of_the_host_and_of_the_text_are_said_together() {
    let text = "mode = \"report\"\n[[rules]]\nname = \"x\"\nverdict = \"permit\"\n\
                from = { user = [\"root\", \"nobody-here\"], group = \"no-group\" }\nto = { asns = 1 }\n";
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &users,
        own_addresses: &[],
        link_local: LinkLocal::default(),
    };
    let problems = load(text, "policy.toml", &surroundings, 1).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "policy.toml:4:11: error: rules[0].verdict: `permit` is not a verdict\n  \
         help: write `verdict = \"approve\"`\n\
         policy.toml:5:26: error: rules[0].from.user: this host has no user `nobody-here`\n  \
         help: write the login name of a user, or the number\n\
         policy.toml:5:50: error: rules[0].from.group: this host has no group `no-group`\n  \
         help: write the name of a group, or the number\n\
         policy.toml:6:15: error: rules[0].to.asns: no file of country data has the numbers of \
         autonomous systems\n  \
         help: name an ASN database (MMDB) beside the other files: `geo` in trefoil.toml, or --geo"
    );
}

#[test]
fn services_that_exclude_each_other_are_a_problem() {
    for to in [
        "{ ports = \"53/tcp\", protocols = \"udp\" }",
        "{ gateway = \"g\", ports = \"53/tcp\" }",
    ] {
        let text = format!(
            "mode = \"report\"\n[[gateways]]\nname = \"g\"\nendpoints = \"192.0.2.1:443/tcp\"\n\
             [[rules]]\nname = \"x\"\nverdict = \"deny\"\nto = {to}\n"
        );
        let surroundings = Surroundings {
            geography: &Nowhere,
            users: &users,
            own_addresses: &[],
            link_local: LinkLocal::default(),
        };
        let problems = load(&text, "policy.toml", &surroundings, 1).unwrap_err();
        assert_eq!(problems.list.len(), 1);
        assert_eq!(problems.list[0].place.line, 5, "{problems}");
    }
}

#[test]
fn too_many_rules_are_a_problem_on_the_line_of_the_first_too_many() {
    use std::fmt::Write as _;
    let mut text = "mode = \"report\"\n".to_owned();
    for index in 0..=MAX_CLAUSES {
        let network = format!("10.{}.{}.0/24", index / 256, index % 256);
        writeln!(
            text,
            "[[rules]]\nname = \"{index}\"\nverdict = \"deny\"\nto = {{ networks = \"{network}\" }}"
        )
        .unwrap();
    }
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &users,
        own_addresses: &[],
        link_local: LinkLocal::default(),
    };
    let problems = load(&text, "policy.toml", &surroundings, 1).unwrap_err();
    assert_eq!(problems.list.len(), 1);
    assert_eq!(problems.list[0].place.line, 2 + 4 * MAX_CLAUSES as u32);
    let fewer = text.rsplit_once("[[rules]]").unwrap().0;
    let policy = load(fewer, "policy.toml", &surroundings, 1).unwrap();
    assert_eq!(judge_at(&policy, "10.7.255.1"), (verdict::DENIED, 2047));
}

fn judge_at(policy: &Compiled, destination: &str) -> (u8, u16) {
    let decision = policy.judge(&Question {
        cgroup: None,
        executable: None,
        is_foreign: false,
        uid: 0,
        gid: Some(0),
        interactive: Some(false),
        origin: None,
        direction: Some(Direction::Outbound),
        near_port: None,
        destination: destination.parse().unwrap(),
        may_stay: true,
        protocol: 6,
        port: 1,
        time_us: 0,
    });
    (decision.verdict, decision.rule)
}

/// Half a million ranges for each family, country after country.
struct WholeWorld;

const N_RANGES: u32 = 500_000;

fn nth_country(index: u32) -> Country {
    const CODES: [&str; 7] = ["IE", "US", "DE", "CN", "FR", "BR", "NO"];
    Country::parse(CODES[index as usize % CODES.len()]).unwrap()
}

impl Geography for WholeWorld {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        let width = u32::MAX / N_RANGES;
        Box::new(
            (0..N_RANGES)
                .map(move |index| (index * width, index * width + width - 1, nth_country(index))),
        )
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        let width = u128::MAX / u128::from(N_RANGES);
        Box::new((0..N_RANGES).map(move |index| {
            let first = u128::from(index) * width;
            (first, first + width - 1, nth_country(index))
        }))
    }

    fn country(&self, _: IpAddr) -> Option<Country> {
        unimplemented!("compiling asks for ranges only")
    }

    fn build_id(&self) -> &str {
        "whole world"
    }
}

#[test]
fn a_million_country_ranges_are_folded_in_a_moment() {
    use std::fmt::Write as _;
    let mut text = "mode = \"report\"\n[zones]\nhome = [\"EEA\"]\n".to_owned();
    for index in 0..1000 {
        let network = format!("10.{}.{}.0/24", index / 256, index % 256);
        writeln!(
            text,
            "[[rules]]\nname = \"{index}\"\nverdict = \"approve\"\nfrom = {{ unit = \"u{index}.service\" }}\n\
             to = {{ networks = [\"{network}\"], zones = \"home\" }}"
        )
        .unwrap();
    }
    text.push_str("[[rules]]\nname = \"home\"\nverdict = \"approve\"\nto = { zones = \"home\" }\n");
    let surroundings = Surroundings {
        geography: &WholeWorld,
        users: &users,
        own_addresses: &[],
        link_local: LinkLocal::default(),
    };
    let policy = Policy::parse(&text, "policy.toml").unwrap();
    let began = std::time::Instant::now();
    let compiled = compile(&policy, &surroundings, 1).unwrap();
    let took = began.elapsed();
    // Of seven ranges in a row, the last is merged with the first of the next; what
    // is local, and the networks, make a small difference.
    let n_folded = N_RANGES as usize / 7 * 6;
    assert!(
        compiled.v4.len().abs_diff(n_folded) < 2000,
        "{}",
        compiled.v4.len()
    );
    assert!(
        compiled.v6.len().abs_diff(n_folded) < 2000,
        "{}",
        compiled.v6.len()
    );
    // Under half a second with optimisation; without, and on a busy machine, this
    // is to notice a square.
    assert!(took.as_secs() < 20, "{took:?}");
}
