//! Maps of the kernel seen as memory of this process.
//!
//! Elements of an array, or the pages of a ring buffer.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::wire::Plain;

/// A part of a map that is mapped.
pub struct Mapped {
    memory: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: shared kernel memory, written only through `&mut self` or atomically.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps `len` bytes of an array map that was made with `BPF_F_MMAPABLE`, writable.
    pub fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map(map, 0, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps `len` bytes from `offset` on, which is a multiple of a page, to be read.
    pub fn read_only(map: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<Self> {
        Self::map(map, offset, len, ProtFlags::PROT_READ)
    }

    fn map(
        map: BorrowedFd<'_>,
        offset: usize,
        len: usize,
        protection: ProtFlags,
    ) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let len = NonZeroUsize::new(len.next_multiple_of(PAGE)).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            mmap(
                None,
                len,
                protection,
                MapFlags::MAP_SHARED,
                map,
                offset as libc::off_t,
            )
        }?;
        Ok(Self { memory, len })
    }

    /// Reads half an aligned word.
    pub fn half_word(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < self.len.get());
        let word = self.memory.as_ptr().wrapping_byte_add(offset);
        // SAFETY: aligned, within the mapping, and mapped as long as `self`.
        unsafe { AtomicU32::from_ptr(word.cast()) }.load(Ordering::SeqCst)
    }

    /// Copies a value, which nobody writes meanwhile.
    pub fn read<T: Plain>(&self, offset: usize) -> T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.len.get()));
        let value = self.memory.as_ptr().wrapping_byte_add(offset).cast::<T>();
        // SAFETY: within the mapping; any bytes are a value; the caller knows that they are still.
        unsafe { value.read_unaligned() }
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
