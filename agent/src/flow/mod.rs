//! Flows: from what the kernel programs say to what is worth a record.
//!
//! Pure: kernel states and a clock in, [`Report`]s out. It owns which flows are
//! open, what was reported of each, and what is rolled up. It must not resolve
//! ids (executables, control groups, rules) to names: that happens afterwards,
//! once per report.
//!
//! The rules of this stage:
//!
//! - A flow exists from the moment something happened on it: a packet left, was
//!   dropped, or a call was refused. Sockets that were only connected are not
//!   flows.
//! - A flow that is reported by itself gets a record when it is first seen
//!   (`opened`, or a violation), at most one in each
//!   [`FlowSettings::update_interval_ns`] while something changes, and one when
//!   it is over (`closed`). A refused call is over at once, so that its violation
//!   is its only record. The same call of the same process, refused for the same reason, is in
//!   a rollup of violations from then on.
//! - A flow that is rolled up is counted once, when it is over, in the rollup of
//!   that interval. So every byte is in exactly one final record: a `closed` one
//!   or a rollup. While it is open, rollups tell of it beside that sum. One that
//!   stays open is reported by itself as soon as the rates allow it.
//! - Verdict `local`: such flows never leave the host or the link. They are in
//!   the kernel's sums by verdict only, unless [`FlowSettings::local`] is set.
//! - Kernel states are cumulative, so one may come late, twice or not at all. A
//!   flow that no longer shows up is over, with the last numbers that were seen,
//!   and its record says that the end was inferred.
//! - A packet for whose flow the kernel had no room comes once, and is a flow that
//!   begins and ends with it.
//!
//! Numbers that arrive for a flow after an inferred end go into the rollup of
//! their owner, with no flow counted: they are in no record that was sent.

mod closed;
mod entry;
mod kept;
mod pace;
mod refused;
mod rollup;
mod table;
mod told;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use trefoil_ebpf::abi::{Address, Counters, Flow, Peer, Tracked};

pub use kept::Change;
pub use rollup::{Rollup, RollupGroup, RollupKey};
pub use table::{FlowTable, Sweep, may_become_a_session};
pub use told::{counters_text, number, parse_counters, parse_words, words_of};

/// How flows that may leave are reported. Violations have a rate of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowMode {
    /// Each by itself.
    Each,
    /// All rolled up.
    Rollup,
    /// Each by itself up to [`FlowSettings::flows_rate`], rolled up beyond it.
    #[default]
    Auto,
}

impl FlowMode {
    /// The mode with this name: `each`, `rollup` or `auto`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "each" => Some(Self::Each),
            "rollup" => Some(Self::Rollup),
            "auto" => Some(Self::Auto),
            _ => None,
        }
    }
}

/// Limits of the flow table: how much it may hold and how often it may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSettings {
    /// How flows that may leave are reported.
    pub mode: FlowMode,
    /// New flows a second that are reported by themselves in [`FlowMode::Auto`].
    pub flows_rate: u32,
    /// New violations a second that are reported by themselves, in every mode; of one user, so
    /// many once, and a tenth of it a second after that.
    pub violations_rate: u32,
    /// Least time between two records of one flow that is open.
    pub update_interval_ns: u64,
    /// Time that one rollup record of flows that may leave is about.
    pub rollup_interval_ns: u64,
    /// Time that one rollup record of violations is about.
    pub violations_interval_ns: u64,
    /// Report flows with verdict `local` like any other.
    pub local: bool,
    /// Most flows that are followed at a time; about half a kilobyte each. When
    /// full, a flow is told of when it is over, and [`FlowStats::untracked`]
    /// counts; a violation is told at once, and may be told again then.
    pub max_flows: usize,
    /// Most rollups that are open at a time. When full, what has no rollup yet
    /// goes into one per verdict, and [`FlowStats::merged`] counts.
    pub max_rollups: usize,
    /// Most open flows of which it is kept what was told of them. Of others, an agent after one
    /// that was killed does not know what is new.
    pub max_told: usize,
    /// Flows that are over and still recognised when something comes late.
    pub max_closed: usize,
    /// How long they are recognised.
    pub closed_ns: u64,
    /// Complete sweeps that must miss a flow before its end is inferred.
    pub missed_sweeps: u8,
    /// How long nothing must have been seen of it besides.
    pub missed_ns: u64,
}

