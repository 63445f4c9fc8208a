//! How a moment is written, and read.

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

/// Microseconds since 1970 of any time of RFC 3339: with an offset, with or without a
/// fraction, in lower case, with a blank for the `T`. Digits beyond microseconds are cut
/// off. `None` for anything else, and for times before 1970.
#[must_use]
pub fn unix_us_of(rfc3339: &str) -> Option<u64> {
    const FORM: &[u8; 19] = b"0000-00-00T00:00:00";
    const MICROS: usize = 6;
    let text = rfc3339.as_bytes();
    let (moment, rest) = text.split_at_checked(FORM.len())?;
    let fits = |(byte, form): (&u8, &u8)| match form {
        b'0' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        form => byte == form,
    };
    if !moment.iter().zip(FORM).all(fits) {
        return None;
    }
    let number = |digits: &[u8]| -> u64 {
        digits
            .iter()
            .fold(0, |sum, digit| 10 * sum + u64::from(digit - b'0'))
    };
    let part = |from: usize, to: usize| number(&moment[from..to]);
    let (year, month, day) = (part(0, 4) as u16, part(5, 7) as u8, part(8, 10) as u8);
    let (hour, minute, second) = (part(11, 13), part(14, 16), part(17, 19));
    // A leap second is the moment after it.
    let is_moment = hour < 24 && minute < 60 && second <= 60;
    let is_day = (1..=12).contains(&month) && day >= 1 && {
        let (next_year, next) = if month == 12 {
            (year + 1, 1)
        } else {
            (year, month + 1)
        };
        days_since_1970(year, month, day) < days_since_1970(next_year, next, 1)
    };
    if !is_moment || !is_day {
        return None;
    }

    let (fraction, offset) = match rest.strip_prefix(b".") {
        None => (&rest[..0], rest),
        Some(rest) => {
            let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if len == 0 {
                return None;
            }
            rest.split_at(len)
        }
    };
    let fraction = &fraction[..fraction.len().min(MICROS)];
    let micros = number(fraction) * 10_u64.pow((MICROS - fraction.len()) as u32);
    let offset_minutes = match offset {
        b"Z" | b"z" => 0,
        &[sign @ (b'+' | b'-'), ref digits @ ..] => {
            let &[h1, h2, b':', m1, m2] = digits else {
                return None;
            };
            if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
                return None;
            }
            let (hours, minutes) = (number(&[h1, h2]), number(&[m1, m2]));
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = (60 * hours + minutes) as i64;
            if sign == b'+' { offset } else { -offset }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400
        + (3_600 * hour + 60 * minute + second) as i64
        - 60 * offset_minutes;
    Some(u64::try_from(seconds).ok()? * 1_000_000 + micros)
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
    fn any_time_of_rfc_3339_is_read() {
        let noon = unix_us_of("2026-11-21T12:00:00.000000Z").unwrap();
        for (text, after_us) in [
            ("2026-11-21T12:00:00Z", 0),
            ("2026-11-21t12:00:00z", 0),
            ("2026-11-21 12:00:00Z", 0),
            ("2026-11-21T13:00:00+01:00", 0),
            ("2026-11-21T06:30:00-05:30", 0),
            ("2026-11-22T01:30:00.5+13:30", 500_000),
            ("2026-11-21T12:00:00-00:00", 0),
            ("2026-11-21T12:00:00.1Z", 100_000),
            ("2026-11-21T12:00:00.123456789Z", 123_456),
            ("2026-11-21T12:00:60Z", 60_000_000),
        ] {
            assert_eq!(unix_us_of(text), Some(noon + after_us), "{text}");
        }
        for text in [
            "2026-11-21T12:00:00",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00+1:00",
            "2026-11-21T12:00:00+0100",
            "2026-11-21T12:00:00+24:00",
            "2026-11-21T12:00:00+01:60",
            "2026-11-21T12:00:00ZZ",
            "2026-11-21T24:00:00Z",
            "2026-11-21T12:60:00Z",
            "2026-11-21T12:00:61Z",
            "2026-02-29T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-11-00T12:00:00Z",
            "2026-11-31T12:00:00Z",
            "1970-01-01T00:00:00+00:01",
            "1969-12-31T23:59:59Z",
            "+026-11-21T12:00:00Z",
        ] {
            assert_eq!(unix_us_of(text), None, "{text}");
        }
        assert_eq!(
            unix_us_of("2024-02-29T23:59:60.9Z").map(rfc3339).as_deref(),
            Some("2024-03-01T00:00:00.900000Z")
        );
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd_for_a_time(text in "\\PC{0,40}") {
            if let Some(unix_us) = unix_us_of(&text) {
                prop_assert_eq!(unix_us_of(&rfc3339(unix_us)), Some(unix_us));
            }
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
}
