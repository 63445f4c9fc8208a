//! SHA-256 of the executables that processes run.
//!
//! Hashing reads whole files, so it happens on a thread of its own and nobody
//! waits for it. A hash is given for what a process ran and not for what its path
//! leads to now: a program that was replaced in the meantime has no hash rather
//! than the new one's.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::stat::{major, minor};
use sha2::{Digest, Sha256};

use crate::clock::BootClock;
use crate::privileges::{self, Duty};

#[cfg(test)]
mod tests;

/// How many questions may wait for the thread.
const MOST_WAITING: usize = 1024;
/// How many processes, and how many files, are remembered at least.
const REMEMBERED: usize = 4096;

/// A program as one process runs it: what the kernel programs know about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Running {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Start of the process, nanoseconds since boot.
    pub start_ns: u64,
    /// Device of the file in the kernel's encoding, `major << 20 | minor`.
    pub device: u32,
    /// Inode number of the file.
    pub inode: u64,
    /// Path of the file in the process's mount namespace.
    pub path: String,
}

/// Knows the hashes of executables.
pub struct Hashes {
    shared: Arc<Shared>,
    questions: SyncSender<Running>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<Answers>,
    n_dropped: AtomicU64,
}

#[derive(Default)]
struct Answers {
    known: Remembered<Running, Option<Arc<str>>>,
    waiting: HashSet<Running>,
}

impl Hashes {
    /// Starts the thread that reads files. Files of more than `max_bytes` have no
    /// hash; 0 switches hashing off.
    pub fn start(max_bytes: u64) -> io::Result<Self> {
        Self::start_with(move |running, files| sha256_of(running, files, max_bytes))
    }

