//! Ranges of keys as a tree of indexes, see `trefoil_ebpf::abi::Branch`.
//!
//! How many bits a node takes follows from how many ranges there are, so that a search at
//! the end of a branch is short wherever they are crowded, and the tree grows with their
//! number. It is made for few cache lines: what a short list cannot say in one line is
//! told apart by another node.

use std::{array, collections::HashMap, net::Ipv6Addr};

use trefoil_ebpf::abi::{Branch, CHUNK_BYTES, LongRange, MAX_TREE_LEVELS, Packed};

use super::image::Layout;
use crate::policy::problem::Fault;

/// Ranges that are searched even if they have to be long: fewer are no reason for
/// another node.
const FEW: usize = 4;

/// How many more bits a node may be for than the number of its ranges asks for.
const MORE_BITS: u32 = 3;

/// All keys from `first` up to the next one's `first`.
#[derive(Clone, Copy)]
pub struct Range {
    /// Smallest key; one that is shorter is in the uppermost bits.
    pub first: u128,
    /// As in [`Branch::value`].
    pub value: u32,
}

/// Values of all trees of a policy, each of which has an index as long as there are few.
#[derive(Default)]
pub struct Values {
    indexes: HashMap<u32, u32>,
    values: Vec<u32>,
}

impl Values {
    fn index(&mut self, value: u32) -> Option<u32> {
        if let Some(&index) = self.indexes.get(&value) {
            return Some(index);
        }
        let index = self.values.len() as u32;
        if index >> Packed::INDEX_BITS > 0 {
            return None;
        }
        self.indexes.insert(value, index);
        self.values.push(value);
        Some(index)
    }

    /// By index.
    pub fn all(&self) -> [u32; Packed::N_VALUES] {
        let value = |index| self.values.get(index).copied().unwrap_or_default();
        array::from_fn(value)
    }
}

/// Appends a tree; returns where it begins. The ranges cover every key.
///
/// # Errors
///
/// Too many of them have their first 64 bits in common.
pub fn append(layout: &mut Layout, values: &mut Values, ranges: &[Range]) -> Result<Branch, Fault> {
    let whole = Part {
        ranges,
        consumed: 0,
        level: 0,
    };
    whole.branch(layout, values)
}

/// Part of the ranges that is behind one branch.
struct Part<'r> {
    /// The first one has the first key of the part, and may begin before.
    ranges: &'r [Range],
    /// Bits that all keys of the part have in common.
    consumed: u32,
    /// Nodes above.
    level: usize,
}

impl Part<'_> {
    fn branch(&self, layout: &mut Layout, values: &mut Values) -> Result<Branch, Fault> {
        let n_ranges = self.ranges.len();
        if n_ranges == 1 {
            return Ok(Branch::value(self.ranges[0].value));
        }
        if let Some(branch) = self.packed(layout, values) {
            return Ok(branch);
        }
        let n_left = Branch::NODE_BITS - self.consumed;
        if n_ranges <= FEW || n_left == 0 || self.level == MAX_TREE_LEVELS {
            return self.long_list(layout);
        }
        let bits = self.bits(n_left);
        let branches = self.branches(layout, values, bits)?;
        Ok(Branch::node(layout.numbers(&branches), bits))
    }

    /// How many bits the node here is for: half as many branches as ranges, or up to eight
    /// times that, as soon as most ranges begin where a branch does. A search mostly ends
    /// there then, one cache line earlier: networks are of few lengths, such as /24.
    fn bits(&self, n_left: u32) -> u32 {
        let possible = n_left.min(Branch::MAX_BITS);
        let least = (self.ranges.len().ilog2() - 1).min(possible);
        let most = (least + MORE_BITS).min(possible);
        let others = &self.ranges[1..];
        let tells_most = |bits: &u32| {
            let begins = |range: &&Range| self.rest_of(range) << bits == 0;
            5 * others.iter().filter(begins).count() >= 4 * others.len()
        };
        (least..=most).find(tells_most).unwrap_or(least)
    }

    fn long_list(&self, layout: &mut Layout) -> Result<Branch, Fault> {
        const MOST: usize = CHUNK_BYTES / size_of::<LongRange>();
        if self.ranges.len() > MOST {
            let n_other = u128::BITS - self.consumed;
            let first = Ipv6Addr::from_bits(self.ranges[1].first >> n_other << n_other);
            let message = format!("more than {MOST} networks within {first}/{}", self.consumed);
            return Err(Fault::new(message).help("name fewer networks there, or larger ones"));
        }
        let list = self.ranges.iter().map(|range| LongRange {
            first_high: (range.first >> 64) as u64,
            first_low: range.first as u64,
            value: range.value,
            pad: [0; 3],
        });
        let span = layout.span(&list.collect::<Vec<_>>());
        Ok(Branch::long_list(layout.table(&[span])))
    }

    /// A short list, if that is possible.
    fn packed(&self, layout: &mut Layout, values: &mut Values) -> Option<Branch> {
        let n_steps = self.ranges.len().next_power_of_two().ilog2();
        if n_steps > Packed::MAX_STEPS {
            return None;
        }
        let mut list = Vec::with_capacity(1 << n_steps);
        for (at, range) in self.ranges.iter().enumerate() {
            let first = match at {
                0 => 0,
                _ => self.rest_of(range),
            };
            if first << Packed::KEY_BITS != 0 {
                return None;
            }
            let first = (first >> (u128::BITS - Packed::KEY_BITS)) as u32;
            list.push(Packed::new(first, values.index(range.value)?).0);
        }
        // The last one again and again, which finds the same.
        list.resize(1 << n_steps, *list.last()?);
        Some(Branch::packed(layout.numbers(&list), n_steps))
    }

    /// One branch for each value of the next bits.
    fn branches(
        &self,
        layout: &mut Layout,
        values: &mut Values,
        bits: u32,
    ) -> Result<Vec<u32>, Fault> {
        let n_left = u128::BITS - bits;
        let mut ranges = self.ranges;
        let branch = |number| {
            // From the one that has the first key of the branch to the one that has the
            // last.
            let n_before =
                ranges[1..].partition_point(|range| self.rest_of(range) <= number << n_left);
            ranges = &ranges[n_before..];
            let n_begun =
                ranges[1..].partition_point(|range| self.rest_of(range) >> n_left <= number);
            let part = Part {
                ranges: &ranges[..=n_begun],
                consumed: self.consumed + bits,
                level: self.level + 1,
            };
            Ok(part.branch(layout, values)?.0)
        };
        (0..1 << bits).map(branch).collect()
    }

    /// Where a range begins that is not the first of the part: what is left of its key,
    /// in the uppermost bits.
    fn rest_of(&self, range: &Range) -> u128 {
        range.first << self.consumed
    }
}
