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

/// Copies what is made of words.
#[inline(always)]
pub fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's memory; the verifier checks the access. Volatile, so that it stays as
        // it is written.
        unsafe {
            let word = ptr::read_volatile(from.cast::<u64>().add(i));
            ptr::write_volatile(to.cast::<u64>().add(i), word);
        }
    }
}

/// Writes zeros to what is made of words.
#[inline(always)]
pub fn zero<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(to.cast::<u64>().add(i), 0) };
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

/// All ones if two words differ, else 0.
///
/// Without a branch, so that what comes after it is verified once: of a comparison the compiler
/// makes two ways, and the verifier goes through both.
#[inline(always)]
pub fn differ(a: u64, b: u64) -> u64 {
    let difference = a ^ b;
    let ones: u64;
    // SAFETY: instructions on registers: what is not 0 has its sign bit set, or its negative has.
    unsafe {
        asm!(
            "{ones} = {difference}",
            "{ones} = -{ones}",
            "{ones} |= {difference}",
            "{ones} s>>= 63",
            ones = out(reg) ones,
            difference = in(reg) difference,
            options(pure, nomem, nostack)
        );
    }
    ones
}

/// Has the verifier forget its bounds of a value on the stack, which stays as it is. A place that
/// many paths lead to, each with another known number, is one state to the verifier then, and the
/// code behind it is verified once. `any` is a number of which the verifier knows nothing.
#[inline(always)]
pub fn forget<T>(value: &mut T, any: u32) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let zero: u64;
    // SAFETY: instructions on registers. The verifier does not see that both are the same number.
    unsafe {
        asm!(
            "{zero} = {any}",
            "{zero} ^= {any}",
            zero = out(reg) zero,
            any = in(reg) u64::from(any),
            options(pure, nomem, nostack)
        );
    }
    let words = ptr::from_mut(value).cast::<u64>();
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: the words of the value.
        unsafe {
            words
                .add(i)
                .write_volatile(words.add(i).read_volatile() | zero)
        };
    }
}

/// Sets one of the bits of a word by its byte: what others set in its other bytes at the same
/// moment stays.
#[inline(always)]
pub fn set_bit<T>(word: *mut T, bit: u32) {
    let byte = (bit.trailing_zeros() / 8) as usize;
    // SAFETY: a map value; the verifier checks the access. Of the target, the first byte is the low
    // one.
    unsafe {
        let byte_of_word = word.cast::<u8>().add(byte);
        let bits = byte_of_word.read_volatile() | (bit >> (8 * byte)) as u8;
        byte_of_word.write_volatile(bits);
    }
}
