//! Time: the kernel's clock, the wall's, and how a moment is written.
//!
//! The kernel programs stamp everything in nanoseconds since boot, suspend
//! included (`CLOCK_BOOTTIME`); reports say when that was for a person. In a time namespace
//! that clock says something else, so what it is ahead is taken off here, and nobody else
//! asks it.

use std::{fs, sync::OnceLock};

use nix::time::{ClockId, clock_gettime};

pub use trefoil_evidence::time::{date, days_since_1970, rfc3339, unix_us_of};

/// Turns nanoseconds since boot into wall time.
///
/// Holds for as long as nobody sets the clock: read it anew for each batch of
/// events, and the times of the next batch follow the corrected clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootClock {
    booted_unix_ns: i128,
}

impl BootClock {
    /// The relation of the two clocks at this moment.
    #[must_use]
    pub fn read() -> Self {
        Self {
            booted_unix_ns: now_ns(ClockId::CLOCK_REALTIME) - now_ns(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// A host that booted at this moment, for tests and for recorded events.
    #[must_use]
    pub fn booted_at(unix_us: u64) -> Self {
        Self {
            booted_unix_ns: i128::from(unix_us) * 1000,
        }
    }

    /// Nanoseconds since boot of a moment given in microseconds since 1970; 0 before boot.
    #[must_use]
    pub fn since_boot_ns(&self, unix_us: u64) -> u64 {
        let since_boot_ns = i128::from(unix_us) * 1000 - self.booted_unix_ns;
        u64::try_from(since_boot_ns.max(0)).unwrap_or(u64::MAX)
    }

    /// How far apart the two clocks have moved since, in nanoseconds.
    #[must_use]
    pub fn drift_ns(&self, since: &Self) -> u64 {
        u64::try_from((self.booted_unix_ns - since.booted_unix_ns).abs()).unwrap_or(u64::MAX)
    }

    /// Microseconds since 1970 of a moment given in nanoseconds since boot.
    #[must_use]
    pub fn unix_us(&self, since_boot_ns: u64) -> u64 {
        let unix_ns = self.booted_unix_ns + i128::from(since_boot_ns);
        u64::try_from(unix_ns / 1000).unwrap_or(0)
    }
}

/// Nanoseconds since boot, suspend included: the clock of all kernel events.
#[must_use]
pub fn since_boot_ns() -> u64 {
    u64::try_from(now_ns(ClockId::CLOCK_BOOTTIME)).unwrap_or(0)
}

/// Nanoseconds in which this host was awake: as since boot, without those in which it was
/// suspended.
#[must_use]
pub fn awake_ns() -> u64 {
    u64::try_from(now_ns(ClockId::CLOCK_MONOTONIC)).unwrap_or(0)
}

/// Microseconds since 1970.
#[must_use]
pub fn unix_us() -> u64 {
    u64::try_from(now_ns(ClockId::CLOCK_REALTIME) / 1000).unwrap_or(0)
}

fn now_ns(clock: ClockId) -> i128 {
    let now = clock_gettime(clock).expect("Linux has this clock since 2.6.39");
    let now_ns = i128::from(now.tv_sec()) * NS_PER_S + i128::from(now.tv_nsec());
    now_ns - Offsets::own().of(clock)
}

const NS_PER_S: i128 = 1_000_000_000;

/// How far the clocks of this time namespace are ahead of the kernel's own, by which the
/// programs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic_ns: i128,
    boot_ns: i128,
}

impl Offsets {
    /// Those of this process. They are settled when a first process is in the namespace.
    fn own() -> Self {
        static OWN: OnceLock<Offsets> = OnceLock::new();
        *OWN.get_or_init(|| {
            // The file is about the namespace that children will be in, which is another
            // one after unshare(2) without exec.
            let namespace = |name| fs::read_link(format!("/proc/self/ns/{name}")).ok();
            match namespace("time") == namespace("time_for_children") {
                true => fs::read_to_string("/proc/self/timens_offsets")
                    .map(|text| Self::parse(&text))
                    .unwrap_or_default(),
                false => Self::default(),
            }
        })
    }

    /// `boottime  86400  0` and the like, in seconds and nanoseconds.
    fn parse(text: &str) -> Self {
        let of = |name: &str| {
            let mut words = text
                .lines()
                .map(str::split_whitespace)
                .find_map(|mut words| (words.next()? == name).then_some(words))?;
            let mut number = || words.next()?.parse::<i128>().ok();
            Some(number()? * NS_PER_S + number()?)
        };
        Self {
            monotonic_ns: of("monotonic").unwrap_or(0),
            boot_ns: of("boottime").unwrap_or(0),
        }
    }

    fn of(self, clock: ClockId) -> i128 {
        match clock {
            ClockId::CLOCK_MONOTONIC => self.monotonic_ns,
            ClockId::CLOCK_BOOTTIME => self.boot_ns,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_does_not_move_the_clock_of_the_kernel() {
        const CHILD: &str = "TREFOIL_TEST_IN_TIME_NAMESPACE";
        if std::env::var_os(CHILD).is_some() {
            println!("now={} awake={}", since_boot_ns(), awake_ns());
            return;
        }
        let before = (since_boot_ns(), awake_ns());
        let output = std::process::Command::new("unshare")
            .args([
                "--time",
                "--boottime",
                "8640000",
                "--monotonic",
                "864000",
                "--fork",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("clock::tests::a_time_namespace_does_not_move_the_clock_of_the_kernel")
            .env(CHILD, "1")
            .output()
            .unwrap();
        let after = (since_boot_ns(), awake_ns());
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |name: &str| -> u64 {
            let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("{text}"));
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap()
        };
        assert!((before.0..=after.0).contains(&number("now=")), "{text}");
        assert!((before.1..=after.1).contains(&number("awake=")), "{text}");
        assert_eq!(
            Offsets::parse("monotonic           -5         7\nboottime     2         0\n"),
            Offsets {
                monotonic_ns: -5 * NS_PER_S + 7,
                boot_ns: 2 * NS_PER_S
            }
        );
    }

    #[test]
    fn boot_time_is_added_to_the_time_since_boot() {
        let clock = BootClock::booted_at(1_000_000);
        assert_eq!(clock.unix_us(0), 1_000_000);
        assert_eq!(clock.unix_us(2_500_999), 1_002_500);
    }

    #[test]
    fn the_clocks_of_this_machine_agree() {
        let now_us = BootClock::read().unix_us(since_boot_ns());
        assert!(now_us.abs_diff(unix_us()) < 1_000_000, "{now_us}");
    }
}
