//! Enforcement on trial: it ends by itself unless somebody confirms it in time.
//!
//! Owns the rule that says how long a policy is enforced, and the small file that
//! remembers it over a reboot. The kernel ends the trial by a deadline in a
//! table; nothing here has to run for that.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{kernel::Enforcement, policy::Mode, state::State};

/// Where the files are that outlast a boot.
const LASTING: &str = "/var/lib/trefoil";

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Nanoseconds since boot.
    pub boot_ns: u64,
    /// Microseconds since 1970.
    pub unix_us: u64,
}

impl Moment {
    /// This one.
    #[must_use]
    pub fn now() -> Self {
        Self {
            boot_ns: crate::clock::since_boot_ns(),
            unix_us: crate::clock::unix_us(),
        }
    }
}

/// State of the last policy that was on trial; contents of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Standing {
    /// Names the policy, as records do.
    pub policy: String,
    /// Stage that it has reached.
    pub stage: Stage,
}

/// How far a policy got.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It is enforced until then, microseconds since 1970, unless confirmed.
    OnTrial {
        /// End of the trial.
        until_us: u64,
    },
    /// It is enforced without an end.
    Confirmed {
        /// User who said so.
        by: String,
        /// When, microseconds since 1970.
        at_us: u64,
    },
}

/// The policy that was in force until now.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a> {
    /// Names it, as records do.
    pub policy: &'a str,
    /// Until when it is enforced.
    pub enforcement: Enforcement,
}

/// Decides how long a policy is enforced.
#[derive(Clone, Debug)]
pub struct Trials {
    file: PathBuf,
    within: Duration,
}

impl Trials {
    /// Trials of the agent with this pin directory, which take `within`; none do
    /// if that is zero.
    #[must_use]
    pub fn new(pin_dir: &Path, within: Duration) -> Self {
        let dir = State::dir_below(Path::new(LASTING), pin_dir);
        Self::in_file(dir.join("trial.json"), within)
    }

    fn in_file(file: PathBuf, within: Duration) -> Self {
        Self { file, within }
    }

    /// Until when a policy is to be enforced that comes into force now.
    ///
    /// A policy that is in force already goes on as it was, so neither a restart
    /// nor a new address of the host prolongs a trial or begins one. One whose
    /// trial ended without a confirmation is tried again only if somebody asked
    /// for it, which is what a reload is.
    pub fn enforcement(
        &self,
        policy: &str,
        mode: Mode,
        before: Option<Before<'_>>,
        is_asked: bool,
        now: Moment,
    ) -> Enforcement {
        if mode == Mode::Report {
            return Enforcement::Never;
        }
        if self.within.is_zero() {
            return Enforcement::Always;
        }
        match before {
            Some(before) if before.policy == policy => {
                if before.enforcement.holds_at(now.boot_ns) || !is_asked {
                    return before.enforcement;
                }
            }
            _ => match self.read().filter(|standing| standing.policy == policy) {
                Some(Standing {
                    stage: Stage::Confirmed { .. },
                    ..
                }) => return Enforcement::Always,
                // The time left of a trial that a reboot interrupted; none of a trial that is
                // over.
                Some(Standing {
                    stage: Stage::OnTrial { until_us },
                    ..
                }) if until_us > now.unix_us || !is_asked => {
                    let left = Duration::from_micros(until_us.saturating_sub(now.unix_us));
                    return until(now, left.min(self.within));
                }
                _ => {}
            },
        }
        self.begin(policy, now)
    }

    fn begin(&self, policy: &str, now: Moment) -> Enforcement {
        let within_us = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let standing = Standing {
            policy: policy.to_owned(),
            stage: Stage::OnTrial {
                until_us: now.unix_us.saturating_add(within_us),
            },
        };
        if let Err(error) = self.write(&standing) {
            // The trial ends on time nevertheless; only a reboot would begin it anew.
            let file = self.file.display();
            tracing::warn!("write {file}, which remembers the trial over a reboot: {error}");
        }
        until(now, self.within)
    }

    /// Remembers that somebody confirmed this policy.
    ///
    /// # Errors
    ///
    /// The file cannot be written: after a reboot the trial would begin anew.
    pub fn confirm(&self, policy: &str, by: &str, now: Moment) -> io::Result<()> {
        self.write(&Standing {
            policy: policy.to_owned(),
            stage: Stage::Confirmed {
                by: by.to_owned(),
                at_us: now.unix_us,
            },
        })
    }

    /// Returns who confirmed this policy, if somebody did.
    #[must_use]
    pub fn confirmed_by(&self, policy: &str) -> Option<String> {
        match self.read()? {
            Standing {
                policy: confirmed,
                stage: Stage::Confirmed { by, .. },
            } if confirmed == policy => Some(by),
            _ => None,
        }
    }

    /// Forgets all of it: the next enforcement is on trial again.
    pub fn forget(&self) {
        // Without a file there is nothing to forget; one that stays is about a policy
        // by its text, and at worst confirms that.
        let _ = fs::remove_file(&self.file);
    }

