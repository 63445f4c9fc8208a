//! Patterns as a nondeterministic automaton.
//!
//! Owns what a pattern matches, state by state; that it becomes deterministic is
//! left to the library.

use std::collections::HashMap;

use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;

use crate::policy::glob::{Glob, NOT_SLASH, Token};
use crate::policy::pattern::{ExecutablePattern, UnitPlace};

use super::PathPatterns;

/// A nondeterministic automaton that is being drawn, beginning at its end.
pub(super) struct Draft {
    builder: thompson::Builder,
}

/// Result of a call to the library's builder: the product, or why there is none.
pub(super) type Drawn<T> = Result<T, Box<thompson::BuildError>>;

impl Draft {
    fn new() -> Self {
        let mut builder = thompson::Builder::new();
        builder.set_utf8(false);
        Self { builder }
    }

    /// Executables: the whole path matches.
    pub(super) fn executables(patterns: &[&ExecutablePattern]) -> Drawn<thompson::NFA> {
        let mut draft = Self::new();
        let mut starts = Vec::new();
        for pattern in patterns {
            draft.builder.start_pattern()?;
            let end = draft.builder.add_match()?;
            let start = draft.glob(pattern.glob(), end)?;
            draft.builder.finish_pattern(start)?;
            starts.push(start);
        }
        let start = draft.builder.add_union(starts)?;
        Ok(draft.builder.build(start, start)?)
    }

    /// Control groups: the path is within a unit, a group or a container that
    /// matches.
    ///
    /// All patterns share the loops over slices: with a loop of its own for each
    /// pattern, every state would carry every pattern along.
    pub(super) fn cgroups(patterns: &PathPatterns<'_>) -> Drawn<thompson::NFA> {
        let mut draft = Self::new();
        let mut starts = Vec::new();
        // Entries of patterns that stand behind slices, by what precedes the slices.
        let mut behind_slices: HashMap<(Option<&Glob>, &[String]), Vec<StateID>> = HashMap::new();
        for pattern in &patterns.units {
            draft.builder.start_pattern()?;
            let anything = draft.within()?;
            if pattern.is_root_slice() {
                starts.push(draft.everything()?);
            } else {
                let mut names = Vec::new();
                for name in &pattern.names {
                    names.push(draft.escaped(name, anything)?);
                }
                let names = draft.builder.add_union(names)?;
                let manager = pattern.manager.as_ref();
                match &pattern.place {
                    UnitPlace::Slices(chain) => {
                        let named = draft.byte(b'/', names)?;
                        let chained = draft.chain(chain, named)?;
                        starts.push(draft.behind_manager(manager, chained)?);
                    }
                    UnitPlace::AnySlice => {
                        behind_slices.entry((manager, &[])).or_default().push(names);
                    }
                    UnitPlace::SlicesAndAny(chain) => {
                        behind_slices
                            .entry((manager, chain))
                            .or_default()
                            .push(names);
                    }
                }
            }
            draft.finish_pattern()?;
        }
        for pattern in &patterns.cgroups {
            draft.builder.start_pattern()?;
            starts.push(if pattern.is_root() {
                draft.everything()?
            } else {
                let anything = draft.within()?;
                draft.glob(pattern.glob(), anything)?
            });
            draft.finish_pattern()?;
        }
        for pattern in &patterns.containers {
            draft.builder.start_pattern()?;
            let anything = draft.within()?;
            let entries = draft.container(pattern, anything)?;
            starts.extend(entries.whole);
            behind_slices
                .entry((None, &[]))
                .or_default()
                .extend(entries.behind_slices);
            draft.finish_pattern()?;
        }
        for ((manager, chain), names) in behind_slices {
            let slices = draft.slices(names)?;
            let chained = draft.chain(chain, slices)?;
            starts.push(draft.behind_manager(manager, chained)?);
        }
        let start = draft.builder.add_union(starts)?;
        Ok(draft.builder.build(start, start)?)
    }

    /// Ends a pattern whose beginning is among those of all.
    fn finish_pattern(&mut self) -> Drawn<()> {
        let fail = self.builder.add_fail()?;
        self.builder.finish_pattern(fail)?;
        Ok(())
    }

    /// Any path.
    fn everything(&mut self) -> Drawn<StateID> {
        let end = self.end()?;
        let any = self.loop_over(&[(0, u8::MAX)], end)?;
        self.byte(b'/', any)
    }

