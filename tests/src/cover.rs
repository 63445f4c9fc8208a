//! File systems over a directory: full, or read-only, while somebody uses what is below.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system over a directory. Taken away when dropped; what is below is there again.
#[derive(Debug)]
pub struct Cover(PathBuf);

impl Cover {
    /// An empty file system of this size.
    pub fn small(directory: &Path, size: &str) -> Result<Self> {
        let options = format!("size={size}");
        let (kind, none) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, directory, kind, none, Some(options.as_str()))
            .with_context(|| format!("mount a file system on {}", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    /// A file system without room.
    pub fn full(directory: &Path) -> Result<Self> {
        let cover = Self::small(directory, "64k")?;
        fill(&directory.join("ballast"), 0)?;
        Ok(cover)
    }

    /// The same directory, which nothing can be written to by its name.
    pub fn read_only(directory: &Path) -> Result<Self> {
        let bound = |source, flags| {
            mount(source, directory, None::<&str>, flags, None::<&str>)
                .with_context(|| format!("mount {} on itself", directory.display()))
        };
        bound(Some(directory), MsFlags::MS_BIND)?;
        let cover = Self(directory.to_owned());
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        bound(None, flags)?;
        Ok(cover)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
    }
}

/// Makes a file of all that a small file system has room for, but for so many bytes.
pub fn fill(file: &Path, but: u64) -> Result<()> {
    let mut filler = File::create(file)?;
    let full = (0..).find_map(|_| filler.write_all(&[0; 4096]).err());
    ensure!(full.context("endless")?.kind() == ErrorKind::StorageFull);
    let taken = fs::metadata(file)?.len();
    filler.set_len(taken.saturating_sub(but))?;
    Ok(())
}
