//! `build`: the agent with the kernel programs inside, and everything beside it.

use anyhow::Result;
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
