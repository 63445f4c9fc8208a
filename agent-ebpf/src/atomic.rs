//! The atomic operations that the BPF target has on every supported kernel.

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

/// Takes what can be taken once, however many CPUs try at the same time; then it may be that
/// none of them gets it. `claims` is zero before.
///
/// Only the first to add reads 1, and only if no other has added since.
#[inline(always)]
pub fn claim(claims: *mut u32) -> bool {
    // SAFETY: the caller's pointer is into a map value; the verifier checks it.
    unsafe {
        if claims.read_volatile() != 0 {
            return false;
        }
        core::arch::asm!(
            "lock *(u32 *)({claims} + 0) += {one}",
            claims = in(reg) claims,
            one = in(reg) 1_u64,
            options(nostack)
        );
        claims.read_volatile() == 1
    }
}
