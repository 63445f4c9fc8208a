//! Large tables: every address has the verdict that the data says, first and last of a
//! prefix and their neighbours above all.
//!
//! The kernel answers with `BPF_PROG_RUN`; what is right is looked up in the list from
//! which the data was made, and not in anything that was compiled. Needs root.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
};

use trefoil::{
    clock::BootClock,
    geo::Country,
    kernel::{Unattached, peer},
    policy::{Geography, Image, Surroundings, geography::Nowhere, load, testing::Random},
};
use trefoil_ebpf::abi::{NO_RULE, Packed, Question, verdict};

/// Prefixes whose borders are asked about, of each family.
const N_ASKED: usize = 10_000;

const POLICY: &str = r#"
mode = "report"

[[rules]]
name    = "home"
to      = { countries = ["IE", "DE"] }
verdict = "approve"

[[rules]]
name    = "never there"
to      = { countries = ["CN"] }
verdict = "deny"
"#;

/// Ranges without overlap, sorted: some dense, some far apart, with gaps and without.
struct World {
    v4: Vec<(u32, u32, Country)>,
    v6: Vec<(u128, u128, Country)>,
}

fn any_country(random: &mut Random) -> Country {
    Country::parse(random.pick::<&str>(&["IE", "DE", "CN", "US", "BR"])).unwrap()
}

impl World {
    fn random() -> Self {
        let mut random = Random::new(7);
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        // Every address of one /16 by itself, as large as a part of the index gets.
        for first in 0x1f00_0000_u32..0x1f01_0000 {
            v4.push((first, first, any_country(&mut random)));
        }
        // Some 200,000 ranges besides, from 32.0.0.0 on and below 100.0.0.0, all public.
        let mut first = 0x2000_0000_u32;
        while first < 0x6400_0000 {
            let bits = 1 + random.below(14);
            let last = first + random.below(1 << bits) as u32;
            v4.push((first, last, any_country(&mut random)));
            first = last
                + 1
                + if random.one_in(3) {
                    random.below(300) as u32
                } else {
                    0
                };
        }
        // As many in 2400::/8, one after the other in /64s, and some that share a /64.
        let mut first = 0x2400_u128 << 112;
        for _ in 0..200_000 {
            let width = match random.below(4) {
                0 => 1 + random.below(1000) as u128,
                1 => 1 << 64,
                2 => 1 << 80,
                _ => 1 << (64 + random.below(32)),
            };
            v6.push((first, first + width - 1, any_country(&mut random)));
            first += width
                + if random.one_in(3) {
                    1 << random.below(90)
                } else {
                    0
                };
        }
        Self { v4, v6 }
    }

    /// Looks the verdict up in the list.
    fn verdict(&self, address: IpAddr) -> u8 {
        match self.country(address).as_ref().map(Country::as_str) {
            Some("IE" | "DE") => verdict::APPROVED,
            Some("CN") => verdict::DENIED,
            Some(_) => verdict::UNAPPROVED,
            None => verdict::UNDETERMINED,
        }
    }
}

impl Geography for World {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        Box::new(self.v4.iter().copied())
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        Box::new(self.v6.iter().copied())
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        fn look_up<K: Copy + Ord>(list: &[(K, K, Country)], key: K) -> Option<Country> {
            let behind = list.partition_point(|(first, _, _)| *first <= key);
            let (_, last, country) = list[..behind].last()?;
            (key <= *last).then_some(*country)
        }
        match address {
            IpAddr::V4(v4) => look_up(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => look_up(&self.v6, v6.to_bits()),
        }
    }

    fn build_id(&self) -> &str {
        "random"
    }
}

fn question(address: IpAddr) -> Question {
    Question {
        peer: peer(address, 443, 6),
        ..Question::default()
    }
}

