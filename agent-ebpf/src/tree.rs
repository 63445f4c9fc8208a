//! Trees of ranges of keys, see [`Branch`].

use trefoil_ebpf::abi::*;

use crate::{
    bounds::{masked, offset_within, ones_if_less},
    tables::{Chunk, Tables, in_chunk},
};

/// The value of a key of 32 bits, as in [`Branch::value`]; 0 if the tables cannot be
/// read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_number(slot: u32, branch: u32, key: u32) -> u32 {
    let Some(tables) = Tables::of(slot & 1) else {
        return 0;
    };
    find128(&tables, Branch(branch), u64::from(key) << 32, 0)
}

/// The value of a key of 128 bits.
#[inline(always)]
pub fn find128(tables: &Tables, branch: Branch, high: u64, low: u64) -> u32 {
    if branch.kind() == Branch::VALUE {
        return branch.0;
    }
    find(tables, branch, high, low).unwrap_or(0)
}

#[inline(always)]
fn find(tables: &Tables, mut branch: Branch, high: u64, low: u64) -> Option<u32> {
    const BRANCH_SHIFT: u32 = size_of::<Branch>().ilog2();
    let mut rest = high;
    let mut number = branch.place() >> CHUNK_SHIFT;
    let mut chunk = tables.chunk(branch.place())?;
    for _ in 0..MAX_TREE_LEVELS {
        if branch.kind() != Branch::NODE {
            break;
        }
        let bits = branch.detail() & 63;
        let index = rest >> ((64 - bits) & 63) << BRANCH_SHIFT;
        // SAFETY: within the chunk. So below.
        branch = unsafe { *in_chunk::<Branch>(chunk, u64::from(branch.place()) + index) };
        if branch.kind() == Branch::VALUE {
            return Some(branch.0);
        }
        rest <<= bits;
        // The target of a branch is mostly in the same chunk.
        let next = branch.place() >> CHUNK_SHIFT;
        if next != number {
            number = next;
            chunk = tables.chunk(branch.place())?;
        }
    }
    if branch.kind() == Branch::PACKED {
        let packed = last_packed(chunk, branch, rest)?;
        let index = masked::<{ Packed::N_VALUES - 1 }>(packed as usize);
        // SAFETY: the index is masked, which the compiler cannot see.
        return Some(unsafe { *tables.header().values.as_ptr().add(index) });
    }
    let span = unsafe { *in_chunk::<Span>(chunk, u64::from(branch.place())) };
    let chunk = tables.chunk(span.start)?;
    Some(last_long(chunk, span, high, low))
}

/// The last entry of a packed list that begins at or before the rest of a key. How many
/// steps it takes and where each of them leads is calculated and not asked: nobody could
/// foresee the answers.
#[inline(always)]
fn last_packed(chunk: *const Chunk, branch: Branch, rest: u64) -> Option<u32> {
    const ENTRY: usize = size_of::<Packed>();
    let behind = (rest >> u32::BITS | ((1 << Packed::INDEX_BITS) - 1)) + 1;
    let within = (ENTRY << (branch.detail() & 7)) - 1;
    let place = offset_within::<Packed, CHUNK_BYTES>(branch.place() as usize);
    // So that what is behind a shorter list can be read, and is in the chunk.
    if place > CHUNK_BYTES - (ENTRY << Packed::MAX_STEPS) {
        return None;
    }
    let mut entry = chunk.cast::<u8>().wrapping_add(place);
    for step in (0..Packed::MAX_STEPS).rev() {
        let half = ENTRY << step;
        // SAFETY: within the chunk. So below.
        let first = unsafe { *entry.wrapping_add(half).cast::<u32>() };
        // No step, where the list is shorter than that.
        let half = half & within;
        entry = entry.wrapping_add(ones_if_less(u64::from(first), behind) as usize & half);
    }
    Some(unsafe { *entry.cast::<u32>() })
}

/// The value of the last entry of a long list that begins at or before a key.
#[inline(always)]
fn last_long(chunk: *const Chunk, span: Span, high: u64, low: u64) -> u32 {
    let Span { start, len } = span;
    let mut base = u64::from(start);
    let mut len = u64::from(len);
    for _ in 0..=MAX_LONG_LIST_STEPS {
        if len <= 1 {
            break;
        }
        let half = len / 2;
        let middle = base + half * size_of::<LongRange>() as u64;
        let range = in_chunk::<LongRange>(chunk, middle);
        // SAFETY: within the chunk. So below.
        let (first_high, first_low) = unsafe { ((*range).first_high, (*range).first_low) };
        if first_high < high || first_high == high && first_low <= low {
            base = middle;
        }
        len -= half;
    }
    unsafe { (*in_chunk::<LongRange>(chunk, base)).value }
}
