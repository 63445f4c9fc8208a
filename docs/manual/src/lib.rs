//! The manual pages and the shell completions, made from what the code defines.
//!
//! The prose is in docs/man/*.in; what a definition in the agent says, such as
//! flags, settings and fields of records, is put in here and nowhere written a
//! second time. The pages are kept in the repository, and a test fails when one is
//! not what its template makes: `cargo xtask docs` makes them anew.
//!
//! A package of its own, and not a part of xtask: it needs the agent, and xtask
//! has to work before anything that the agent needs is installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use trefoil::cli::Cli;
use trefoil_verify::arguments::Arguments;

mod catalog;
pub mod command;
pub mod examples;
mod places;
mod records;
mod roff;
pub mod settings;
mod template;

/// The pages.
pub const PAGES: [&str; 5] = [
    "trefoil.8",
    VERIFY,
    "trefoil.toml.5",
    "trefoil-policy.5",
    "trefoil-reports.7",
];

/// Page of the other program.
const VERIFY: &str = "trefoil-verify.1";

/// Where the pages and their templates are.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../man")
}

/// The template of a page.
pub fn template_of(page: &str) -> Result<String> {
    let path = directory().join(format!("{page}.in"));
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The page that its template makes.
pub fn render(page: &str) -> Result<String> {
    let program = match page {
        VERIFY => Arguments::command(),
        _ => Cli::command(),
    };
    let text = template::render(&template_of(page)?, program)
        .with_context(|| format!("make {page} from docs/man/{page}.in"))?;
    // groff's mdoc macros would call it a BSD manual. They set that string when
    // they are loaded, which is at `.Dd`.
    let text = text.replacen(
        "\n.Dt ",
        "\n.ds doc-volume-operating-system Trefoil\n.Dt ",
        1,
    );
    Ok(format!(
        ".\\\" Made from docs/man/{page}.in and the sources by `cargo xtask docs`.\n{text}"
    ))
}

/// Writes the completions for bash, zsh and fish into a directory.
pub fn completions(into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "trefoil", into)
            .with_context(|| format!("write the completions for {shell}"))?;
    }
    Ok(())
}
