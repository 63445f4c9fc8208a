//! The one atomic operation that the BPF target has on every supported kernel.

/// Adds to a counter that several CPUs may add to at once.
///
/// `AtomicU64::fetch_add` is not available for this target before kernels and
/// compilers with fetching atomics; the add without a result is one instruction
/// since the first BPF.
#[inline(always)]
pub fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's pointer is into a map value; the verifier checks it.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
            options(nostack)
        );
    }
}

/// A barrier, which an add is: others see all writes before it before anything is read after it.
/// `word` is any counter.
#[inline(always)]
pub fn barrier(word: *mut u64) {
    add(word, 0);
}
