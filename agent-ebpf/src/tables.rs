//! The tables of a policy: for each of two slots an array of chunks, just as many
//! as it takes, which the agent replaces as a whole.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_INNER_MAP, BPF_F_MMAPABLE,
        bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS},
    },
    helpers::generated::bpf_map_lookup_elem,
};
use trefoil_ebpf::abi::{CHUNK_BYTES, CHUNK_SHIFT};

use crate::{bounds::offset_within, maps::TABLES};

/// One table: entries `T` of `SIZE` bytes, by index.
///
/// The kernel learns the sizes of its entries and not their types. Kernels before
/// 6.2 put a map into a slot only if it has type information where this
/// definition has it, and the agent's maps have none. aya-ebpf's own type is of
/// no use here for that reason.
#[repr(C)]
pub struct Table<T, const SIZE: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; 4],
    value_size: *const [i32; SIZE],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize],
    /// For Rust alone; the loader does not know a member of this name.
    entry: *const T,
}

impl<T, const SIZE: usize> Table<T, SIZE> {
    /// The entry at `index`, if there is one.
    #[inline(always)]
    pub fn get(&self, index: u32) -> Option<&T> {
        const { assert!(size_of::<T>() == SIZE) };
        // SAFETY: entries of arrays stay where they are while a program runs.
        unsafe { look_up::<T>(ptr::from_ref(self).cast(), index).as_ref() }
    }
}

/// A table for each slot.
#[repr(C)]
pub struct Tables<T, const SIZE: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY_OF_MAPS as usize],
    key: *const u32,
    value: *const u32,
    max_entries: *const [i32; 2],
    values: [*const Table<T, SIZE>; 0],
}

// SAFETY: placeholders that the loader replaces; never dereferenced.
unsafe impl<T, const SIZE: usize> Sync for Tables<T, SIZE> {}

impl<T, const SIZE: usize> Tables<T, SIZE> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            values: [],
        }
    }

    /// The table in `slot`, if there is one.
    #[inline(always)]
    pub fn get(&self, slot: u32) -> Option<&Table<T, SIZE>> {
        // SAFETY: the kernel frees a table only when no program uses it.
        unsafe { look_up::<Table<T, SIZE>>(ptr::from_ref(self).cast(), slot).as_ref() }
    }
}

/// See [`CHUNK_BYTES`].
pub type Chunk = [u64; CHUNK_BYTES / size_of::<u64>()];
/// All of one generation.
pub type Chunks = Table<Chunk, CHUNK_BYTES>;

/// The element at a place of a policy's tables.
#[inline(always)]
pub fn entry<T>(slot: u32, place: u32) -> Option<&'static T> {
    let chunk = TABLES.get(slot)?.get(place >> CHUNK_SHIFT)?;
    // SAFETY: within the chunk, which stays while a program runs; elements are
    // integers, for which everything is a value.
    Some(unsafe { &*in_chunk(chunk, u64::from(place)) })
}

/// The element at a place within a chunk. A place that is in another chunk, or at no
/// multiple of the element's size, leads to another element of this one.
#[inline(always)]
pub fn in_chunk<T>(chunk: *const Chunk, place: u64) -> *const T {
    const { assert!(size_of::<T>().is_power_of_two()) };
    let offset = offset_within::<T, CHUNK_BYTES>(place as usize);
    chunk.cast::<u8>().wrapping_add(offset).cast()
}

/// Null if there is nothing at `index`.
#[inline(always)]
fn look_up<T>(map: *const c_void, index: u32) -> *const T {
    // SAFETY: the verifier checks that `map` is a map whose keys are 4 bytes.
    unsafe { bpf_map_lookup_elem(map.cast_mut(), ptr::from_ref(&index).cast()) }
        .cast_const()
        .cast()
}
