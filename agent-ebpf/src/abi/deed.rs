//! Deeds: acts of somebody else than the agent on the agent's objects in the kernel.

use super::Owner;

/// Kinds of things that are looked after.
pub mod thing {
    /// A link; what is done is to detach it or to update it.
    pub const LINK: u32 = 0;
    /// A map; what is done is to write to it.
    pub const MAP: u32 = 1;
    /// A directory of pins; what is done is to remove one.
    pub const DIRECTORY: u32 = 2;
}

/// A thing that is looked after: key of map `DEEDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeedKey {
    /// One of [`thing`].
    pub kind: u32,
    /// Of a directory, the device in the kernel's encoding, `major << 20 | minor`; else 0.
    pub device: u32,
    /// The kernel's number of a link or a map, the inode number of a directory.
    pub id: u64,
}

/// Last act on a thing, whether it succeeded or not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deed {
    /// When, nanoseconds since boot (suspend included); 0 if nothing was done yet, and while
    /// the rest is written.
    pub time_ns: u64,
    /// Process that did it.
    pub by: Owner,
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<DeedKey>() == 16);
    assert!(size_of::<Deed>() == 96);
};
