//! `bench`: the workspace's benchmarks.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    bpf_toolchain, cost,
    setup::{self, Part},
    workspace,
};

/// Arguments of `bench`.
#[derive(Args)]
pub struct Bench {
    /// Run only the benchmark target of this name
    name: Option<String>,
    /// For `cost`, `flows` and `soak`: two rounds of short slices, few flows, or a minute, to see
    /// that it works
    #[arg(long)]
    quick: bool,
    /// For `cost`: only contenders, workloads and parts with this in their name; may be repeated
    #[arg(long, value_name = "FILTER")]
    only: Vec<String>,
    /// For `cost`: so many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// For `cost`: keep the results in docs/cost.json, and make the README's table and the charts
    /// from them
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    write: bool,
}

/// The benchmark that has arguments of its own.
const COST: &str = "cost";
/// Those that may be quick, too: what they then have in their environment.
const FLOWS: &str = "flows";
const SOAK: &str = "soak";
const QUICK: [(&str, &str, &str); 2] = [
    (FLOWS, "TREFOIL_BENCH_FLOWS", "50000"),
    (SOAK, "TREFOIL_SOAK_SECONDS", "60"),
];

impl Bench {
    /// Runs every bench target, or the one that is named.
    pub fn run(self) -> Result<()> {
        let is = |name: &str| self.name.as_deref() == Some(name);
        let for_cost = self.write || self.rounds.is_some() || !self.only.is_empty();
        if for_cost && !is(COST) || self.quick && !is(COST) && !is(FLOWS) && !is(SOAK) {
            bail!("these arguments are for `cargo xtask bench {COST}`");
        }
        let quick = QUICK.iter().find(|(name, ..)| self.quick && is(name));
        let known = bench_targets(&workspace::metadata(&["--no-deps"])?);
        let wanted: Vec<String> = match self.name {
            Some(name) if known.contains(&name) => vec![name],
            Some(name) => bail!(
                "no benchmark is called {name}; there are: {}",
                known.join(", ")
            ),
            None => known,
        };
        if wanted.is_empty() {
            println!("The workspace has no benchmarks yet.");
            return Ok(());
        }
        setup::ensure(&[Part::Bpf, Part::Bench, Part::CountryData, Part::Lab])?;
        let wants = |name: &str| wanted.iter().any(|wanted| wanted == name);
        let mut cargo = workspace::cargo();
        cargo.args(["bench", "--workspace"]);
        // A quick look does with the country data that is there.
        if wants("geo") || wants("policy") || (wants(COST) && !self.quick) {
            cargo.env("TREFOIL_BENCH_TABLE", country_table()?);
        }
        if wants("policy") {
            cargo.env("TREFOIL_BENCH_TRIE", object("trie")?);
        }
        let results = workspace::target_dir().join("bench/cost.json");
        if wants(COST) {
            fs::create_dir_all(workspace::target_dir().join("bench"))?;
            cargo.env("TREFOIL_BENCH_CONTENDERS", object("contenders")?);
            cargo.env("TREFOIL_BENCH_COMMIT", commit()?);
            cargo.env("TREFOIL_BENCH_RESULTS", &results);
        }
        if let Some((_, variable, value)) = quick {
            cargo.env(variable, value);
        }
        if wants(FLOWS) || wants(SOAK) || wants("uplink") || wants(COST) {
            // They start the agent, which cargo would not build anew.
            let mut build = workspace::cargo();
            workspace::run(build.args(["build", "--release", "--package", "trefoil"]))?;
            cargo.env(
                "TREFOIL_BIN",
                workspace::target_dir().join("release/trefoil"),
            );
        }
        if !workspace::is_root() {
            cargo.args([
                "--config",
                "target.'cfg(unix)'.runner = ['sudo', '--preserve-env']",
            ]);
        }
        // Named one by one: with `--benches` cargo would also start every
        // unit test as a benchmark.
        for name in wanted {
            cargo.args(["--bench", &name]);
        }
        cargo.arg("--");
        if self.quick && quick.is_none() {
            cargo.arg("--quick");
        }
        for filter in &self.only {
            cargo.args(["--only", filter]);
        }
        if let Some(rounds) = self.rounds {
            cargo.args(["--rounds", &rounds.to_string()]);
        }
        workspace::run(&mut cargo)?;
        if self.write {
            cost::keep(&results)?;
        }
        Ok(())
    }
}

/// The commit that is checked out, and whether something is changed since.
fn commit() -> Result<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(workspace::root());
    let output = git.output().context("start git")?;
    let text = String::from_utf8(output.stdout).context("understand what git says")?;
    Ok(text.trim().to_owned())
}

/// A table of all the world's networks, for its size alone: its makers say that it has
/// errors.
fn country_table() -> Result<PathBuf> {
    const PACKAGE: &str = "@ip-location-db/geo-whois-asn-country-mmdb";
    let directory = workspace::target_dir().join("bench");
    let table = directory.join("package/geo-whois-asn-country.mmdb");
    if table.is_file() {
        return Ok(table);
    }
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", PACKAGE])
        .current_dir(&directory)
        .stderr(Stdio::inherit());
    let packed = npm.output().context("start npm")?;
    let name = String::from_utf8(packed.stdout).context("understand what npm says")?;
    if !packed.status.success() || name.trim().is_empty() {
        bail!("npm pack {PACKAGE} ended with {}", packed.status);
    }
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(name.trim())
        .current_dir(&directory);
    workspace::run(&mut tar)?;
    Ok(table)
}

/// Builds an object that no agent has in it: `trie` asks the kernel's own tries, and
/// `contenders` are what the costs are compared with.
fn object(name: &str) -> Result<PathBuf> {
    let root = workspace::root();
    let toolchain = bpf_toolchain::find(root)
        .map_err(|missing| anyhow::anyhow!("{missing}; run `cargo xtask setup`"))?;
    let target = workspace::target_dir().join("bpf");
    let mut build = toolchain.cargo("build", root, &target);
    workspace::run(build.args(["--bin", name]))?;
    Ok(target
        .join(bpf_toolchain::BPF_TARGET)
        .join("release")
        .join(name))
}

/// The names of the bench targets of the workspace.
fn bench_targets(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|k| k.contains(&"bench".into()))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}
