//! Memory of the agent itself.

/// Gives memory that is free back to the kernel. The allocator keeps it otherwise, and reading the country data of
/// the Internet takes several times what is kept of it.
///
/// Other allocators than that of glibc give it back by themselves.
pub fn give_back_free_memory() {
    // SAFETY: takes no pointer, and locks what it needs.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