#[test]
fn every_border_of_a_prefix_has_the_verdict_that_the_data_says() {
    let mut kernel = Unattached::load(1).unwrap();
    let world = World::random();
    let nobody = |_: &str| None;
    let surroundings = Surroundings {
        geography: &world,
        users: &nobody,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let compiled = load(
        POLICY,
        "policy.toml",
        &surroundings,
        kernel.next_generation(),
    )
    .unwrap();
    let image = Image::new(&compiled).unwrap();
    // Otherwise this would prove less than it is here for.
    assert!(image.chunks().len() > 2, "{} chunks", image.chunks().len());
    kernel.judge_by(&compiled, &BootClock::read()).unwrap();

    let mut random = Random::new(8);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for _ in 0..N_ASKED {
        let (first, last, _) = *random.pick(&world.v4);
        let borders = [first - 1, first, last, last + 1];
        addresses.extend(borders.map(|bits| IpAddr::V4(bits.into())));
        let (first, last, _) = *random.pick(&world.v6);
        let borders = [first - 1, first, last, last + 1];
        addresses.extend(borders.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
    }
    let questions: Vec<Question> = addresses.iter().copied().map(question).collect();
    let (answers, _) = kernel.ask(&questions).unwrap();
    let mut n_of_verdict = [0; verdict::N as usize];
    for (address, answer) in addresses.iter().zip(answers) {
        let expected = world.verdict(*address);
        assert_eq!(answer as u8, expected, "{address}");
        n_of_verdict[usize::from(expected)] += 1;
    }
    println!(
        "{} addresses, by verdict: {n_of_verdict:?}",
        addresses.len()
    );
    let asked = [
        verdict::APPROVED,
        verdict::DENIED,
        verdict::UNAPPROVED,
        verdict::UNDETERMINED,
    ];
    assert!(
        asked
            .iter()
            .all(|verdict| n_of_verdict[usize::from(*verdict)] > 100)
    );
}

/// Networks that are told apart late, next to each other and by few rules; and classes of
/// which there are more than values with an index.
#[test]
fn crowded_networks_are_told_apart() {
    const N_RULES: usize = 100;
    let mut random = Random::new(9);
    let mut networks_of_rule = vec![Vec::new(); N_RULES];
    // Each with the first rule that names it.
    let mut networks: Vec<(IpAddr, usize)> = Vec::new();
    let mut add = |address: IpAddr, random: &mut Random| {
        // Pairs and triples of rules, so that there are many classes.
        let rules: Vec<usize> = (0..3).map(|_| random.below(N_RULES)).collect();
        for rule in &rules {
            networks_of_rule[*rule].push(format!("\"{address}\""));
        }
        networks.push((address, *rules.iter().min().unwrap()));
    };
    for number in 0..20_000_u32 {
        // Hosts in one /112, and hosts far apart with all but the last bits zero.
        let (together, apart) = (u128::from(number * 3), u128::from(number) << 90);
        add(v6(0x2001_0db8 << 96 | together), &mut random);
        add(v6(0x2600 << 112 | apart | 1), &mut random);
    }
    let mut text = "mode = \"report\"\n".to_owned();
    for (rule, networks) in networks_of_rule.iter().enumerate() {
        let networks = networks.join(",");
        text.push_str(&format!(
            "[[rules]]\nname = \"r{rule}\"\nverdict = \"approve\"\nto = {{ networks = [{networks}] }}\n"
        ));
    }
    let mut kernel = Unattached::load(1).unwrap();
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let generation = kernel.next_generation();
    let compiled = load(&text, "policy.toml", &surroundings, generation).unwrap();
    let n_classes: HashSet<u16> = compiled.v6.iter().map(|range| range.class).collect();
    assert!(n_classes.len() > Packed::N_VALUES, "{}", n_classes.len());
    kernel.judge_by(&compiled, &BootClock::read()).unwrap();

    let rule_of: HashMap<IpAddr, usize> = networks.into_iter().collect();
    let asked: Vec<IpAddr> = rule_of
        .keys()
        .flat_map(|address| match address {
            IpAddr::V6(host) => [-1, 0, 1].map(|by| v6(host.to_bits().wrapping_add_signed(by))),
            IpAddr::V4(_) => unreachable!("only IPv6 was added"),
        })
        .collect();
    let questions: Vec<Question> = asked.iter().copied().map(question).collect();
    let (answers, _) = kernel.ask(&questions).unwrap();
    for (address, answer) in asked.iter().zip(answers) {
        let expected = rule_of.get(address).map(|rule| *rule as u16);
        let rule = (answer >> 16) as u16;
        assert_eq!((rule != NO_RULE).then_some(rule), expected, "{address}");
    }
}

#[test]
fn more_networks_than_a_list_can_have_are_refused_and_named() {
    let networks: Vec<String> = (0..140_000_u128)
        .step_by(2)
        .map(|host| format!("\"{}\"", v6(0x2001_0db8 << 96 | host)))
        .collect();
    let text = format!(
        "mode = \"report\"\n[[rules]]\nname = \"x\"\nverdict = \"approve\"\nto = {{ networks = [{}] }}\n",
        networks.join(",")
    );
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let compiled = load(&text, "policy.toml", &surroundings, 1).unwrap();
    let fault = Image::new(&compiled).unwrap_err();
    assert!(fault.message.contains("within 2001:db8::/64"), "{fault:?}");
}

fn v6(bits: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(bits))
}
