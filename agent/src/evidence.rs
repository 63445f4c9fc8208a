//! The log of digests on this host, and its signed checkpoints: see crate `trefoil-evidence` for what
//! they prove.
//!
//! A directory has it, over boots and restarts:
//!
//! | file | contents |
//! |---|---|
//! | `key` | 32 random bytes, made at the first start; whoever has them can sign |
//! | `key.pub` | the key for those who check |
//! | `leaves` | digest of each record, 32 bytes each |
//! | `state` | the last checkpoint, the edge of the tree before and behind it, and how many leaves are sure |
//!
//! The order is what makes it proof: digests are on disk before a checkpoint over them is signed, and
//! the state is on disk before the checkpoint is handed over. A checkpoint that nobody may have got is told
//! once more by the next agent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use trefoil_evidence::{
    checkpoint::{Checkpoint, from_text, to_text},
    digest::Salt,
    merkle::{Frontier, Hash, leaf},
    note::SigningKey,
};

/// Time between two checkpoints, if there is something new, in nanoseconds.
const INTERVAL_NS: u64 = 10_000_000_000;
/// Records after which one is signed at once.
const MOST_RECORDS: usize = 256;
/// Bytes of a digest.
const DIGEST: u64 = size_of::<Hash>() as u64;

/// A checkpoint, for its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The signed note.
    pub note: String,
    /// Digests since the checkpoint before, as text.
    pub digests: String,
    /// Edge of the tree before these, as text.
    pub frontier: String,
    /// Index of the first of them.
    pub first: u64,
    /// Number of leaves with them.
    pub size: u64,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// A file cannot be read or written.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// Operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Error from the system.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("{} is in use by another agent; give each its own directory with `evidence`", .0.display())]
    Locked(PathBuf),
    /// A file is not what the agent wrote.
    #[error("{} is damaged: {what}; move the directory away to begin another log, and keep it for the auditor", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: &'static str,
    },
}

/// Contents of file `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The last checkpoint's note; empty before the first.
    note: String,
    /// Leaves before its digests, and the edge of the tree there.
    first: u64,
    before: String,
    /// Leaves with them, and the edge there.
    size: u64,
    behind: String,
    /// Leaves that are on disk for sure, and whose records every sink has.
    #[serde(default)]
    sure: u64,
}

impl State {
    fn tree(size: u64, peaks: &str) -> Option<Frontier> {
        Frontier::new(size, from_text(peaks)?)
    }
}

/// The log.
#[derive(Debug)]
pub struct Evidence {
    directory: PathBuf,
    origin: String,
    key: SigningKey,
    leaves: Flock<File>,
    state: State,
    /// Tree over all leaves in the file.
    tree: Frontier,
    /// Digests since the last checkpoint. The first of them are in the file.
    digests: Vec<Hash>,
    n_in_file: usize,
    /// Among the digests, those of checkpoints: they alone are nothing new.
    n_of_checkpoints: usize,
    signed_ns: u64,
    is_due: bool,
    random: Random,
}

