//! Settings: how the agent runs, as opposed to what it approves.
//!
//! Owns every default, the settings file, and that flags win over it. It must
//! not look at the system: what is to be found at run time (cgroup, uplinks) is
//! `auto` here.

mod file;
mod values;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use values::{Uplinks, ValueError};

use crate::bounded;
use crate::flow::FlowMode;
use crate::gateway_log::Mapping;
use crate::policy::{LinkLocal, Problems};
use crate::quantity;

/// The settings file that is read if none is named and it is there.
pub const DEFAULT_FILE: &str = "/etc/trefoil/trefoil.toml";
/// The policy that is read if none is named and it is there.
pub const DEFAULT_POLICY: &str = "/etc/trefoil/policy.toml";
/// Where maps and links are pinned if nothing else is said.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/trefoil";
/// journald's socket for the native protocol.
pub const DEFAULT_JOURNAL: &str = "/run/systemd/journal/socket";

/// Everything that can be set. `Default` is what a host without a settings file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The policy.
    pub policy: PathBuf,
    /// Somebody named the policy, so it must be there. Without this, a host that
    /// has no policy yet runs with one that approves nothing, in report mode.
    pub policy_is_named: bool,
    /// Country data, in the order in which it is asked; empty for Debian's.
    pub geo: Vec<PathBuf>,
    /// The control group that is watched, with all below it; `None` for the root
    /// of the hierarchy, wherever that is.
    pub cgroup: Option<PathBuf>,
    /// The interfaces that lead out of the host.
    pub uplinks: Uplinks,
    /// Where maps and links are pinned, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Socket of the journal that records go to; `None` for no journal.
    pub journal: Option<PathBuf>,
    /// Let journald add what it knows of the process, command line included.
    pub journal_object_pid: bool,
    /// File that JSON lines go to besides, `-` for standard output.
    pub json: Option<PathBuf>,
    /// Directory of the log of digests that proves what was reported; `None` for no evidence.
    pub evidence: Option<PathBuf>,
    /// How flows that may leave are reported.
    pub flows: FlowMode,
    /// New flows a second that are reported one by one with `flows = "auto"`.
    pub flows_rate: u32,
    /// New violations a second that are reported one by one.
    pub violations_rate: u32,
    /// Report flows that never leave the host or the link, too.
    pub local_flows: bool,
    /// Treatment of unicast to the link's scope.
    pub link_local: LinkLocal,
    /// Least time between two records of one open flow.
    pub update_interval: Duration,
    /// Time that one rolled-up record is about.
    pub rollup_interval: Duration,
    /// Time between two heartbeat records.
    pub heartbeat_interval: Duration,
    /// Time between two visits to all open flows in the kernel.
    pub sweep_interval: Duration,
    /// How long enforcement lasts that nobody has confirmed; zero for without an end.
    pub confirm_within: Duration,
    /// Size up to which executables are hashed; 0 for not at all.
    pub sha256_max_bytes: u64,
    /// Sizes of tables.
    pub tables: Tables,
    /// Fields of a gateway's own log.
    pub gateway_log: Mapping,
}

