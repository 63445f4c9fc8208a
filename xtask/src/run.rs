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
        agent.arg("run");
        // A flag wins over the settings file, so the data that setup found is
        // named only when neither a flag nor a file of the user's can name it.
        if !self.names("--geo") && !self.names("--config") {
            for file in setup::country_data().into_iter().flatten() {
                agent.arg("--geo").arg(file);
            }
        }
        agent.args(self.arguments);
        Err(workspace::become_program(&mut workspace::as_root(agent)))
    }

    fn names(&self, flag: &str) -> bool {
        self.arguments
            .iter()
            .filter_map(|argument| argument.to_str())
            .any(|argument| {
                argument == flag
                    || argument
                        .strip_prefix(flag)
                        .is_some_and(|rest| rest.starts_with('='))
            })
    }
}