impl Evidence {
    /// Opens the log of this directory, which is made if it is not there. `known` is how many leaves
    /// the agent before had in the file with the last records that it kept, if it was of this boot.
    ///
    /// Leaves behind those are of records that nobody has; after a boot, leaves that no checkpoint covers
    /// are whole for sure only up to where an agent has [finished](Self::finish). Both are taken out.
    ///
    /// # Errors
    ///
    /// When a file cannot be used, or is not what the agent wrote.
    pub fn open(directory: &Path, origin: &str, known: Option<u64>) -> Result<Self, EvidenceError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| EvidenceError::Io { what, path, source }
        };
        fs::create_dir_all(directory).map_err(failed("make directory", directory))?;
        let path = directory.join("leaves");
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640);
        let leaves = options.open(&path).map_err(failed("open", &path))?;
        let leaves = Flock::lock(leaves, FlockArg::LockExclusiveNonblock)
            .map_err(|_| EvidenceError::Locked(directory.to_owned()))?;
        let key = Self::key(directory, origin)?;
        let state = read_state(directory)?;
        let tree = State::tree(state.size, &state.behind);
        let mut tree =
            tree.ok_or_else(|| damaged(directory, "state", "it has no edge of a tree"))?;

        let length = leaves.metadata().map_err(failed("read", &path))?.len() / DIGEST;
        if length < state.size {
            return Err(damaged(directory, "leaves", LEAVES_MISSING));
        }
        let size = known.unwrap_or(state.sure).clamp(state.size, length);
        leaves
            .set_len(size * DIGEST)
            .map_err(failed("cut", &path))?;
        let mut digests = Vec::new();
        let mut reader = io::BufReader::new(&*leaves);
        reader
            .seek(SeekFrom::Start(state.size * DIGEST))
            .map_err(failed("read", &path))?;
        for _ in state.size..size {
            let mut digest = [0; DIGEST as usize];
            reader
                .read_exact(&mut digest)
                .map_err(failed("read", &path))?;
            tree.push(leaf(&digest));
            digests.push(digest);
        }
        Ok(Self {
            directory: directory.to_owned(),
            origin: origin.to_owned(),
            key,
            leaves,
            state,
            tree,
            n_in_file: digests.len(),
            digests,
            n_of_checkpoints: 0,
            signed_ns: 0,
            is_due: false,
            random: Random::default(),
        })
    }

    /// Reads the key, or makes one.
    fn key(directory: &Path, origin: &str) -> Result<SigningKey, EvidenceError> {
        let path = directory.join("key");
        let failed = |what| {
            let path = path.clone();
            move |source| EvidenceError::Io { what, path, source }
        };
        let seed = match read_seed(directory)? {
            Some(seed) => seed,
            None => {
                let mut seed = [0; 32];
                Random::default().fill(&mut seed).map_err(failed("make"))?;
                write_whole(&path, &seed, 0o600).map_err(failed("write"))?;
                seed
            }
        };
        let key = SigningKey::from_seed(origin, &seed).map_err(|_| {
            damaged(
                directory,
                "key",
                "the log's name is none that a key can have",
            )
        })?;
        let public = format!("{}\n", key.public());
        let public_path = directory.join("key.pub");
        if fs::read_to_string(&public_path).ok().as_ref() != Some(&public) {
            write_whole(&public_path, public.as_bytes(), 0o644).map_err(failed("write"))?;
        }
        Ok(key)
    }

    /// Name of the log.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Leaves that are in the file.
    #[must_use]
    pub fn size_in_file(&self) -> u64 {
        self.state.size + self.n_in_file as u64
    }

    /// Leaves that the last checkpoint covers.
    #[must_use]
    pub fn size_signed(&self) -> u64 {
        self.state.size
    }

    /// Random bytes for a record.
    ///
    /// # Errors
    ///
    /// When the kernel has none.
    pub fn salt(&mut self) -> io::Result<Salt> {
        let mut salt = Salt::default();
        self.random.fill(&mut salt)?;
        Ok(salt)
    }

    /// Takes in the digest of the next record.
    pub fn add(&mut self, digest: Hash, is_checkpoint: bool) {
        self.tree.push(leaf(&digest));
        self.digests.push(digest);
        self.n_of_checkpoints += usize::from(is_checkpoint);
    }

    /// Writes the digests that are new into the file.
    ///
    /// # Errors
    ///
    /// When that fails: nothing is signed then, and the next call tries again.
    pub fn write(&mut self) -> io::Result<()> {
        let new = self.digests[self.n_in_file..].concat();
        if !new.is_empty() {
            self.leaves
                .write_all_at(&new, self.size_in_file() * DIGEST)?;
            self.n_in_file = self.digests.len();
        }
        Ok(())
    }

    /// A checkpoint is to be signed with the next occasion, whatever is new.
    pub fn set_due(&mut self) {
        self.is_due = true;
    }

    /// True if it is time for a checkpoint.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        let n_new = self.digests.len() - self.n_of_checkpoints;
        self.is_due || n_new >= MOST_RECORDS || n_new > 0 && now_ns >= self.signed_ns + INTERVAL_NS
    }

    /// Signs what has been written.
    ///
    /// # Errors
    ///
    /// When files cannot be written: nothing is signed then.
    pub fn sign(&mut self, now_ns: u64) -> io::Result<Signed> {
        self.write()?;
        self.leaves.sync_data()?;
        let state = State {
            note: Checkpoint::of(&self.origin, &self.tree).sign(&self.key),
            first: self.state.size,
            before: self.state.behind.clone(),
            size: self.tree.size(),
            behind: to_text(self.tree.peaks()),
            sure: self.tree.size(),
        };
        self.set_state(state)?;
        let digests = to_text(&self.digests);
        self.digests.clear();
        (self.n_in_file, self.n_of_checkpoints) = (0, 0);
        (self.signed_ns, self.is_due) = (now_ns, false);
        Ok(self.signed(digests))
    }

    /// Every sink has all records: the log goes on behind the last of them even after a boot, when nobody
    /// remembers them but this directory.
    ///
    /// # Errors
    ///
    /// When files cannot be written: after a boot, the log goes on behind the last checkpoint then.
    pub fn finish(&mut self) -> io::Result<()> {
        self.write()?;
        self.leaves.sync_data()?;
        self.set_state(State {
            sure: self.tree.size(),
            ..self.state.clone()
        })
    }

    fn set_state(&mut self, state: State) -> io::Result<()> {
        let text = serde_json::to_string(&state)?;
        write_whole(&self.directory.join("state"), text.as_bytes(), 0o640)?;
        self.state = state;
        Ok(())
    }

    /// Returns the last checkpoint once more. `None` if there is none.
    ///
    /// # Errors
    ///
    /// When its digests cannot be read.
    pub fn last(&self) -> io::Result<Option<Signed>> {
        if self.state.note.is_empty() {
            return Ok(None);
        }
        let n_bytes = (self.state.size - self.state.first) * DIGEST;
        let mut bytes = vec![0; usize::try_from(n_bytes).map_err(io::Error::other)?];
        self.leaves
            .read_exact_at(&mut bytes, self.state.first * DIGEST)?;
        let (digests, _) = bytes.as_chunks();
        Ok(Some(self.signed(to_text(digests))))
    }

    fn signed(&self, digests: String) -> Signed {
        Signed {
            note: self.state.note.clone(),
            digests,
            frontier: self.state.before.clone(),
            first: self.state.first,
            size: self.state.size,
        }
    }
}

