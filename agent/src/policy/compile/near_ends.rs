//! The tables for near ends: who opened a session, and this host's port.

use trefoil_ebpf::abi::{direction, near};

use super::clauses::Clauses;
use super::{Range32, Rows};
use crate::policy::problem::Fault;
use crate::policy::source::Direction;

/// The tables for near ends, and the index of their first row.
pub(super) fn tables(
    clauses: &Clauses<'_>,
    rows: &mut Rows,
) -> Result<([Vec<Range32>; near::N], u32), Fault> {
    let mut classes = rows.of_source(clauses, |test| test.names_near_end());
    let mut ranges = <[Vec<Range32>; near::N]>::default();
    for (known, opened) in [
        (direction::UNKNOWN, None),
        (direction::OUTBOUND, Some(Direction::Outbound)),
        (direction::ACCEPTED, Some(Direction::Accepted)),
        (direction::CLAIMED, None),
    ] {
        let sets: Vec<_> = clauses
            .list
            .iter()
            .map(|clause| clause.near_ends_where(opened))
            .collect();
        ranges[usize::from(known)] = classes.of_numbers(sets.iter().map(Option::as_ref))?;
    }
    Ok((ranges, classes.finish()))
}
