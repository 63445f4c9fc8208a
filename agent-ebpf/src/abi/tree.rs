//! Trees of indexes: what a policy's tables find ranges of keys by.

use super::{CHUNK_BYTES, CHUNK_SHIFT, MAX_CHUNKS};

/// All keys from one up to the next entry's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LongRange {
    /// More significant half of the smallest key.
    pub first_high: u64,
    /// Less significant half.
    pub first_low: u64,
    /// As in [`Branch::value`].
    pub value: u32,
    /// Zero.
    pub pad: [u32; 3],
}

/// Where a look-up goes on. A table with ranges of keys is a tree: a node is an array of
/// branches, indexed by the next bits of the key, as many as it takes to tell most of
/// what is behind it apart. Keys begin with their uppermost bit, and have 128; those
/// that are shorter end with zeros. Nodes are for the first 64 bits alone.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch(pub u32);

/// Steps of a search that are enough for a list that is as long as a chunk.
pub const MAX_LONG_LIST_STEPS: u32 = CHUNK_SHIFT - 5;
/// Most nodes on the way to a value or a list.
pub const MAX_TREE_LEVELS: usize = 6;

impl Branch {
    /// Bits of a key that nodes can be for.
    pub const NODE_BITS: u32 = 64;
    /// Most bits of one node, which is in one chunk.
    pub const MAX_BITS: u32 = CHUNK_SHIFT - size_of::<Self>().ilog2();
    /// [`kind`](Self::kind): here is the value.
    pub const VALUE: u32 = 0;
    /// Search a short list of [`Packed`].
    pub const PACKED: u32 = 1;
    /// Search a list of [`LongRange`], whose [`super::Span`] is there.
    pub const LONG_LIST: u32 = 2;
    /// Another node.
    pub const NODE: u32 = 3;
    const KIND_SHIFT: u32 = 30;
    /// All places in a tree are at multiples of 8 bytes, and below this many of those.
    const PLACE_BITS: u32 = 23;
    const PLACE_SHIFT: u32 = 3;

    /// Of a value, as [`of`](Self::of) has made it.
    #[inline(always)]
    pub const fn value(value: u32) -> Self {
        Self(value)
    }

    /// In the value of a destination: it is this host's own, and no clause is asked where the
    /// packet may stay, see [`super::MAY_STAY`].
    pub const OWN: u32 = 1 << Self::MARKS_SHIFT;
    const MARKS_SHIFT: u32 = 24;
    /// How far the combination of layouts is shifted, see [`embeds`](Self::embeds).
    pub const EMBEDS_SHIFT: u32 = Self::MARKS_SHIFT + 1;
    /// Marks of a destination, below [`KIND_SHIFT`](Self::KIND_SHIFT).
    pub const N_MARKS: u32 = 1 << (Self::KIND_SHIFT - Self::MARKS_SHIFT);

    /// The value of a class and, for destinations, of the verdict and the marks beside it:
    /// `class | fallback << 16 | marks << 24`. The verdict holds when no clause matches; if
    /// it is [`super::verdict::LOCAL`], no clause is asked.
    #[must_use]
    pub const fn of(class: u16, fallback: u8, marks: u8) -> u32 {
        assert!((marks as u32) < Self::N_MARKS);
        class as u32 | (fallback as u32) << 16 | (marks as u32) << Self::MARKS_SHIFT
    }

    /// Which addresses the value says to be embedded in a destination: an index of
    /// [`super::Header::layouts`], 0 for none.
    #[inline(always)]
    pub const fn embeds(value: u32) -> usize {
        (value >> Self::EMBEDS_SHIFT) as usize & (super::layout::N_SETS - 1)
    }

    /// A list of `1 << n_steps` entries, in one cache line as a whole.
    pub const fn packed(place: u32, n_steps: u32) -> Self {
        Self::new(Self::PACKED, place, n_steps)
    }

    /// The place of a [`super::Span`].
    pub const fn long_list(place: u32) -> Self {
        Self::new(Self::LONG_LIST, place, 0)
    }

    /// A node of `1 << bits` branches, which is in one chunk.
    pub const fn node(place: u32, bits: u32) -> Self {
        Self::new(Self::NODE, place, bits)
    }

    const fn new(kind: u32, place: u32, detail: u32) -> Self {
        // A place beyond is in no chunk that a policy can have: nobody will look there.
        let place = place >> Self::PLACE_SHIFT & ((1 << Self::PLACE_BITS) - 1);
        assert!(detail < 1 << (Self::KIND_SHIFT - Self::PLACE_BITS));
        Self(kind << Self::KIND_SHIFT | detail << Self::PLACE_BITS | place)
    }

    /// Returns the kind of the branch.
    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.0 >> Self::KIND_SHIFT
    }

    /// Where it leads to.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        (self.0 & ((1 << Self::PLACE_BITS) - 1)) << Self::PLACE_SHIFT
    }

    /// Steps of the search, or bits of the node.
    #[inline(always)]
    pub const fn detail(self) -> u32 {
        self.0 >> Self::PLACE_BITS & ((1 << (Self::KIND_SHIFT - Self::PLACE_BITS)) - 1)
    }
}

/// All keys from one up to the next entry's, in the fewest bytes: the first bits of the key
/// that follow those which led there, and the index of the value in [`super::Header::values`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed(pub u32);

impl Packed {
    /// Bits of the key.
    pub const KEY_BITS: u32 = 20;
    /// Bits of the index.
    pub const INDEX_BITS: u32 = u32::BITS - Self::KEY_BITS;
    /// Values that have an index.
    pub const N_VALUES: usize = 1 << Self::INDEX_BITS;
    /// Most steps of a search, which makes as many entries as a cache line has.
    pub const MAX_STEPS: u32 = 4;

    /// Entry of these keys.
    pub const fn new(first: u32, index: u32) -> Self {
        Self(first << Self::INDEX_BITS | index)
    }
}

const _: () = assert!(MAX_CHUNKS * CHUNK_BYTES <= 1 << (Branch::PLACE_BITS + Branch::PLACE_SHIFT));

#[cfg(not(target_arch = "bpf"))]
const _: () = assert!(size_of::<LongRange>() == 32);
