//! Operations that the compiler must not see through: bounds for the verifier, and arithmetic in
//! the place of branches.

/// `value & MASK`, kept even where the compiler can prove that it changes nothing.
///
/// Its proof may rest on a comparison that older verifiers learn nothing from
/// (6.1: that a value is not zero); what they need is the mask itself.
#[inline(always)]
pub fn masked<const MASK: usize>(mut value: usize) -> usize {
    // SAFETY: one instruction on one register.
    unsafe {
        core::arch::asm!(
            "{value} &= {mask}",
            value = inout(reg) value,
            mask = const MASK,
            options(pure, nomem, nostack)
        );
    }
    value
}

/// The value, or `MOST` if that is less. The compiler may compare a copy of a value that it has put
/// onto the stack; verifiers before 6.3 or so know nothing of the other one then.
#[inline(always)]
pub fn clamped<const MOST: usize>(mut value: usize) -> usize {
    // SAFETY: instructions on one register.
    unsafe {
        core::arch::asm!(
            "if {value} > {most} goto +1",
            "goto +1",
            "{value} = {most}",
            value = inout(reg) value,
            most = const MOST,
            options(pure, nomem, nostack)
        );
    }
    value
}

/// Offset of an element `T` within `SIZE` bytes, a power of two as is its own: what
/// is beyond, or not at a multiple of its size, leads to another element.
#[inline(always)]
pub fn offset_within<T, const SIZE: usize>(mut value: usize) -> usize {
    // SAFETY: one instruction on one register.
    unsafe {
        core::arch::asm!(
            "{value} &= {mask}",
            value = inout(reg) value,
            mask = const SIZE - size_of::<T>(),
            options(pure, nomem, nostack)
        );
    }
    value
}

/// All bits if `a < b`, else none; both are below 2^63. The compiler would rather branch.
#[inline(always)]
pub fn ones_if_less(mut a: u64, b: u64) -> u64 {
    // SAFETY: two instructions on two registers.
    unsafe {
        core::arch::asm!(
            "{a} -= {b}",
            "{a} s>>= 63",
            a = inout(reg) a,
            b = in(reg) b,
            options(pure, nomem, nostack)
        );
    }
    a
}
