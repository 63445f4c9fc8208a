//! Which flows rules have in common, exactly: by the classes that flows can have of whose
//! sender everything is known. Of others all rules that deny take some, which is no reason
//! to keep one.
//!
//! A clause is satisfied by some of the classes of each dimension, and takes every combination
//! of these. So two clauses have flows in common if each dimension has a class that satisfies
//! both, and one takes all of another's if every class that satisfies the other satisfies it as
//! well. Combinations that several take together are searched for, within limits: without an
//! answer, nothing is said.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use trefoil_ebpf::abi::{Row, class, dimension, direction, login, near, verdict};

use super::common::{Common, extent, joined, service};
use crate::policy::compile::{Compiled, Range32};

/// A set of clauses.
type Set = Vec<u64>;

/// Steps that a search for what several clauses take together may have.
const MOST_STEPS: usize = 20_000;
/// Classes of what is not known, which come first.
const N_UNKNOWN: usize = class::UNKNOWN as usize + 1;

/// All clauses, by the classes that satisfy them.
pub(super) struct Regions<'a> {
    compiled: &'a Compiled,
    n_words: usize,
    /// Clauses of each rule.
    clauses_of: Vec<Vec<usize>>,
    /// For each dimension, the sets of clauses that classes satisfy which flows have.
    rows: [Vec<Set>; dimension::N],
    /// For each dimension and clause, the clauses that all of its classes satisfy.
    always: [Vec<Set>; dimension::N],
    /// For each dimension and clause, the clauses that one of its classes satisfies.
    ever: [Vec<Set>; dimension::N],
}

/// Rules that take all flows of another.
pub(super) struct Cover {
    /// Their indexes, in order.
    pub(super) rules: Vec<usize>,
}

impl<'a> Regions<'a> {
    pub(super) fn new(compiled: &'a Compiled, n_rules: usize) -> Self {
        let n_words = compiled.header.n_words as usize;
        let n_clauses = compiled.clauses.len();
        let mut clauses_of = vec![Vec::new(); n_rules];
        for (at, clause) in compiled.clauses.iter().enumerate() {
            clauses_of[usize::from(clause.rule)].push(at);
        }
        let rows: [Vec<Set>; dimension::N] = std::array::from_fn(|dimension| {
            let rows: HashSet<Set> = classes(compiled, dimension)
                .into_iter()
                .map(|row| row.words[..n_words].to_vec())
                .collect();
            let mut rows: Vec<Set> = rows.into_iter().collect();
            rows.sort_unstable();
            rows
        });
        let everything = || vec![vec![u64::MAX; n_words]; n_clauses];
        let nothing = || vec![vec![0; n_words]; n_clauses];
        let mut always: [Vec<Set>; dimension::N] = std::array::from_fn(|_| everything());
        let mut ever: [Vec<Set>; dimension::N] = std::array::from_fn(|_| nothing());
        for (dimension, rows) in rows.iter().enumerate() {
            for row in rows {
                for clause in members(row) {
                    for (word, bits) in row.iter().enumerate() {
                        always[dimension][clause][word] &= bits;
                        ever[dimension][clause][word] |= bits;
                    }
                }
            }
        }
        Self {
            compiled,
            n_words,
            clauses_of,
            rows,
            always,
            ever,
        }
    }

    /// The first dimension in which nothing satisfies the rule, if there is one.
    pub(super) fn contradiction(&self, rule: usize) -> Option<usize> {
        let clauses = &self.clauses_of[rule];
        if clauses.iter().any(|&clause| self.meets(clause, clause)) {
            return None;
        }
        let &clause = clauses.first()?;
        (0..dimension::N).find(|&at| !contains(&self.ever[at][clause], clause))
    }

