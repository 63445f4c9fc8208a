//! The command line as it is typed. The verbs decide its meaning.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{flow::FlowMode, quantity};

/// Egress monitor: which process sends what, where to, and may it?
#[derive(Debug, Parser)]
#[command(name = "trefoil", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 fine, 1 findings, 2 usage, 77 no permission, 78 bad configuration."
)]
pub struct Cli {
    /// Verb to run.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Watch, judge and report what leaves this host, until stopped
    Run(RunArgs),
    /// Validate settings, policy and what this kernel supports, and list what enforcing would cut;
    /// changes nothing
    Check(CheckArgs),
    /// Say what a policy says about one flow, and why
    Explain(ExplainArgs),
    /// Write a policy that approves of the flows that were seen, and of nothing else
    Learn(LearnArgs),
    /// Say which of the flows that were seen two policies judge differently
    Diff(DiffArgs),
    /// Hold records of the past against a gateway's own log
    Query(QueryArgs),
    /// Copy records without the persons in them, so that the copy still verifies
    Redact(RedactArgs),
    /// List the flows that are open now, from the kernel's tables
    Flows(FlowsArgs),
    /// Say of each packet and call what a hook finds and why it decides so, for a while; decides
    /// nothing itself
    Trace(TraceArgs),
    /// Say whether everything is as it should be; exit status 1 if not
    Status(StatusArgs),
    /// Have the running agent read policy and country data anew, and wait until it has
    Reload(ReloadArgs),
    /// Let enforcement that is on trial go on without an end
    Confirm(ConfirmArgs),
    /// Take everything out of the kernel; the only way enforcement ends
    Detach(DetachArgs),
}

/// Where settings, policy and country data are.
#[derive(Args, Clone, Debug, Default)]
pub struct Sources {
    /// Settings file [default: /etc/trefoil/trefoil.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Country or ASN data, text of tor-geoipdb or MMDB; may be repeated
    #[arg(long, value_name = "FILE")]
    pub geo: Vec<PathBuf>,
}

/// Where the pins of an agent are.
#[derive(Args, Clone, Debug, Default)]
pub struct Pins {
    /// Directory on a BPF file system for what stays in the kernel
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
}

/// `trefoil run`
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// Policy file [default: /etc/trefoil/policy.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Control group to watch, with all below it [default: the root]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Uplink to watch; may be repeated; `none` for none. Without it, all that lead out, followed as they change
    #[arg(long, value_name = "NAME")]
    pub uplink: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    /// Socket of the journal to report to; `none` for none
    #[arg(long, value_name = "SOCKET")]
    pub journal: Option<PathBuf>,
    /// Also write each record as a line of JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How approved flows are reported
    #[arg(long, value_enum)]
    pub flows: Option<FlowsArg>,
    /// Go back to reporting after this time, such as 10min, unless `trefoil confirm` is run; `none`
    /// for never
    #[arg(long, value_name = "TIME", value_parser = confirm_within)]
    pub confirm_within: Option<String>,
    /// On a terminal: begin to enforce, whatever open connections that cuts
    #[arg(long)]
    pub yes: bool,
}

/// `--flows`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowsArg {
    /// Each by itself
    Each,
    /// One record per owner, destination class, rule and interval
    Rollup,
    /// Each up to a rate, beyond it rolled up
    Auto,
}

impl From<FlowsArg> for FlowMode {
    fn from(mode: FlowsArg) -> Self {
        match mode {
            FlowsArg::Each => Self::Each,
            FlowsArg::Rollup => Self::Rollup,
            FlowsArg::Auto => Self::Auto,
        }
    }
}

/// `trefoil check`
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Policy file [default: as for run]
    pub policy: Option<PathBuf>,
    /// Say what enforcing it would have dropped of what was seen: records, as JSON of `trefoil run
    /// --json` or `journalctl -o json`; `-` is standard input; may be repeated
    #[arg(long, value_name = "FILE")]
    pub against: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `--direction`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DirectionArg {
    /// The far end, which connected to a service of this host
    Accepted,
    /// This host, which named the destination
    Outbound,
}

