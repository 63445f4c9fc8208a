//! `docs`: the manual pages and completions, which package trefoil-manual makes, and what is
//! made of the figures in docs/cost.json.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cost,
    setup::{self, Part},
    workspace,
};

/// Arguments of `docs`.
#[derive(Args)]
pub struct Docs {}

impl Docs {
    /// Makes the pages in docs/man, and the README's table of costs with its charts, and shows what man(1) has against them.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::Manual])?;
        workspace::run(workspace::cargo().args(MANUAL).arg("pages"))?;
        cost::write()?;
        check()
    }
}

/// How cargo runs the program that makes them.
const MANUAL: [&str; 5] = ["run", "--quiet", "--package", "trefoil-manual", "--"];

/// Writes the completions into a directory, by the optimised program.
pub fn completions(into: &Path) -> Result<()> {
    let mut manual = Command::new(workspace::target_dir().join("release/trefoil-manual"));
    workspace::run(manual.arg("completions").arg(into))
}

/// Whether each page is formatted without a warning. A test of package
/// trefoil-manual checks that each is up to date.
pub fn check() -> Result<()> {
    let dir = workspace::root().join("docs/man");
    let mut n_warnings = 0;
    let mut n_pages = 0;
    for entry in dir
        .read_dir()
        .with_context(|| format!("list {}", dir.display()))?
    {
        let page = entry?.path();
        if page.extension().is_some_and(|extension| extension == "in") {
            continue;
        }
        n_pages += 1;
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l"]);
        let mut mandoc = Command::new("mandoc");
        mandoc.args(["-T", "lint", "-W", "warning"]);
        for formatter in [&mut man, &mut mandoc] {
            formatter.arg(&page);
            n_warnings += warnings(formatter)?;
        }
    }
    if n_pages == 0 {
        bail!("there are no manual pages in {}", dir.display());
    }
    if n_warnings > 0 {
        bail!("{n_warnings} warnings about manual pages");
    }
    Ok(())
}

/// Shows what a formatter complains about, and returns how many lines that is. man
/// complains on standard error and formats on standard output; mandoc's only output
/// is complaints.
fn warnings(formatter: &mut Command) -> Result<usize> {
    let is_man = formatter.get_program() == "man";
    let output = formatter
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", workspace::shown(formatter)))?;
    let complaints = if is_man { output.stderr } else { output.stdout };
    let complaints = String::from_utf8_lossy(&complaints);
    print!("{complaints}");
    let n_lines = complaints.lines().count();
    if !output.status.success() && n_lines == 0 {
        bail!(
            "{} ended with {}",
            workspace::shown(formatter),
            output.status
        );
    }
    Ok(n_lines)
}
