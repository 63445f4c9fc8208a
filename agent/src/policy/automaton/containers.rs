//! Patterns for containers as part of the automaton for control groups.
//!
//! Owns the same places and names that `owner::cgroup::container_for_rules` finds in
//! a path, drawn state by state; both are tested against each other.

use std::collections::HashMap;

use regex_automata::util::primitives::StateID;

use super::draft::{Draft, Drawn};
use crate::owner::cgroup::PREFIXES;
use crate::policy::glob::{Glob, NOT_SLASH, Token};
use crate::policy::pattern::ContainerPattern;

/// Kind of a name: the characters that it is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Hexadecimal digits. The automaton does not count that an id has 64 of them: that would
    /// be as many states for each pattern.
    Id,
    /// A name of a machine, as systemd-nspawn calls them, escaped as in the name of a
    /// unit. Not of libvirt's virtual machines, `qemu-...`.
    Machine,
    /// Any printable characters, but not the name of a slice: what is in a slice is
    /// not in a container, and could be in any number of them otherwise.
    Plain,
}

/// How libvirt's machines begin.
const NO_CONTAINER: &[u8] = b"qemu-";
/// State of a [`Kind::Machine`] that cannot begin so any more.
const FREE: u8 = NO_CONTAINER.len() as u8;
/// State of other kinds behind their first character. Of a [`Kind::Plain`], those that
/// follow say how much of [`SLICE`] was just read.
const BEGUN: u8 = 1;
/// How a name of a slice ends.
const SLICE: &[u8] = b".slice";

impl Kind {
    /// Returns the ranges of bytes that may follow, and the state that each leads to. States,
    /// from 0, stand for what is known of the name so far.
    fn steps(self, state: u8) -> Vec<(u8, u8, u8)> {
        const HOST: [(u8, u8); 5] = [
            (b'-', b'.'),
            (b'0', b'9'),
            (b'A', b'Z'),
            (b'_', b'_'),
            (b'a', b'z'),
        ];
        match self {
            Self::Id => [(b'0', b'9'), (b'a', b'f')]
                .map(|(first, last)| (first, last, BEGUN))
                .to_vec(),
            Self::Plain => {
                let read = usize::from(state.saturating_sub(BEGUN));
                let awaited = SLICE.get(read).copied();
                let printable = (b'!'..=b'~').filter(|&byte| byte != b'/');
                let to = |byte| match byte {
                    byte if Some(byte) == awaited => BEGUN + read as u8 + 1,
                    b'.' => BEGUN + 1,
                    _ => BEGUN,
                };
                joined(printable.map(|byte| (byte, to(byte))))
            }
            Self::Machine => {
                let begun = NO_CONTAINER.get(usize::from(state)).copied();
                let host = HOST.iter().flat_map(|&(first, last)| first..=last);
                let to = |byte| match begun {
                    Some(begun) if begun == byte => state + 1,
                    _ => FREE,
                };
                // With its last letter, it has become what is no container.
                let is_last = |byte: u8| begun == Some(byte) && state + 1 == FREE;
                let steps = host.filter(|&byte| !is_last(byte));
                joined(steps.map(|byte| (byte, to(byte))))
            }
        }
    }

    /// True when a name may end in this state.
    fn accepts(self, state: u8) -> bool {
        let is_slice = self == Self::Plain && usize::from(state - BEGUN.min(state)) == SLICE.len();
        state > 0 && !is_slice
    }
}

/// Neighbours that lead to the same state as one range; a dash stays by itself.
fn joined(steps: impl Iterator<Item = (u8, u8)>) -> Vec<(u8, u8, u8)> {
    let mut ranges: Vec<(u8, u8, u8)> = Vec::new();
    for (byte, to) in steps {
        match ranges.last_mut() {
            Some((_, last, own)) if *last != b'-' && *last + 1 == byte && *own == to => {
                *last = byte;
            }
            _ => ranges.push((byte, byte, to)),
        }
    }
    ranges
}

/// Where the groups of a pattern's containers are.
#[derive(Default)]
pub(super) struct Entries {
    /// Behind slices: the name of the group.
    pub(super) behind_slices: Vec<StateID>,
    /// The whole path.
    pub(super) whole: Vec<StateID>,
}

