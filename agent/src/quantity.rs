//! Durations and sizes as people write them: in settings, flags and policies alike.

use std::time::Duration;

/// A quantity that is not written as it should be, with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct QuantityError {
    /// Description of the mistake.
    pub message: String,
    /// Advice on the correct form.
    pub help: &'static str,
}

/// `10s`; units are `ms`, `s`, `m`, `h`, `d`, and there is no bare number.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    const HELP: &str = "write a whole number and a unit: `500ms`, `10s`, `5m`, `2h`, `1d`";
    let wrong = || QuantityError {
        message: format!("`{text}` is not a duration"),
        help: HELP,
    };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

/// `8 MiB`; units are `B`, `KiB`, `MiB`, `GiB`, `TiB`.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    const HELP: &str = "write a whole number and a unit: `512 KiB`, `8 MiB`, `1 GiB`, or bytes";
    let wrong = || QuantityError {
        message: format!("`{text}` is not a size"),
        help: HELP,
    };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (text, ms) in [
            ("1ms", 1),
            ("10s", 10_000),
            ("2 m", 120_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "s",
            "10",
            "-1s",
            "1.5s",
            "1 week",
            "1s1s",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("1B", 1),
            ("8 MiB", 8 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "MiB",
            "1 MB",
            "1M",
            "-1",
            "1.5 GiB",
            "99999999999999 GiB",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
