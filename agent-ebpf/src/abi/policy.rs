//! The compiled form of a policy, as the kernel tables hold it.
//!
//! A policy is a list of *clauses*, in order; a rule is one clause, or several
//! when it names a gateway with different ports. Each clause says something
//! about seven dimensions: control group, executable, user, group and login session with its origin,
//! destination, service (protocol and port), near end (who opened it, and this host's port). In every dimension, values that no clause can tell
//! apart form a *class*, and every class has a [`Row`]: the set of clauses that
//! a value of this class satisfies, one bit a clause. A decision looks up seven
//! classes, intersects seven rows, and takes the lowest bit: the first clause
//! that matches. The number of lookups does not depend on the number of rules
//! or prefixes.
//!
//! Two classes of a source's dimensions have a meaning of their own, see [`class`]. They
//! say in one place that what is not known counts against the sender.

use super::{Branch, Packed};

/// Most clauses a policy can have.
pub const MAX_CLAUSES: usize = ROW_WORDS * 64;
/// Words of the longest [`Row`].
pub const ROW_WORDS: usize = 32;
/// Different bytes that patterns can tell apart, see [`Header::letters`].
pub const MAX_LETTERS: usize = 128;
/// Most ranges of one table.
pub const MAX_RANGES: usize = 1 << 21;

/// All tables of a policy are in chunks of this many bytes, each a map that is in map `TABLES`, at
/// [`chunk_index`]. The first is [`First`]. A table is where that says, in bytes from the
/// beginning of the first chunk, at a multiple of the size of its elements, which is a power of
/// two: so no element is in two chunks. A table that is searched is in one chunk as a whole. One
/// look-up finds a chunk, and everything in it is memory.
pub const CHUNK_BYTES: usize = 1 << CHUNK_SHIFT;
/// See [`CHUNK_BYTES`].
pub const CHUNK_SHIFT: u32 = 21;
/// Most chunks of a policy: 64 MiB.
pub const MAX_CHUNKS: usize = 32;

/// Index of a slot's chunk in map `TABLES`: that of no other slot, whatever the number.
#[inline(always)]
#[must_use]
pub const fn chunk_index(slot: u32, number: u32) -> u32 {
    number << 1 | slot & 1
}

/// Verdicts of a policy about a flow, by their numbers in reports.
pub mod verdict {
    /// Not judged.
    pub const NONE: u8 = 0;
    /// Stays on the host, or is of a scope that no router forwards.
    pub const LOCAL: u8 = 1;
    /// Approved, through a gateway.
    pub const GATEWAY: u8 = 2;
    /// Approved by a rule.
    pub const APPROVED: u8 = 3;
    /// Approved by a rule that is an exception.
    pub const EXCEPTION: u8 = 4;
    /// Approved by a rule whose budget is used up.
    pub const OVER_BUDGET: u8 = 5;
    /// Denied by a rule.
    pub const DENIED: u8 = 6;
    /// No rule matches.
    pub const UNAPPROVED: u8 = 7;
    /// No rule matches, and the country is not known.
    pub const UNDETERMINED: u8 = 8;
    /// Number of verdicts.
    pub const N: u8 = 9;

    /// How strict a verdict is, for a destination that is judged by two addresses.
    #[inline(always)]
    pub const fn strictness(verdict: u8) -> u8 {
        // A digit for each verdict, that of NONE last.
        const DIGITS: u64 = 0x6_5743_2108;
        (DIGITS >> (verdict as u32 * 4)) as u8 & 0xf
    }

    /// True for a verdict under which a flow may leave.
    #[inline(always)]
    pub const fn is_approved(verdict: u8) -> bool {
        matches!(verdict, LOCAL | GATEWAY | APPROVED | EXCEPTION)
    }
}

/// [`Decision::rule`] when no rule decided.
pub const NO_RULE: u16 = u16::MAX;
/// [`Decision::flags`]: the policy was in enforce mode.
pub const DECISION_ENFORCED: u8 = 1;
/// [`Decision::flags`]: it depends on the clock or on a budget, so it holds for one
/// packet and is not kept.
pub const DECISION_LIMITED: u8 = 2;
/// [`Decision::flags`], in map `REMEMBERED` alone: made at an uplink, where the packet
/// belongs to a flow in `UPLINK_FLOWS`.
pub const DECISION_AT_UPLINK: u8 = 4;

