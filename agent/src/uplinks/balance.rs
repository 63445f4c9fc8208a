//! Whether the books of an uplink agree with the interface's own counter.

use trefoil_ebpf::abi::{Uplink, UplinkBooks, UplinkTotals};

/// The books of one uplink, read between two looks at the interface's counter, since
/// both go on while they are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// The transmit counter in bytes before the books were read.
    pub before_bytes: u64,
    /// The books, summed over all CPUs.
    pub books: UplinkBooks,
    /// The transmit counter afterwards.
    pub after_bytes: u64,
}

/// Comparison of the counter and the books, since the hook was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Bytes that the interface had counted before it was watched: they are in no books.
    /// Frames that left while the hook was being attached are here unless the books have
    /// them.
    pub earlier_bytes: u64,
    /// Bytes that the interface counted. The number is as close to the books as the looks at
    /// the counter allow, so that both are equal unless they disagree.
    pub sent_bytes: u64,
    /// Bytes that the interface counted and the books have not: they left past the hook.
    pub unaccounted_bytes: u64,
    /// Bytes that passed the hook and are not in the counter: dropped afterwards, or waiting.
    pub unsent_bytes: u64,
}

impl Look {
    /// Sums the traffic that passed the hook.
    #[must_use]
    pub fn passed(&self) -> UplinkTotals {
        let mut sum = UplinkTotals::default();
        for totals in self.books.judged.iter().chain(&self.books.unjudged) {
            sum.bytes += totals.bytes;
            sum.wire_bytes += totals.wire_bytes;
            sum.frames += totals.frames;
        }
        sum
    }

    /// Compares. An interface that segments frames counts what is on the wire, one that
    /// does not what came to it, and one that segments some of them something between;
    /// `is_exact` if this one is known to count what came to it.
    #[must_use]
    pub fn balance(&self, uplink: &Uplink, is_exact: bool) -> Balance {
        let passed = self.passed();
        let (least, most) = if is_exact {
            (passed.bytes, passed.bytes)
        } else {
            (
                passed.bytes.min(passed.wire_bytes),
                passed.bytes.max(passed.wire_bytes),
            )
        };
        // The counter stood somewhere between two looks, at the beginning and now.
        let counted_least = self.before_bytes.saturating_sub(uplink.after_bytes);
        let counted_most = self.after_bytes.saturating_sub(uplink.before_bytes);
        let sent_bytes = if counted_least > most {
            counted_least
        } else {
            most.min(counted_most)
        };
        Balance {
            earlier_bytes: self
                .after_bytes
                .saturating_sub(sent_bytes)
                .max(uplink.before_bytes)
                .min(uplink.after_bytes),
            sent_bytes,
            unaccounted_bytes: counted_least.saturating_sub(most),
            unsent_bytes: least.saturating_sub(counted_most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: Uplink = Uplink {
        attached_ns: 1,
        before_bytes: 1000,
        after_bytes: 1000,
        name: [0; 16],
        header_bytes: 14,
        flags: 0,
    };

    fn look(before: u64, bytes: u64, wire_bytes: u64, after: u64) -> Look {
        let mut books = UplinkBooks::default();
        books.judged[3].bytes = bytes - 10;
        books.judged[3].wire_bytes = wire_bytes - 10;
        books.unjudged[0].bytes = 10;
        books.unjudged[0].wire_bytes = 10;
        Look {
            before_bytes: before,
            books,
            after_bytes: after,
        }
    }

    fn balance(look: Look, is_exact: bool) -> (u64, u64, u64) {
        let found = look.balance(&UPLINK, is_exact);
        (
            found.sent_bytes,
            found.unaccounted_bytes,
            found.unsent_bytes,
        )
    }

    #[test]
    fn a_counter_that_moves_makes_no_remainder() {
        assert_eq!(balance(look(1500, 500, 500, 1500), true), (500, 0, 0));
        assert_eq!(balance(look(1400, 500, 500, 1600), true), (500, 0, 0));
        let mut moving = UPLINK;
        moving.after_bytes = 1100;
        let look = look(1500, 450, 450, 1500);
        assert_eq!(look.balance(&moving, true).unaccounted_bytes, 0);
    }

    #[test]
    fn what_left_while_the_hook_was_attached_is_in_the_books_or_was_earlier() {
        let mut attached = UPLINK;
        attached.after_bytes = 1180;
        for (counted, earlier, unaccounted) in [
            (1500, 1000, 0),
            (1590, 1090, 0),
            (1680, 1180, 0),
            (1681, 1180, 1),
        ] {
            let found = look(counted, 500, 500, counted).balance(&attached, true);
            assert_eq!(found.earlier_bytes, earlier);
            assert_eq!(found.unaccounted_bytes, unaccounted);
            assert_eq!(found.earlier_bytes + found.sent_bytes, counted);
        }
    }

    #[test]
    fn what_left_past_the_hook_and_what_never_left_are_told_apart() {
        assert_eq!(balance(look(1700, 500, 500, 1800), true), (700, 200, 0));
        assert_eq!(balance(look(1300, 500, 500, 1400), true), (400, 0, 100));
    }

    #[test]
    fn segmentation_is_no_remainder_where_it_may_be() {
        assert_eq!(balance(look(1520, 500, 540, 1520), false), (520, 0, 0));
        assert_eq!(balance(look(1540, 500, 540, 1540), false), (540, 0, 0));
        assert_eq!(balance(look(1520, 500, 540, 1520), true), (520, 20, 0));
        assert_eq!(balance(look(1560, 500, 540, 1560), false), (560, 20, 0));
    }
}
