//! `check`: what must hold before a change lands, tests apart.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    bpf_toolchain::{self, Compiler, Object},
    cost, docs,
    setup::{self, Part},
    workspace,
};

mod language;
mod licences;
mod references;
mod rules;
mod size;

/// Arguments of `check`.
#[derive(Args)]
pub struct Check {}

/// One thing that is checked, under the name by which it is reported.
type Step = (&'static str, fn() -> Result<()>);

/// From the quickest to the slowest.
const STEPS: [Step; 11] = [
    ("rules of the project", rules::check),
    ("language", language::check),
    ("lengths", size::check),
    ("references in documents", references::check),
    ("licences and sources", licences::check),
    ("manual pages", docs::check),
    ("table of costs", cost::check),
    ("format", format),
    ("lints", lint),
    ("lints of the kernel programs", lint_kernel_programs),
    ("documentation", document),
];

impl Check {
    /// Runs every step, also after one has failed, and names those that did.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::Lints, Part::Manual])?;
        let mut failed = Vec::new();
        for (name, step) in STEPS {
            println!("==> {name}");
            if let Err(error) = step() {
                println!("error: {error:#}");
                failed.push(name);
            }
        }
        if !failed.is_empty() {
            bail!("these checks failed: {}", failed.join(", "));
        }
        println!("All {} checks passed.", STEPS.len());
        Ok(())
    }
}

/// Files that git knows or would add, by these patterns of `git ls-files`; relative to the
/// root of the workspace. A file that is deleted but not yet committed is left out.
fn files(patterns: &[&str]) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
    ]);
    git.args(patterns).current_dir(workspace::root());
    let output = git.output().context("start git")?;
    if !output.status.success() {
        bail!("git ls-files ended with {}", output.status);
    }
    let text = String::from_utf8(output.stdout).context("file names in UTF-8")?;
    let is_source = |path: &&str| {
        !Path::new(path).starts_with("target") && workspace::root().join(path).exists()
    };
    Ok(text.lines().filter(is_source).map(str::to_owned).collect())
}

fn format() -> Result<()> {
    workspace::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

/// Also builds the kernel programs, in the agent's build script. The scenarios in
/// virtual machines are left out unless they are asked for.
fn lint() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--keep-going",
        "--all-targets",
        "--features",
        "trefoil-tests/vm",
        "--",
        "--deny",
        "warnings",
    ]);
    workspace::run(&mut cargo)
}

/// Clippy of the compiler that compiles for BPF: rustup's stable one has no
/// `core` for that target. It builds into the directory of the real build,
/// where only what it checks is added.
fn lint_kernel_programs() -> Result<()> {
    let root = workspace::root();
    let toolchain = bpf_toolchain::find(root)
        .map_err(|missing| anyhow::anyhow!("{missing}; run `cargo xtask setup`"))?;
    let target_dir = workspace::target_dir().join("bpf");
    for object in [Object::Deciding, Object::Tracing] {
        let mut clippy = toolchain.cargo("clippy", root, &object.target_dir(&target_dir));
        clippy.args(object.arguments());
        clippy.args(["--", "--deny", "warnings"]);
        workspace::run(&mut clippy).with_context(|| match toolchain.compiler() {
            Compiler::Nightly => {
                "clippy of the nightly (`rustup component add clippy --toolchain nightly`)"
            }
            Compiler::System => "clippy of /usr/bin/rustc",
        })?;
    }
    Ok(())
}

/// Private items too: this is read by those who change the code, and there a
/// public item may well link to a private one.
fn document() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    cargo.env(
        "RUSTDOCFLAGS",
        "--deny warnings --allow rustdoc::private_intra_doc_links",
    );
    workspace::run(&mut cargo)
}
