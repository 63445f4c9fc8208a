//! Facts that the running agent leaves for verbs that look in from outside:
//! names that the kernel's tables do not have. One small file on a file system
//! that is empty after a boot, replaced as a whole.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{limits::Said, losses::Span, names::RuleNames, settings::DEFAULT_PIN_DIR};

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
    /// The same, nanoseconds since boot.
    #[serde(default)]
    pub written_ns: u64,
    /// How long it takes at most until it is written again, unless something is wrong.
    #[serde(default)]
    pub written_every_ns: u64,
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
    /// Mistake in the policy that it read last; `None` if that policy is in force.
    #[serde(default)]
    pub refused: Option<String>,
    /// Identity of the policy in records.
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
    /// Of them, hooks without which a promise does not hold.
    #[serde(default)]
    pub promised: Vec<String>,
    /// Losses that were reported, by counter.
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
    /// When each of them was seen to have moved.
    #[serde(default)]
    pub spans: BTreeMap<String, Span>,
    /// The journal's socket that it writes records to.
    #[serde(default)]
    pub journal: Option<PathBuf>,
    /// The file that it writes them to.
    #[serde(default)]
    pub json: Option<PathBuf>,
    /// Inode number of the network namespace that the agent runs in.
    #[serde(default)]
    pub namespace: u64,
    /// Messages about budgets and exceptions.
    #[serde(default)]
    pub said: Said,
    /// Records that wait for the journal.
    pub pending: u64,
    /// Why they wait, if they do.
    pub stalled: Option<String>,
    /// The sink that is left aside and misses records, and why.
    #[serde(default)]
    pub aside: Option<String>,
}

impl State {
    /// Where the state of the agent with this pin directory is.
    pub fn dir(pin_dir: &Path) -> PathBuf {
        Self::dir_below(Path::new("/run/trefoil"), pin_dir)
    }

    /// As [`dir`](Self::dir), below another directory than that of /run.
    pub fn dir_below(base: &Path, pin_dir: &Path) -> PathBuf {
        let pin_dir = resolved(pin_dir);
        if pin_dir == Path::new(DEFAULT_PIN_DIR) {
            return base.into();
        }
        // As systemd-escape does it: no two directories have one name.
        let mut name = OsString::new();
        let path = pin_dir.strip_prefix("/").unwrap_or(&pin_dir);
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'/' => name.push("-"),
                b'-' | b'\\' => name.push(format!("\\x{byte:02x}")),
                byte => name.push(OsStr::from_bytes(&[*byte])),
            }
        }
        base.join(name)
    }

    /// The file.
    pub fn file(pin_dir: &Path) -> PathBuf {
        Self::dir(pin_dir).join("state.json")
    }

    /// Reads it; `None` if there is none that this version understands.
    pub fn read(pin_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(pin_dir)).ok()?).ok()
    }

    /// Returns the names that its policy gives to rules.
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
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|json| fs::write(&next, json))
            .and_then(|()| fs::rename(&next, file));
        if written.is_err() {
            // On a full file system half of it takes room that others need.
            let _ = fs::remove_file(next);
        }
        written
    }

    /// Removes it.
    pub fn remove(pin_dir: &Path) {
        // Nothing is lost if it stays: it names a process that is gone.
        let _ = fs::remove_file(Self::file(pin_dir));
    }
}

/// The directory under the one name that it has, whether it is there yet or not.
fn resolved(dir: &Path) -> PathBuf {
    for existing in dir.ancestors() {
        // `strip_prefix` leaves out what says nothing, such as `.` and a second `/`.
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), dir.strip_prefix(existing)) {
            return real.join(rest).components().collect();
        }
    }
    dir.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pin_directories_never_share_a_state() {
        let dir = |pin_dir: &str| State::dir(Path::new(pin_dir));
        let all = [
            "/nowhere/a/b",
            "/nowhere/a-b",
            "/nowhere/a\\x2db",
            "/nowhere-a/b",
        ];
        let dirs: std::collections::BTreeSet<_> = all.iter().map(|it| dir(it)).collect();
        assert_eq!(dirs.len(), all.len(), "{dirs:?}");
        assert_eq!(dir("/nowhere//a/./b/"), dir("/nowhere/a/b"));
        assert_eq!(dir("/sys/fs/bpf/trefoil/"), Path::new("/run/trefoil"));
    }

    #[test]
    fn one_pin_directory_has_one_state_whatever_it_is_called() {
        let temporary = tempfile::tempdir().unwrap();
        let (real, link) = (temporary.path().join("real"), temporary.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(
            State::dir(&real.join("pins")),
            State::dir(&link.join("pins"))
        );
        let before = State::dir(&link.join("pins"));
        fs::create_dir(real.join("pins")).unwrap();
        assert_eq!(State::dir(&link.join("pins")), before);
    }
}
