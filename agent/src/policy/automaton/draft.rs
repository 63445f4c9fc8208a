//! Patterns as a nondeterministic automaton.
//!
//! Owns what a pattern matches, state by state; that it becomes deterministic is
//! left to the library.

use std::collections::HashMap;

use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;

use crate::policy::glob::{CONTINUATION, Glob, LEADS, NOT_SLASH, Token};
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

    /// A glob, then `end`, which begins with no byte that goes on with a character.
    ///
    /// A character takes all bytes that go on with it, so what follows one that is not whole
    /// must not begin with such a byte: `apart` is the rest of the glob drawn without that.
    fn glob(&mut self, glob: &Glob, end: StateID) -> Drawn<StateID> {
        let tokens = glob.tokens();
        let (mut next, mut apart) = (end, end);
        for (at, token) in tokens.iter().enumerate().rev() {
            (next, apart) = match token {
                Token::Byte(byte) => {
                    let here = self.byte(*byte, next)?;
                    (here, here)
                }
                Token::Set(set) if is_beyond_ascii(set) => {
                    let begun = self.begun(next, apart)?;
                    let here = self.character(set, next, begun)?;
                    match follows_character(&tokens[..at]) {
                        true => {
                            let set = without_continuation(set);
                            (here, self.character(&set, next, begun)?)
                        }
                        false => (here, here),
                    }
                }
                Token::Set(set) => {
                    let here = self.set(set, next)?;
                    (here, here)
                }
                Token::Star => self.star(&NOT_SLASH, next, apart, &tokens[..at])?,
                Token::DoubleStar => self.star(&[(0, u8::MAX)], next, apart, &tokens[..at])?,
            };
        }
        Ok(next)
    }

    /// Any number of bytes of `set`, then `next`; and the same without a byte at the beginning
    /// that goes on with a character, if a token `before` needs that.
    fn star(
        &mut self,
        set: &[(u8, u8)],
        next: StateID,
        apart: StateID,
        before: &[Token],
    ) -> Drawn<(StateID, StateID)> {
        let here = self.loop_over(set, next)?;
        if !follows_character(before) {
            return Ok((here, here));
        }
        let first = self.set(&without_continuation(set), here)?;
        Ok((here, self.builder.add_union(vec![first, apart])?))
    }

    /// The rest of a character of which one, two and three more bytes may follow, then `next`,
    /// or `apart` if fewer do.
    fn begun(&mut self, next: StateID, apart: StateID) -> Drawn<[StateID; 3]> {
        let mut states = [next; 3];
        let mut behind = next;
        for state in &mut states {
            let more = self.set(&[CONTINUATION], behind)?;
            behind = self.builder.add_union(vec![more, apart])?;
            *state = behind;
        }
        Ok(states)
    }

    /// A character that begins in `set`, then `next`, by way of `begun` if it goes on.
    fn character(
        &mut self,
        set: &[(u8, u8)],
        next: StateID,
        begun: [StateID; 3],
    ) -> Drawn<StateID> {
        let mut transitions = Vec::new();
        for &(mut start, end) in set {
            for (first, last, n_more) in LEADS {
                if start <= first && last <= end {
                    if start < first {
                        transitions.push(thompson::Transition {
                            start,
                            end: first - 1,
                            next,
                        });
                    }
                    transitions.push(thompson::Transition {
                        start: first,
                        end: last,
                        next: begun[n_more - 1],
                    });
                    start = last + 1;
                }
            }
            transitions.push(thompson::Transition { start, end, next });
        }
        Ok(self.builder.add_sparse(transitions)?)
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

/// True for a set that all characters beyond ASCII are in.
fn is_beyond_ascii(set: &[(u8, u8)]) -> bool {
    set.last().is_some_and(|&(_, last)| last == u8::MAX)
}

/// True when the last of these tokens, or what is before a `*` there, is a character that may be
/// beyond ASCII.
fn follows_character(tokens: &[Token]) -> bool {
    let is_star = |token: &&Token| matches!(token, Token::Star | Token::DoubleStar);
    let last = tokens.iter().rev().find(|token| !is_star(token));
    matches!(last, Some(Token::Set(set)) if is_beyond_ascii(set))
}

/// These bytes but those that go on with a character.
fn without_continuation(set: &[(u8, u8)]) -> Vec<(u8, u8)> {
    let (first, last) = CONTINUATION;
    let parts = set
        .iter()
        .flat_map(|&(start, end)| [(start, end.min(first - 1)), (start.max(last + 1), end)]);
    parts.filter(|(start, end)| start <= end).collect()
}
