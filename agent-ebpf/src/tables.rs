//! The tables of a policy: for each of two slots as many chunks as it takes, which the
//! agent replaces.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE,
        bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS},
    },
    helpers::generated::bpf_map_lookup_elem,
};
use trefoil_ebpf::abi::{CHUNK_BYTES, CHUNK_SHIFT, First, Header, MAX_CHUNKS, chunk_index};

use crate::{bounds::offset_within, maps::TABLES};

/// See [`CHUNK_BYTES`].
pub type Chunk = [u64; CHUNK_BYTES / size_of::<u64>()];

/// All tables of one slot.
#[derive(Clone, Copy)]
pub struct Tables {
    slot: u32,
    /// First chunk: the part that most decisions read.
    pub first: *const First,
}

impl Tables {
    /// The tables of a slot: those of the first chunk are found at once.
    #[inline(always)]
    pub fn of(slot: u32) -> Option<Self> {
        let first = TABLES.get(chunk_index(slot, 0))?.cast::<First>();
        Some(Self { slot, first })
    }

    /// The header.
    #[inline(always)]
    pub fn header(&self) -> &'static Header {
        // SAFETY: the entry of an array stays where it is while a program runs.
        unsafe { &(*self.first).header }
    }

    /// The chunk that a place is in, if there is one. None of another slot, whatever the
    /// place.
    #[inline(always)]
    pub fn chunk(&self, place: u32) -> Option<*const Chunk> {
        TABLES.get(chunk_index(self.slot, place >> CHUNK_SHIFT))
    }
}

/// One chunk. A map of its own, because the look-up of the only element of a map that is
/// as large as every other is no call: the kernel puts the instructions in its place.
///
/// The kernel learns the sizes of its entries and not their types. Kernels before
/// 6.2 put a map into a slot only if it has type information where this
/// definition has it, and the agent's maps have none. aya-ebpf's own type is of
/// no use here for that reason.
#[repr(C)]
pub struct ChunkMap {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; 4],
    value_size: *const [i32; CHUNK_BYTES],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; BPF_F_MMAPABLE as usize],
}

/// The chunks of both slots, at [`chunk_index`].
#[repr(C)]
pub struct Chunks {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY_OF_MAPS as usize],
    key: *const u32,
    value: *const u32,
    max_entries: *const [i32; 2 * MAX_CHUNKS],
    values: [*const ChunkMap; 0],
}

// SAFETY: placeholders that the loader replaces; never dereferenced.
unsafe impl Sync for Chunks {}

impl Chunks {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            values: [],
        }
    }

    #[inline(always)]
    fn get(&self, index: u32) -> Option<*const Chunk> {
        // The kernel frees a chunk only when no program uses it, and the entry of an array
        // stays where it is.
        let chunk = look_up::<ChunkMap>(ptr::from_ref(self).cast(), index);
        if chunk.is_null() {
            return None;
        }
        let chunk = look_up::<Chunk>(chunk.cast(), 0);
        if chunk.is_null() { None } else { Some(chunk) }
    }
}

/// The element at a place of a policy's tables.
#[inline(always)]
pub fn entry<T>(slot: u32, place: u32) -> Option<&'static T> {
    let chunk = Tables::of(slot)?.chunk(place)?;
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
