//! Lines that somebody appends to a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};

/// Reads what is appended to a file, line by line.
#[derive(Debug)]
pub(crate) struct Tail {
    file: File,
    position: u64,
    rest: String,
}

impl Tail {
    /// From the beginning of the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            file,
            position: 0,
            rest: String::new(),
        })
    }

    /// From its end, as it is now.
    pub(crate) fn open_at_end(path: &Path) -> Result<Self> {
        let mut tail = Self::open(path)?;
        tail.position = tail.file.seek(SeekFrom::End(0))?;
        Ok(tail)
    }

    /// Complete lines since the last call.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        self.file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        self.position += self.file.read_to_end(&mut bytes)? as u64;
        self.rest
            .push_str(std::str::from_utf8(&bytes).context("records are not UTF-8")?);
        // Not line by line out of a text of which each takes what is left along.
        let complete = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.rest.split_off(complete);
        let lines = std::mem::replace(&mut self.rest, rest);
        let lines = lines
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        Ok(lines)
    }
}
