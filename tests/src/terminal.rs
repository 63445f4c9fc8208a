//! A terminal for programs that ask whoever sits at it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::pty::openpty;

use crate::wait::wait_for;

/// A pseudo-terminal. Output to it is read at once, so that nobody waits.
#[derive(Debug)]
pub struct Terminal {
    inner: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    n_marks: AtomicUsize,
}

/// A byte that no program writes: start of heading.
const MARK: u8 = 1;

impl Terminal {
    /// Opens one.
    pub fn new() -> Result<Self> {
        let pty = openpty(None, None).context("open a pseudo-terminal")?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        let mut outer = File::from(pty.master);
        // Ends when nobody has the inner end open any more.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = outer.read(&mut buffer) {
                let part = buffer.get(..length).unwrap_or_default();
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(part);
            }
        });
        Ok(Self {
            inner: pty.slave,
            shown,
            n_marks: AtomicUsize::new(0),
        })
    }

    /// For one of a program's standard streams.
    pub fn stream(&self) -> Result<Stdio> {
        Ok(self.inner.try_clone().context("copy descriptor")?.into())
    }

    /// All that was written to it so far, with plain ends of lines.
    pub fn text(&self) -> Result<String> {
        // Output that was written before this byte has been read when this byte has.
        let n_marks = self.n_marks.fetch_add(1, Ordering::SeqCst) + 1;
        nix::unistd::write(&self.inner, &[MARK]).context("write to the terminal")?;
        let shown = wait_for("what the terminal shows", || {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = shown.iter().filter(|byte| **byte == MARK).count();
            Ok((seen >= n_marks).then(|| shown.clone()))
        })?;
        let text = String::from_utf8_lossy(&shown).replace("\r\n", "\n");
        Ok(text.replace(char::from(MARK), ""))
    }
}
