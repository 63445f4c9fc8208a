//! Decisions on the compiled form, in user space.
//!
//! Owns the same steps that the kernel programs take on the same tables, written
//! for reading. The meaning of a policy is stated in [`mod@super::explain`].

use std::net::IpAddr;

use trefoil_ebpf::abi::{
    Address, DECISION_ENFORCED, Decision, NO_RULE, Row, class, dimension, direction, layout, login,
    verdict,
};

use super::automaton::State;
use super::compile::{Compiled, EMBEDS, OWN, Range32, Range128};
use super::service;
use super::source::{Direction, Mode};

/// A flow, as far as a policy can ask about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// Path from the root of the cgroup v2 hierarchy; `None` when not known.
    pub cgroup: Option<&'a [u8]>,
    /// Path of the executable; `None` when not known.
    pub executable: Option<&'a [u8]>,
    /// The path says nothing about the host's files: a user could have put anything there.
    pub is_foreign: bool,
    /// User id; the last number when not known.
    pub uid: u32,
    /// Group id; `None` when not known.
    pub gid: Option<u32>,
    /// Whether the process has a login session; `None` when not known.
    pub interactive: Option<bool>,
    /// Address that somebody logged in from, in a login session; `None` when not known.
    pub origin: Option<IpAddr>,
    /// Which end opened it; `None` when not known.
    pub direction: Option<Direction>,
    /// This host's port, 0 where it cannot be read or the protocol has none; `None` if the socket
    /// has none yet. Without a direction it counts for rules that deny alone.
    pub near_port: Option<u16>,
    /// Where to. A mapped IPv4 address is an IPv4 address.
    pub destination: IpAddr,
    /// Whether it may still stay on this host, see [`abi::MAY_STAY`](trefoil_ebpf::abi::MAY_STAY).
    pub may_stay: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, 0 where the protocol has none.
    pub port: u16,
    /// When, in microseconds since 1970.
    pub time_us: u64,
}

impl Compiled {
    /// Decides, as long as every budget lasts.
    #[must_use]
    pub fn judge(&self, question: &Question<'_>) -> Decision {
        self.judge_within(question, |_| true)
    }

    /// Decides. `lasts` says whether there is room in a budget, given by its index.
    ///
    /// Judges a flow as if the limits that `lasts` denies had run out. Limits that the kernel
    /// marks are not marked here.
    #[must_use]
    pub fn judge_within(&self, question: &Question<'_>, lasts: impl Fn(usize) -> bool) -> Decision {
        let outer = self.judge_address(question, question.destination, question.may_stay, &lasts);
        self.embedded(question.destination)
            .fold(outer, |outer, inner| match outer.verdict {
                verdict::LOCAL => outer,
                // The packet is on its way elsewhere.
                _ => outer.or_stricter(self.judge_address(question, inner, false, &lasts)),
            })
    }

    /// Decides about a packet that names all of these addresses to go to: the strictest holds of
    /// what is decided about each, and it is never local. `is_read`: it names no others, as far as
    /// can be told. `question` says the rest.
    #[must_use]
    pub fn judge_listed(
        &self,
        question: &Question<'_>,
        stops: &[IpAddr],
        is_read: bool,
        lasts: impl Fn(usize) -> bool,
    ) -> Decision {
        let of_stop = |&destination: &IpAddr| {
            let question = Question {
                destination,
                may_stay: false,
                ..*question
            };
            self.judge_within(&question, &lasts).leading_on()
        };
        let unread = (!is_read).then(|| self.decision(verdict::UNDETERMINED, NO_RULE));
        let all = unread.into_iter().chain(stops.iter().map(of_stop));
        all.reduce(Decision::or_stricter).unwrap_or_default()
    }

    /// The addresses that are embedded in a destination and judged as well.
    pub fn embedded(&self, destination: IpAddr) -> impl Iterator<Item = IpAddr> {
        let (_, _, marks) = self.destination(destination);
        let layouts = self.layouts[usize::from(marks / EMBEDS)];
        let address = address_of(destination);
        let is_several = layouts >> layout::BITS != 0;
        (0..layout::MOST)
            .map(move |nth| layouts >> (nth * layout::BITS) & ((1 << layout::BITS) - 1))
            .take_while(|&layout| layout != layout::NONE)
            .map(move |layout| address.embedded_v4(layout))
            // Of several, one to which nothing can go is not the one that is meant.
            .filter(move |v4| !is_several || v4 >> 24 != 0)
            .map(|v4| IpAddr::V4(v4.into()))
    }

    fn decision(&self, verdict: u8, rule: u16) -> Decision {
        Decision {
            generation: self.header.generation,
            rule,
            verdict,
            flags: match self.mode() {
                Mode::Enforce => DECISION_ENFORCED,
                Mode::Report => 0,
            },
        }
    }

