//! Memory a word at a time.
//!
//! The compiler takes what need not be aligned apart into bytes, and compares and copies
//! structs by functions that go byte by byte. Each of these is one instruction, or one for
//! eight bytes.

use core::{arch::asm, ptr};

macro_rules! load {
    ($name:ident, $type:ty, $word:literal) => {
        /// Loads what is at `OFFSET` behind a pointer, in the byte order that it has there. The
        /// verifier checks the access.
        #[inline(always)]
        pub fn $name<const OFFSET: usize>(from: *const u8) -> $type {
            let value: u64;
            // SAFETY: one load, which the verifier checks.
            unsafe {
                asm!(
                    concat!("{value} = *(", $word, " *)({from} + {offset})"),
                    value = out(reg) value,
                    from = in(reg) from,
                    offset = const OFFSET,
                    options(pure, readonly, nostack)
                );
            }
            value as $type
        }
    };
}

load!(load_u8, u8, "u8");
load!(load_u16, u16, "u16");
load!(load_u32, u32, "u32");
load!(load_u64, u64, "u64");

/// True if `N` words are the same. Both begin at a multiple of eight bytes.
#[inline(always)]
pub fn same_words<const N: usize>(a: *const u64, b: *const u64) -> bool {
    for i in 0..N {
        // SAFETY: the caller's memory; the verifier checks the access.
        if unsafe { ptr::read(a.add(i)) != ptr::read(b.add(i)) } {
            return false;
        }
    }
    true
}

/// Copies `N` words.
#[inline(always)]
pub fn copy_words<const N: usize>(from: *const u64, to: *mut u64) {
    for i in 0..N {
        // SAFETY: the caller's memory; the verifier checks the access. Volatile, so that it
        // stays as it is written.
        unsafe { ptr::write_volatile(to.add(i), ptr::read_volatile(from.add(i))) };
    }
}

/// The lower half of the address of something in the kernel, as a number: the verifier forbids
/// arithmetic with the address itself.
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "what it points to is not looked at"
)]
#[inline(always)]
pub fn low_half<T>(pointer: *const T) -> u64 {
    let half: u64;
    // SAFETY: one instruction on registers. A move of 32 bits makes a number of a pointer.
    unsafe {
        asm!(
            "w0 = w1",
            out("r0") half,
            in("r1") pointer,
            options(pure, nomem, nostack)
        );
    }
    half
}
