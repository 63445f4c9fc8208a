//! The verbs, one file each, and what they have in common: how they end.

mod check;
mod confirm;
mod cuts;
mod detach;
mod diff;
mod explain;
mod flows;
mod groups;
mod learn;
mod live;
mod observations;
mod query;
mod redact;
mod reload;
mod reporter;
mod run;
mod sources;
mod status;
mod trace;
mod who;

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    cli::{Cli, Verb},
    kernel::{KernelError, with_causes},
    policy::problem::Fault,
};

/// Exit status when something was found that is not as it should be.
const FINDINGS: u8 = 1;
/// Exit status when the command line is wrong; clap's, too.
const USAGE: u8 = 2;
/// Exit status when the caller may not do this (`EX_NOPERM`).
const NOT_PERMITTED: u8 = 77;
/// Exit status when settings or policy are bad (`EX_CONFIG`).
const BAD_CONFIGURATION: u8 = 78;

/// How a verb ended that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing to complain about.
    Fine,
    /// It found something.
    Findings,
}

/// Why a verb could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// The command line says something that cannot be.
    Usage(String),
    /// The caller may not.
    NotPermitted(String),
    /// Settings, policy or country data are bad.
    Configuration(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text)
        | Self::NotPermitted(text)
        | Self::Configuration(text)
        | Self::Other(text)) = self;
        f.write_str(text)
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let text = with_causes(&error);
        match error {
            KernelError::NotPermitted { .. } => Self::NotPermitted(text),
            KernelError::PinMismatch { .. } | KernelError::NotBpffs { .. } => {
                Self::Configuration(text)
            }
            KernelError::Failed { .. } if is_for_root(&error) => {
                Self::NotPermitted(format!("{text}; run as root"))
            }
            _ => Self::Other(text),
        }
    }
}

/// Writes to standard output. A reader that has seen enough, as in `trefoil status |
/// head -1`, is no failure.
fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a value as a line of JSON to standard output.
fn say_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::Other(format!("write JSON: {error}")))?;
    say(&(text + "\n"))
}

/// The failure of a flag whose value is not of its form.
fn wrong(flag: &str, fault: &Fault) -> Failure {
    let help = fault
        .help
        .as_ref()
        .map_or(String::new(), |help| format!("; {help}"));
    Failure::Usage(format!("{flag}: {}{help}", fault.message))
}

/// True if the file system let somebody not do it who is not root.
fn is_for_root(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return !nix::unistd::geteuid().is_root();
        }
        cause = error.source();
    }
    false
}

/// Parses the command line, runs the verb, and says how it ended.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TREFOIL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(
            io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        )
        .without_time()
        .with_target(false)
        .init();
    let ending = match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Check(args) => check::check(&args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Learn(args) => learn::learn(&args),
        Verb::Diff(args) => diff::diff(&args),
        Verb::Query(args) => query::query(&args),
        Verb::Redact(args) => redact::redact(&args),
        Verb::Flows(args) => flows::flows(&args),
        Verb::Trace(args) => trace::trace(&args),
        Verb::Status(args) => status::status(&args),
        Verb::Reload(args) => reload::reload(&args),
        Verb::Confirm(args) => confirm::confirm(&args),
        Verb::Detach(args) => detach::detach(&args),
    };
    match ending {
        Ok(Ending::Fine) => ExitCode::SUCCESS,
        Ok(Ending::Findings) => FINDINGS.into(),
        Err(failure) => {
            eprintln!("trefoil: {failure}");
            match failure {
                Failure::Usage(_) => USAGE.into(),
                Failure::NotPermitted(_) => NOT_PERMITTED.into(),
                Failure::Configuration(_) => BAD_CONFIGURATION.into(),
                Failure::Other(_) => FINDINGS.into(),
            }
        }
    }
}