    /// Decides as if `destination` were where the flow goes.
    fn judge_address(
        &self,
        question: &Question<'_>,
        destination: IpAddr,
        may_stay: bool,
        lasts: &impl Fn(usize) -> bool,
    ) -> Decision {
        let decision = |verdict, rule| self.decision(verdict, rule);
        let (destination, fallback, marks) = self.destination(destination);
        if fallback == verdict::LOCAL || may_stay && marks & OWN != 0 {
            return decision(verdict::LOCAL, NO_RULE);
        }
        let mut classes = self.classes_of_source(question);
        classes[dimension::DESTINATION] = destination;
        let service = service::key(question.protocol, question.port);
        classes[dimension::SERVICE] = range_of(&self.services, service).class;

        let header = &self.header;
        let row = |dimension: usize| -> &Row {
            &self.rows[header.rows[dimension] as usize + usize::from(classes[dimension])]
        };
        for word in 0..header.n_words as usize {
            let mut matching =
                (0..dimension::N).fold(u64::MAX, |all, at| all & row(at).words[word]);
            while matching != 0 {
                let clause = &self.clauses[word * 64 + matching.trailing_zeros() as usize];
                matching &= matching - 1;
                match (clause.holds, clause.budget) {
                    (Some(period), _) if !period.contains(question.time_us) => {}
                    (_, Some(budget)) if !lasts(budget) => {
                        return decision(verdict::OVER_BUDGET, clause.rule);
                    }
                    _ => return decision(clause.verdict, clause.rule),
                }
            }
        }
        decision(fallback, NO_RULE)
    }

    /// The classes of whom a flow comes from; those of where it goes are 0.
    fn classes_of_source(&self, question: &Question<'_>) -> [u16; dimension::N] {
        let header = &self.header;
        let mut classes = [0; dimension::N];
        classes[dimension::CGROUP] = self.class_of_path(header.cgroup_start, question.cgroup);
        let executable = self.class_of_path(header.executable_start, question.executable);
        classes[dimension::EXECUTABLE] = match question.is_foreign {
            true => self.foreign[usize::from(executable)],
            false => executable,
        };
        classes[dimension::USER] = range_of(&self.users, question.uid).class;
        let groups = match (question.interactive, question.origin, &self.origins) {
            (None, ..) => &self.groups[login::UNKNOWN],
            (Some(false), ..) => &self.groups[login::NONE],
            (Some(true), Some(origin), Some(origins)) => {
                let case = match origin.to_canonical() {
                    IpAddr::V4(v4) => range_of(&origins.v4, v4.to_bits()).class,
                    IpAddr::V6(v6) => range128_of(&origins.v6, v6.to_bits()).class,
                };
                &origins.groups[usize::from(case)]
            }
            (Some(true), ..) => &self.groups[login::SESSION],
        };
        let gid = question.gid.unwrap_or(u32::MAX);
        classes[dimension::GROUP] = range_of(groups, gid).class;
        let known = match question.direction {
            None => direction::UNKNOWN,
            Some(Direction::Outbound) => direction::OUTBOUND,
            Some(Direction::Accepted) => direction::ACCEPTED,
        };
        let near = service::near_key(question.protocol, question.near_port);
        classes[dimension::NEAR_END] = range_of(&self.near_ends[usize::from(known)], near).class;
        classes
    }

    /// Class, fallback and marks of a destination.
    fn destination(&self, address: IpAddr) -> (u16, u8, u8) {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let range = range_of(&self.v4, v4.to_bits());
                (range.class, range.fallback, range.marks)
            }
            IpAddr::V6(v6) => {
                let range = range128_of(&self.v6, v6.to_bits());
                (range.class, range.fallback, range.marks)
            }
        }
    }

    fn class_of_path(&self, start: u32, path: Option<&[u8]>) -> u16 {
        let Some(path) = path else {
            return class::UNKNOWN;
        };
        let step = |state: &State, &byte: &u8| -> State {
            let letter = self.header.letters[usize::from(byte)];
            self.states[usize::from(state.next[usize::from(letter)])]
        };
        path.iter()
            .fold(self.states[start as usize], |state, byte| {
                step(&state, byte)
            })
            .class
    }
}

/// An address as the kernel's tables have it.
fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(v4.to_bits()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// The range that `key` is in. The first one of every table begins at 0.
fn range_of(table: &[Range32], key: u32) -> &Range32 {
    &table[table.partition_point(|range| range.first <= key) - 1]
}

/// As [`range_of`].
fn range128_of(table: &[Range128], key: u128) -> &Range128 {
    &table[table.partition_point(|range| range.first <= key) - 1]
}