    fn start_with<F>(look_up: F) -> io::Result<Self>
    where
        F: Fn(&Running, &mut Files) -> Option<Arc<str>> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let (questions, asked) = mpsc::sync_channel(MOST_WAITING);
        let answers = Arc::clone(&shared);
        thread::Builder::new()
            .name("hashes".to_owned())
            .spawn(move || {
                privileges::keep_only(Duty::Hashes);
                answer(&asked, &answers, look_up);
            })?;
        Ok(Self { shared, questions })
    }

    /// The hash in hexadecimal, if it is known by now. If it is not, it is looked
    /// for: ask when the process appears, and again when the report is written.
    #[must_use]
    pub fn hash(&self, running: &Running) -> Option<String> {
        let mut answers = self.shared.lock();
        if let Some(known) = answers.known.get(running) {
            return known.as_deref().map(str::to_owned);
        }
        if !answers.waiting.contains(running) {
            match self.questions.try_send(running.clone()) {
                Ok(()) => {
                    answers.waiting.insert(running.clone());
                }
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.shared.n_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        None
    }

    /// How many questions found the queue full so far. Each may be asked again.
    #[must_use]
    pub fn n_dropped(&self) -> u64 {
        self.shared.n_dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Answers> {
        // Both threads leave the table whole at every point where they could panic.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A map that forgets what was not asked for in a long time: entries are in two
/// halves, and when the recent half is full it takes the place of the older one.
struct Remembered<K, V> {
    recent: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self {
            recent: HashMap::new(),
            older: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V: Clone> Remembered<K, V> {
    fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.recent.get(key) {
            return Some(value.clone());
        }
        let value = self.older.remove(key)?;
        self.insert(key.clone(), value.clone());
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, value);
    }
}

/// Hashes of files that were read already.
type Files = Remembered<FileState, Arc<str>>;

/// The content of a file does not change without one of these. The time of change
/// is among them because, unlike that of modification, nobody can set it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileState {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn changed_unix_ns(&self) -> i128 {
        i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1)
    }
}

/// The thread: one file after the other, until the questions' sender is gone.
fn answer<F>(asked: &Receiver<Running>, shared: &Shared, look_up: F)
where
    F: Fn(&Running, &mut Files) -> Option<Arc<str>>,
{
    let mut files = Files::default();
    while let Ok(running) = asked.recv() {
        let hash = look_up(&running, &mut files);
        let mut answers = shared.lock();
        answers.waiting.remove(&running);
        answers.known.insert(running, hash);
    }
}

fn sha256_of(running: &Running, files: &mut Files, max_bytes: u64) -> Option<Arc<str>> {
    if max_bytes == 0 {
        return None;
    }
    let mut file = open_running(running).or_else(|| open_path(running))?;
    let state = FileState::of(&file.metadata().ok()?);
    if let Some(known) = files.get(&state) {
        return Some(known);
    }
    if state.size_bytes > max_bytes {
        return None;
    }
    let hash: Arc<str> = read_sha256(&mut file, &state).ok()??.into();
    // A change while it was read leaves no hash of anything.
    if FileState::of(&file.metadata().ok()?) != state {
        return None;
    }
    files.insert(state, Arc::clone(&hash));
    Some(hash)
}

/// The file that the process runs, deleted or not, if it lives and is the one
/// that is meant. While a process runs a file, nobody can write to it.
///
/// Needs CAP_SYS_PTRACE for processes of other users; without it, the path counts.
fn open_running(running: &Running) -> Option<File> {
    let link = format!("/proc/{}/exe", running.pid);
    let file = open(Path::new(&link))?;
    // Only now: an id that was given to another process before the file was
    // opened shows another start, one that is given away later does not matter.
    if start_ticks(running.pid)? != running.start_ns / NS_PER_TICK {
        return None;
    }
    let metadata = file.metadata().ok()?;
    let is_same_inode = metadata.ino() == running.inode;
    // Behind a mount of another namespace, the device may have no number in
    // common with what the kernel programs saw; the name has to do, then.
    let is_same_name = || {
        let name = fs::read_link(&link).unwrap_or_default();
        let name = name.to_string_lossy();
        name.strip_suffix(" (deleted)").unwrap_or(&name) == running.path
    };
    (is_same_inode && (is_on_device(&file, &metadata, running.device) || is_same_name()))
        .then_some(file)
}

/// The file that the path leads to on the host, if it is the one that is meant
/// and has not changed since the process began.
fn open_path(running: &Running) -> Option<File> {
    // The kernel stamps a change with the time of its last tick: up to 10 ms
    // before the change itself.
    const LATE_BY_NS: i128 = 20_000_000;
    let path = Path::new(&running.path);
    if !path.is_absolute() {
        return None;
    }
    let file = open(path)?;
    let metadata = file.metadata().ok()?;
    let started_unix_ns = i128::from(BootClock::read().unix_us(running.start_ns)) * 1000;
    let is_it = metadata.ino() == running.inode
        && is_on_device(&file, &metadata, running.device)
        && FileState::of(&metadata).changed_unix_ns() + LATE_BY_NS <= started_unix_ns;
    is_it.then_some(file)
}

/// Opens a regular file. A path may lead to anything by now, and a named pipe or
/// a device must not hold up the thread.
fn open(path: &Path) -> Option<File> {
    // Devices can act on being opened, so this comes first; the check of what was
    // opened is the one that counts.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn read_sha256(file: &mut File, state: &FileState) -> io::Result<Option<String>> {
    const BLOCK_BYTES: usize = 128 * 1024;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut n_read = 0;
    while n_read <= state.size_bytes {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&block[..n]);
                n_read += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digest = hasher.finalize();
    let hex = || digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((n_read == state.size_bytes).then(hex))
}

/// `/proc/PID/stat` counts in hundredths of a second on every architecture that
/// Linux has BPF for.
const NS_PER_TICK: u64 = 10_000_000;

/// Start of a process in ticks since boot, field 22 of `/proc/PID/stat`.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may have any of them inside.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// The kernel's own encoding of a device number, from that of `stat`.
#[must_use]
pub fn kernel_device(stat_device: u64) -> u32 {
    const MINOR_BITS: u32 = 20;
    let number = major(stat_device) << MINOR_BITS | minor(stat_device);
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Whether a file is in the file system with this device number. On some (btrfs,
/// overlayfs) `stat` invents numbers; the mount's has the true one.
fn is_on_device(file: &File, metadata: &Metadata, device: u32) -> bool {
    kernel_device(metadata.dev()) == device || mount_device(file) == Some(device)
}

fn mount_device(file: &File) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next()? == mount).then_some(())?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
    })
}
