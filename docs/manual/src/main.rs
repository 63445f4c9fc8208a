//! `trefoil-manual`: writes the manual pages, or the completions.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

/// Write what is made from the agent's definitions.
#[derive(Parser)]
enum Arguments {
    /// The manual pages, into docs/man
    Pages,
    /// The shell completions
    Completions {
        /// Where to
        directory: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Pages => {
            for page in trefoil_manual::PAGES {
                let path = trefoil_manual::directory().join(page);
                fs::write(&path, trefoil_manual::render(page)?)
                    .with_context(|| format!("write {}", path.display()))?;
            }
            Ok(())
        }
        Arguments::Completions { directory } => trefoil_manual::completions(&directory),
    }
}
