//! Giving up capabilities that are not needed any more.
//!
//! Loading and attaching need what a running agent does not. Capabilities belong
//! to threads, so each keeps what its own work takes, and a thread that reads
//! other people's files cannot touch the kernel's tables.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// Duty of a thread from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Reads and writes tables, makes new ones for a reload.
    Monitor,
    /// Reads policy and country data, whoever owns them.
    Compiler,
    /// Reads executables of all processes.
    Hashes,
    /// Asks the user database.
    Logins,
    /// Cuts connections.
    Cutter,
    /// Attaches a program to interfaces as they come.
    Uplinks,
}

impl Duty {
    fn needs(self) -> &'static [Capability] {
        match self {
            Self::Monitor => &[Capability::CAP_BPF],
            Self::Compiler => &[Capability::CAP_DAC_READ_SEARCH],
            Self::Hashes => &[Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH],
            Self::Logins => &[],
            Self::Cutter => &[Capability::CAP_NET_ADMIN],
            Self::Uplinks => &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN],
        }
    }
}

/// Gives up, in the calling thread and for good, all capabilities but those that
/// its duty needs and that it has.
///
/// A failure is only logged: it is no reason not to watch.
pub fn keep_only(duty: Duty) {
    if let Err(error) = reduce(duty) {
        tracing::warn!("give up capabilities that {duty:?} does not need: {error}");
    }
}

fn reduce(duty: Duty) -> Result<(), CapsError> {
    let has = caps::read(None, CapSet::Permitted)?;
    let keeps: CapsHashSet = duty
        .needs()
        .iter()
        .copied()
        .filter(|needed| has.contains(needed))
        .collect();
    // Effective capabilities have to be permitted ones, so the effective set comes first.
    caps::set(None, CapSet::Effective, &keeps)?;
    caps::set(None, CapSet::Permitted, &keeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_what_its_duty_needs_and_others_are_untouched() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        assert!(before.len() > 2, "run as root");
        let after = std::thread::spawn(|| {
            reduce(Duty::Hashes).unwrap();
            [CapSet::Permitted, CapSet::Effective].map(|set| caps::read(None, set).unwrap())
        });
        let expected: CapsHashSet = Duty::Hashes.needs().iter().copied().collect();
        assert_eq!(after.join().unwrap(), [expected.clone(), expected]);
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }
}
