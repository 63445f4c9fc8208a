//! How long a decision takes, and what a policy costs, at the scale of the Internet.
//!
//! Everything is measured in one run on one machine, so ratios hold where absolute
//! figures do not. Decisions run in the kernel with `BPF_PROG_RUN`; nothing is
//! attached. Needs root, and a country table that `cargo xtask bench` downloads.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark stops where it cannot go on"
)]

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use trefoil::{
    clock::BootClock,
    geo::Geo,
    kernel::{Enforcement, Unattached, peer},
    policy::{Compiled, Geography, Image, Surroundings, geography::Nowhere, testing::Random},
};
use trefoil_ebpf::abi::{
    ClassCache, EXECUTABLE_PATH, Executable, MAX_QUESTIONS, QUESTION_MAY_STAY, Question, verdict,
};

/// Where `cargo xtask bench` says that the country table is.
const TABLE: &str = "TREFOIL_BENCH_TABLE";
/// The country data of Debian's tor-geoipdb.
const DEBIAN: [&str; 2] = ["/usr/share/tor/geoip", "/usr/share/tor/geoip6"];
/// Where it says that the program for the trie is.
const TRIE: &str = "TREFOIL_BENCH_TRIE";
/// Destinations that are asked in one round: so many that no cache has all of the tables
/// that random ones lead to.
const N_RANDOM: usize = 4096 * MAX_QUESTIONS;
const N_ROUNDS: usize = 7;
/// Destinations that no country table has.
const LOCAL: &str = "local";
/// Random destinations, and the process that sends to them is known.
const OWNED: &str = "IPv4 random, owned";
/// Number of that process's executable and of its control group.
const OWNER: u64 = 1;

mod large;
mod reload;
mod trie;

fn main() {
    if std::env::args().any(|argument| argument == reload::SENDER) {
        return reload::send();
    }
    let Some(table) = std::env::var_os(TABLE) else {
        panic!("{TABLE} is not set: run `cargo xtask bench policy`");
    };
    let began = Instant::now();
    let table = PathBuf::from(table);
    let geo = Geo::load(std::slice::from_ref(&table)).unwrap();
    let n_networks = geo.sources()[0].n_networks;
    println!(
        "country table       {n_networks} networks, read in {:.0?}",
        began.elapsed()
    );

    let debian = Geo::load(&DEBIAN.map(PathBuf::from)).unwrap();

    let mut kernel = Unattached::load(1).unwrap();
    add_owner(&kernel);
    let destinations = destinations(&geo);
    for (name, text, places) in [
        (
            "1 rule, 1 prefix",
            small_policy(),
            &Nowhere as &dyn Geography,
        ),
        ("1,000 rules, tor-geoipdb", large::policy(&debian), &debian),
        ("1,000 rules, all prefixes", large::policy(&geo), &geo),
    ] {
        println!("\n{name}");
        let began = Instant::now();
        let compiled = compile(&text, places, kernel.next_generation());
        let compile = began.elapsed();
        let began = Instant::now();
        let image = Image::new(&compiled).unwrap();
        println!("  compile, lay out  {compile:.0?}, {:.0?}", began.elapsed());
        println!(
            "  ranges            {} IPv4, {} IPv6; {} clauses, {} rows, {} states",
            compiled.v4.len(),
            compiled.v6.len(),
            compiled.clauses.len(),
            compiled.rows.len(),
            compiled.states.len(),
        );
        println!(
            "  memory            {:.1} MiB for both generations",
            2.0 * size_of_val(&image.words[..]) as f64 / f64::from(1 << 20)
        );
        let began = Instant::now();
        kernel.write_policy(&image, &BootClock::read()).unwrap();
        let written = began.elapsed();
        let began = Instant::now();
        kernel.begin(compiled.header.generation, Enforcement::Never);
        println!("  write, swap       {written:.1?}, {:.0?}", began.elapsed());
        for (name, questions) in &destinations {
            let (answers, _) = kernel.ask(questions).unwrap();
            let is_local = |answer: &u32| *answer as u8 == verdict::LOCAL;
            assert!(
                answers
                    .iter()
                    .all(|answer| is_local(answer) == (*name == LOCAL)),
                "not judged by the policy"
            );
            println!(
                "  {name:18} {:.0} ns a decision",
                ns_a_decision(questions, |questions| kernel.ask(questions).unwrap().1)
            );
        }
    }

    println!("\n1,000 rules, all prefixes, by an agent that runs");
    reload::measure(&table, &large::policy(&geo));

    println!("\nLPM trie");
    let object = PathBuf::from(std::env::var_os(TRIE).unwrap());
    let began = Instant::now();
    let mut tries = trie::Tries::load(&object, &table);
    println!(
        "  prefixes          {}, loaded in {:.0?}",
        tries.n_prefixes,
        began.elapsed()
    );
    for (name, questions) in destinations
        .iter()
        .filter(|(name, _)| ![LOCAL, OWNED].contains(name))
    {
        let ns = ns_a_decision(questions, |questions| tries.ask(questions));
        println!("  {name:18} {ns:.0} ns a look-up");
    }

    println!("\nNo decision, which is part of each figure above");
    for (name, questions) in &destinations {
        let ns = ns_a_decision(questions, |questions| tries.ask_nothing(questions));
        println!("  {name:18} {ns:.0} ns");
    }
}

