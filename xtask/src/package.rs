//! `package`: the Debian package, in target/debian.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

/// Arguments of `package`.
#[derive(Args)]
pub struct Package {}

impl Package {
    /// Builds the release agent and packs it; what goes where stands in
    /// agent/Cargo.toml.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::Package])?;
        let mut cargo_deb = Command::new(setup::tool("cargo-deb"));
        cargo_deb.args(["--package", "trefoil", "--output"]);
        cargo_deb
            .arg(workspace::target_dir().join("debian"))
            .current_dir(workspace::root());
        workspace::run(&mut cargo_deb)
    }
}
