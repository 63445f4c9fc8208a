//! Deeds: who did something to the objects that this agent has in the kernel.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use trefoil_ebpf::abi::{Deed, DeedKey, Owner, quality, thing};

use super::{
    KernelError,
    pins::PinDir,
    reader::{Hash, collect, get, hash},
    wire::Wire,
};

/// Map `DEEDS`.
pub struct Deeds {
    table: Hash<DeedKey, Deed>,
}

impl Deeds {
    /// As it is: what an agent before has looked after is in it.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        Ok(Self {
            table: hash(pins, "DEEDS")?,
        })
    }

    /// Looks after nothing any more.
    pub fn clear(&mut self) -> Result<(), KernelError> {
        for (key, _) in collect(&self.table, "DEEDS")? {
            self.forget(key);
        }
        Ok(())
    }

    /// Looks after something from now on. Without room nobody is named.
    pub fn look_after(&mut self, key: DeedKey) {
        let _ = self.table.insert(Wire(key), Wire(Deed::default()), 0);
    }

    /// Looks after it no more.
    pub fn forget(&mut self, key: DeedKey) {
        let _ = self.table.remove(&Wire(key));
    }

    /// Returns the process that did something to one of these last, if it was not before
    /// `since_ns`. The damage that was found is inferred to be its doing.
    pub fn last(&self, keys: &[DeedKey], since_ns: u64) -> Option<Owner> {
        let deeds = keys.iter().filter_map(|key| self.deed(*key));
        let deed = deeds
            .filter(|deed| deed.time_ns >= since_ns)
            .max_by_key(|deed| deed.time_ns)?;
        Some(Owner {
            quality: quality::INFERRED,
            ..deed.by
        })
    }

    /// `None` while it is being written, too.
    fn deed(&self, key: DeedKey) -> Option<Deed> {
        let read = || get(&self.table, key, "DEEDS").ok().flatten();
        let deed = read().filter(|deed: &Deed| deed.time_ns != 0)?;
        (read() == Some(deed)).then_some(deed)
    }
}

/// Returns the key under which a link with this number is looked after.
pub fn link(id: u32) -> DeedKey {
    DeedKey {
        kind: thing::LINK,
        device: 0,
        id: id.into(),
    }
}

/// Returns the key under which a map with this number is looked after.
pub fn map(id: u32) -> DeedKey {
    DeedKey {
        kind: thing::MAP,
        device: 0,
        id: id.into(),
    }
}

/// Returns the key under which a directory is looked after.
pub fn directory(path: &Path) -> io::Result<DeedKey> {
    let metadata = fs::metadata(path)?;
    let device = metadata.dev();
    Ok(DeedKey {
        kind: thing::DIRECTORY,
        device: libc::major(device) << 20 | libc::minor(device),
        id: metadata.ino(),
    })
}