    /// The file that remembers trials.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn read(&self) -> Option<Standing> {
        serde_json::from_slice(&fs::read(&self.file).ok()?).ok()
    }

    fn write(&self, standing: &Standing) -> io::Result<()> {
        if let Some(dir) = self.file.parent() {
            fs::create_dir_all(dir)?;
        }
        let next = self.file.with_extension("next");
        fs::write(&next, serde_json::to_vec(standing)?)?;
        fs::File::open(&next)?.sync_all()?;
        fs::rename(next, &self.file)
    }
}

fn until(now: Moment, left: Duration) -> Enforcement {
    let left_ns = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    Enforcement::Until(now.boot_ns.saturating_add(left_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MINUTE_NS: u64 = 60_000_000_000;

    fn trials(within: Duration) -> (Trials, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (
            Trials::in_file(dir.path().join("below/trial.json"), within),
            dir,
        )
    }

    /// A moment so many minutes after a boot at one hour past 1970.
    fn minute(minutes: u64) -> Moment {
        Moment {
            boot_ns: minutes * MINUTE_NS,
            unix_us: (60 + minutes) * 60_000_000,
        }
    }

    /// The moment at which another boot shows this wall time.
    fn after_reboot(moment: Moment) -> Moment {
        Moment {
            boot_ns: 7,
            ..moment
        }
    }

    fn before(policy: &str, enforcement: Enforcement) -> Option<Before<'_>> {
        Some(Before {
            policy,
            enforcement,
        })
    }

    #[test]
    fn without_a_time_nothing_is_on_trial_and_nothing_is_written() {
        let (trials, _dir) = trials(Duration::ZERO);
        let enforce = trials.enforcement("a", Mode::Enforce, None, true, minute(1));
        assert_eq!(enforce, Enforcement::Always);
        assert!(!trials.file().exists());
    }

    #[test]
    fn a_policy_that_reports_is_not_on_trial() {
        let (trials, _dir) = trials(MINUTE);
        let report = trials.enforcement("a", Mode::Report, None, true, minute(1));
        assert_eq!(report, Enforcement::Never);
        assert!(!trials.file().exists());
    }

    #[test]
    fn a_restart_neither_prolongs_a_trial_nor_begins_one() {
        let (trials, _dir) = trials(10 * MINUTE);
        let first = trials.enforcement("a", Mode::Enforce, None, false, minute(1));
        assert_eq!(first, Enforcement::Until(11 * MINUTE_NS));
        for later in [5, 10, 11, 50] {
            let again =
                trials.enforcement("a", Mode::Enforce, before("a", first), false, minute(later));
            assert_eq!(again, first);
        }
        let always = before("a", Enforcement::Always);
        let again = trials.enforcement("a", Mode::Enforce, always, true, minute(60));
        assert_eq!(again, Enforcement::Always);
    }

    #[test]
    fn a_reload_tries_again_what_was_not_confirmed_and_prolongs_nothing() {
        let (trials, _dir) = trials(10 * MINUTE);
        let first = trials.enforcement("a", Mode::Enforce, None, false, minute(1));
        let reload =
            |at| trials.enforcement("a", Mode::Enforce, before("a", first), true, minute(at));
        assert_eq!(reload(10), first);
        assert_eq!(reload(11), Enforcement::Until(21 * MINUTE_NS));
    }

    #[test]
    fn a_reboot_leaves_of_a_trial_what_was_left() {
        let (trials, _dir) = trials(10 * MINUTE);
        trials.enforcement("a", Mode::Enforce, None, false, minute(1));
        let at = |minutes| {
            let now = after_reboot(minute(minutes));
            trials.enforcement("a", Mode::Enforce, None, false, now)
        };
        assert_eq!(at(8), Enforcement::Until(7 + 3 * MINUTE_NS));
        assert_eq!(at(11), Enforcement::Until(7));
        assert_eq!(at(5000), Enforcement::Until(7));
        // A clock that was set back does not prolong it either.
        let back = Moment {
            boot_ns: 7,
            unix_us: 0,
        };
        let again = trials.enforcement("a", Mode::Enforce, None, false, back);
        assert_eq!(again, Enforcement::Until(7 + 10 * MINUTE_NS));
    }

    #[test]
    fn what_was_confirmed_stays_over_a_reboot_and_another_policy_does_not() {
        let (trials, _dir) = trials(10 * MINUTE);
        trials.enforcement("a", Mode::Enforce, None, false, minute(1));
        assert_eq!(trials.confirmed_by("a"), None);
        trials.confirm("a", "ada", minute(2)).unwrap();
        assert_eq!(trials.confirmed_by("a").as_deref(), Some("ada"));
        assert_eq!(trials.confirmed_by("b"), None);
        let now = after_reboot(minute(100));
        let a = trials.enforcement("a", Mode::Enforce, None, false, now);
        assert_eq!(a, Enforcement::Always);
        let b = trials.enforcement("b", Mode::Enforce, before("a", a), true, minute(100));
        assert_eq!(b, Enforcement::Until(110 * MINUTE_NS));
    }

    #[test]
    fn a_file_that_cannot_be_read_begins_a_trial() {
        let (trials, _dir) = trials(MINUTE);
        fs::create_dir_all(trials.file().parent().unwrap()).unwrap();
        fs::write(trials.file(), "{").unwrap();
        let enforce = trials.enforcement("a", Mode::Enforce, None, false, minute(1));
        assert_eq!(enforce, Enforcement::Until(2 * MINUTE_NS));
    }
}
