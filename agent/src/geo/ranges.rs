//! Tables of address ranges: sorted, disjoint, neighbours of one value merged.
//!
//! Knows numbers only, neither countries nor file formats.

/// An address as a number in host byte order.
pub trait Number: Copy + Ord {
    /// The lowest address.
    const MIN: Self;
    /// The highest address.
    const MAX: Self;
    /// The next address; `None` after the highest.
    fn next(self) -> Option<Self>;
    /// The address before; `None` before the lowest.
    fn previous(self) -> Option<Self>;
}

impl Number for u32 {
    const MIN: Self = u32::MIN;
    const MAX: Self = u32::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Number for u128 {
    const MIN: Self = u128::MIN;
    const MAX: Self = u128::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// Addresses from `first` to `last`, both included, that have one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<A, T> {
    /// Lowest address.
    pub first: A,
    /// Highest address, not below `first`.
    pub last: A,
    /// Value of these addresses.
    pub value: T,
}

/// A table of ranges in ascending order. Addresses in no range have no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<A, T>(Vec<Range<A, T>>);

impl<A, T> Default for Ranges<A, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A range was added that does not lie behind the ones before it.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfOrder;

impl<A: Number, T: Copy + PartialEq> Ranges<A, T> {
    /// Adds a range behind all others, growing the last one if it goes on.
    pub fn push(&mut self, range: Range<A, T>) -> Result<(), OutOfOrder> {
        if range.last < range.first {
            return Err(OutOfOrder);
        }
        if let Some(end) = self.0.last_mut() {
            if range.first <= end.last {
                return Err(OutOfOrder);
            }
            if end.value == range.value && end.last.next() == Some(range.first) {
                end.last = range.last;
                return Ok(());
            }
        }
        self.0.push(range);
        Ok(())
    }

    /// The value of this address, found by binary search.
    #[must_use]
    pub fn get(&self, address: A) -> Option<T> {
        let behind = self.0.partition_point(|range| range.first <= address);
        let range = self.0[..behind].last()?;
        (address <= range.last).then_some(range.value)
    }

    /// The ranges in ascending order.
    #[must_use]
    pub fn as_slice(&self) -> &[Range<A, T>] {
        &self.0
    }

    /// True when no address has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This table where it has a value, `lower` elsewhere.
    #[must_use]
    pub fn over(&self, lower: &Self) -> Self {
        let mut both = Self(Vec::with_capacity(self.0.len() + lower.0.len()));
        let mut below = &lower.0[..];
        let mut gap_first = Some(A::MIN);
        for upper in &self.0 {
            if let (Some(first), Some(last)) = (gap_first, upper.first.previous()) {
                below = both.fill(first, last, below);
            }
            both.append(*upper);
            gap_first = upper.last.next();
        }
        if let Some(first) = gap_first {
            both.fill(first, A::MAX, below);
        }
        both
    }

    /// The table of what `map` makes of each value, without those it drops.
    #[must_use]
    pub fn filter_map<U: Copy + PartialEq>(&self, map: impl Fn(T) -> Option<U>) -> Ranges<A, U> {
        let mut mapped = Ranges(Vec::with_capacity(self.0.len()));
        for &Range { first, last, value } in &self.0 {
            if let Some(value) = map(value) {
                mapped.append(Range { first, last, value });
            }
        }
        mapped.0.shrink_to_fit();
        mapped
    }

