//! `run`: the agent in the foreground, as root.

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

/// Arguments of `run`.
#[derive(Args)]
pub struct Run {
    /// Arguments of `trefoil run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Run {
    /// Builds the release agent and becomes it.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::CountryData])?;
        workspace::run(workspace::cargo().args(["build", "--release", "--package", "trefoil"]))?;
        let mut agent = Command::new(workspace::target_dir().join("release/trefoil"));
        agent.arg("run").args(self.arguments);
        Err(workspace::become_program(&mut workspace::as_root(agent)))
    }
}