    /// The earlier rules that take all flows of this one, if they do.
    pub(super) fn cover(&self, rule: usize) -> Option<Cover> {
        let mut rules = Vec::new();
        for &clause in &self.clauses_of[rule] {
            if !self.meets(clause, clause) {
                continue;
            }
            let before = self.takers_before(rule);
            let alone = members(&before).find(|&other| self.takes_all(other, clause));
            match alone {
                Some(other) => rules.push(self.rule_of(other)),
                None => {
                    let others = self.met_by(clause, &before);
                    if self.is_free(&[clause], &others)? {
                        return None;
                    }
                    let needed = self.needed(clause, others);
                    rules.extend(members(&needed).map(|other| self.rule_of(other)));
                }
            }
        }
        rules.sort_unstable();
        rules.dedup();
        (!rules.is_empty()).then_some(Cover { rules })
    }

    /// Of clauses that together take all of one, as few as still do.
    fn needed(&self, clause: usize, mut takers: Set) -> Set {
        let all: Vec<usize> = members(&takers).collect();
        for &taker in &all {
            let mut without = takers.clone();
            without[taker / 64] &= !(1 << (taker % 64));
            if self.is_free(&[clause], &without) == Some(false) {
                takers = without;
            }
        }
        takers
    }

    /// Returns flows that two rules have in common and that no rule before takes; nothing if
    /// one of the two is within the other. An exception to a rule comes before it, on purpose.
    pub(super) fn common(&self, earlier: usize, later: usize) -> Option<Common> {
        let before = self.takers_before(earlier);
        let is_within = |inner: usize, outer: usize| {
            self.clauses_of[inner].iter().all(|&one| {
                let mut all = self.clauses_of[outer].iter();
                all.any(|&other| self.takes_all(other, one))
            })
        };
        if is_within(earlier, later) || is_within(later, earlier) {
            return None;
        }
        for &one in &self.clauses_of[earlier] {
            for &other in &self.clauses_of[later] {
                if !self.meets(one, other) {
                    continue;
                }
                let takers = self.met_by(one, &before);
                if self.is_free(&[one, other], &takers) == Some(true) {
                    return Some(self.describe(one, other));
                }
            }
        }
        None
    }

    fn rule_of(&self, clause: usize) -> usize {
        usize::from(self.compiled.clauses[clause].rule)
    }

    /// Clauses of the rules before this one that take what they match at any time.
    fn takers_before(&self, rule: usize) -> Set {
        let mut set = vec![0; self.n_words];
        for clauses in &self.clauses_of[..rule] {
            for &clause in clauses {
                // An exception leaves to others what comes when it has expired.
                if self.compiled.clauses[clause].holds.is_none() {
                    insert(&mut set, clause);
                }
            }
        }
        set
    }

    fn meets(&self, one: usize, other: usize) -> bool {
        self.ever.iter().all(|of| contains(&of[one], other))
    }

    fn takes_all(&self, taker: usize, clause: usize) -> bool {
        self.always.iter().all(|of| contains(&of[clause], taker))
    }

    /// Those of `others` that have flows in common with a clause.
    fn met_by(&self, clause: usize, others: &Set) -> Set {
        let mut met = others.clone();
        for of in &self.ever {
            for (word, bits) in met.iter_mut().enumerate() {
                *bits &= of[clause][word];
            }
        }
        met
    }

    /// True if a rule decides about sessions that are accepted on a service of this host, given
    /// as [`service::key`](crate::policy::service::key), as far as that can be found out.
    pub(super) fn decides_about_service(&self, rule: usize, key: u32) -> bool {
        let near_ends = &self.compiled.near_ends[usize::from(direction::ACCEPTED)];
        let mut rows = self.rows.clone();
        rows[dimension::NEAR_END] = self.rows_within(dimension::NEAR_END, near_ends, key, key);
        // Both ends have the same protocol.
        let (first, last) = (key & !0xffff, key | 0xffff);
        let services = &self.compiled.services;
        rows[dimension::SERVICE] = self.rows_within(dimension::SERVICE, services, first, last);
        let before = self.takers_before(rule);
        self.clauses_of[rule].iter().any(|&clause| {
            let others = self.met_by(clause, &before);
            is_free(&rows, &[clause], &others) == Some(true)
        })
    }

