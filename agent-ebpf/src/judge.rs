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
use crate::maps::{InForce, POLICIES, lose};
use crate::packet::protocol;
use crate::source::{Source, cgroup_class, executable_class, who_classes};
use crate::tables::{chunk, entry, in_chunk};

/// Judges under the policy in force, which the caller read from `CONTROL` once, and
/// charges a packet of `bytes` to the budget it needs, if it may leave. Before there is
/// a packet, `bytes` is 0.
///
/// Without a complete policy the answer is `undetermined`, and never a guess;
/// nothing is blocked then, since no policy said to enforce.
#[inline(always)]
pub fn judge(in_force: InForce, source: &Source, peer: &Peer, bytes: u32) -> Decision {
    let generation = in_force.generation;
    let who = who_classes(generation, source.uid, source.gid, source.session);
    let executable = executable_class(source.exe_id, generation);
    let cgroup = cgroup_class(source.cgroup_id, generation);
    let classes = u64::from(who) << 32 | u64::from(executable) << 16 | u64::from(cgroup);
    let service = u64::from(peer.protocol) << 16 | u64::from(peer.port);
    let packet = u64::from(bytes) << 32 | u64::from(in_force.flags) << ENFORCED_SHIFT | service;
    let (high, low) = peer.address.halves();
    let mut decision = decision_of(judge_classes(generation, classes, packet, high, low));
    if let Some(v4) = peer.address.embedded_v4() {
        // Both may have a budget, and both are charged.
        let (high, low) = Address::v4(v4).halves();
        let inner = judge_classes(generation, classes, packet, high, low);
        decision = decision.or_stricter(decision_of(inner));
    }
    decision.flags &= in_force.flags | DECISION_LIMITED;
    decision
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

/// Where [`DECISION_ENFORCED`] is in the third argument of [`judge_classes`].
const ENFORCED_SHIFT: u32 = 31;
const _: () = assert!(DECISION_ENFORCED == 1);

/// Judges by classes of the source, `user << 48 | group << 32 | executable << 16 |
/// cgroup`, and by `bytes << 32 | enforced << 31 | protocol << 16 | port`. Returns a
/// `Decision`, as of a policy that enforces.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_classes(
    generation: u32,
    classes: u64,
    packet: u64,
    address_high: u64,
    address_low: u64,
) -> u64 {
    let decision =
        decide(generation, classes, packet, address_high, address_low).unwrap_or_else(|| {
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
fn decide(generation: u32, classes: u64, packet: u64, high: u64, low: u64) -> Option<Decision> {
    let slot = generation & 1;
    let policy = POLICIES.get(slot)?;
    let mut decision = Decision {
        generation,
        rule: NO_RULE,
        verdict: verdict::LOCAL,
        flags: DECISION_ENFORCED,
    };
    let address = Address::from_halves(high, low);
    let found = match address.as_v4() {
        Some(v4) => {
            let span = entry::<Span>(slot, policy.v4 + (v4 >> 16 << SPAN_SHIFT))?;
            search32(slot, span.start, span.len, v4)
        }
        None => {
            let pivot = search128(slot, policy.v6.start, policy.v6.len, high, low);
            // SAFETY: two u32, for which everything is a value.
            let ranges = unsafe { core::mem::transmute::<u64, Span>(pivot) };
            search128(slot, ranges.start, ranges.len, high, low) as u32
        }
    };
    let (destination, fallback) = (found as u16, (found >> 16) as u8);
    if fallback == verdict::LOCAL {
        return Some(decision);
    }
    decision.verdict = fallback;

    // What is small is in the first chunk, unless the policy is huge.
    let first = chunk(slot, 0)?;
    let service = service_class(slot, policy, packet as u32 & 0xff_ffff)?;
    // Where the rows are: numbers, because there is little room on the stack.
    let (user, group) = ((classes >> 48) as u16, (classes >> 32) as u16);
    let (executable, cgroup) = ((classes >> 16) as u16, classes as u16);
    let summary = |dimension: usize, class: u16| {
        let place = policy.summaries[dimension] + (u32::from(class) << SUMMARY_SHIFT);
        match place >> CHUNK_SHIFT {
            // SAFETY: within the chunk. So below.
            0 => unsafe { (*in_chunk::<Summary>(first, place)).words },
            _ => far_summary(slot, place),
        }
    };
    let row = |dimension: usize, class: u16| {
        policy.rows[dimension] + (u32::from(class) << (policy.row_shift & 31))
    };
    // Words that can have a clause in common: mostly one or two.
    let mut candidates = summary(dimension::DESTINATION, destination)
        & summary(dimension::SERVICE, service)
        & summary(dimension::USER, user)
        & summary(dimension::GROUP, group)
        & summary(dimension::EXECUTABLE, executable)
        & summary(dimension::CGROUP, cgroup);
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
            let offset = i * size_of::<u64>() as u32;
            clauses = if is_near {
                let word = |row: u32| unsafe { *in_chunk::<u64>(first, row + offset) };
                word(destinations)
                    & word(services)
                    & word(users)
                    & word(groups)
                    & word(executables)
                    & word(cgroups)
            } else {
                far_word(slot, destinations + offset)
                    & far_word(slot, services + offset)
                    & far_word(slot, users + offset)
                    & far_word(slot, groups + offset)
                    & far_word(slot, executables + offset)
                    & far_word(slot, cgroups + offset)
            };
            if clauses == 0 {
                continue;
            }
        }
        let place = policy.clauses + ((i << 6 | clauses.trailing_zeros()) << CLAUSE_SHIFT);
        let clause = match place >> CHUNK_SHIFT {
            0 => first,
            _ => chunk(slot, place)?,
        };
        let clause = unsafe { &*in_chunk::<Clause>(clause, place) };
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

/// Class of `protocol << 16 | port`.
#[inline(always)]
fn service_class(slot: u32, policy: &Policy, service: u32) -> Option<u16> {
    const PORTS_BYTES: u32 = (1 << 16) * size_of::<u16>() as u32;
    let offset = match (service >> 16) as u8 {
        protocol::TCP => 0,
        protocol::UDP => PORTS_BYTES,
        _ => {
            let services = policy.services;
            return Some(search32(slot, services.start, services.len, service) as u16);
        }
    };
    let port = service & 0xffff;
    let place = policy.ports + offset + port * size_of::<u16>() as u32;
    entry::<u16>(slot, place).copied()
}

const SUMMARY_SHIFT: u32 = size_of::<Summary>().ilog2();
const SPAN_SHIFT: u32 = size_of::<Span>().ilog2();
const CLAUSE_SHIFT: u32 = size_of::<Clause>().ilog2();

/// What a search among [`Range32`]s finds: `class | fallback << 16`.
#[inline(always)]
fn found(class: u16, fallback: u8) -> u32 {
    u32::from(class) | u32::from(fallback) << 16
}

/// The last of the [`Range32`]s of a span that begins at or before `key`, as in
/// [`found`]; 0, a class that satisfies least, if the tables cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search32(slot: u32, start: u32, len: u32, key: u32) -> u32 {
    let Some(chunk) = chunk(slot, start) else {
        return 0;
    };
    let mut base = start;
    let mut len = len;
    for _ in 0..=MAX_SEARCH_STEPS {
        if len <= 1 {
            break;
        }
        let half = len / 2;
        let middle = base + half * size_of::<Range32>() as u32;
        // SAFETY: within the chunk. So below.
        if unsafe { (*in_chunk::<Range32>(chunk, middle)).first } <= key {
            base = middle;
        }
        len -= half;
    }
    let range = in_chunk::<Range32>(chunk, base);
    unsafe { found((*range).class, (*range).fallback) }
}

/// What the last key of a span of IPv6 addresses leads to that is at or before the
/// address, see [`Tail128`]; 0 as in [`search32`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search128(slot: u32, start: u32, len: u32, high: u64, low: u64) -> u64 {
    const KEY_SHIFT: u32 = size_of::<u64>().ilog2();
    const TAIL_SHIFT: u32 = size_of::<Tail128>().ilog2();
    let Some(chunk) = chunk(slot, start) else {
        return 0;
    };
    let tails = start + ((len + 1) >> 1 << 1 << KEY_SHIFT);
    let tail = |index: u32| in_chunk::<Tail128>(chunk, tails + (index << TAIL_SHIFT));
    let mut base = 0;
    let mut len = len;
    for _ in 0..=MAX_SEARCH_STEPS {
        if len <= 1 {
            break;
        }
        let middle = base + len / 2;
        // SAFETY: within the chunk. So below.
        let first_high = unsafe { *in_chunk::<u64>(chunk, start + (middle << KEY_SHIFT)) };
        if first_high < high || first_high == high && unsafe { (*tail(middle)).first_low } <= low {
            base = middle;
        }
        len -= len / 2;
    }
    unsafe { (*tail(base)).value }
}