/// Median over rounds.
fn ns_a_decision(questions: &[Question], mut ask: impl FnMut(&[Question]) -> Duration) -> f64 {
    let mut rounds: Vec<Duration> = (0..N_ROUNDS).map(|_| ask(questions)).collect();
    rounds.sort_unstable();
    rounds[N_ROUNDS / 2].as_nanos() as f64 / questions.len() as f64
}

/// Makes an executable and a control group known that rules name.
fn add_owner(kernel: &Unattached) {
    const EXE: &[u8] = b"/opt/app-2/bin/sender";
    let mut path = [0; EXECUTABLE_PATH];
    path[..EXE.len()].copy_from_slice(EXE);
    let executable = Executable {
        used_ns: 0,
        charged: 0,
        pad: 0,
        class: ClassCache::default(),
        inode: 0,
        device: 0,
        path_len: EXE.len() as u16,
        flags: 0,
        path,
    };
    kernel.add_executable(OWNER, &executable).unwrap();
    let cgroup = "/system.slice/batch-1@0.service";
    kernel.add_cgroup(OWNER, cgroup).unwrap();
}

fn question(address: IpAddr) -> Question {
    Question {
        uid: 1000,
        peer: peer(address, 443, 6),
        flags: QUESTION_MAY_STAY,
        ..Question::default()
    }
}

/// Addresses of the table, hot (a few again and again) and random.
fn destinations(geo: &Geo) -> Vec<(&'static str, Vec<Question>)> {
    let mut random = Random::new(1);
    let v4: Vec<_> = geo.v4().collect();
    let v6: Vec<_> = geo.v6().collect();
    let mut of_v4 = |count: usize| -> Vec<Question> {
        let one = |_| {
            let (first, last, _) = v4[random.below(v4.len())];
            let offset = random.below((last - first) as usize + 1) as u32;
            question(IpAddr::V4((first + offset).into()))
        };
        let few: Vec<_> = (0..count).map(one).collect();
        few.iter().copied().cycle().take(N_RANDOM).collect()
    };
    let (hot_v4, random_v4) = (of_v4(8), of_v4(N_RANDOM));
    let mut of_v6 = |count: usize| -> Vec<Question> {
        let one = |_| {
            let (first, last, _) = v6[random.below(v6.len())];
            let offset = (last - first).min(u128::from(u32::MAX)) as usize;
            let offset = random.below(offset + 1) as u128;
            question(IpAddr::V6((first + offset).into()))
        };
        let few: Vec<_> = (0..count).map(one).collect();
        few.iter().copied().cycle().take(N_RANDOM).collect()
    };
    let local = vec![question(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)); N_RANDOM];
    let (hot_v6, random_v6) = (of_v6(8), of_v6(N_RANDOM));
    let owned = |question: &Question| Question {
        exe_id: OWNER,
        cgroup_id: OWNER,
        ..*question
    };
    let owned_v4 = random_v4.iter().map(owned).collect();
    vec![
        (LOCAL, local),
        ("IPv4 hot", hot_v4),
        ("IPv4 random", random_v4),
        (OWNED, owned_v4),
        ("IPv6 hot", hot_v6),
        ("IPv6 random", random_v6),
    ]
}

fn small_policy() -> String {
    r#"mode = "report"
[[rules]]
name    = "the only one"
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#
    .to_owned()
}

fn compile(text: &str, geography: &dyn Geography, generation: u32) -> Compiled {
    let own: [IpAddr; 0] = [];
    let surroundings = Surroundings {
        geography,
        users: &|_: &str| None,
        own_addresses: &own,
        link_local: trefoil::policy::LinkLocal::default(),
    };
    match trefoil::policy::load(text, "policy.toml", &surroundings, generation) {
        Ok(compiled) => compiled,
        Err(problems) => panic!("{problems}"),
    }
}