    /// The sets of clauses that numbers between these satisfy, by the table of a dimension.
    fn rows_within(&self, dimension: usize, table: &[Range32], first: u32, last: u32) -> Vec<Set> {
        let begin = table.partition_point(|range| range.first <= first) - 1;
        let end = table.partition_point(|range| range.first <= last);
        let first_row = self.compiled.header.rows[dimension] as usize;
        let of = |range: &Range32| &self.compiled.rows[first_row + usize::from(range.class)];
        let rows: HashSet<Set> = table[begin..end]
            .iter()
            .map(|range| of(range).words[..self.n_words].to_vec())
            .collect();
        rows.into_iter().collect()
    }

    /// True if a flow satisfies all of `clauses` and none of `takers`; `None` if that
    /// takes too long to find out.
    fn is_free(&self, clauses: &[usize], takers: &Set) -> Option<bool> {
        is_free(&self.rows, clauses, takers)
    }

    fn describe(&self, one: usize, other: usize) -> Common {
        let compiled = self.compiled;
        let first_row = compiled.header.rows;
        let has_both = |dimension: usize, class: u16| {
            let row = &compiled.rows[first_row[dimension] as usize + usize::from(class)];
            contains(&row.words, one) && contains(&row.words, other)
        };
        let mut addresses = Vec::new();
        let v4 = compiled.v4.iter().map(|range| {
            let is_in =
                range.fallback != verdict::LOCAL && has_both(dimension::DESTINATION, range.class);
            (u128::from(range.first), is_in)
        });
        for (first, last) in joined(v4, u32::MAX.into()) {
            let address = |key: u128| Ipv4Addr::from_bits(key as u32).into();
            addresses.push(extent(address(first), address(last)));
        }
        let v6 = compiled.v6.iter().map(|range| {
            let is_in =
                range.fallback != verdict::LOCAL && has_both(dimension::DESTINATION, range.class);
            (range.first, is_in)
        });
        for (first, last) in joined(v6, u128::MAX) {
            let address = |key: u128| Ipv6Addr::from_bits(key).into();
            addresses.push(extent(address(first), address(last)));
        }
        let services = compiled.services.iter().map(|range| {
            let is_in = has_both(dimension::SERVICE, range.class);
            (u128::from(range.first), is_in)
        });
        let services = joined(services, (256 << 16) - 1).into_iter();
        let services = services.map(|(first, last)| service(first as u32, last as u32));
        Common {
            addresses,
            services: services.collect(),
        }
    }
}

/// The rows of the classes of one dimension that flows can have whose sender is known.
fn classes(compiled: &Compiled, at: usize) -> Vec<&Row> {
    let first = compiled.header.rows[at] as usize;
    let ends = compiled.header.rows.iter().map(|&row| row as usize);
    let end = ends
        .filter(|&row| row > first)
        .min()
        .unwrap_or(compiled.rows.len());
    let of = |class: u16| &compiled.rows[first + usize::from(class)];
    match at {
        // Class 0 of destinations is for those that are local, which no rule decides.
        dimension::DESTINATION => {
            let v4 = compiled
                .v4
                .iter()
                .map(|range| (range.class, range.fallback));
            let v6 = compiled
                .v6
                .iter()
                .map(|range| (range.class, range.fallback));
            let classes: HashSet<u16> = v4
                .chain(v6)
                .filter(|&(_, fallback)| fallback != verdict::LOCAL)
                .map(|(class, _)| class)
                .collect();
            classes.into_iter().map(of).collect()
        }
        dimension::SERVICE => compiled
            .services
            .iter()
            .filter(|range| range.first < 256 << 16)
            .map(|range| of(range.class))
            .collect(),
        dimension::USER => {
            let known = compiled.users.iter().filter(|range| range.first < u32::MAX);
            let classes = known.map(|range| range.class).chain([class::NONE]);
            classes.map(of).collect()
        }
        dimension::NEAR_END => {
            let cases = [direction::OUTBOUND, direction::ACCEPTED];
            let ranges = cases
                .iter()
                .flat_map(|&case| known_near_ends(&compiled.near_ends[usize::from(case)]));
            ranges.map(|range| of(range.class)).collect()
        }
        dimension::GROUP => {
            let of_sessions = match &compiled.origins {
                None => std::slice::from_ref(&compiled.groups[login::SESSION]),
                Some(origins) => &origins.groups[N_UNKNOWN..],
            };
            let cases = of_sessions.iter().chain([&compiled.groups[login::NONE]]);
            let ranges = cases.flatten();
            let known = ranges.filter(|range| range.first < u32::MAX);
            known.map(|range| of(range.class)).collect()
        }
        // Those of what is foreign come behind all others.
        dimension::EXECUTABLE => {
            let behind = first + compiled.foreign.len();
            compiled.rows[first + N_UNKNOWN..behind].iter().collect()
        }
        _ => compiled.rows[first + N_UNKNOWN..end].iter().collect(),
    }
}

