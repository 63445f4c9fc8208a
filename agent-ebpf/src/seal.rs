//! Seals of owners: what two processors have written at once is of no process, and is known by its seal.

use trefoil_ebpf::abi::Owner;

/// Sum of what rules may ask for. Not of which process it is: those of one service that share a
/// socket write the same, and at once.
#[inline(always)]
pub fn seal_of(exe_id: u64, cgroup_id: u64, who: u64, session: u32) -> u64 {
    // An owner that nobody has written has no seal.
    const START: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut seal = START;
    for word in [cgroup_id, who, u64::from(session)] {
        seal = seal.rotate_left(13) ^ word;
    }
    sealed(seal, exe_id)
}

/// Adds the executable to the sum of all else, or takes it away again.
#[inline(always)]
pub const fn sealed(seal: u64, exe_id: u64) -> u64 {
    seal ^ exe_id.rotate_left(39)
}

/// The same of an owner as it is now. Its seal is another if a second processor has written to it
/// meanwhile: then it may be partly one process and partly another.
#[inline(always)]
pub fn sum(owner: &Owner) -> u64 {
    let who = u64::from(owner.gid) << 32 | u64::from(owner.uid);
    seal_of(owner.exe_id, owner.cgroup_id, who, owner.session)
}

/// True if an owner is of one process.
#[inline(always)]
pub fn is_whole(owner: *const Owner) -> bool {
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe { sum(&*owner) == (*owner).seal }
}

/// Seals an owner that nobody else writes.
#[inline(always)]
pub fn seal(owner: *mut Owner) {
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe { (*owner).seal = sum(&*owner) };
}
