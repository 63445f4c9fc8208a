//! The order in which the kernel has clauses.
//!
//! A decision reads those words of rows that are not zero in any dimension. So clauses
//! that ask for the same source, service and destination lie side by side: most words
//! then have none that a flow's source satisfies, or none for where it goes. Within a word
//! they are in the order of their rules, so that the first that matches is the lowest bit.

use trefoil_ebpf::abi::{Row, class, dimension};

use super::Compiled;

/// Order of the dimensions. Those that tell sources apart come first: policies are mostly
/// arranged by them.
const DIMENSIONS: [usize; dimension::N] = [
    dimension::CGROUP,
    dimension::EXECUTABLE,
    dimension::USER,
    dimension::GROUP,
    dimension::NEAR_END,
    dimension::SERVICE,
    dimension::DESTINATION,
];

/// The clauses, by their indexes in [`Compiled::clauses`], in the order of the kernel.
pub(super) fn of(compiled: &Compiled) -> Vec<usize> {
    let firsts = DIMENSIONS.map(|dimension| first_classes(compiled, dimension));
    let mut order: Vec<_> = (0..compiled.clauses.len()).collect();
    order.sort_by_key(|&clause| firsts.each_ref().map(|first| first[clause]));
    for word in order.chunks_mut(u64::BITS as usize) {
        word.sort_unstable();
    }
    order
}

/// For each clause, the first class of a dimension that satisfies it: the first of all if it
/// does not name the dimension, and the last number if there is none.
fn first_classes(compiled: &Compiled, dimension: usize) -> Vec<usize> {
    let first_row = |dimension: usize| compiled.header.rows[dimension] as usize;
    let begin = first_row(dimension);
    let end = (0..dimension::N)
        .map(first_row)
        .filter(|&first| first > begin)
        .min()
        .unwrap_or(compiled.rows.len());
    // Rows for unknown facts tell clauses apart by their decision, and not by their
    // condition.
    let n_skipped = match dimension {
        dimension::DESTINATION | dimension::SERVICE => 0,
        _ => usize::from(class::UNKNOWN) + 1,
    };
    let mut firsts = vec![usize::MAX; compiled.clauses.len()];
    let rows = compiled.rows[begin..end].iter().enumerate();
    for (class, row) in rows.skip(n_skipped) {
        for clause in members(row) {
            firsts[clause] = firsts[clause].min(class);
        }
    }
    firsts
}

/// The row with its clauses in another order.
pub(super) fn arranged(row: &Row, places: &[usize]) -> Row {
    let mut arranged = Row::default();
    for clause in members(row) {
        super::set_bit(&mut arranged, places[clause]);
    }
    arranged
}

/// The clauses that are in a row.
fn members(row: &Row) -> impl Iterator<Item = usize> {
    row.words.iter().enumerate().flat_map(|(word, &bits)| {
        let rest = |bits: &u64| Some(bits & (bits - 1)).filter(|&rest| rest != 0);
        let all = Some(bits).filter(|&bits| bits != 0);
        std::iter::successors(all, rest)
            .map(move |bits| word * u64::BITS as usize + bits.trailing_zeros() as usize)
    })
}