/// Beside [`DECISION_ENFORCED`] in what hooks tell the judge, and in no [`Decision`]: the
/// packet may still stay on this host, so that its own addresses are local. Where it is known
/// to leave, they are judged like any other.
pub const MAY_STAY: u8 = 8;

/// Decision of the judge, and the policy generation that it was made under.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Generation of the policy that was in force.
    pub generation: u32,
    /// Index of the rule in the policy file, from 0, or [`NO_RULE`].
    pub rule: u16,
    /// One of [`verdict`].
    pub verdict: u8,
    /// `DECISION_*` bits.
    pub flags: u8,
}

impl Decision {
    /// True when the traffic must not leave.
    #[inline(always)]
    pub const fn blocks(&self) -> bool {
        self.flags & DECISION_ENFORCED != 0 && !verdict::is_approved(self.verdict)
    }

    /// Returns the decision for packets to an address that embeds others, where `inner` is the
    /// decision about one of these: the stricter of both, this one if they are equally strict. A
    /// packet that stays on the link stays there, whatever is embedded; and one that leaves is not
    /// made local by what is embedded.
    #[inline(always)]
    pub const fn or_stricter(self, inner: Self) -> Self {
        if self.verdict == verdict::LOCAL {
            return self;
        }
        let inner = match inner.verdict {
            verdict::LOCAL => Self {
                verdict: verdict::UNDETERMINED,
                ..inner
            },
            _ => inner,
        };
        let limited = (self.flags | inner.flags) & DECISION_LIMITED;
        let stricter = if verdict::strictness(inner.verdict) > verdict::strictness(self.verdict) {
            inner
        } else {
            self
        };
        Self {
            flags: stricter.flags | limited,
            ..stricter
        }
    }

    /// This decision, about a packet that lists other addresses to go to: it is not local,
    /// since it leads on.
    #[inline(always)]
    #[must_use]
    pub const fn leading_on(self) -> Self {
        match self.verdict {
            verdict::LOCAL => Self {
                verdict: verdict::UNDETERMINED,
                ..self
            },
            _ => self,
        }
    }

    /// As one word: in that form it goes through functions that take numbers alone.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.flags as u64) << 56
            | (self.verdict as u64) << 48
            | (self.rule as u64) << 32
            | self.generation as u64
    }

    /// Reads the decision from the word that [`to_word`](Self::to_word) has made.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            generation: word as u32,
            rule: (word >> 32) as u16,
            verdict: (word >> 48) as u8,
            flags: (word >> 56) as u8,
        }
    }

    /// True when `other` says the same, whatever the generation.
    #[inline(always)]
    pub const fn agrees(&self, other: &Self) -> bool {
        self.rule == other.rule && self.verdict == other.verdict && self.flags == other.flags
    }
}

/// A class together with the generation it belongs to, read and written as one
/// word. Classes of paths are computed on first use under a policy and kept here.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCache {
    /// Generation in which `class` is meant; 0 when not computed yet.
    pub generation: u32,
    /// The class.
    pub class: u32,
}

/// The seven things a clause can name. Also the index into [`Header::rows`].
pub mod dimension {
    /// Path of the control group (unit, slice, group, container).
    pub const CGROUP: usize = 0;
    /// Path of the executable.
    pub const EXECUTABLE: usize = 1;
    /// User id.
    pub const USER: usize = 2;
    /// Destination address.
    pub const DESTINATION: usize = 3;
    /// `protocol << 16 | port`.
    pub const SERVICE: usize = 4;
    /// Group id, whether somebody logged in to start the process, and where from.
    pub const GROUP: usize = 5;
    /// Direction and this host's port: see [`near`](super::near).
    pub const NEAR_END: usize = 6;
    /// Number of dimensions.
    pub const N: usize = 7;
}

/// Classes that every dimension of a source has: control group, executable, user, group, near end.
pub mod class {
    /// Nothing is known about it. Its row has the clauses that do not name the dimension, and all
    /// that deny: what could match, matches. A clause that would approve could not be checked, and
    /// does not match.
    pub const UNKNOWN: u16 = 0;
    /// Known to have none: nothing of this host sends it. Its row has the clauses that do
    /// not name the dimension.
    pub const NONE: u16 = 1;
}

