//! `lab`: the small world of network namespaces, with a shell in it.

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

/// Arguments of `lab`.
#[derive(Args)]
pub struct Lab {
    /// Arguments of the lab's own program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Lab {
    /// Builds everything and becomes the lab's program.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::CountryData, Part::Lab])?;
        workspace::run(workspace::cargo().args(["build", "--workspace"]))?;
        let mut lab = Command::new(workspace::target_dir().join("debug/trefoil-lab"));
        lab.args(self.arguments);
        Err(workspace::become_program(&mut workspace::as_root(lab)))
    }
}