/// Looks whether a log in this directory could be used, and changes nothing. An agent that uses it is no
/// error.
///
/// # Errors
///
/// When a file is not what an agent wrote, or cannot be read.
pub fn check(directory: &Path) -> Result<(), EvidenceError> {
    read_seed(directory)?;
    let state = read_state(directory)?;
    if State::tree(state.size, &state.behind).is_none() {
        return Err(damaged(directory, "state", "it has no edge of a tree"));
    }
    let n_bytes = fs::metadata(directory.join("leaves")).map_or(0, |file| file.len());
    match n_bytes / DIGEST < state.size {
        true => Err(damaged(directory, "leaves", LEAVES_MISSING)),
        false => Ok(()),
    }
}

const LEAVES_MISSING: &str = "digests that a checkpoint covers are not there";

fn damaged(directory: &Path, file: &str, what: &'static str) -> EvidenceError {
    let path = directory.join(file);
    EvidenceError::Damaged { path, what }
}

/// Reads what the key is made of. `None` if there is none yet.
fn read_seed(directory: &Path) -> Result<Option<[u8; 32]>, EvidenceError> {
    let path = directory.join("key");
    match fs::read(&path) {
        Ok(seed) => match seed.try_into() {
            Ok(seed) => Ok(Some(seed)),
            Err(_) => Err(damaged(directory, "key", "a key has 32 bytes")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EvidenceError::Io {
            what: "read",
            path,
            source,
        }),
    }
}

/// Reads the state; that of an empty log if there is none yet.
fn read_state(directory: &Path) -> Result<State, EvidenceError> {
    let path = directory.join("state");
    match fs::read_to_string(&path) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|_| damaged(directory, "state", "it is no state"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(source) => Err(EvidenceError::Io {
            what: "read",
            path,
            source,
        }),
    }
}

/// Writes a file so that it has either the old contents or the new, whatever happens.
fn write_whole(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// The kernel's random bytes, some at a time.
#[derive(Debug, Default)]
struct Random {
    bytes: Vec<u8>,
}

impl Random {
    /// For this many salts at a time.
    const BYTES: usize = 256 * size_of::<Salt>();

    fn fill(&mut self, to: &mut [u8]) -> io::Result<()> {
        if self.bytes.len() < to.len() {
            let mut bytes = vec![0; Self::BYTES];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            self.bytes = bytes;
        }
        let rest = self.bytes.len() - to.len();
        to.copy_from_slice(&self.bytes[rest..]);
        self.bytes.truncate(rest);
        Ok(())
    }
}
