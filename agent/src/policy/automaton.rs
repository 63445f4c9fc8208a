//! All patterns of one kind as one automaton, and both automata as one table.
//!
//! Owns the way from patterns to [`State`]s, which the kernel steps through byte
//! by byte. Classes get their meaning from the caller, who gives one to each set
//! of patterns that some path matches.

mod containers;
mod draft;

use std::collections::HashMap;
use std::rc::Rc;

use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use trefoil_ebpf::abi::MAX_LETTERS;

use self::draft::{Draft, Drawn};
use super::pattern::{CgroupPattern, ContainerPattern, ExecutablePattern, UnitPattern};
use super::problem::Fault;

/// Most states of both automata together: their numbers are `u16`.
pub const MAX_STATES: usize = 1 << 16;

/// States that the search for an automaton may find: more than [`MAX_STATES`], because
/// some turn out to be equal.
const MAX_SEARCH_STATES: usize = 150_000;

/// Steps that the search may take, each of some 10 ns: few enough for seconds at the most.
const MAX_SEARCH_STEPS: usize = 150_000_000;

/// One state of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Next state for each letter.
    pub next: [u16; MAX_LETTERS],
    /// Class of a path that ends here.
    pub class: u16,
}

/// An automaton over bytes, before it is put into the table.
pub(super) struct Automaton {
    /// The kind of byte, for each byte.
    kinds: [u8; 256],
    /// For each state, the next one by kind of byte, and the class of what ends
    /// here. State 0 is the first.
    states: Vec<(Vec<u32>, u16)>,
}

/// The table of states as the kernel has it.
pub(super) struct Table {
    pub(super) letters: [u8; 256],
    pub(super) states: Vec<State>,
    /// Where the first and the second automaton begin.
    pub(super) starts: [u32; 2],
}

/// Patterns for the path of a control group. Their indexes are those of all units,
/// then of all groups, then of all containers.
#[derive(Default)]
pub(super) struct PathPatterns<'p> {
    pub(super) units: Vec<&'p UnitPattern>,
    pub(super) cgroups: Vec<&'p CgroupPattern>,
    pub(super) containers: Vec<&'p ContainerPattern>,
}

impl PathPatterns<'_> {
    fn len(&self) -> usize {
        self.units.len() + self.cgroups.len() + self.containers.len()
    }
}

/// The automaton for control groups. `class_of` gets the indexes of the patterns
/// that a path matches, in order.
pub(super) fn of_cgroups(
    patterns: &PathPatterns<'_>,
    class_of: impl FnMut(&[usize]) -> Result<u16, Fault>,
) -> Result<Automaton, Fault> {
    search(
        patterns.len(),
        Draft::cgroups(patterns),
        MAX_SEARCH_STEPS,
        class_of,
    )
}

/// The automaton for executables, as [`of_cgroups`].
pub(super) fn of_executables(
    patterns: &[&ExecutablePattern],
    class_of: impl FnMut(&[usize]) -> Result<u16, Fault>,
) -> Result<Automaton, Fault> {
    search(
        patterns.len(),
        Draft::executables(patterns),
        MAX_SEARCH_STEPS,
        class_of,
    )
}

/// Makes the automaton deterministic, and gives each state its class.
fn search(
    n_patterns: usize,
    nfa: Drawn<thompson::NFA>,
    limit_steps: usize,
    mut class_of: impl FnMut(&[usize]) -> Result<u16, Fault>,
) -> Result<Automaton, Fault> {
    if n_patterns == 0 {
        let class = class_of(&[])?;
        return Ok(Automaton {
            kinds: [0; 256],
            states: vec![(vec![0], class)],
        });
    }
    let nfa = nfa.map_err(|_| too_many_states())?;
    let mut kinds = [0; 256];
    let mut representatives: Vec<u8> = Vec::new();
    for byte in 0..=u8::MAX {
        let kind = nfa.byte_classes().get(byte);
        kinds[usize::from(byte)] = kind;
        if usize::from(kind) == representatives.len() {
            representatives.push(byte);
        }
    }

    let mut subsets = Subsets::new(&nfa, limit_steps);
    let start: Rc<[StateID]> = subsets.after(&[nfa.start_anchored()])?.into();
    let mut numbers = HashMap::from([(Rc::clone(&start), 0_u32)]);
    let mut found = vec![start];
    let mut states = Vec::new();
    let mut targets = Vec::new();
    while let Some(set) = found.get(states.len()).map(Rc::clone) {
        let mut next = Vec::with_capacity(representatives.len());
        for &byte in &representatives {
            targets.clear();
            targets.extend(set.iter().filter_map(|&state| step(nfa.state(state), byte)));
            let target = subsets.after(&targets)?;
            next.push(match numbers.get(target) {
                Some(&number) => number,
                None if found.len() >= MAX_SEARCH_STATES => return Err(too_many_states()),
                None => {
                    let (target, new): (Rc<[StateID]>, _) = (target.into(), found.len() as u32);
                    found.push(Rc::clone(&target));
                    numbers.insert(target, new);
                    new
                }
            });
        }
        let mut matched: Vec<usize> = set
            .iter()
            .filter_map(|&state| match nfa.state(state) {
                thompson::State::Match { pattern_id } => Some(pattern_id.as_usize()),
                _ => None,
            })
            .collect();
        matched.sort_unstable();
        states.push((next, class_of(&matched)?));
    }
    Ok(Automaton { kinds, states })
}

