//! Maps of the kernel seen as memory of this process.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::wire::Plain;

/// An array map that is mapped writable.
pub struct Mapped {
    memory: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: shared kernel memory, written only through `&mut self` or atomically.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps `len` bytes of an array map that was made with `BPF_F_MMAPABLE`.
    pub fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let len = NonZeroUsize::new(len.next_multiple_of(PAGE)).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }?;
        Ok(Self { memory, len })
    }

    /// Copies values to the beginning of the map. Elements of an array map lie
    /// at multiples of 8 bytes, as do the types of the ABI that go here.
    pub fn write<T: Plain>(&mut self, values: &[T]) {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        assert!(
            size_of_val(values) <= self.len.get(),
            "the map was made for these values"
        );
        // SAFETY: within the mapping, which nobody else writes; the kernel's
        // programs do not read it before the policy is put in force.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr(),
                self.memory.as_ptr().cast(),
                values.len(),
            );
        }
    }

    /// Reads an aligned word, given by its offset in bytes.
    pub fn word(&self, offset: usize) -> u64 {
        self.atomic(offset).load(Ordering::SeqCst)
    }

    /// Writes an aligned word so that every program sees the old or the new one.
    pub fn set_word(&self, offset: usize, word: u64) {
        self.atomic(offset).store(word, Ordering::SeqCst);
    }

    /// Writes an aligned word if it is `from` still. Returns whether it was.
    pub fn change_word(&self, offset: usize, from: u64, to: u64) -> bool {
        let word = self.atomic(offset);
        word.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn atomic(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.len.get());
        let word = self.memory.as_ptr().wrapping_byte_add(offset);
        // SAFETY: aligned, within the mapping, and mapped as long as `self`.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our mapping, used no more.
        let _ = unsafe { munmap(self.memory, self.len.get()) };
    }
}
