//! `check`: what must hold before a change lands, tests apart.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    bpf_toolchain::{self, Compiler},
    cost, docs,
    setup::{self, Part},
    workspace,
};

mod licences;
mod rules;

/// Arguments of `check`.
#[derive(Args)]
pub struct Check {}

/// One thing that is checked, under the name by which it is reported.
type Step = (&'static str, fn() -> Result<()>);

/// From the quickest to the slowest.
const STEPS: [Step; 8] = [
    ("rules of the project", rules::check),
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
    let mut clippy = toolchain.cargo("clippy", root, Path::new(&target_dir));
    clippy.args(["--", "--deny", "warnings"]);
    workspace::run(&mut clippy).with_context(|| match toolchain.compiler() {
        Compiler::Nightly => {
            "clippy of the nightly (`rustup component add clippy --toolchain nightly`)"
        }
        Compiler::System => "clippy of /usr/bin/rustc",
    })
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
