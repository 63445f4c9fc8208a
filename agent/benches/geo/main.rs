//! How long reading country data takes, which every reload does anew.
//!
//! Needs a country table that `cargo xtask bench` downloads, and the default data.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark stops where it cannot go on"
)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use trefoil::geo::{DEFAULT_FILES, Geo};

/// Where `cargo xtask bench` says that the country table is.
const TABLE: &str = "TREFOIL_BENCH_TABLE";
const N_ROUNDS: usize = 7;

fn main() {
    let Some(table) = std::env::var_os(TABLE) else {
        panic!("{TABLE} is not set: run `cargo xtask bench geo`");
    };
    let table = PathBuf::from(table);
    let default: Vec<PathBuf> = DEFAULT_FILES[0].iter().map(PathBuf::from).collect();
    for (name, files) in [
        ("default data", default.clone()),
        ("MMDB of the Internet", vec![table.clone()]),
        ("both, merged", [&default[..], &[table]].concat()),
    ] {
        let geo = Geo::load(&files).unwrap();
        let n_networks: usize = geo.sources().iter().map(|source| source.n_networks).sum();
        println!("{name}: {n_networks} networks");
        let load = median(|| drop(Geo::load(&files).unwrap()));
        let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let digests = median(|| {
            for content in &contents {
                std::hint::black_box(Sha256::digest(content));
            }
        });
        println!("  load              {load:.0?}");
        println!("  SHA-256 of it     {digests:.0?}");
    }
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut rounds: Vec<Duration> = (0..N_ROUNDS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    rounds.sort_unstable();
    rounds[N_ROUNDS / 2]
}