/// Sizes of tables. When one is full, a counter of losses says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// In the kernel: bytes of the ring buffer for events, a power of two.
    pub events_bytes: u32,
    /// In the kernel: flows of sockets with many peers.
    pub flows: u32,
    /// In the kernel: flows at uplinks that no socket's hooks have judged.
    pub uplink_flows: u32,
    /// In the kernel: decisions that outlive the socket they were made for; what was not used
    /// for longest goes.
    pub remembered: u32,
    /// In the kernel: interfaces that are watched.
    pub uplinks: u32,
    /// In the kernel: last states of flows that the ring buffer had no room for.
    pub ended: u32,
    /// In the kernel: live processes.
    pub processes: u32,
    /// In the kernel: different executables.
    pub executables: u32,
    /// In the kernel: control groups.
    pub cgroups: u32,
    /// In the agent: flows that are followed at a time.
    pub followed: u32,
    /// In the agent: rolled-up records that are open at a time.
    pub rollups: u32,
    /// In the agent: records that wait for the journal or a JSON file.
    pub pending: u32,
    /// On /run: bytes of the spool, which has these records, and what is rolled up.
    pub spool_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: DEFAULT_POLICY.into(),
            policy_is_named: false,
            geo: Vec::new(),
            cgroup: None,
            uplinks: Uplinks::Auto,
            pin_dir: DEFAULT_PIN_DIR.into(),
            journal: Some(DEFAULT_JOURNAL.into()),
            journal_object_pid: false,
            json: None,
            evidence: None,
            flows: FlowMode::Auto,
            flows_rate: 200,
            violations_rate: 1_000,
            local_flows: false,
            link_local: LinkLocal::Judged,
            update_interval: Duration::from_secs(60),
            rollup_interval: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(1),
            confirm_within: Duration::ZERO,
            sha256_max_bytes: 256 << 20,
            tables: Tables::default(),
            gateway_log: Mapping::default(),
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            events_bytes: 8 << 20,
            flows: 65_536,
            uplink_flows: 65_536,
            remembered: 65_536,
            uplinks: 64,
            ended: 65_536,
            processes: 65_536,
            executables: 16_384,
            cgroups: 16_384,
            followed: 131_072,
            rollups: 4_096,
            pending: 16_384,
            spool_bytes: 128 << 20,
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("read settings {path}: {source}; name a readable file with --config, or none at all")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error from the system.
        source: io::Error,
    },
    /// The file has mistakes: all of them.
    #[error("{0}")]
    Problems(Problems),
}

/// Settings from the command line; those not given are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--policy`
    pub policy: Option<PathBuf>,
    /// `--geo`, each
    pub geo: Vec<PathBuf>,
    /// `--cgroup`
    pub cgroup: Option<PathBuf>,
    /// `--uplink`, each
    pub uplinks: Vec<String>,
    /// `--pin-dir`
    pub pin_dir: Option<PathBuf>,
    /// `--journal`; `none` for no journal
    pub journal: Option<PathBuf>,
    /// `--json`; `none` for no file
    pub json: Option<PathBuf>,
    /// `--flows`
    pub flows: Option<FlowMode>,
    /// `--confirm-within`; `none` for without an end
    pub confirm_within: Option<String>,
}

impl Settings {
    /// Reads this file, which must be there, or [`DEFAULT_FILE`], which need not.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        match bounded::read_text(path, bounded::MAX_SETTINGS) {
            Ok(text) => {
                Self::parse(&text, &path.to_string_lossy()).map_err(SettingsError::Problems)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
                Ok(Self::default())
            }
            Err(source) => Err(SettingsError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the text of a settings file; `file` is what to call it in problems.
    ///
    /// # Errors
    ///
    /// Every mistake in it, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self, Problems> {
        file::parse(text, file)
    }

    /// These settings, where the command line does not say otherwise.
    ///
    /// # Errors
    ///
    /// A flag has a value that it cannot have.
    pub fn with(mut self, flags: Flags) -> Result<Self, ValueError> {
        if let Some(policy) = flags.policy {
            self.policy = policy;
            self.policy_is_named = true;
        }
        if !flags.geo.is_empty() {
            self.geo = flags.geo;
        }
        if !flags.uplinks.is_empty() {
            self.uplinks = Uplinks::parse(flags.uplinks.iter().map(String::as_str))?;
        }
        self.cgroup = flags.cgroup.or(self.cgroup);
        self.pin_dir = flags.pin_dir.unwrap_or(self.pin_dir);
        self.journal = flags.journal.map_or(self.journal, values::unless_none);
        self.json = flags.json.map_or(self.json, values::unless_none);
        self.flows = flags.flows.unwrap_or(self.flows);
        if let Some(text) = flags.confirm_within {
            self.confirm_within = match text.as_str() {
                "none" => Duration::ZERO,
                text => quantity::duration(text).map_err(ValueError::from)?,
            };
        }
        Ok(self)
    }
}
