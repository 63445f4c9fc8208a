//! Refused calls by who made them, so that one sender's flood takes no room of another's records.

use super::Tracked;

/// Refused calls of one sender that are told one by one before the agent looks again. All others
/// are in [`Refusals`] alone.
pub const REFUSALS_A_TURN: u64 = 512;

/// Entries of map `REFUSALS`.
pub const MAX_REFUSALS: usize = 8192;

/// Sender of refused calls with one verdict: key of map `REFUSALS`.
///
/// A user is one sender, however many control groups are his. Services of root are told apart by
/// their control group. [`NOBODY_CHARGED`](super::NOBODY_CHARGED) is everybody for whom there is no
/// room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefusedSender {
    /// User that is charged, see [`Charges`](super::Charges).
    pub user: u32,
    /// One of [`verdict`](super::verdict).
    pub verdict: u32,
    /// Control group of a process of root; else 0.
    pub cgroup_id: u64,
}

/// Refused calls of one sender: value of map `REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Value of map `REFUSALS_TURN` at the last call.
    pub turn: u64,
    /// Calls of this turn that are told one by one.
    pub n_told: u64,
    /// The last call that is not: its owner, peer and decision. `flow.counters.refused` is the
    /// number of all of them, which only grows. `flow.started_ns` is when the entry was made, in
    /// nanoseconds since boot: 0 for a moment, until its maker has written it.
    pub tracked: Tracked,
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<RefusedSender>() == 16);
    assert!(size_of::<Refusals>() == 16 + size_of::<Tracked>());
};
