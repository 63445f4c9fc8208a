//! Reading fields of kernel structs, at offsets that came from BTF.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// Address of something in kernel memory.
pub type Kernel = u64;

/// Reads a value at `base + offset`; `None` for a bad address.
#[inline(always)]
pub fn read<T: Copy>(base: Kernel, offset: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    read_into(base, offset, &mut value)?;
    // SAFETY: it was filled.
    Some(unsafe { value.assume_init() })
}

/// As [`read`], to where the value is wanted.
#[inline(always)]
pub fn read_into<T>(base: Kernel, offset: usize, value: &mut T) -> Option<()> {
    // SAFETY: the helper checks the source; the destination is ours and as large.
    let error = unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(value).cast::<c_void>(),
            size_of::<T>() as u32,
            (base + offset as u64) as *const c_void,
        )
    };
    (error == 0).then_some(())
}

/// The same of a word, which is 0 if it cannot be read: without a branch, so that the verifier goes on in
/// one way.
#[inline(always)]
pub fn read_or_zero(base: Kernel, offset: usize) -> u64 {
    let mut word = 0;
    let _ = read_into(base, offset, &mut word);
    word
}

/// Reads two fields, in one call where one is behind the other.
#[inline(always)]
pub fn read_two<T: Copy>(base: Kernel, first: usize, second: usize) -> Option<[T; 2]> {
    match second == first + size_of::<T>() {
        true => read(base, first),
        false => Some([read(base, first)?, read(base, second)?]),
    }
}

/// Follows a pointer field; `None` if it is null or unreadable.
#[inline(always)]
pub fn follow(base: Kernel, offset: usize) -> Option<Kernel> {
    read::<u64>(base, offset).filter(|&pointer| pointer != 0)
}