/// Where in an IPv6 address another is embedded: numbers in [`Header::layouts`].
pub mod layout {
    /// None.
    pub const NONE: u16 = 0;
    /// NAT64 behind a prefix of 32 bits (RFC 6052).
    pub const PREFIX_32: u16 = 1;
    /// Of 40 bits.
    pub const PREFIX_40: u16 = 2;
    /// Of 48 bits.
    pub const PREFIX_48: u16 = 3;
    /// Of 56 bits.
    pub const PREFIX_56: u16 = 4;
    /// Of 64 bits.
    pub const PREFIX_64: u16 = 5;
    /// The last 32 bits: behind a prefix of 96 bits, or IPv4-compatible (RFC 4291).
    pub const PREFIX_96: u16 = 6;
    /// 6to4 (RFC 3056): the 32 bits behind the first 16.
    pub const SIX_TO_FOUR: u16 = 7;
    /// Teredo (RFC 4380): the last 32 bits, inverted.
    pub const TEREDO: u16 = 8;
    /// Bits of one number.
    pub const BITS: u32 = 4;
    /// Most that one address can have.
    pub const MOST: u32 = u16::BITS / BITS;
    /// Different combinations that a policy can have, the one of none included.
    pub const N_SETS: usize = 32;
}

/// Facts known about the login session of a source: index into [`Header::groups`]. Where a
/// session's origin is known and a clause asks for it, [`Header::origin_groups`] is instead.
pub mod login {
    /// Nothing.
    pub const UNKNOWN: usize = 0;
    /// There is none.
    pub const NONE: usize = 1;
    /// There is one, and where somebody logged in from is not known.
    pub const SESSION: usize = 2;
    /// Number of cases.
    pub const N: usize = 3;
}

/// The near end of a flow as one number: one of [`direction`](super::direction), shifted by
/// [`SHIFT`](near::SHIFT), with `protocol << 16 | port`, the port being this host's.
///
/// Where the direction is not known, or only claimed, the port counts for clauses that deny alone: it is what the
/// packet shows, and who wrote that is not known either.
pub mod near {
    /// Where the direction is.
    pub const SHIFT: u32 = 25;
    /// Number of directions, a power of two.
    pub const N: usize = 4;
    /// In the place of protocol and port: the socket has no port yet. The kernel chooses one when
    /// it sends, and the packet is judged by that.
    pub const NO_PORT: u32 = 1 << 24;
    /// Nothing is known.
    pub const UNKNOWN: u32 = 0;

    /// The number. `port` is 0 if it cannot be read.
    #[inline(always)]
    #[must_use]
    pub const fn of(direction: u8, protocol: u8, port: u16) -> u32 {
        (direction as u32) << SHIFT | (protocol as u32) << 16 | port as u32
    }
}

/// A part of a table that is within one chunk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Where the first entry is, see [`CHUNK_BYTES`].
    pub start: u32,
    /// Number of entries.
    pub len: u32,
}

/// Report and pass.
pub const MODE_REPORT: u32 = 0;
/// Report and block.
pub const MODE_ENFORCE: u32 = 1;

/// Description of a compiled policy, one per slot in map `POLICIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From 1, one more with every policy that is put in force.
    pub generation: u32,
    /// `MODE_*` that the policy asks for. The mode that the kernel is in
    /// follows from [`super::ControlPage::enforce_until_ns`].
    pub mode: u32,
}

/// Where the tables of a policy are, and what is small of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// IPv4 destinations; key: the address.
    pub v4: Branch,
    /// IPv6 destinations; key: the address.
    pub v6: Branch,
    /// Services of neither TCP nor UDP; key: `protocol << 16 | port`.
    pub services: Branch,
    /// Users from [`N_SMALL`] on; key: user id, the last number if it is not known.
    pub users: Branch,
    /// For each case of [`login`], groups; key: group id, the last number if it is not known.
    pub groups: [Branch; login::N],
    /// Where the groups of sessions are whose origin is known: a [`Branch`] for each value in
    /// [`origins_v4`](Self::origins_v4). 0 if no clause asks where somebody logged in from.
    pub origin_groups: u32,
    /// Where the row of class 0 of each [`dimension`] is: its summary, then as many of its
    /// words as the policy's clauses take. Bit `i` of the summary says that word `i` is not
    /// zero: a decision reads only those that can have a clause in common.
    pub rows: [u32; dimension::N],
    /// Bytes of a row, with its summary.
    pub row_bytes: u32,
    /// 1 if all rows are in the first chunk, else 0.
    pub rows_are_near: u32,
    /// Where the [`State`]s are.
    pub states: u32,
    /// Where the class of a path is that ends in a state: a [`StateClass`] for each.
    pub state_classes: u32,
    /// State in which the automaton for control group paths begins.
    pub cgroup_start: u32,
    /// State in which the automaton for executable paths begins.
    pub executable_start: u32,
    /// For each [`direction`](super::direction), near ends; key: as in [`near`], without it.
    pub near_ends: [Branch; near::N],
    /// Origins of login sessions; key: the IPv4 address.
    pub origins_v4: Branch,
    /// The same for IPv6.
    pub origins_v6: Branch,
    /// Zero. The tables behind the header begin at a multiple of their elements' size.
    pub pad: [u32; 5],
    /// Combinations of [`layout`]s, by what [`Branch::embeds`] says: numbers of
    /// [`layout::BITS`], the first in the lowest.
    pub layouts: [u16; layout::N_SETS],
    /// Maps a byte of a path to its letter, below [`MAX_LETTERS`].
    pub letters: [u8; 256],
    /// Values that [`Packed`] have indexes of, as in [`Branch::value`].
    pub values: [u32; Packed::N_VALUES],
}

