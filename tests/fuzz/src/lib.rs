//! Promises that must hold of every reader of files, whatever is in the file.
//!
//! Owns one function for each reader: it takes bytes, and panics if a promise is
//! broken. `cargo xtask fuzz` searches for such bytes, guided by coverage; the tests
//! of this crate give each reader what was found in former searches, which is in
//! `corpus/`. Must not know how a reader does its work, or the reference would be
//! wrong where the reader is.

use std::path::{Path, PathBuf};

pub mod geo;
pub mod mmdb;
pub mod observed;
pub mod policy;
pub mod problems;
pub mod seeds;
pub mod settings;

/// A reader under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// Panics if it breaks a promise.
    pub check: fn(&[u8]),
}

/// Every reader.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "policy",
        check: policy::check,
    },
    Target {
        name: "settings",
        check: settings::check,
    },
    Target {
        name: "geo_text",
        check: geo::check_text,
    },
    Target {
        name: "geo_mmdb",
        check: geo::check_mmdb,
    },
    Target {
        name: "observed",
        check: observed::check,
    },
];

impl Target {
    /// The reader of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Where its inputs are kept.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(self.name)
    }
}
