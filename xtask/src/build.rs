//! `build`: the agent with the kernel programs inside, and everything beside it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

/// Arguments of `build`.
#[derive(Args)]
pub struct Build {
    /// Optimised, as it is installed
    #[arg(long)]
    release: bool,
}

impl Build {
    /// Installs what building needs, and builds the whole workspace.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf])?;
        let mut cargo = workspace::cargo();
        cargo.args(["build", "--workspace"]);
        if self.release {
            cargo.arg("--release");
        }
        workspace::run(&mut cargo)
    }
}

/// Builds the agent with other layouts of its tables, as `trefoil-other-layout` beside the agent, which
/// has to be built anew after that: the tests of upgrades start both.
pub fn other_layout() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "trefoil", "--bin", "trefoil"]);
    workspace::run(cargo.args(["--features", "other-layout"]))?;
    let built = workspace::target_dir().join(Path::new("debug/trefoil"));
    let kept = built.with_file_name("trefoil-other-layout");
    // A program that runs cannot be written to.
    let _ = fs::remove_file(&kept);
    fs::copy(&built, &kept).with_context(|| format!("copy {}", built.display()))?;
    Ok(())
}
