//! The tables of a compiled policy as they lie in the kernel's memory.
//!
//! Owns the layout that `trefoil_ebpf::abi::CHUNK_BYTES` describes, and no meaning.

use std::mem::offset_of;

use trefoil_ebpf::abi::{
    self, Branch, CHUNK_BYTES, CLAUSE_COUNTED, CLAUSE_TIMED, First, Header, MAX_CHUNKS,
    MAX_CLAUSES, MODE_ENFORCE, MODE_REPORT, N_SMALL, Span, StateClass, class, login, near,
};

use super::{Budget, Clause, Compiled, Mode, Period, Range32, Range128, order, tree};
use crate::clock::BootClock;
use crate::policy::{
    problem::Fault,
    service::{self, Protocol},
};

/// A header and the chunks that it speaks of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its `generation` says which slot it goes to.
    pub policy: abi::Policy,
    /// Where things are.
    pub header: Header,
    /// All chunks, one behind the other, as words in host byte order.
    pub words: Vec<u64>,
    /// Clauses that have limits, and their places in the table.
    limited: Vec<(usize, Clause)>,
    /// Budgets of the rules.
    pub budgets: Vec<Budget>,
}

impl Image {
    /// Lays out a policy.
    ///
    /// # Errors
    ///
    /// It does not fit.
    pub fn new(compiled: &Compiled) -> Result<Self, Fault> {
        let mut layout = Layout::default();
        let mut values = tree::Values::default();
        // The first chunk begins as [`First`] says; who writes it puts the header there.
        layout
            .words
            .resize(size_of::<Header>() / size_of::<u64>(), 0);
        let order = order::of(compiled);
        let in_order = || order.iter().map(|&clause| compiled.clauses[clause]);
        let mut clauses: Vec<_> = in_order().map(unlimited).collect();
        clauses.resize(MAX_CLAUSES, abi::Clause::default());
        layout.fixed(offset_of!(First, clauses));
        layout.table(&clauses);
        layout.fixed(offset_of!(First, small_users));
        layout.small(&compiled.users, 0);
        layout.fixed(offset_of!(First, tcp_ports));
        layout.small(&compiled.services, service::key(Protocol::TCP.0, 0));
        layout.fixed(offset_of!(First, udp_ports));
        layout.small(&compiled.services, service::key(Protocol::UDP.0, 0));
        layout.fixed(offset_of!(First, tables));

        // Rows of no more words than there are, so that one decision reads little.
        let n_words = compiled.header.n_words;
        let row_bytes = (1 + n_words) * size_of::<u64>() as u32;
        let first_row = layout.here();
        let mut places = vec![0; order.len()];
        for (place, &clause) in order.iter().enumerate() {
            places[clause] = place;
        }
        for row in &compiled.rows {
            let row = order::arranged(row, &places);
            layout.row(&row.words[..n_words as usize]);
        }
        let rows_are_near = u32::from(layout.here() as usize <= CHUNK_BYTES);
        let rows = compiled.header.rows.map(|row| first_row + row * row_bytes);

        let users = tree::append(&mut layout, &mut values, &numbers(&compiled.users))?;
        let mut groups = [Branch::value(0); login::N];
        for (branch, table) in groups.iter_mut().zip(&compiled.groups) {
            *branch = tree::append(&mut layout, &mut values, &numbers(table))?;
        }
        let origins = Origins::new(&mut layout, &mut values, compiled)?;
        let mut near_ends = [Branch::value(0); near::N];
        for (branch, table) in near_ends.iter_mut().zip(&compiled.near_ends) {
            *branch = tree::append(&mut layout, &mut values, &numbers(table))?;
        }
        let services = tree::append(&mut layout, &mut values, &numbers(&compiled.services))?;
        layout.align(size_of::<abi::State>());
        let states = layout.here();
        for state in &compiled.states {
            abi::State { next: state.next }.write(&mut layout.words);
        }
        let state_classes: Vec<_> = compiled
            .states
            .iter()
            .map(|state| StateClass {
                class: state.class,
                // Of a control group nobody asks.
                foreign: compiled
                    .foreign
                    .get(usize::from(state.class))
                    .copied()
                    .unwrap_or(class::UNKNOWN),
                pad: [0; 2],
            })
            .collect();
        let state_classes = layout.table(&state_classes);

        // The larger tables last: what is hot and small is in the first chunks.
        let v6 = tree::append(&mut layout, &mut values, &addresses(&compiled.v6))?;
        let v4 = tree::append(&mut layout, &mut values, &numbers(&compiled.v4))?;

        layout.align(CHUNK_BYTES);
        let n_chunks = layout.words.len() * size_of::<u64>() / CHUNK_BYTES;
        if n_chunks > MAX_CHUNKS {
            return Err(Fault::new(format!(
                "the policy's tables take {} MiB, and {} MiB is the most",
                (n_chunks * CHUNK_BYTES) >> 20,
                (MAX_CHUNKS * CHUNK_BYTES) >> 20
            ))
            .help("name fewer networks, or use country data with fewer ranges"));
        }
        Ok(Self {
            policy: abi::Policy {
                generation: compiled.header.generation,
                mode: match compiled.mode() {
                    Mode::Report => MODE_REPORT,
                    Mode::Enforce => MODE_ENFORCE,
                },
            },
            header: Header {
                v4,
                v6,
                services,
                users,
                groups,
                origin_groups: origins.groups,
                origins_v4: origins.v4,
                origins_v6: origins.v6,
                rows,
                row_bytes,
                rows_are_near,
                states,
                state_classes,
                cgroup_start: compiled.header.cgroup_start,
                executable_start: compiled.header.executable_start,
                near_ends,
                pad: [0; 5],
                layouts: compiled.layouts,
                letters: compiled.header.letters,
                values: values.all(),
            },
            words: layout.words,
            limited: in_order()
                .enumerate()
                .filter(|(_, clause)| clause.holds.is_some() || clause.budget.is_some())
                .collect(),
            budgets: compiled.budgets.clone(),
        })
    }