    /// The end of a path, or `/` and anything.
    fn within(&mut self) -> Drawn<StateID> {
        let end = self.end()?;
        let any = self.loop_over(&[(0, u8::MAX)], end)?;
        let slash = self.byte(b'/', any)?;
        Ok(self.builder.add_union(vec![end, slash])?)
    }

    /// `/`, any number of slices each with a `/`, then one of `next`.
    fn slices(&mut self, next: Vec<StateID>) -> Drawn<StateID> {
        let slash = self.builder.add_empty()?;
        let mut suffix = slash;
        for &byte in b".slice".iter().rev() {
            suffix = self.byte(byte, suffix)?;
        }
        let rest = self.loop_over(&NOT_SLASH, suffix)?;
        let slice = self.set(&NOT_SLASH, rest)?;
        let part = self.builder.add_union([vec![slice], next].concat())?;
        let here = self.byte(b'/', part)?;
        self.builder.patch(slash, here)?;
        Ok(here)
    }

    /// These slices one behind the other, each after a `/`, then `next`.
    fn chain(&mut self, slices: &[String], mut next: StateID) -> Drawn<StateID> {
        for slice in slices.iter().rev() {
            for &byte in slice.as_bytes().iter().rev() {
                next = self.byte(byte, next)?;
            }
            let escaped = self.byte(b'_', next)?;
            next = self.builder.add_union(vec![next, escaped])?;
            next = self.byte(b'/', next)?;
        }
        Ok(next)
    }

    /// Draws `next` within this user's manager, or `next` alone if there is no manager.
    fn behind_manager(&mut self, manager: Option<&Glob>, next: StateID) -> Drawn<StateID> {
        match manager {
            None => Ok(next),
            Some(manager) => {
                let name = self.escaped(manager, next)?;
                self.slices(vec![name])
            }
        }
    }

    /// A name as systemd may have escaped it.
    fn escaped(&mut self, name: &Glob, next: StateID) -> Drawn<StateID> {
        let plain = self.glob(name, next)?;
        let escaped = self.byte(b'_', plain)?;
        Ok(self.builder.add_union(vec![plain, escaped])?)
    }

    fn glob(&mut self, glob: &Glob, mut next: StateID) -> Drawn<StateID> {
        for token in glob.tokens().iter().rev() {
            next = match token {
                Token::Byte(byte) => self.byte(*byte, next)?,
                Token::Set(set) => self.set(set, next)?,
                Token::Star => self.loop_over(&NOT_SLASH, next)?,
                Token::DoubleStar => self.loop_over(&[(0, u8::MAX)], next)?,
            };
        }
        Ok(next)
    }

    fn byte(&mut self, byte: u8, next: StateID) -> Drawn<StateID> {
        self.set(&[(byte, byte)], next)
    }

    /// These bytes, one after the other.
    pub(super) fn literal(&mut self, bytes: &[u8], mut next: StateID) -> Drawn<StateID> {
        for &byte in bytes.iter().rev() {
            next = self.byte(byte, next)?;
        }
        Ok(next)
    }

    /// The end of the path.
    pub(super) fn end(&mut self) -> Drawn<StateID> {
        Ok(self.builder.add_match()?)
    }

    /// Any of these.
    pub(super) fn union(&mut self, alternatives: Vec<StateID>) -> Drawn<StateID> {
        Ok(self.builder.add_union(alternatives)?)
    }

    /// A state that is [`patch`](Self::patch)ed when it is known what it leads to.
    pub(super) fn empty(&mut self) -> Drawn<StateID> {
        Ok(self.builder.add_empty()?)
    }

    pub(super) fn patch(&mut self, from: StateID, to: StateID) -> Drawn<()> {
        Ok(self.builder.patch(from, to)?)
    }

    pub(super) fn set(&mut self, set: &[(u8, u8)], next: StateID) -> Drawn<StateID> {
        let transition = |&(start, end)| thompson::Transition { start, end, next };
        let transitions = set.iter().map(transition).collect();
        Ok(self.builder.add_sparse(transitions)?)
    }

    /// Any number of bytes of `set`, then `next`.
    pub(super) fn loop_over(&mut self, set: &[(u8, u8)], next: StateID) -> Drawn<StateID> {
        let again = self.builder.add_empty()?;
        let step = self.set(set, again)?;
        let here = self.builder.add_union(vec![step, next])?;
        self.builder.patch(again, here)?;
        Ok(here)
    }
}
