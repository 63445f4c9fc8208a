//! `cargo xtask`: build, run, test and package Trefoil.
//!
//! A verb is a file. Everything that a developer or CI does is a verb here,
//! so that both do the same; nothing here becomes part of the agent.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod battery;
mod bench;
#[allow(
    dead_code,
    reason = "the agent's build script uses the other part of this file"
)]
mod bpf_toolchain;
mod build;
mod check;
mod cost;
mod docs;
mod fuzz;
mod lab;
mod package;
mod run;
mod setup;
mod test;
mod vm;
mod workspace;

/// Build, run, test and package Trefoil.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, testing and checking need, saying what and why
    Setup(setup::Setup),
    /// Build the agent, with the kernel programs inside
    Build(build::Build),
    /// Build the agent and run it as root; Ctrl-C takes everything out of the kernel again
    Run(run::Run),
    /// Run all tests: end-to-end tests as root in network namespaces, then `vm`
    Test(test::Test),
    /// Install the package in virtual machines, and try there what an operator does
    Vm(vm::Vm),
    /// Format, lints, documentation, licences and the project's own rules
    Check(check::Check),
    /// Make the manual pages anew from their templates and the agent's definitions
    Docs(docs::Docs),
    /// Build the lab and open a shell in it, where a policy can be tried safely
    Lab(lab::Lab),
    /// Run the benchmarks
    Bench(bench::Bench),
    /// Search for inputs that break the readers of files
    Fuzz(fuzz::Fuzz),
    /// Make the Debian package
    Package(package::Package),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup(verb) => verb.run(),
        Verb::Build(verb) => verb.run(),
        Verb::Run(verb) => verb.run(),
        Verb::Test(verb) => verb.run(),
        Verb::Vm(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Docs(verb) => verb.run(),
        Verb::Lab(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Fuzz(verb) => verb.run(),
        Verb::Package(verb) => verb.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Without anyhow's backtrace: what failed is a command, not this program.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
