//! The judge: what the policy in force says about one flow.
//!
//! A constant number of look-ups, whatever the number of rules and prefixes.
//! See [`trefoil_ebpf::abi::policy`] for the tables.
//!
//! The functions that are `extern "C"` here take and return numbers only, and
//! are global functions to the kernel (5.6): the verifier checks each once per
//! program, and not once for every way in which a caller can arrive there.

use trefoil_ebpf::abi::*;

use crate::accounting::now_ns;
use crate::budget::is_within;
use crate::maps::{InForce, POLICIES, TABLES, lose};
use crate::packet::protocol;
use crate::source::Source;
use crate::tables::{entry, in_chunk};
use crate::tree::{find_number, find128};

/// Judges under the policy in force, which the caller read from `CONTROL` once, and
/// charges a packet of `bytes` to the budget it needs, if it may leave. Before there is
/// a packet, `bytes` is 0.
///
/// Without a complete policy the answer is `undetermined`, and never a guess;
/// nothing is blocked then, since no policy said to enforce.
#[inline(always)]
pub fn judge(in_force: InForce, source: &Source, peer: &Peer, bytes: u32) -> Decision {
    let generation = in_force.generation;
    let (high, low) = peer.address.halves();
    let found = destination(generation, high, low);
    if fallback(found) == verdict::LOCAL {
        // Whatever is embedded stays here as well.
        return Decision {
            generation,
            rule: NO_RULE,
            verdict: verdict::LOCAL,
            flags: in_force.flags,
        };
    }
    let who = source.who();
    let paths = source.path_classes(generation);
    let service = u64::from(peer.protocol) << 16 | u64::from(peer.port);
    let packet = u64::from(bytes) << 32 | u64::from(in_force.flags) << ENFORCED_SHIFT | service;
    let policy_of = |found: u32| u64::from(generation) << 32 | u64::from(found);
    let mut decision = decision_of(judge_flow(policy_of(found), who, paths, packet));
    if let Some(v4) = peer.address.embedded_v4() {
        // Both may have a budget, and both are charged.
        let (high, low) = Address::v4(v4).halves();
        let found = destination(generation, high, low);
        let inner = decision_of(judge_flow(policy_of(found), who, paths, packet));
        decision = decision.or_stricter(inner);
    }
    decision.flags &= in_force.flags | DECISION_LIMITED;
    decision
}

/// True for a destination from which nothing leaves the host or the link.
#[inline(always)]
pub fn is_local(generation: u32, peer: &Peer) -> bool {
    let (high, low) = peer.address.halves();
    fallback(destination(generation, high, low)) == verdict::LOCAL
}

/// A decision that came through a global function.
#[inline(always)]
fn decision_of(word: u64) -> Decision {
    // SAFETY: `Decision` is 8 bytes of integers, and `judge_classes` made it from one.
    unsafe { core::mem::transmute::<u64, Decision>(word) }
}

/// The decision about a packet that cannot be read.
#[inline(always)]
pub const fn undetermined(in_force: InForce) -> Decision {
    Decision {
        generation: in_force.generation,
        rule: NO_RULE,
        verdict: verdict::UNDETERMINED,
        flags: in_force.flags,
    }
}

/// Where [`DECISION_ENFORCED`] is in the last argument of [`judge_flow`].
const ENFORCED_SHIFT: u32 = 31;
const _: () = assert!(DECISION_ENFORCED == 1);

/// Judges by `generation << 32` with what [`destination`] found, by [`Source::who`] and
/// [`Source::path_classes`], and by `bytes << 32 | enforced << 31 | protocol << 16 | port`.
/// Returns a `Decision`, as of a policy that enforces.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_flow(policy: u64, who: u64, paths: u64, packet: u64) -> u64 {
    let generation = (policy >> 32) as u32;
    let decision = decide(generation, policy as u32, who, paths, packet).unwrap_or_else(|| {
        lose(LOSS_POLICY_MISSING, 1);
        Decision {
            generation,
            rule: NO_RULE,
            verdict: verdict::UNDETERMINED,
            flags: 0,
        }
    });
    // SAFETY: `Decision` is 8 bytes of integers without padding.
    unsafe { core::mem::transmute::<Decision, u64>(decision) }
}

