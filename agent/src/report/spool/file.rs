//! The files of the spool: opened, locked, and with the room that they have in advance. Knows nothing
//! about their contents.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, Flock, FlockArg, fallocate},
};

use super::{ROOM, SpoolError};

/// Opens one, or makes it, and keeps it from other agents.
pub(super) fn open_file(path: &Path) -> Result<Flock<File>, SpoolError> {
    let failed = |source| SpoolError::File {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    let file =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| SpoolError::InUse {
            path: path.to_owned(),
        })?;
    let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(&*file, flags, 0, ROOM as libc::off_t) {
        // Not every file system can.
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(file),
        Err(error) => Err(failed(error.into())),
    }
}

/// Gives back the room of what was written beyond `len`, but for that which is taken up in advance:
/// half of a batch on a full file system takes room that others need.
pub(super) fn give_back(file: &File, len: u64) {
    let kept = len.max(ROOM);
    if file.metadata().is_ok_and(|file| file.len() > kept) {
        // Only memory is at stake.
        let _ = file.set_len(kept);
    }
}
