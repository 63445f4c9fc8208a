//! Time: the kernel's clock, the wall's, and how a moment is written.
//!
//! The kernel programs stamp everything in nanoseconds since boot, suspend
//! included (`CLOCK_BOOTTIME`); reports say when that was for a person.

use nix::time::{ClockId, clock_gettime};

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
    i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec())
}

/// `2026-11-21T21:53:40.123456Z`, from microseconds since 1970.
#[must_use]
pub fn rfc3339(unix_us: u64) -> String {
    let second = unix_us / 1_000_000;
    let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
    format!(
        "{}T{hour:02}:{minute:02}:{:02}.{:06}Z",
        date(second),
        second % 60,
        unix_us % 1_000_000
    )
}

/// Microseconds since 1970 of what [`rfc3339`] has written; `None` for anything else.
#[must_use]
pub fn unix_us_of(rfc3339: &str) -> Option<u64> {
    const FORM: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";
    let text = rfc3339.as_bytes();
    let is_of_this_form = text.len() == FORM.len()
        && text.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        });
    if !is_of_this_form {
        return None;
    }
    let number = |from: usize, to: usize| rfc3339[from..to].parse::<u64>().ok();
    let (month, day) = (number(5, 7)?, number(8, 10)?);
    let day = days_since_1970(number(0, 4)? as u16, month as u8, day as u8);
    let second = number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?;
    Some((u64::try_from(day).ok()? * 86_400 + second) * 1_000_000 + number(20, 26)?)
}

/// `2026-11-21` (UTC), from seconds since 1970.
#[must_use]
pub fn date(unix_s: u64) -> String {
    // Days are counted in years that begin in March, so that the leap day is a
    // year's last day, and in cycles of 400 years, which all have 146,097 days.
    const DAYS_FROM_MARCH_0000_TO_1970: u64 = 719_468;
    let days = unix_s / 86_400 + DAYS_FROM_MARCH_0000_TO_1970;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
        - day_of_cycle / 146_096)
        / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days from 1970-01-01 to this day of the Gregorian calendar, the inverse of [`date`].
#[must_use]
pub fn days_since_1970(year: u16, month: u8, day: u8) -> i64 {
    const DAYS_FROM_MARCH_0000_TO_1970: i64 = 719_468;
    // As in `date`, a year begins in March.
    let (year, month) = (i64::from(year), i64::from(month));
    let (year, month_from_march) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + day_of_year - DAYS_FROM_MARCH_0000_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The calendar as one would count it on fingers.
    fn counted_date(unix_s: u64) -> String {
        let (mut day, mut month, mut year) = (unix_s / 86_400, 1, 1970);
        let leap = |year: u64| match year % 400 {
            0 => true,
            of_century => of_century % 100 != 0 && of_century % 4 == 0,
        };
        loop {
            let length = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            if day < length {
                return format!("{year:04}-{month:02}-{:02}", day + 1);
            }
            day -= length;
            (month, year) = if month == 12 {
                (1, year + 1)
            } else {
                (month + 1, year)
            };
        }
    }

    proptest! {
        #[test]
        fn dates_are_those_of_the_calendar(unix_s in 0_u64..16_725_225_600) {
            let date = date(unix_s);
            prop_assert_eq!(&date, &counted_date(unix_s));
            let [year, month, day]: [u16; 3] = date
                .split('-')
                .map(|part| part.parse().unwrap())
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
            let days = days_since_1970(year, month as u8, day as u8);
            prop_assert_eq!(days, (unix_s / 86_400) as i64);
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for unix_us in [0, 1_709_251_199_999_999, 1_795_298_020_000_007] {
            assert_eq!(unix_us_of(&rfc3339(unix_us)), Some(unix_us));
        }
        for text in ["", "2026-11-21", "2026-11-21T21:53:40.00000\u{e9}", "x"] {
            assert_eq!(unix_us_of(text), None, "{text}");
        }
    }

    #[test]
    fn moments_are_written_in_utc_with_microseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            rfc3339(1_709_251_199_999_999),
            "2024-02-29T23:59:59.999999Z"
        );
        assert_eq!(
            rfc3339(1_795_298_020_000_007),
            "2026-11-21T21:53:40.000007Z"
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