#[inline(always)]
fn decide(generation: u32, found: u32, who: u64, paths: u64, packet: u64) -> Option<Decision> {
    let slot = generation & 1;
    let policy = POLICIES.get(slot)?;
    let mut decision = Decision {
        generation,
        rule: NO_RULE,
        verdict: fallback(found),
        flags: DECISION_ENFORCED,
    };
    match decision.verdict {
        verdict::NONE => return None,
        verdict::LOCAL => return Some(decision),
        _ => {}
    }
    let destination = found as u16;

    let chunks = TABLES.get(slot)?;
    // What is small is in the first chunk, unless the policy is huge.
    let first = chunks.get(0)?;
    let small_class = |table: u32, number: u16| {
        let place = u64::from(table) + u64::from(number) * size_of::<u16>() as u64;
        let chunk = match (place >> CHUNK_SHIFT) as u32 {
            0 => first,
            n => chunks.get(n)?,
        };
        // SAFETY: within the chunk. So below.
        Some(unsafe { *in_chunk::<u16>(chunk, place) })
    };
    let number_class = |branch: Branch, number: u32| match branch.kind() {
        Branch::VALUE => branch.0 as u16,
        _ => find_number(slot, branch.0, number) as u16,
    };
    let service = match (packet >> 16) as u8 {
        protocol::TCP => small_class(policy.tcp_ports, packet as u16)?,
        protocol::UDP => small_class(policy.udp_ports, packet as u16)?,
        _ => number_class(policy.services, packet as u32 & 0xff_ffff),
    };
    let user = match (who as u32) >> N_SMALL.ilog2() {
        0 => small_class(policy.small_users, who as u16)?,
        _ => number_class(policy.users, who as u32),
    };
    let login = (paths >> 32) as usize & 3;
    let groups = policy.groups[if login < login::N {
        login
    } else {
        login::UNKNOWN
    }];
    let group = number_class(groups, (who >> 32) as u32);
    let (executable, cgroup) = ((paths >> 16) as u16, paths as u16);
    let summary = |dimension: usize, class: u16| {
        u64::from(policy.summaries[dimension]) + (u64::from(class) << SUMMARY_SHIFT)
    };
    let row = |dimension: usize, class: u16| {
        u64::from(policy.rows[dimension]) + (u64::from(class) << (policy.row_shift & 31))
    };
    // Words that can have a clause in common: mostly one or two.
    let destinations = summary(dimension::DESTINATION, destination);
    let services = summary(dimension::SERVICE, service);
    let users = summary(dimension::USER, user);
    let groups = summary(dimension::GROUP, group);
    let executables = summary(dimension::EXECUTABLE, executable);
    let cgroups = summary(dimension::CGROUP, cgroup);
    let farthest = destinations | services | users | groups | executables | cgroups;
    let mut candidates = if farthest >> CHUNK_SHIFT == 0 {
        // SAFETY: within the chunk. So below.
        let words = |place: u64| unsafe { (*in_chunk::<Summary>(first, place)).words };
        words(destinations)
            & words(services)
            & words(users)
            & words(groups)
            & words(executables)
            & words(cgroups)
    } else {
        far_summary(slot, destinations as u32)
            & far_summary(slot, services as u32)
            & far_summary(slot, users as u32)
            & far_summary(slot, groups as u32)
            & far_summary(slot, executables as u32)
            & far_summary(slot, cgroups as u32)
    };
    let destinations = row(dimension::DESTINATION, destination);
    let services = row(dimension::SERVICE, service);
    let users = row(dimension::USER, user);
    let groups = row(dimension::GROUP, group);
    let executables = row(dimension::EXECUTABLE, executable);
    let cgroups = row(dimension::CGROUP, cgroup);
    // No row is in two chunks, so that all of its words are where it begins.
    let farthest = destinations | services | users | groups | executables | cgroups;
    let is_near = farthest >> CHUNK_SHIFT == 0;
    let mut i = 0;
    let mut clauses = 0;
    // Each round takes a word, or skips a clause whose time has not come or is over.
    for _ in 0..ROW_WORDS + MAX_TIMED_CLAUSES {
        if clauses == 0 {
            if candidates == 0 {
                break;
            }
            i = candidates.trailing_zeros();
            candidates &= candidates - 1;
            let offset = u64::from(i) * size_of::<u64>() as u64;
            clauses = if is_near {
                let word = |row: u64| unsafe { *in_chunk::<u64>(first, row + offset) };
                word(destinations)
                    & word(services)
                    & word(users)
                    & word(groups)
                    & word(executables)
                    & word(cgroups)
            } else {
                far_word(slot, (destinations + offset) as u32)
                    & far_word(slot, (services + offset) as u32)
                    & far_word(slot, (users + offset) as u32)
                    & far_word(slot, (groups + offset) as u32)
                    & far_word(slot, (executables + offset) as u32)
                    & far_word(slot, (cgroups + offset) as u32)
            };
            if clauses == 0 {
                continue;
            }
        }
        let place = policy.clauses + ((i << 6 | clauses.trailing_zeros()) << CLAUSE_SHIFT);
        let clause = match place >> CHUNK_SHIFT {
            0 => first,
            n => chunks.get(n)?,
        };
        let clause = unsafe { &*in_chunk::<Clause>(clause, u64::from(place)) };
        if clause.limits & CLAUSE_TIMED != 0 {
            let now_ns = now_ns();
            if now_ns >= clause.expires_ns {
                clauses &= clauses - 1;
                continue;
            }
            decision.flags |= DECISION_LIMITED;
            if now_ns < clause.starts_ns {
                clauses &= clauses - 1;
                continue;
            }
        }
        decision.rule = clause.rule;
        decision.verdict = clause.verdict;
        if clause.limits & CLAUSE_COUNTED != 0 {
            decision.flags |= DECISION_LIMITED;
            let charge = (packet >> 32) << 1 | packet >> ENFORCED_SHIFT & 1;
            if !is_within(clause.budget, clause.budget_bytes, charge) {
                decision.verdict = verdict::OVER_BUDGET;
            }
        }
        break;
    }
    Some(decision)
}