/// `trefoil explain`
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Destination, such as 192.0.2.1:443, 192.0.2.1:53/udp or 2001:db8::1; of a session that was
    /// accepted, the client
    #[arg(long, value_name = "ADDR[:PORT][/P]")]
    pub to: String,
    /// tcp, udp, icmp, ... or a number [default: tcp]
    #[arg(long, value_name = "P")]
    pub protocol: Option<String>,
    /// Absolute path of the executable
    #[arg(long, value_name = "PATH")]
    pub exe: Option<String>,
    /// Systemd unit, or the path of a control group
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// Path of a control group, instead of a unit
    #[arg(long, value_name = "PATH", conflicts_with = "unit")]
    pub cgroup: Option<String>,
    /// Container as records name it, such as docker:ID, instead of a unit
    #[arg(long, value_name = "ENGINE:ID", conflicts_with_all = ["unit", "cgroup"])]
    pub container: Option<String>,
    /// Login name or user id [default: root]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Group or group id [default: root; not known with --user]
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// From a process that somebody logged in to start
    #[arg(long)]
    pub interactive: bool,
    /// The same, and the address that he logged in from [default: not known]
    #[arg(long, value_name = "ADDR")]
    pub session_addr: Option<String>,
    /// Which end opened it [default: outbound]
    #[arg(long, value_enum)]
    pub direction: Option<DirectionArg>,
    /// This host's port; of a session that it accepted, the service's
    #[arg(long, value_name = "PORT")]
    pub from_port: Option<u16>,
    /// Policy file [default: as for run]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `trefoil learn`
#[derive(Args, Clone, Debug)]
pub struct LearnArgs {
    /// Records, as JSON of `trefoil run --json` or `journalctl -o json`; `-` is standard input
    /// [default: what is open now]
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
}

/// `trefoil diff`
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The policy before
    pub old: PathBuf,
    /// The policy now
    pub new: PathBuf,
    /// Records, as JSON of `trefoil run --json` or `journalctl -o json`; `-` is standard input
    /// [default: what is open now]
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `trefoil query`
#[derive(Args, Clone, Debug)]
pub struct QueryArgs {
    /// Records, as JSON of `trefoil run --json` or `journalctl -o json`; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Hold them against this log of a gateway: Zeek's conn.log, or JSON lines; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    pub gateway_log: Vec<PathBuf>,
    /// The gateway of the policy whose log it is [default: all of them]
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Policy file that has the gateway [default: as for run]
    #[arg(long, value_name = "FILE", requires = "gateway")]
    pub policy: Option<PathBuf>,
    /// Settings file, with the names of the log's fields [default: /etc/trefoil/trefoil.toml, if it
    /// exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `trefoil redact`
#[derive(Args, Clone, Debug)]
pub struct RedactArgs {
    /// Records, as `trefoil run --json`, `journalctl -o export` or `journalctl --all -o json` writes
    /// them; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Show this personal field nevertheless, such as dst_addr; may be repeated
    #[arg(long, value_name = "FIELD")]
    pub show: Vec<String>,
    /// Give hidden values pseudonyms by the secret in this file, of 16 bytes or more: the same value has
    /// the same pseudonym
    #[arg(long, value_name = "KEYFILE")]
    pub pseudonyms: Option<PathBuf>,
}

/// `trefoil flows`
#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// For programs: one object a line
    #[arg(long)]
    pub json: bool,
    /// Go on, with what is new or changed each second
    #[arg(long)]
    pub follow: bool,
}

/// `trefoil trace`
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Of this process alone
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// Of this unit alone: a component of a control group's path, such as ssh.service, or its
    /// beginning, such as /system.slice
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// To this destination alone, such as 192.0.2.1:443, 2001:db8::/32 or :53
    #[arg(long, value_name = "ADDR[/PREFIX][:PORT]")]
    pub to: Option<String>,
    /// How long, such as 10s; an hour at most [default: 30s]
    #[arg(
        long = "for",
        value_name = "TIME",
        default_value = "30s",
        hide_default_value = true
    )]
    pub duration: String,
    /// Most lines in a second for each processor, 10,000 at most [default: 500]
    #[arg(long, hide_default_value = true, value_name = "LINES", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub sources: Sources,
    /// For programs: one object a line
    #[arg(long)]
    pub json: bool,
}

/// `trefoil status`
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    /// Take note of what got lost until now and of what this kernel lacks: no finding any more,
    /// and a record says who did so
    #[arg(long)]
    pub acknowledge: bool,
    /// Settings file [default: /etc/trefoil/trefoil.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `trefoil reload`
#[derive(Args, Clone, Debug)]
pub struct ReloadArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    /// Settings file [default: /etc/trefoil/trefoil.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `trefoil confirm`
#[derive(Args, Clone, Debug)]
pub struct ConfirmArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    /// Settings file [default: /etc/trefoil/trefoil.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `trefoil detach`
#[derive(Args, Clone, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub pins: Pins,
    /// Settings file [default: /etc/trefoil/trefoil.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Of `--confirm-within`; [`Settings`](crate::settings::Settings) reads it.
fn confirm_within(text: &str) -> Result<String, String> {
    match text {
        "none" => {}
        text => drop(quantity::duration(text).map_err(|error| error.to_string())?),
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }
}
