//! The values that settings have, and how each is written.
//!
//! Used for the settings file and for flags alike, so that a value means the
//! same in both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::policy::problem::Fault;

/// A value that is not written as it should be, with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct ValueError {
    message: String,
    help: &'static str,
}

impl ValueError {
    fn new(message: impl Into<String>, help: &'static str) -> Self {
        Self {
            message: message.into(),
            help,
        }
    }
}

impl From<ValueError> for Fault {
    fn from(error: ValueError) -> Self {
        Self::new(error.message).help(error.help)
    }
}

/// The interfaces that lead out of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplinks {
    /// Those with a route out, followed as they change.
    Auto,
    /// These.
    Named(Vec<String>),
    /// None is watched: there are no books.
    None,
}

impl Uplinks {
    /// As written in a list: names of interfaces, or `none` or `auto` alone.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, ValueError> {
        // IFNAMSIZ, less the terminating zero.
        const LONGEST: usize = 15;
        const HELP: &str =
            "name interfaces as `ip link` shows them, or write `none` or `auto` alone";
        let names: Vec<&str> = names.into_iter().collect();
        match names[..] {
            ["none"] => return Ok(Self::None),
            ["auto"] => return Ok(Self::Auto),
            [] => return Err(ValueError::new("the list is empty", HELP)),
            _ => {}
        }
        for name in &names {
            let is_name = !name.is_empty()
                && name.len() <= LONGEST
                && !["none", "auto", ".", ".."].contains(name)
                && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !is_name {
                return Err(ValueError::new(
                    format!("`{name}` cannot be an interface here"),
                    HELP,
                ));
            }
        }
        Ok(Self::Named(names.into_iter().map(str::to_owned).collect()))
    }
}

/// `none` where a path is expected, as typed.
pub fn unless_none(path: PathBuf) -> Option<PathBuf> {
    (path != Path::new("none")).then_some(path)
}

/// `10s`; units are `ms`, `s`, `m`, `h`, `d`, and there is no bare number.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    const HELP: &str = "write a whole number and a unit: `500ms`, `10s`, `5m`, `2h`, `1d`";
    let wrong = || ValueError::new(format!("`{text}` is not a duration"), HELP);
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

/// `8 MiB`; units are `B`, `KiB`, `MiB`, `GiB`.
pub fn bytes(text: &str) -> Result<u64, ValueError> {
    const HELP: &str = "write a whole number and a unit: `512 KiB`, `8 MiB`, `1 GiB`, or bytes";
    let wrong = || ValueError::new(format!("`{text}` is not a size"), HELP);
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

/// A path in a settings file: the directory that the agent is started in means
/// nothing there.
pub fn absolute_path(text: &str) -> Result<PathBuf, ValueError> {
    if Path::new(text).is_absolute() {
        Ok(text.into())
    } else {
        Err(ValueError::new(
            format!("`{text}` is not an absolute path"),
            "begin with `/`",
        ))
    }
}
