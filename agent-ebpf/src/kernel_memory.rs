//! Reading fields of kernel structs, at offsets that came from BTF.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// Address of something in kernel memory.
pub type Kernel = u64;

/// Reads a value at `base + offset`; `None` for a bad address.
#[inline(always)]
pub fn read<T: Copy>(base: Kernel, offset: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the source; the destination is ours and as large.
    let error = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            (base + offset as u64) as *const c_void,
        )
    };
    if error != 0 {
        return None;
    }
    // SAFETY: the helper filled it.
    Some(unsafe { value.assume_init() })
}

/// Follows a pointer field; `None` if it is null or unreadable.
#[inline(always)]
pub fn follow(base: Kernel, offset: usize) -> Option<Kernel> {
    read::<u64>(base, offset).filter(|&pointer| pointer != 0)
}