/// A summary that is not in the first chunk; of no words if it cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn far_summary(slot: u32, place: u32) -> u32 {
    entry::<Summary>(slot, place).map_or(0, |summary| summary.words)
}

/// A word of a row, as [`far_summary`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn far_word(slot: u32, place: u32) -> u64 {
    entry::<u64>(slot, place).copied().unwrap_or(0)
}

const SUMMARY_SHIFT: u32 = size_of::<Summary>().ilog2();
const CLAUSE_SHIFT: u32 = size_of::<Clause>().ilog2();

/// The verdict on a destination that no clause matches; none if [`destination`] could
/// not read the tables.
#[inline(always)]
fn fallback(found: u32) -> u8 {
    (found >> 16) as u8
}

/// Class and fallback of an address, as in [`Branch::value`]; 0 if the tables cannot be
/// read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn destination(generation: u32, high: u64, low: u64) -> u32 {
    let slot = generation & 1;
    let (Some(policy), Some(chunks)) = (POLICIES.get(slot), TABLES.get(slot)) else {
        return 0;
    };
    match Address::from_halves(high, low).as_v4() {
        Some(v4) => find128(policy, chunks, policy.v4, u64::from(v4) << 32, 0),
        None => find128(policy, chunks, policy.v6, high, low),
    }
}
