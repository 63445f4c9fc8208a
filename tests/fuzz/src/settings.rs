//! The settings file.

use trefoil::settings::Settings;

use crate::problems;

/// Panics if the reader breaks a promise.
pub fn check(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Err(found) = Settings::parse(text, "input") {
        problems::check(text, &found);
    }
}