/// Where a byte leads to, if anywhere.
fn step(state: &thompson::State, byte: u8) -> Option<StateID> {
    match state {
        thompson::State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
        thompson::State::Sparse(transitions) => transitions.matches_byte(byte),
        thompson::State::Dense(transitions) => transitions.matches_byte(byte),
        _ => None,
    }
}

/// Sets of states that a path can be in at a time: those that wait for a byte, and those
/// in which a pattern has matched. Each state that is visited is a step, and there are so
/// many: what the library does has limits of memory alone, and took a minute.
struct Subsets<'n> {
    nfa: &'n thompson::NFA,
    /// The round in which each state was visited last.
    visited: Vec<u32>,
    round: u32,
    stack: Vec<StateID>,
    set: Vec<StateID>,
    steps_left: usize,
}

impl<'n> Subsets<'n> {
    fn new(nfa: &'n thompson::NFA, steps_left: usize) -> Self {
        Self {
            nfa,
            visited: vec![0; nfa.states().len()],
            round: 0,
            stack: Vec::new(),
            set: Vec::new(),
            steps_left,
        }
    }

    /// The set, sorted, that these states lead to without another byte.
    fn after(&mut self, states: &[StateID]) -> Result<&[StateID], Fault> {
        self.round += 1;
        self.set.clear();
        self.stack.extend_from_slice(states);
        while let Some(state) = self.stack.pop() {
            let visited = &mut self.visited[state.as_usize()];
            if std::mem::replace(visited, self.round) == self.round {
                continue;
            }
            self.steps_left = self.steps_left.checked_sub(1).ok_or_else(too_many_states)?;
            match self.nfa.state(state) {
                thompson::State::Union { alternates } => self.stack.extend(alternates.iter()),
                thompson::State::BinaryUnion { alt1, alt2 } => self.stack.extend([alt1, alt2]),
                thompson::State::Capture { next, .. } | thompson::State::Look { next, .. } => {
                    self.stack.push(*next);
                }
                thompson::State::Fail => {}
                _ => self.set.push(state),
            }
        }
        // A byte that leads nowhere takes its time as well.
        self.steps_left = self.steps_left.saturating_sub(1);
        self.set.sort_unstable();
        Ok(&self.set)
    }
}

fn too_many_states() -> Fault {
    Fault::new("the patterns for control groups or for executables are too complex to be one table")
        .help(
            "use fewer `*` at the beginning or in the middle of patterns: each doubles what all \
         the others need",
        )
}