/// See [`Regions::is_free`]. `all` are the sets of clauses that classes satisfy, by dimension.
fn is_free(all: &[Vec<Set>; dimension::N], clauses: &[usize], takers: &Set) -> Option<bool> {
    let mut choices: Vec<Vec<Set>> = Vec::new();
    for rows in all {
        let satisfied = rows
            .iter()
            .filter(|row| clauses.iter().all(|&clause| contains(row, clause)));
        let left: HashSet<Set> = satisfied.map(|row| intersection(row, takers)).collect();
        if left.is_empty() {
            return Some(false);
        }
        let mut left: Vec<Set> = left.into_iter().collect();
        // The set with the fewest members is the most likely to be free.
        left.sort_by_key(|set| (members(set).count(), set.clone()));
        choices.push(left);
    }
    choices.sort_by_key(Vec::len);
    let mut n_steps = 0;
    search(takers, &choices, &mut n_steps)
}

/// The ranges of near ends that have a port, or none yet, and not only one that cannot be read.
fn known_near_ends(ranges: &[Range32]) -> impl Iterator<Item = &Range32> {
    ranges.iter().enumerate().filter_map(|(at, range)| {
        let next = ranges.get(at + 1).map_or(u32::MAX, |next| next.first);
        let is_unread = range.first as u16 == 0 && next == range.first + 1;
        (range.first <= near::NO_PORT && !is_unread).then_some(range)
    })
}

/// Looks for a choice of one set of each dimension with nothing in common.
fn search(left: &Set, choices: &[Vec<Set>], n_steps: &mut usize) -> Option<bool> {
    if left.iter().all(|&bits| bits == 0) {
        return Some(true);
    }
    let Some((first, rest)) = choices.split_first() else {
        return Some(false);
    };
    for set in first {
        *n_steps += 1;
        if *n_steps > MOST_STEPS {
            return None;
        }
        if search(&intersection(left, set), rest, n_steps)? {
            return Some(true);
        }
    }
    Some(false)
}

fn insert(set: &mut Set, clause: usize) {
    set[clause / 64] |= 1 << (clause % 64);
}

fn contains(set: &[u64], clause: usize) -> bool {
    set[clause / 64] >> (clause % 64) & 1 == 1
}

fn intersection(one: &[u64], other: &[u64]) -> Set {
    one.iter()
        .zip(other)
        .map(|(one, other)| one & other)
        .collect()
}

fn members(set: &[u64]) -> impl Iterator<Item = usize> + '_ {
    set.iter().enumerate().flat_map(|(word, &bits)| {
        (0..64)
            .filter(move |bit| bits >> bit & 1 == 1)
            .map(move |bit| word * 64 + bit)
    })
}
