//! The values that settings have, and how each is written.
//!
//! Used for the settings file and for flags alike, so that a value means the
//! same in both.

use std::path::{Path, PathBuf};

use crate::policy::problem::Fault;
use crate::quantity::QuantityError;

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

impl From<QuantityError> for ValueError {
    fn from(error: QuantityError) -> Self {
        Self::new(error.message, error.help)
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
    /// All that lead out, followed as they change.
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