impl Table {
    /// Puts two automata into one table, with one state for those that cannot be
    /// told apart.
    pub(super) fn new(first: &Automaton, second: &Automaton) -> Result<Self, Fault> {
        // Bytes that both automata treat alike are one column.
        let mut columns: Vec<(u8, u8)> = Vec::new();
        let mut column_of = [0; 256];
        for (byte, column) in column_of.iter_mut().enumerate() {
            let kinds = (first.kinds[byte], second.kinds[byte]);
            *column = columns
                .iter()
                .position(|&known| known == kinds)
                .unwrap_or_else(|| {
                    columns.push(kinds);
                    columns.len() - 1
                });
        }
        let offset = u32::try_from(first.states.len()).map_err(|_| too_many_states())?;
        let mut rows: Vec<(Vec<u32>, u16)> = Vec::new();
        for (next, class) in &first.states {
            let next = columns.iter().map(|&(kind, _)| next[usize::from(kind)]);
            rows.push((next.collect(), *class));
        }
        for (next, class) in &second.states {
            let next = columns
                .iter()
                .map(|&(_, kind)| next[usize::from(kind)] + offset);
            rows.push((next.collect(), *class));
        }

        let (block_of, n_blocks) = merge(&rows);
        if n_blocks > MAX_STATES {
            return Err(too_many_states());
        }
        let mut merged: Vec<Option<(Vec<u16>, u16)>> = vec![None; n_blocks];
        for (state, (next, class)) in rows.iter().enumerate() {
            let merged = &mut merged[block_of[state] as usize];
            if merged.is_none() {
                // Blocks are fewer than MAX_STATES, so their numbers fit.
                let next = next.iter().map(|&next| block_of[next as usize] as u16);
                *merged = Some((next.collect(), *class));
            }
        }
        let merged: Vec<(Vec<u16>, u16)> = merged.into_iter().flatten().collect();

        // After merging, columns can have become equal.
        let mut letter_of_column: HashMap<Vec<u16>, usize> = HashMap::new();
        let mut letters_in_use: Vec<usize> = Vec::new();
        let mut letter = vec![0; columns.len()];
        for column in 0..columns.len() {
            let content = merged.iter().map(|(next, _)| next[column]).collect();
            letter[column] = *letter_of_column.entry(content).or_insert_with(|| {
                letters_in_use.push(column);
                letters_in_use.len() - 1
            });
        }
        if letters_in_use.len() > MAX_LETTERS {
            return Err(Fault::new(
                "the patterns for control groups and executables name too many characters",
            )
            .help(format!(
                "they can tell {MAX_LETTERS} bytes apart: use `*` or `?` for letters beyond ASCII"
            )));
        }
        let mut letters = [0; 256];
        for (byte, letter_of_byte) in letters.iter_mut().enumerate() {
            // MAX_LETTERS fits in a byte.
            *letter_of_byte = letter[column_of[byte]] as u8;
        }
        let states = merged
            .iter()
            .map(|(next, class)| {
                let mut state = State {
                    next: [0; MAX_LETTERS],
                    class: *class,
                };
                for (letter, &column) in letters_in_use.iter().enumerate() {
                    state.next[letter] = next[column];
                }
                state
            })
            .collect();
        Ok(Self {
            letters,
            states,
            starts: [block_of[0], block_of[first.states.len()]],
        })
    }
}

/// Numbers the states so that two have the same number only when no string leads
/// them to different classes. Returns each state's number, and how many there are.
///
/// Not minimal, and quick for that: states are equal when class and next states
/// are. Going through them from the last found to the first, one pass meets almost
/// every state after those it leads to, which shares the common ends of patterns;
/// a state that leads to itself is seen as such. Whatever two states are given the
/// same number have the same class and lead to equal states, so each pass may use
/// what the pass before it, or itself, found.
fn merge(rows: &[(Vec<u32>, u16)]) -> (Vec<u32>, usize) {
    const PASSES: usize = 4;
    const ITSELF: u32 = u32::MAX;
    let mut equal_to: Vec<u32> = (0..).take(rows.len()).collect();
    let mut n_different = rows.len();
    for _ in 0..PASSES {
        let mut seen: HashMap<(Vec<u32>, u16), u32> = HashMap::with_capacity(n_different);
        for (state, (next, class)) in rows.iter().enumerate().rev() {
            let own = equal_to[state];
            let leads_to = next.iter().map(|&next| match equal_to[next as usize] {
                target if target == own => ITSELF,
                target => target,
            });
            let first_seen = seen
                .entry((leads_to.collect(), *class))
                .or_insert(state as u32);
            equal_to[state] = *first_seen;
        }
        let n_before = std::mem::replace(&mut n_different, seen.len());
        if n_different == n_before {
            break;
        }
    }
    let mut numbers = vec![u32::MAX; rows.len()];
    let mut n_numbers = 0;
    let mut number_of = |state: u32| {
        let number = &mut numbers[state as usize];
        if *number == u32::MAX {
            *number = n_numbers;
            n_numbers += 1;
        }
        *number
    };
    let block_of = equal_to.into_iter().map(&mut number_of).collect();
    (block_of, n_numbers as usize)
}

#[cfg(test)]
mod tests;