/// Numbers that have a table of their own, whose index they are.
pub const N_SMALL: usize = 1 << 16;

/// The first chunk of a policy: the tables that most decisions read, each at a fixed place, so
/// that the programs need not look it up.
#[repr(C)]
pub struct First {
    /// The header.
    pub header: Header,
    /// Outcome of each clause.
    pub clauses: [Clause; MAX_CLAUSES],
    /// Classes of users below [`N_SMALL`].
    pub small_users: [u16; N_SMALL],
    /// Classes of the ports of TCP.
    pub tcp_ports: [u16; N_SMALL],
    /// Classes of the ports of UDP.
    pub udp_ports: [u16; N_SMALL],
    /// Tables that are where the header says.
    pub tables: [u64; (CHUNK_BYTES - FIXED_BYTES) / size_of::<u64>()],
}

/// Bytes of the first chunk that are the same tables in every policy.
pub const FIXED_BYTES: usize =
    size_of::<Header>() + MAX_CLAUSES * size_of::<Clause>() + 3 * N_SMALL * size_of::<u16>();

/// The set of clauses that one class satisfies: clause `i` is bit `i % 64` of
/// word `i / 64`. A policy with few clauses has rows of fewer words. In the kernel's
/// tables clauses are in an order in which most words have nothing in common; only within
/// a word are they in that of their rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    /// The bits.
    pub words: [u64; ROW_WORDS],
}

/// One state of the automata that classify paths, byte by byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Next state for each letter.
    pub next: [u16; MAX_LETTERS],
}

/// Class of a path that ends in a state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateClass {
    /// The class.
    pub class: u16,
    /// Class of an executable that is [`super::EXECUTABLE_FOREIGN`] and shows this path: its
    /// row has what the rows of this path and of [`class::UNKNOWN`] have in common. It
    /// satisfies clauses that deny, by the path that it shows, and none that would approve.
    pub foreign: u16,
    /// Zero.
    pub pad: [u16; 2],
}

/// Outcome of a clause, and the limits within which it holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// Index of its rule in the policy file, from 0. Of clauses that match, the one of the
    /// first rule decides; clauses of one rule decide the same.
    pub rule: u16,
    /// One of [`verdict`].
    pub verdict: u8,
    /// `CLAUSE_*` bits.
    pub limits: u8,
    /// With [`CLAUSE_COUNTED`]: index of its [`Budget`].
    pub budget: u32,
    /// With [`CLAUSE_COUNTED`]: bytes that may leave within the budget's window. Traffic beyond
    /// them is [`verdict::OVER_BUDGET`].
    pub budget_bytes: u64,
    /// With [`CLAUSE_TIMED`]: before this many nanoseconds after boot it matches nothing.
    pub starts_ns: u64,
    /// With [`CLAUSE_TIMED`]: from this many nanoseconds after boot on it matches nothing.
    pub expires_ns: u64,
}

/// [`Clause::limits`]: it holds for a time.
pub const CLAUSE_TIMED: u8 = 1;
/// [`Clause::limits`]: the bytes that leave by it are counted in a [`Budget`].
pub const CLAUSE_COUNTED: u8 = 2;
/// Most clauses of a policy that are [`CLAUSE_TIMED`]. Each is a round that the kernel
/// verifies, in each program that judges.
pub const MAX_TIMED_CLAUSES: usize = 32;

