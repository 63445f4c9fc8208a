//! The tables of a compiled policy as they lie in the kernel's memory.
//!
//! Owns the layout that `trefoil_ebpf::abi::CHUNK_BYTES` describes, and no meaning.

use trefoil_ebpf::abi::{
    self, CHUNK_BYTES, CLAUSE_COUNTED, CLAUSE_TIMED, MAX_CHUNKS, MODE_ENFORCE, MODE_REPORT,
    Range32, Row, Span, StateClass, Summary, Tail128,
};

use super::{Budget, Clause, Compiled, Mode, Period, Range128};
use crate::clock::BootClock;
use crate::policy::{
    problem::Fault,
    service::{self, Protocol},
};

/// A header and the chunks that it speaks of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where things are; its `generation` says which slot it goes to.
    pub header: abi::Policy,
    /// All chunks, one behind the other, as words in host byte order.
    pub words: Vec<u64>,
    /// Clauses that have limits, and their places in the table.
    limited: Vec<(usize, Clause)>,
    /// What is counted.
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
        // What every decision reads comes first, and mostly is in one chunk.
        let users = layout.numbers(&compiled.users);
        let groups = compiled
            .groups
            .each_ref()
            .map(|table| layout.numbers(table));
        let decides: Vec<_> = compiled.clauses.iter().map(unlimited).collect();
        let clauses = layout.table(&decides);
        let first_summary = layout.summaries(&compiled.rows);

        // Rows of no more words than there are, so that one decision reads little.
        let n_words = compiled.header.n_words;
        let row_words = (n_words as usize).next_power_of_two();
        layout.align(row_words * size_of::<u64>());
        let first_row = layout.here();
        for row in &compiled.rows {
            layout.words.extend(&row.words[..row_words]);
        }
        let row_shift = (row_words * size_of::<u64>()).ilog2();
        let rows = compiled
            .header
            .rows
            .map(|row| first_row + (row << row_shift));

        let summaries = compiled
            .header
            .rows
            .map(|row| first_summary + row * size_of::<Summary>() as u32);

        let ports = layout.ports(&compiled.services);
        let services = layout.span(&compiled.services);
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
                pad: [0; 3],
            })
            .collect();
        let state_classes = layout.table(&state_classes);

        // The larger tables last: what is hot and small is in the first chunks.
        let v6 = layout.v6(&compiled.v6);
        let v4 = layout.v4(&compiled.v4);

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
            header: abi::Policy {
                generation: compiled.header.generation,
                mode: match compiled.mode() {
                    Mode::Report => MODE_REPORT,
                    Mode::Enforce => MODE_ENFORCE,
                },
                n_words,
                n_clauses: compiled.clauses.len() as u32,
                v4,
                clauses,
                v6,
                services,
                users,
                groups,
                ports,
                pad: 0,
                rows,
                summaries,
                row_shift,
                states,
                state_classes,
                cgroup_start: compiled.header.cgroup_start,
                executable_start: compiled.header.executable_start,
                n_states: compiled.states.len() as u32,
                letters: compiled.header.letters,
            },
            words: layout.words,
            limited: compiled
                .clauses
                .iter()
                .copied()
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
            let mut limited = unlimited(&clause);
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
            let first = self.header.clauses as usize + number * size_of::<abi::Clause>();
            (first, words)
        });
        limits.collect()
    }

    /// Number of chunks.
    #[must_use]
    pub fn n_chunks(&self) -> usize {
        self.words.len() * size_of::<u64>() / CHUNK_BYTES
    }
}

/// Chunks that are being filled.
#[derive(Default)]
struct Layout {
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
    fn table<T: Element>(&mut self, values: &[T]) -> u32 {
        self.align(T::BYTES);
        let start = self.here();
        values.iter().for_each(|value| value.write(&mut self.words));
        start
    }

    /// Appends a table that is searched, and so is in one chunk as a whole.
    fn span<T: Element>(&mut self, values: &[T]) -> Span {
        self.align(T::BYTES);
        self.reserve(values.len() * T::BYTES);
        Span {
            start: self.table(values),
            len: values.len() as u32,
        }
    }

    /// Appends a table of numbers, unless it tells nothing apart.
    fn numbers(&mut self, ranges: &[Range32]) -> Span {
        if ranges.iter().all(|range| range.class == 0) {
            return Span::default();
        }
        self.span(ranges)
    }

    /// Appends the summaries of rows, two in a word.
    fn summaries(&mut self, rows: &[Row]) -> u32 {
        let start = self.here();
        let summary = |row: &Row| {
            let used = row.words.iter().enumerate().filter(|(_, word)| **word != 0);
            used.fold(0_u32, |bits, (i, _)| bits | 1 << i).to_ne_bytes()
        };
        for pair in rows.chunks(2) {
            let second = pair.get(1).map_or([0; 4], summary);
            self.words.push(word([summary(&pair[0]), second]));
        }
        start
    }