impl Default for FlowSettings {
    fn default() -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        Self {
            mode: FlowMode::Auto,
            flows_rate: 200,
            violations_rate: 1_000,
            update_interval_ns: 60 * SECOND_NS,
            rollup_interval_ns: 60 * SECOND_NS,
            violations_interval_ns: 10 * SECOND_NS,
            local: false,
            max_flows: 131_072,
            max_rollups: 4_096,
            max_told: 65_536,
            max_closed: 65_536,
            closed_ns: 30 * SECOND_NS,
            missed_sweeps: 3,
            missed_ns: 5 * SECOND_NS,
        }
    }
}

/// Identity of a flow for good, within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    /// Socket cookie.
    pub cookie: u64,
    /// Nanoseconds since boot.
    pub started_ns: u64,
    /// The far end.
    pub peer: Peer,
}

impl FlowId {
    /// The flow that this is a state of.
    #[must_use]
    pub fn of(flow: &Flow) -> Self {
        Self {
            cookie: flow.cookie,
            started_ns: flow.started_ns,
            peer: flow.peer,
        }
    }
}

/// A report that the caller may have to pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// One flow.
    Flow(FlowReport),
    /// Many flows.
    Rollup(Rollup),
}

/// Kind of a report of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// Says what happened.
    Flow,
    /// Says that it should not have happened, once per flow.
    Violation,
}

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// First report of a flow that is open.
    Opened,
    /// It is open, and something changed.
    Update,
    /// It is over: these are its last numbers. With [`ReportKind::Violation`],
    /// it was refused, and this is its only record.
    Closed,
}

/// How a flow came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When, nanoseconds since boot; when it was last seen, if the end is inferred.
    pub time_ns: u64,
    /// Nobody saw the end: the flow no longer shows up.
    pub inferred: bool,
}

/// One flow, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Kind of the report.
    pub kind: ReportKind,
    /// Where the flow is in its life.
    pub stage: Stage,
    /// When this was reported, nanoseconds since boot.
    pub time_ns: u64,
    /// Newest state that the kernel handed over.
    pub tracked: Tracked,
    /// Counters of the flow since it began. Cumulative.
    pub counted: Counters,
    /// Counters since its last report.
    pub since_last: Counters,
    /// False if an agent before has told of it, and how much is not known.
    pub is_since_known: bool,
    /// Set when it is over.
    pub ending: Option<Ending>,
}

impl FlowReport {
    /// The flow that this is about.
    #[must_use]
    pub fn id(&self) -> FlowId {
        FlowId::of(&self.tracked.flow)
    }
}

/// Statistics of the flow table, counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Flows that are open now.
    pub open: u64,
    /// Of them, those that are rolled up.
    pub open_rolled: u64,
    /// Flows that were seen.
    pub opened: u64,
    /// Flows whose owner was known for certain when they were first seen.
    pub owner_direct: u64,
    /// Flows whose owner was derived.
    pub owner_inferred: u64,
    /// Flows without a known process.
    pub owner_none: u64,
    /// Flows that ended.
    pub closed: u64,
    /// Of them, those whose end was inferred.
    pub inferred_ends: u64,
    /// Flows that came when the table was full.
    pub untracked: u64,
    /// Flows that went into a rollup of their verdict, for want of one of their own.
    pub merged: u64,
    /// States that brought more for a flow that had been reported as over.
    pub late: u64,
    /// States that contradicted what is known of their flow, and were set aside:
    /// read while the kernel was writing them.
    pub torn: u64,
    /// Events with an unknown reason.
    pub unknown_events: u64,
}

/// The address as the rest of the world writes it.
#[must_use]
pub fn ip_address(address: &Address) -> IpAddr {
    match address.as_v4() {
        Some(bits) => Ipv4Addr::from_bits(bits).into(),
        None => Ipv6Addr::from(address.0).into(),
    }
}

/// `counters - base`: what a flow amounts to.
#[must_use]
pub fn counted(flow: &Flow) -> Counters {
    minus(&flow.counters, &flow.base)
}

/// Field by field, not below zero.
#[must_use]
pub fn minus(all: &Counters, part: &Counters) -> Counters {
    zip(all, part, u64::saturating_sub)
}

/// Field by field.
#[must_use]
pub fn plus(one: &Counters, other: &Counters) -> Counters {
    zip(one, other, u64::saturating_add)
}

fn zip(one: &Counters, other: &Counters, combine: fn(u64, u64) -> u64) -> Counters {
    Counters {
        bytes_out: combine(one.bytes_out, other.bytes_out),
        packets_out: combine(one.packets_out, other.packets_out),
        bytes_in: combine(one.bytes_in, other.bytes_in),
        packets_in: combine(one.packets_in, other.packets_in),
        blocked_bytes: combine(one.blocked_bytes, other.blocked_bytes),
        blocked_packets: combine(one.blocked_packets, other.blocked_packets),
        refused: combine(one.refused, other.refused),
    }
}
