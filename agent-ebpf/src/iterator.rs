//! Output that iterator programs write for their readers.

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};

/// `struct bpf_iter_meta`
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
}

/// Writes a value; `None` if there is no room for it, and then the kernel runs the program
/// once more about the same.
///
/// `meta` is the iterator's own, as its context has it.
#[inline(always)]
pub fn write<T>(meta: *const Meta, value: *const T) -> Option<()> {
    // SAFETY: the verifier checks both, and that the value is as large.
    let error = unsafe { bpf_seq_write((*meta).seq, value.cast(), size_of::<T>() as u32) };
    (error == 0).then_some(())
}
