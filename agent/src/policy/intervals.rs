//! Sets of numbers as sorted intervals, and where several sets begin and end.
//!
//! Addresses, services and users are numbers here. Owns nothing that knows which.

use std::collections::HashMap;
use std::hash::Hash;

/// A number that intervals are made of.
pub(super) trait Key: Copy + Ord + Hash {
    const MIN: Self;
    const MAX: Self;

    /// The next number, unless this is the last.
    fn successor(self) -> Option<Self>;

    /// The number before, unless this is the first.
    fn predecessor(self) -> Option<Self>;
}

impl Key for u32 {
    const MIN: Self = u32::MIN;
    const MAX: Self = u32::MAX;

    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn predecessor(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u128 {
    const MIN: Self = u128::MIN;
    const MAX: Self = u128::MAX;

    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn predecessor(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// A set of numbers: inclusive intervals, sorted, neither overlapping nor touching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Intervals<K>(Vec<(K, K)>);

impl<K> Default for Intervals<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Key> Intervals<K> {
    /// The union of these intervals, whatever their order.
    pub(super) fn union(intervals: impl IntoIterator<Item = (K, K)>) -> Self {
        let mut sorted: Vec<(K, K)> = intervals.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<(K, K)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some((_, end)) if end.successor().is_none_or(|behind| first <= behind) => {
                    *end = last.max(*end);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut common = Vec::new();
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&&(a_first, a_last)), Some(&&(b_first, b_last))) = (a.peek(), b.peek()) {
            let (first, last) = (a_first.max(b_first), a_last.min(b_last));
            if first <= last {
                common.push((first, last));
            }
            if a_last <= b_last {
                a.next();
            } else {
                b.next();
            }
        }
        Self(common)
    }

    /// The set with one more number.
    pub(super) fn with(&self, number: K) -> Self {
        Self::union(self.0.iter().copied().chain([(number, number)]))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts the numbers into cells, between whose borders all numbers are in the same
/// sets.
pub(super) struct Cells<K> {
    /// Smallest number of each cell, and its index in `signatures`. Begins at 0.
    pub(super) cells: Vec<(K, usize)>,
    /// Which sets the numbers of a cell are in: set `i` is bit `i % 64` of word
    /// `i / 64`.
    pub(super) signatures: Vec<Vec<u64>>,
}

impl<K: Key> Cells<K> {
    pub(super) fn new(sets: &[Intervals<K>]) -> Self {
        let mut borders: Vec<(K, usize)> = Vec::new();
        for (set, intervals) in sets.iter().enumerate() {
            for &(first, last) in &intervals.0 {
                borders.push((first, set));
                borders.extend(last.successor().map(|behind| (behind, set)));
            }
        }
        borders.sort_unstable();
        let mut inside = vec![0_u64; sets.len().div_ceil(64)];
        let mut known: HashMap<Vec<u64>, usize> = HashMap::new();
        let mut cells = Vec::new();
        let mut borders = borders.into_iter().peekable();
        let mut first = K::MIN;
        loop {
            while let Some((_, set)) = borders.next_if(|&(border, _)| border == first) {
                inside[set / 64] ^= 1 << (set % 64);
            }
            let new = known.len();
            let signature = *known.entry(inside.clone()).or_insert(new);
            cells.push((first, signature));
            match borders.peek() {
                Some(&(border, _)) => first = border,
                None => break,
            }
        }
        let mut signatures = vec![Vec::new(); known.len()];
        for (signature, index) in known {
            signatures[index] = signature;
        }
        Self { cells, signatures }
    }
}

/// True when set `index` is in this signature.
pub(super) fn is_in(signature: &[u64], index: usize) -> bool {
    signature[index / 64] >> (index % 64) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_touch_nothing() {
        let union =
            Intervals::union([(5, 6), (1, 2), (3, 3), (8, 9), (8, 8), (u32::MAX, u32::MAX)]);
        assert_eq!(union.0, [(1, 3), (5, 6), (8, 9), (u32::MAX, u32::MAX)]);
        assert_eq!(Intervals::union([(0, u32::MAX), (3, 4)]).0, [(0, u32::MAX)]);
    }

    #[test]
    fn intersections() {
        let a = Intervals::union([(0_u32, 10), (20, 30), (40, u32::MAX)]);
        let b = Intervals::union([(5, 25), (29, 29), (50, 60)]);
        assert_eq!(
            a.intersection(&b).0,
            [(5, 10), (20, 25), (29, 29), (50, 60)]
        );
        assert!(a.intersection(&Intervals::default()).is_empty());
    }

    #[test]
    fn cells_cover_everything_and_know_their_sets() {
        let sets = [
            Intervals::union([(0_u32, 9), (30, u32::MAX)]),
            Intervals::union([(5, 29)]),
            Intervals::default(),
        ];
        let cells = Cells::new(&sets);
        let firsts: Vec<u32> = cells.cells.iter().map(|&(first, _)| first).collect();
        assert_eq!(firsts, [0, 5, 10, 30]);
        let sets_of = |cell: usize| cells.signatures[cells.cells[cell].1][0];
        assert_eq!([0, 1, 2, 3].map(sets_of), [0b01, 0b11, 0b10, 0b01]);
        assert_eq!(cells.signatures.len(), 3);
        assert_eq!(Cells::<u128>::new(&[]).cells, [(0, 0)]);
    }
}
