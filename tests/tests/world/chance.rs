//! Numbers drawn at random, and numbers that somebody asks for by a variable.

use std::time::{Duration, SystemTime};

/// Numbers that differ from run to run, or are those of `TREFOIL_SEED`: splitmix64.
pub struct Chance(u64);

impl Chance {
    /// Begins with the time, or as `TREFOIL_SEED` says.
    pub fn from_time() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = number_of("TREFOIL_SEED", now.as_nanos() as u64);
        eprintln!("TREFOIL_SEED={seed}");
        Self(seed)
    }

    /// The next, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }

    /// Waits, for less than so many milliseconds.
    pub fn pause(&mut self, end_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(end_ms)));
    }
}

/// The number that a variable has, if it has one.
pub fn number_of(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}