impl Draft {
    /// Where `pattern` begins; `anything` is what may follow the group's name.
    pub(super) fn container(
        &mut self,
        pattern: &ContainerPattern,
        anything: StateID,
    ) -> Drawn<Entries> {
        let mut entries = Entries::default();
        let scope = self.literal(b".scope", anything)?;
        let end = self.union(vec![anything, scope])?;
        if let Some(id) = self.name(pattern.name(), Kind::Id, end)? {
            for (prefix, engine) in PREFIXES {
                if pattern.is_of(engine) {
                    entries
                        .behind_slices
                        .push(self.literal(prefix.as_bytes(), id)?);
                }
            }
            let mut in_pod = entries.behind_slices.clone();
            let bare = self.name(pattern.name(), Kind::Id, anything)?;
            if let Some(bare) = bare {
                if pattern.is_of("kubernetes") {
                    in_pod.push(bare);
                }
                if pattern.is_of("docker") {
                    entries.whole.push(self.literal(b"/docker/", bare)?);
                }
            }
            if pattern.is_of("podman") {
                entries
                    .whole
                    .push(self.literal(b"/libpod_parent/libpod-", id)?);
                entries
                    .whole
                    .push(self.literal(b"/libpod_parent/libpod-payload-", id)?);
            }
            if !in_pod.is_empty() {
                let in_pod = self.union(in_pod)?;
                entries.whole.push(self.pod(in_pod)?);
            }
        }
        if pattern.is_of("systemd-nspawn") {
            let payload = self.not_supervisor()?;
            for (before, behind) in [("machine-", ".scope"), ("systemd-nspawn@", ".service")] {
                let end = self.literal(behind.as_bytes(), payload)?;
                if let Some(name) = self.name(pattern.name(), Kind::Machine, end)? {
                    let name = self.literal(before.as_bytes(), name)?;
                    entries.behind_slices.push(name);
                }
            }
        }
        if pattern.is_of("lxc")
            && let Some(name) = self.name(pattern.name(), Kind::Plain, anything)?
        {
            entries
                .behind_slices
                .push(self.literal(b"lxc.payload.", name)?);
            entries.whole.push(self.literal(b"/lxc/", name)?);
        }
        Ok(entries)
    }

    /// The directory of a pod, as the kubelet makes it without systemd, then `next`.
    fn pod(&mut self, next: StateID) -> Drawn<StateID> {
        let slash = self.literal(b"/", next)?;
        let rest = self.loop_over(&NOT_SLASH, slash)?;
        let first = self.set(&NOT_SLASH, rest)?;
        let pod = self.literal(b"/pod", first)?;
        let burstable = self.literal(b"/burstable", pod)?;
        let best_effort = self.literal(b"/besteffort", pod)?;
        let below = self.union(vec![pod, burstable, best_effort])?;
        self.literal(b"/kubepods", below)
    }

    /// The end of the path, or `/` and what is not in the group `supervisor`: the
    /// process that set the container up is not in it.
    fn not_supervisor(&mut self) -> Drawn<StateID> {
        const SUPERVISOR: &[u8] = b"supervisor";
        let end = self.end()?;
        let any = self.loop_over(&[(0, u8::MAX)], end)?;
        // A longer name is another one.
        let mut next = self.set(&NOT_SLASH, any)?;
        for &byte in SUPERVISOR.iter().rev() {
            let as_begun = self.set(&[(byte, byte)], next)?;
            let other = self.set(&[(0, byte - 1), (byte + 1, u8::MAX)], any)?;
            next = self.union(vec![end, as_begun, other])?;
        }
        let below = self.literal(b"/", next)?;
        self.union(vec![end, below])
    }

    /// A name of this kind that the glob matches, then `next`; none if it matches no
    /// such name.
    fn name(&mut self, glob: &Glob, kind: Kind, next: StateID) -> Drawn<Option<StateID>> {
        let mut name = Name {
            draft: self,
            tokens: glob.tokens(),
            kind,
            next,
            known: HashMap::new(),
        };
        name.from(0, 0)
    }
}

/// A name that is being drawn: each state stands for a token of the glob and a state
/// of the kind.
struct Name<'d, 'g> {
    draft: &'d mut Draft,
    tokens: &'g [Token],
    kind: Kind,
    next: StateID,
    known: HashMap<(usize, u8), Option<StateID>>,
}

impl Name<'_, '_> {
    fn from(&mut self, token: usize, state: u8) -> Drawn<Option<StateID>> {
        if let Some(&known) = self.known.get(&(token, state)) {
            return Ok(known);
        }
        if token == self.tokens.len() {
            return Ok(self.kind.accepts(state).then_some(self.next));
        }
        // A `*` leads back here, so the state is known before it is drawn.
        let here = self.draft.empty()?;
        self.known.insert((token, state), Some(here));
        let ways = self.ways(token, state)?;
        let drawn = self.draft.union(ways.clone())?;
        self.draft.patch(here, drawn)?;
        let found = (!ways.is_empty()).then_some(here);
        self.known.insert((token, state), found);
        Ok(found)
    }

    fn ways(&mut self, token: usize, state: u8) -> Drawn<Vec<StateID>> {
        let one;
        let (set, is_star) = match &self.tokens[token] {
            Token::Byte(byte) => {
                one = [(*byte, *byte)];
                (&one[..], false)
            }
            // No kind has a character beyond ASCII, so a byte is all of it.
            Token::Set(set) => (&set[..], false),
            Token::Star | Token::DoubleStar => (&NOT_SLASH[..], true),
        };
        let mut ways = Vec::new();
        if is_star {
            ways.extend(self.from(token + 1, state)?);
        }
        let behind = if is_star { token } else { token + 1 };
        for (first, last, to) in self.kind.steps(state) {
            for &(from, until) in set {
                let (first, last) = (first.max(from), last.min(until));
                if first <= last
                    && let Some(next) = self.from(behind, to)?
                {
                    ways.push(self.bytes(first, last, next)?);
                }
            }
        }
        Ok(ways)
    }

    /// One of these bytes; in the name of a unit a dash is escaped, and is a range
    /// by itself.
    fn bytes(&mut self, first: u8, last: u8, next: StateID) -> Drawn<StateID> {
        if self.kind == Kind::Machine && first == b'-' {
            return self.draft.literal(b"\\x2d", next);
        }
        self.draft.set(&[(first, last)], next)
    }
}