/// Entries of map `BUDGETS`.
pub const MAX_BUDGETS: usize = 1024;
/// A window is as long as this many steps, and rolls by one step at a time.
pub const BUDGET_STEPS: u64 = 60;
/// Steps of which a [`Budget`] remembers the beginning.
pub const BUDGET_MARKS: usize = 64;

/// Bytes that have left by one rule, over a rolling window of time. The budget belongs to the rule
/// and to no generation: a reload does not set it back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Identity of the rule: a hash that the agent makes; 0 if the slot is free.
    pub id: u64,
    /// Nanoseconds of a step, the window's length / [`BUDGET_STEPS`]; 0 for a budget
    /// whose window never ends.
    pub step_ns: u64,
    /// The step, since boot, in which it was last used.
    pub step: u64,
    /// Bytes since the beginning, without what was dropped.
    pub used_bytes: u64,
    /// Packets, likewise.
    pub used_packets: u64,
    /// `used_bytes` at the beginning of step `n`, at `n % BUDGET_MARKS`, for the last
    /// [`BUDGET_MARKS`] steps.
    pub marks: [u64; BUDGET_MARKS],
}

impl Budget {
    /// Bytes that have left within the window that ends now: since the beginning of
    /// the step [`BUDGET_STEPS`] before the present one, so never too few.
    #[must_use]
    pub fn window_bytes(&self, now_ns: u64) -> u64 {
        if self.step_ns == 0 {
            return self.used_bytes;
        }
        let now = now_ns / self.step_ns;
        // Nothing has left since `step`, so later steps begin with what there is now.
        let first = now.saturating_sub(BUDGET_STEPS);
        if first > self.step {
            return 0;
        }
        let mark = self.marks[(first % BUDGET_MARKS as u64) as usize];
        self.used_bytes.wrapping_sub(mark)
    }
}

/// Most questions that `judge_question` answers at a time: what fits into the page
/// that `BPF_PROG_RUN` takes.
pub const MAX_QUESTIONS: usize = 56;

/// A question to the judge without a socket: input of program `judge_question`,
/// which exists for tests and benchmarks, for `BPF_PROG_RUN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// As in [`super::Owner`].
    pub exe_id: u64,
    /// As in [`super::Owner`].
    pub cgroup_id: u64,
    /// Where to.
    pub peer: super::Peer,
    /// As in [`super::Owner`].
    pub uid: u32,
    /// Bytes of the packet; 0 for none yet.
    pub bytes: u32,
    /// As in [`super::Owner`]; the last number if it is not known.
    pub gid: u32,
    /// As in [`super::Owner`]; 0, which is no session's, if it is not known.
    pub session: u32,
    /// `QUESTION_*` bits.
    pub flags: u32,
    /// See [`near`].
    pub near: u32,
}

/// [`Question::flags`]: as [`MAY_STAY`].
pub const QUESTION_MAY_STAY: u32 = 2;

impl Question {
    /// Makes the question of the hooks about a flow of this owner, before there is a packet.
    #[must_use]
    pub const fn of(owner: &super::Owner, flow: &super::Flow) -> Self {
        // Without a process, only the socket's control group is known.
        let is_known = owner.pid != 0;
        Self {
            exe_id: if is_known { owner.exe_id } else { 0 },
            cgroup_id: owner.cgroup_id,
            peer: flow.peer,
            uid: if is_known { owner.uid } else { u32::MAX },
            bytes: 0,
            gid: if is_known { owner.gid } else { u32::MAX },
            session: if is_known { owner.session } else { 0 },
            flags: QUESTION_MAY_STAY,
            near: flow.near(),
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<Decision>() == 8);
    assert!(size_of::<ClassCache>() == 8);
    assert!(size_of::<Policy>() == 8);
    assert!(size_of::<Header>() == 32 + 28 + 24 + 16 + 28 + 64 + 256 + 4 * Packed::N_VALUES);
    assert!(size_of::<First>() == CHUNK_BYTES);
    assert!(ROW_WORDS <= u32::BITS as usize);
    assert!(size_of::<Row>() == 256);
    assert!(size_of::<State>() == 256);
    assert!(size_of::<StateClass>() == 8);
    assert!(size_of::<Clause>() == 32);
    assert!(size_of::<Budget>() == 40 + 8 * BUDGET_MARKS);
    assert!(BUDGET_STEPS < BUDGET_MARKS as u64);
    assert!(size_of::<Question>() == 64);
};