    /// Adds the part of `below` that lies within a gap, and returns what may
    /// reach into the next gap.
    fn fill<'a>(&mut self, first: A, last: A, below: &'a [Range<A, T>]) -> &'a [Range<A, T>] {
        let reach = below.partition_point(|range| range.last < first);
        let mut rest = &below[reach..];
        while let Some((range, behind)) = rest.split_first() {
            if range.first > last {
                break;
            }
            let clipped = Range {
                first: range.first.max(first),
                last: range.last.min(last),
                value: range.value,
            };
            // An empty gap between two ranges of the upper table clips to nothing.
            if clipped.first <= clipped.last {
                self.append(clipped);
            }
            if range.last > last {
                break;
            }
            rest = behind;
        }
        rest
    }

    /// `push` where the order is known to be right.
    pub(super) fn append(&mut self, range: Range<A, T>) {
        self.push(range)
            .expect("ranges are taken from disjoint tables in ascending order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table over few addresses at either end of the number range, so that
    /// every neighbourhood and both ends occur.
    fn tables() -> impl Strategy<Value = Ranges<u32, u8>> {
        proptest::collection::vec((0_u32..4, 1_u32..6, 0_u8..3), 0..16).prop_map(|parts| {
            let mut ranges = Ranges::default();
            let mut next = 0_u32;
            for (gap, length, value) in parts {
                let (offset, behind) = (next + gap, next + gap + length);
                let crosses_the_middle = offset < 24 && behind > 24;
                if behind > 48 || crosses_the_middle {
                    break;
                }
                let first = if offset < 24 {
                    offset
                } else {
                    u32::MAX - 47 + offset
                };
                ranges
                    .push(Range {
                        first,
                        last: first + (length - 1),
                        value,
                    })
                    .unwrap();
                next = behind;
            }
            ranges
        })
    }

    fn addresses() -> impl Iterator<Item = u32> {
        (0..30).chain(u32::MAX - 30..=u32::MAX)
    }

    fn linear(ranges: &Ranges<u32, u8>, address: u32) -> Option<u8> {
        let mut found = ranges
            .0
            .iter()
            .filter(|r| r.first <= address && address <= r.last);
        let value = found.next().map(|range| range.value);
        assert!(found.next().is_none(), "ranges overlap at {address}");
        value
    }

    fn assert_canonical(ranges: &Ranges<u32, u8>) {
        for pair in ranges.0.windows(2) {
            assert!(pair[0].last < pair[1].first);
            let adjacent = pair[0].last + 1 == pair[1].first;
            assert!(
                !(adjacent && pair[0].value == pair[1].value),
                "not merged: {pair:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn binary_search_finds_what_linear_search_finds(ranges in tables()) {
            assert_canonical(&ranges);
            for address in addresses() {
                prop_assert_eq!(ranges.get(address), linear(&ranges, address));
            }
        }

        #[test]
        fn the_upper_table_hides_the_lower_one(upper in tables(), lower in tables()) {
            let both = upper.over(&lower);
            assert_canonical(&both);
            for address in addresses() {
                let expected = upper.get(address).or(lower.get(address));
                prop_assert_eq!(both.get(address), expected, "at {}", address);
            }
        }

        #[test]
        fn dropped_values_are_gone_and_the_rest_stays(ranges in tables()) {
            let mapped = ranges.filter_map(|value| (value != 1).then_some(value / 2));
            assert_canonical(&mapped);
            for address in addresses() {
                let expected = ranges.get(address).filter(|&v| v != 1).map(|v| v / 2);
                prop_assert_eq!(mapped.get(address), expected);
            }
        }
    }

    #[test]
    fn ranges_behind_the_last_one_only() {
        let mut ranges = Ranges::default();
        let range = |first: u128, last: u128| Range {
            first,
            last,
            value: 'a',
        };
        assert_eq!(ranges.push(range(10, 9)), Err(OutOfOrder));
        assert_eq!(ranges.push(range(10, 20)), Ok(()));
        assert_eq!(ranges.push(range(20, 30)), Err(OutOfOrder));
        assert_eq!(ranges.push(range(0, 5)), Err(OutOfOrder));
        assert_eq!(ranges.push(range(21, u128::MAX)), Ok(()));
        assert_eq!(ranges.push(range(u128::MAX, u128::MAX)), Err(OutOfOrder));
        assert_eq!(ranges.as_slice(), [range(10, u128::MAX)]);
    }
}
