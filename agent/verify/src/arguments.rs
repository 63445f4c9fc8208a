//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use trefoil_evidence::time::unix_us_of;

/// Check that records of Trefoil are whole and that none is missing
///
/// Reads what `trefoil run --json FILE` writes, and what `journalctl -u trefoil` prints with `-o
/// export` or with `--all -o json`, of any number of hosts.
#[derive(Debug, Parser)]
#[command(
    name = "trefoil-verify",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Arguments {
    /// Something else than to verify.
    #[command(subcommand)]
    pub command: Option<Verb>,
    /// Records to verify.
    #[command(flatten)]
    pub records: Option<Records>,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// State what left the hosts in a period, and for which share of it they reported
    Statement(Period),
}

/// Records, and what they are held against.
#[derive(Args, Debug)]
pub struct Records {
    /// Public key of a log: its `key.pub`, or what is in it (repeatable)
    #[arg(long = "key", value_name = "FILE|KEY", required = true)]
    pub keys: Vec<String>,
    /// Records before this index were verified before; of one log, or of all (repeatable)
    #[arg(long = "from", value_name = "[LOG=]INDEX", value_parser = parse_begin)]
    pub begins: Vec<(Option<String>, u64)>,
    /// Checkpoint that was kept elsewhere: the records must have gone on from it (repeatable)
    #[arg(long = "checkpoint", value_name = "FILE")]
    pub checkpoints: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Arguments of `statement`.
#[derive(Args, Debug)]
pub struct Period {
    /// First moment of the period, as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: u64,
    /// Moment after the last of the period
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: u64,
    /// Records, and what they are held against.
    #[command(flatten)]
    pub records: Records,
}

fn parse_begin(text: &str) -> Result<(Option<String>, u64), String> {
    let (log, index) = match text.rsplit_once('=') {
        Some((log, index)) => (Some(log.to_owned()), index),
        None => (None, text),
    };
    let index = index
        .parse()
        .map_err(|_| format!("`{index}` is not an index"))?;
    Ok((log, index))
}

fn parse_time(text: &str) -> Result<u64, String> {
    unix_us_of(text)
        .ok_or_else(|| format!("`{text}` is no time such as 2026-11-01T00:00:00Z (RFC 3339)"))
}