    /// Appends the classes of all ports of TCP and UDP, four in a word.
    fn ports(&mut self, services: &[Range32]) -> u32 {
        const N_PORTS: usize = 1 << 16;
        self.align(2 * N_PORTS * size_of::<u16>());
        let start = self.here();
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let mut classes = Vec::with_capacity(N_PORTS);
            let first = service::key(protocol.0, 0);
            let mut ranges = services[services.partition_point(|range| range.first <= first) - 1..]
                .iter()
                .peekable();
            let mut class = 0;
            for key in first..first + N_PORTS as u32 {
                while let Some(range) = ranges.next_if(|range| range.first <= key) {
                    class = range.class;
                }
                classes.push(class);
            }
            self.words.extend(classes.chunks_exact(4).map(word_of_four));
        }
        start
    }

    /// Appends IPv6 destinations, and the pivots that lead to each chunk of them.
    fn v6(&mut self, ranges: &[Range128]) -> Span {
        const A_CHUNK: usize = CHUNK_BYTES / (size_of::<u64>() + Tail128::BYTES) - 1;
        let mut pivots = Vec::new();
        for part in ranges.chunks(A_CHUNK) {
            let keys = part.iter().map(|range| {
                let class = class_and_fallback(range.class, range.fallback);
                (range.first, word([class, [0; 4]]))
            });
            let Span { start, len } = self.span128(keys);
            let span = word([start.to_ne_bytes(), len.to_ne_bytes()]);
            pivots.push((part[0].first, span));
        }
        self.span128(pivots.into_iter())
    }

    /// Appends a span of IPv6 keys, with what each leads to.
    fn span128(&mut self, keys: impl ExactSizeIterator<Item = (u128, u64)> + Clone) -> Span {
        let len = keys.len();
        self.align(Tail128::BYTES);
        self.reserve(len.next_multiple_of(2) * size_of::<u64>() + len * Tail128::BYTES);
        let start = self.here();
        let first_high = |(first, _): (u128, u64)| (first >> 64) as u64;
        self.words.extend(keys.clone().map(first_high));
        self.align(Tail128::BYTES);
        for (first, value) in keys {
            let first_low = first as u64;
            Tail128 { first_low, value }.write(&mut self.words);
        }
        Span {
            start,
            len: len as u32,
        }
    }

    /// Appends IPv4 destinations, and the index by the first 16 bits that leads to
    /// each part of them.
    fn v4(&mut self, ranges: &[Range32]) -> u32 {
        let mut index = Vec::with_capacity(1 << 16);
        let mut before = 0;
        for high in 0..1_u32 << 16 {
            let (first, last) = (high << 16, high << 16 | 0xffff);
            // The one that contains the first address, up to the one that contains
            // the last.
            let begin = before + ranges[before..].partition_point(|range| range.first <= first) - 1;
            let end = begin + ranges[begin..].partition_point(|range| range.first <= last);
            before = begin;
            let part = &ranges[begin..end];
            let shared = match part {
                // Neighbours that one range covers have one entry together.
                [_] => index
                    .last()
                    .copied()
                    .filter(|_| high > 0 && ranges[begin].first < first),
                _ => None,
            };
            index.push(match shared {
                Some(Span { start, len }) => Span {
                    start: start + (len - 1) * Range32::BYTES as u32,
                    len: 1,
                },
                None => self.span(part),
            });
        }
        self.align(CHUNK_BYTES);
        self.table(&index)
    }
}

/// A clause whose limits are not known yet.
fn unlimited(clause: &Clause) -> abi::Clause {
    abi::Clause {
        rule: clause.rule,
        verdict: clause.verdict,
        ..abi::Clause::default()
    }
}

/// What a table is made of, as it lies in memory.
trait Element {
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

/// A class and the verdict beside it, as in both kinds of ranges.
fn class_and_fallback(class: u16, fallback: u8) -> [u8; 4] {
    let [first, second] = class.to_ne_bytes();
    [first, second, fallback, 0]
}

impl Element for Range32 {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        let class = class_and_fallback(self.class, self.fallback);
        words.push(word([self.first.to_ne_bytes(), class]));
    }
}

impl Element for Tail128 {
    const BYTES: usize = size_of::<Self>();

    fn write(&self, words: &mut Vec<u64>) {
        words.extend([self.first_low, self.value]);
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
        words.push(word_of_four(&[self.class, 0, 0, 0]));
    }
}