    /// True if the clock decides about anything.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.limited
            .iter()
            .any(|(_, clause)| clause.holds.is_some())
    }

    /// Limits in the terms of the kernel that is running: moments since boot, and where
    /// each budget is, by its index in [`budgets`](Self::budgets). Offsets in bytes from
    /// the beginning of the first chunk, and words to be written there.
    #[must_use]
    pub fn limits(&self, clock: &BootClock, budget_places: &[u32]) -> Vec<(usize, Vec<u64>)> {
        let limits = self.limited.iter().map(|&(number, clause)| {
            let mut limited = unlimited(clause);
            if let Some(Period {
                starts_us,
                expires_us,
            }) = clause.holds
            {
                limited.limits |= CLAUSE_TIMED;
                limited.starts_ns = clock.since_boot_ns(starts_us);
                limited.expires_ns = clock.since_boot_ns(expires_us);
            }
            if let Some(budget) = clause.budget {
                limited.limits |= CLAUSE_COUNTED;
                limited.budget = budget_places[budget];
                limited.budget_bytes = self.budgets[budget].bytes;
            }
            let mut words = Vec::new();
            limited.write(&mut words);
            let first = offset_of!(First, clauses) + number * size_of::<abi::Clause>();
            (first, words)
        });
        limits.collect()
    }

    /// The words of each chunk.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &[u64]> {
        self.words.chunks_exact(CHUNK_BYTES / size_of::<u64>())
    }
}

/// Where the tables about origins of sessions are.
struct Origins {
    v4: Branch,
    v6: Branch,
    groups: u32,
}

