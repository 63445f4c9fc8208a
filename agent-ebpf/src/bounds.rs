//! Bounds that the verifier can see.

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
