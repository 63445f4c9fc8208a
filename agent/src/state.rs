//! What the running agent leaves for verbs that look in from outside: names
//! that the kernel's tables do not have. One small file on a file system that is
//! empty after a boot, replaced as a whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{limits::Said, names::RuleNames};

/// Contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct State {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When its programs were attached, microseconds since 1970.
    pub attached_us: u64,
    /// When this was written, microseconds since 1970.
    pub written_us: u64,
    /// Control group that is watched.
    pub cgroup: PathBuf,
    /// `report` or `enforce`.
    pub mode: String,
    /// When enforcement ends unless it is confirmed, microseconds since 1970.
    #[serde(default)]
    pub enforced_until_us: Option<u64>,
    /// When it began to read what it was last told to read anew, and has read by
    /// now, nanoseconds since boot.
    #[serde(default)]
    pub read_ns: u64,
    /// What was wrong with what it read last; `None` if it is in force.
    #[serde(default)]
    pub refused: Option<String>,
    /// What names the policy in records.
    pub policy: String,
    /// Where the policy is from.
    pub policy_source: String,
    /// Generation of the policy.
    pub generation: u32,
    /// Names of its rules, in order.
    pub rules: Vec<String>,
    /// Build of the country data.
    pub geo: String,
    /// Hooks that this kernel does not have, or not all of, and what is not covered then.
    pub uncovered: Vec<(String, String)>,
    /// Interfaces that may send out of the host and that nobody watches, with the reason.
    #[serde(default)]
    pub unwatched: Vec<(String, String)>,
    /// Flows whose owner is direct, inferred, unknown.
    pub owners: [u64; 3],
    /// Losses that were reported, by counter.
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
    /// What was said of budgets and exceptions.
    #[serde(default)]
    pub said: Said,
    /// Records that wait for the journal.
    pub pending: u64,
    /// Why they wait, if they do.
    pub stalled: Option<String>,
}

impl State {
    /// Where the state of the agent with this pin directory is.
    pub fn dir(pin_dir: &Path) -> PathBuf {
        Self::dir_below(Path::new("/run/trefoil"), pin_dir)
    }

    /// As [`dir`](Self::dir), below another directory than that of /run.
    pub fn dir_below(base: &Path, pin_dir: &Path) -> PathBuf {
        const USUAL: &str = "/sys/fs/bpf/trefoil";
        if pin_dir == Path::new(USUAL) {
            return base.into();
        }
        let name = pin_dir
            .to_string_lossy()
            .trim_matches('/')
            .replace('/', "-");
        base.join(name)
    }

    fn file(pin_dir: &Path) -> PathBuf {
        Self::dir(pin_dir).join("state.json")
    }

    /// Reads it; `None` if there is none that this version understands.
    pub fn read(pin_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(pin_dir)).ok()?).ok()
    }

    /// What its policy calls its rules.
    pub fn rule_names(&self) -> RuleNames {
        RuleNames {
            generation: self.generation,
            policy: self.policy.as_str().into(),
            rules: self.rules.iter().map(|rule| rule.as_str().into()).collect(),
        }
    }

    /// Replaces it.
    pub fn write(&self, pin_dir: &Path) -> io::Result<()> {
        let file = Self::file(pin_dir);
        let next = file.with_extension("next");
        fs::write(&next, serde_json::to_vec(self)?)?;
        fs::rename(next, file)
    }

    /// Removes it.
    pub fn remove(pin_dir: &Path) {
        // Nothing is lost if it stays: it names a process that is gone.
        let _ = fs::remove_file(Self::file(pin_dir));
    }
}
