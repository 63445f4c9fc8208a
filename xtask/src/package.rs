//! `package`: the Debian package, in target/debian.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

mod notices;

/// Arguments of `package`.
#[derive(Args)]
pub struct Package {}

impl Package {
    /// Builds the release agent and packs it; what goes where stands in
    /// agent/Cargo.toml.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::Package])?;
        let beside = workspace::root().join("target/package");
        fs::create_dir_all(&beside).with_context(|| format!("make {}", beside.display()))?;
        fs::write(beside.join("THIRD-PARTY-LICENSES"), notices::notices()?)
            .context("write the licences of the dependencies")?;
        let mut cargo_deb = Command::new(setup::tool("cargo-deb"));
        cargo_deb.args(["--package", "trefoil", "--output"]);
        cargo_deb
            .arg(workspace::target_dir().join("debian"))
            .current_dir(workspace::root());
        workspace::run(&mut cargo_deb)
    }
}