impl Origins {
    fn new(
        layout: &mut Layout,
        values: &mut tree::Values,
        compiled: &Compiled,
    ) -> Result<Self, Fault> {
        let Some(origins) = &compiled.origins else {
            return Ok(Self {
                v4: Branch::value(0),
                v6: Branch::value(0),
                groups: 0,
            });
        };
        let v4 = tree::append(layout, values, &numbers(&origins.v4))?;
        let v6 = tree::append(layout, values, &addresses(&origins.v6))?;
        let mut groups = Vec::new();
        for table in &origins.groups {
            groups.push(tree::append(layout, values, &numbers(table))?.0);
        }
        groups.resize(
            groups.len().next_power_of_two().max(2),
            groups[usize::from(class::UNKNOWN)],
        );
        Ok(Self {
            v4,
            v6,
            groups: layout.numbers(&groups),
        })
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Chunks that are being filled.
#[derive(Default)]
pub(super) struct Layout {
    words: Vec<u64>,
}

impl Layout {
    /// Bytes so far.
    fn here(&self) -> u32 {
        u32::try_from(self.words.len() * size_of::<u64>()).expect("less than 4 GiB")
    }

    /// Goes on at a multiple of this many bytes, a power of two.
    fn align(&mut self, bytes: usize) {
        let words = bytes / size_of::<u64>();
        self.words
            .resize(self.words.len().next_multiple_of(words), 0);
    }

    /// Goes to the next chunk if not so many bytes are left in this one.
    fn reserve(&mut self, bytes: usize) {
        let left = CHUNK_BYTES - (self.here() as usize & (CHUNK_BYTES - 1));
        if left < bytes {
            self.align(CHUNK_BYTES);
        }
    }

    /// Appends a table whose elements are asked for by index.
    pub fn table<T: Element>(&mut self, values: &[T]) -> u32 {
        self.align(T::BYTES);
        let start = self.here();
        values.iter().for_each(|value| value.write(&mut self.words));
        start
    }

    /// Appends a table that is searched, and so is in one chunk as a whole.
    pub fn span<T: Element>(&mut self, values: &[T]) -> Span {
        self.align(T::BYTES);
        self.reserve(values.len() * T::BYTES);
        Span {
            start: self.table(values),
            len: values.len() as u32,
        }
    }

    /// Asserts that the next table is at the place that it has in every policy.
    fn fixed(&self, place: usize) {
        assert_eq!(self.here() as usize, place, "as abi::First has it");
    }

    /// Appends a row with its summary.
    fn row(&mut self, words: &[u64]) {
        let used = words.iter().zip(0..).filter(|(word, _)| **word != 0);
        self.words.push(used.fold(0, |bits, (_, i)| bits | 1 << i));
        self.words.extend(words);
    }

    /// Appends the classes of [`N_SMALL`] numbers from `first` on, four in a word.
    fn small(&mut self, ranges: &[Range32], first: u32) {
        let n_before = ranges.partition_point(|range| range.first <= first) - 1;
        let mut ranges = ranges[n_before..].iter().peekable();
        let mut class = 0;
        let classes = (first..first + N_SMALL as u32).map(|key| {
            while let Some(range) = ranges.next_if(|range| range.first <= key) {
                class = range.class;
            }
            class
        });
        let classes: Vec<_> = classes.collect();
        self.words.extend(classes.chunks_exact(4).map(word_of_four));
    }

    /// Appends numbers, as many as a power of two, all of them in one chunk, and in one
    /// cache line if they fit.
    pub fn numbers(&mut self, numbers: &[u32]) -> u32 {
        self.align(size_of_val(numbers).min(LINE));
        // A list is read as if it were as long as the longest.
        self.reserve(size_of_val(numbers).max(LINE));
        let start = self.here();
        let pair = |pair: &[u32]| word([pair[0].to_ne_bytes(), pair[1].to_ne_bytes()]);
        self.words.extend(numbers.chunks_exact(2).map(pair));
        start
    }
}

/// Ranges of IPv6 addresses, which are the keys.
fn addresses(ranges: &[Range128]) -> Vec<tree::Range> {
    let range = |range: &Range128| tree::Range {
        first: range.first,
        value: Branch::of(range.class, range.fallback, range.marks),
    };
    ranges.iter().map(range).collect()
}

/// Ranges of numbers of 32 bits, whose keys they begin.
fn numbers(ranges: &[Range32]) -> Vec<tree::Range> {
    let range = |range: &Range32| tree::Range {
        first: u128::from(range.first) << (u128::BITS - u32::BITS),
        value: Branch::of(range.class, range.fallback, range.marks),
    };
    ranges.iter().map(range).collect()
}

/// A clause whose limits are not known yet.
fn unlimited(clause: Clause) -> abi::Clause {
    abi::Clause {
        rule: clause.rule,
        verdict: clause.verdict,
        ..abi::Clause::default()
    }
}

/// Element of a table, as it lies in memory.
pub(super) trait Element {
    /// Size, a power of two.
    const BYTES: usize;

    /// Appends it.
    fn write(&self, words: &mut Vec<u64>);
}

/// A word of these bytes, in the order in which they lie in memory.
fn word(halves: [[u8; 4]; 2]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&halves[0]);
    bytes[4..].copy_from_slice(&halves[1]);
    u64::from_ne_bytes(bytes)
}

/// A word of four numbers.
fn word_of_four(numbers: &[u16]) -> u64 {
    let mut bytes = [0; 8];
    for (to, number) in bytes.chunks_exact_mut(2).zip(numbers) {
        to.copy_from_slice(&number.to_ne_bytes());
    }
    u64::from_ne_bytes(bytes)
}

impl Element for abi::LongRange {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        let value = word([self.value.to_ne_bytes(), [0; 4]]);
        words.extend([self.first_high, self.first_low, value, 0]);
    }
}

impl Element for Span {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        words.push(word([self.start.to_ne_bytes(), self.len.to_ne_bytes()]));
    }
}

impl Element for abi::Clause {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        let [rule_low, rule_high] = self.rule.to_ne_bytes();
        let first = [rule_low, rule_high, self.verdict, self.limits];
        words.push(word([first, self.budget.to_ne_bytes()]));
        words.extend([self.budget_bytes, self.starts_ns, self.expires_ns]);
    }
}

impl Element for abi::State {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        words.extend(self.next.chunks_exact(4).map(word_of_four));
    }
}

impl Element for StateClass {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        words.push(word_of_four(&[self.class, self.foreign, 0, 0]));
    }
}
