//! Whether the loop goes on: a loop that stood still has reported nothing meanwhile.

use crate::clock;

/// A loop that is busy, or waits for its turn, may be late. One that is this late has left
/// a gap.
const STALL_NS: u64 = 3_000_000_000;

/// When the loop was last seen to go on.
pub(super) struct Pulse {
    /// By the clock that stands still while the host sleeps.
    awake_ns: u64,
    since_us: u64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            awake_ns: clock::awake_ns(),
            since_us: clock::unix_us(),
        }
    }

    /// When it was last seen, microseconds since 1970.
    pub(super) fn since_us(&self) -> u64 {
        self.since_us
    }

    /// The loop goes on. Returns how long it stood still, if that was too long.
    pub(super) fn beat(&mut self, awake_ns: u64, now_us: u64) -> Option<u64> {
        let gap_ns = awake_ns.saturating_sub(self.awake_ns);
        *self = Self {
            awake_ns,
            since_us: now_us,
        };
        (gap_ns >= STALL_NS).then_some(gap_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_once() {
        let mut pulse = Pulse {
            awake_ns: 0,
            since_us: 7,
        };
        assert_eq!(pulse.beat(STALL_NS - 1, 8), None);
        assert_eq!(pulse.beat(2 * STALL_NS - 1, 9), Some(STALL_NS));
        assert_eq!(pulse.since_us(), 9);
        assert_eq!(pulse.beat(2 * STALL_NS, 10), None);
    }
}
