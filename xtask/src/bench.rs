//! `bench`: the workspace's benchmarks.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    setup::{self, Part},
    workspace,
};

/// Arguments of `bench`.
#[derive(Args)]
pub struct Bench {
    /// Run only the benchmark target of this name
    name: Option<String>,
}

impl Bench {
    /// Runs every bench target, or the one that is named.
    pub fn run(self) -> Result<()> {
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
        setup::ensure(&[Part::Bpf, Part::CountryData, Part::Lab])?;
        let mut cargo = workspace::cargo();
        cargo.args(["bench", "--workspace"]);
        // Named one by one: with `--benches` cargo would also start every
        // unit test as a benchmark.
        for name in wanted {
            cargo.args(["--bench", &name]);
        }
        workspace::run(&mut cargo)
    }
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
