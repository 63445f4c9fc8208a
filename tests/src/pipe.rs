//! A pipe that agents write records into, one after the other, and whoever reads them there, at the
//! pace that a test asks for.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::lab::Lab;
use crate::record::Record;

/// Bytes that the pipe holds, one page: a record waits until the one before is taken.
const HOLDS: i32 = 4096;
/// Pause of a slow reader after each record or two.
const SLOW: Duration = Duration::from_millis(20);
/// Pause of any reader before it looks again.
const LOOK: Duration = Duration::from_millis(2);

/// How the reader takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pace {
    /// As they come.
    Fast,
    /// One or two now and then.
    Slow,
    /// Not at all.
    Stalled,
}

/// A named pipe and its reader, which outlive the agents that write into it.
#[derive(Debug)]
pub struct Pipe {
    path: PathBuf,
    taken: PathBuf,
    pace: Arc<AtomicU8>,
    is_over: Arc<AtomicBool>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Pipe {
    /// Makes one in the lab's directory, with a fast reader.
    pub fn new(lab: &Lab) -> Result<Self> {
        let (path, taken) = (lab.file("pipe"), lab.file("taken"));
        mkfifo(&path, Mode::S_IRWXU).with_context(|| format!("make {}", path.display()))?;
        let source = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)?;
        fcntl(&source, FcntlArg::F_SETPIPE_SZ(HOLDS)).context("size of the pipe")?;
        let file = File::create(&taken)?;
        let pace = Arc::new(AtomicU8::new(Pace::Fast as u8));
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            source,
            taken: file,
            pace: Arc::clone(&pace),
            is_over: Arc::clone(&is_over),
        };
        Ok(Self {
            path,
            taken,
            pace,
            is_over,
            reader: Some(std::thread::spawn(|| reader.read())),
        })
    }

    /// The pipe itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file in which all is that was read from it.
    pub(crate) fn taken(&self) -> &Path {
        &self.taken
    }

    /// Has the reader go on at another pace.
    pub fn set_pace(&self, pace: Pace) {
        self.pace.store(pace as u8, Ordering::Relaxed);
    }

    /// Reads to the end, once no agent has the pipe open. Returns all records.
    pub fn finish(mut self) -> Result<Vec<Record>> {
        self.set_pace(Pace::Fast);
        self.is_over.store(true, Ordering::Relaxed);
        let reader = self.reader.take().context("it is read already")?;
        reader
            .join()
            .map_err(|_| anyhow!("the reader of the pipe has panicked"))??;
        let text = fs::read_to_string(&self.taken)?;
        text.lines().map(Record::parse).collect()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.set_pace(Pace::Fast);
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Reading end of the pipe.
struct Reader {
    source: File,
    taken: File,
    pace: Arc<AtomicU8>,
    is_over: Arc<AtomicBool>,
}

impl Reader {
    fn read(mut self) -> Result<()> {
        let mut bytes = [0; HOLDS as usize];
        loop {
            let pace = self.pace.load(Ordering::Relaxed);
            if pace == Pace::Stalled as u8 {
                std::thread::sleep(LOOK);
                continue;
            }
            match self.source.read(&mut bytes) {
                // Nobody has it open who writes.
                Ok(0) if self.is_over.load(Ordering::Relaxed) => return Ok(()),
                Ok(0) => std::thread::sleep(LOOK),
                Ok(n_bytes) => {
                    self.taken.write_all(bytes.get(..n_bytes).unwrap_or(&[]))?;
                    if pace == Pace::Slow as u8 {
                        std::thread::sleep(SLOW);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read the pipe"),
            }
        }
    }
}
