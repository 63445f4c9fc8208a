//! The judge: what the policy in force says about one flow.
//!
//! A constant number of look-ups, whatever the number of rules and prefixes.
//! See [`trefoil_ebpf::abi::policy`] for the tables.
//!
//! The functions that are `extern "C"` here take and return numbers only, and
//! are global functions to the kernel (5.6): the verifier checks each once per
//! program, and not once for every way in which a caller can arrive there.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::accounting::now_ns;
use crate::atomic;
use crate::maps::{BUDGETS, CGROUPS, EXECUTABLES, InForce, POLICIES, TABLES, lose};
use crate::packet::protocol;
use crate::tables::{Chunks, chunk, entry, in_chunk};

/// What the judge needs to know about the source.
#[derive(Clone, Copy)]
pub struct Source {
    pub exe_id: u64,
    pub cgroup_id: u64,
    pub uid: u32,
    /// The last number if it is not known.
    pub gid: u32,
    /// The audit session; 0, which is none's, if it is not known.
    pub session: u32,
}

impl Source {
    #[inline(always)]
    pub fn of(owner: *const Owner) -> Self {
        // SAFETY: a map value; the verifier checks the access.
        unsafe {
            // Without a process, only the socket's own facts are known.
            let is_known = (*owner).pid != 0;
            Self {
                exe_id: (*owner).exe_id,
                cgroup_id: (*owner).cgroup_id,
                uid: (*owner).uid,
                gid: if is_known { (*owner).gid } else { u32::MAX },
                session: if is_known { (*owner).session } else { 0 },
            }
        }
    }
}

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

/// Charges a packet to a budget, `bytes << 1 | enforced`, and says whether it is within
/// `limit_bytes`.
#[inline(always)]
fn is_within(index: u32, limit_bytes: u64, charge: u64) -> bool {
    charge_budget(index, limit_bytes, charge) == 0
}

/// Returns 1 when the packet is over the budget, as is all when there is none.
///
/// Several CPUs may charge one budget at once. Each adds first and looks then, so
/// together they may refuse what would just have fitted, and never let pass what does
/// not. A packet that is dropped is charged with what there was left, so that it is the
/// budget that is used up, and not one size of packets after the other.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn charge_budget(index: u32, limit_bytes: u64, charge: u64) -> u32 {
    let (bytes, enforced) = (charge >> 1, charge & 1 != 0);
    let Some(budget) = BUDGETS.get_ptr_mut(index) else {
        return 1;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let used = unsafe { &raw mut (*budget).used_bytes };
    let step_ns = unsafe { ptr::read_volatile(&raw const (*budget).step_ns) };
    let mark = match step_ns {
        0 => 0,
        _ => {
            // Read before the step is: whoever has entered a new step has written its
            // marks before it charges, so what is read here is never too much.
            let used_before = unsafe { ptr::read_volatile(used) };
            let step = now_ns() / step_ns;
            let marks = unsafe { (&raw mut (*budget).marks).cast::<u64>() };
            let last = unsafe { ptr::read_volatile(&raw const (*budget).step) };
            if last < step {
                let passed = step - last;
                for back in 0..BUDGET_MARKS as u64 {
                    if back >= passed {
                        break;
                    }
                    let at = (step - back) as usize & (BUDGET_MARKS - 1);
                    unsafe { ptr::write_volatile(marks.add(at), used_before) };
                }
                unsafe { ptr::write_volatile(&raw mut (*budget).step, step) };
            }
            let first = step.saturating_sub(BUDGET_STEPS) as usize & (BUDGET_MARKS - 1);
            unsafe { ptr::read_volatile(marks.add(first)) }
        }
    };
    if bytes == 0 {
        // Before there is a packet, it must have room for one.
        let window = unsafe { ptr::read_volatile(used) }.wrapping_sub(mark);
        return u32::from(window >= limit_bytes);
    }
    atomic::add(used, bytes);
    let window = unsafe { ptr::read_volatile(used) }.wrapping_sub(mark);
    if window <= limit_bytes {
        atomic::add(unsafe { &raw mut (*budget).used_packets }, 1);
        return 0;
    }
    if enforced {
        let excess = (window - limit_bytes).min(bytes);
        atomic::add(used, excess.wrapping_neg());
    } else {
        atomic::add(unsafe { &raw mut (*budget).used_packets }, 1);
    }
    1
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
extern "C" fn search32(slot: u32, start: u32, len: u32, key: u32) -> u32 {
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

/// Classes of a user, and of a group and a login session: `user << 16 | group`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn who_classes(generation: u32, uid: u32, gid: u32, session: u32) -> u32 {
    let slot = generation & 1;
    let Some(policy) = POLICIES.get(slot) else {
        return 0;
    };
    let groups = match session {
        0 => policy.groups[login::UNKNOWN],
        NOBODY_LOGGED_IN => policy.groups[login::NONE],
        _ => policy.groups[login::SESSION],
    };
    number_class(slot, policy.users, uid) << 16 | number_class(slot, groups, gid)
}

/// Class of a number; no search where no clause asks.
#[inline(always)]
fn number_class(slot: u32, span: Span, number: u32) -> u32 {
    match span.len {
        0 => 0,
        len => search32(slot, span.start, len, number) & 0xffff,
    }
}

/// Class of an executable: that of its path, computed on first use under a policy.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn executable_class(exe_id: u64, generation: u32) -> u32 {
    if exe_id == 0 {
        return 0;
    }
    let Some(executable) = EXECUTABLES.get_ptr_mut(&exe_id) else {
        return 0;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (flags, cache) = unsafe { ((*executable).flags, &raw mut (*executable).class) };
    if flags & (EXECUTABLE_TRUNCATED | EXECUTABLE_FOREIGN) != 0 {
        return 0;
    }
    if let Some(class) = cached(cache, generation) {
        return class;
    }
    let (path, len) = unsafe {
        (
            (&raw const (*executable).path).cast::<u8>(),
            u32::from((*executable).path_len),
        )
    };
    let Some(automaton) = Automaton::open(generation) else {
        return 0;
    };
    let mut state = automaton.policy.executable_start;
    for i in 0..EXECUTABLE_PATH as u32 {
        if i >= len {
            break;
        }
        // SAFETY: i < EXECUTABLE_PATH.
        let Some(next) = automaton.step(state, unsafe { *path.add(i as usize) }) else {
            return 0;
        };
        state = next;
    }
    automaton.finish(generation, state, cache)
}

/// Class of a control group, as [`executable_class`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cgroup_class(cgroup_id: u64, generation: u32) -> u32 {
    if cgroup_id == 0 {
        return 0;
    }
    let Some(cgroup) = CGROUPS.get_ptr_mut(&cgroup_id) else {
        lose(LOSS_CGROUPS_UNKNOWN, 1);
        return 0;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (flags, cache) = unsafe { ((*cgroup).flags, &raw mut (*cgroup).class) };
    if flags & CGROUP_TRUNCATED != 0 {
        return 0;
    }
    if let Some(class) = cached(cache, generation) {
        return class;
    }
    let (path, len) = unsafe {
        (
            (&raw const (*cgroup).path).cast::<u8>(),
            u32::from((*cgroup).path_len),
        )
    };
    let Some(automaton) = Automaton::open(generation) else {
        return 0;
    };
    let mut state = automaton.policy.cgroup_start;
    for i in 0..CGROUP_PATH as u32 {
        if i >= len {
            break;
        }
        // SAFETY: i < CGROUP_PATH.
        let Some(next) = automaton.step(state, unsafe { *path.add(i as usize) }) else {
            return 0;
        };
        state = next;
    }
    automaton.finish(generation, state, cache)
}

#[inline(always)]
fn cached(cache: *mut ClassCache, generation: u32) -> Option<u32> {
    // SAFETY: an aligned word of a map value; one read sees one state.
    let word = unsafe { ptr::read_volatile(cache.cast::<u64>()) };
    // SAFETY: `ClassCache` is two u32 in 8 bytes.
    let cache = unsafe { core::mem::transmute::<u64, ClassCache>(word) };
    if cache.generation == generation {
        Some(cache.class)
    } else {
        None
    }
}

/// The automata of one policy.
struct Automaton {
    policy: &'static Policy,
    chunks: &'static Chunks,
}

impl Automaton {
    #[inline(always)]
    fn open(generation: u32) -> Option<Self> {
        let slot = generation & 1;
        Some(Self {
            policy: POLICIES.get(slot)?,
            chunks: TABLES.get(slot)?,
        })
    }

    /// The next state; none if the tables cannot be read. What this costs is verified
    /// once for each byte that a path can have.
    #[inline(always)]
    fn step(&self, state: u32, byte: u8) -> Option<u32> {
        const STATE_SHIFT: u32 = size_of::<State>().ilog2();
        let letter = self.policy.letters[byte as usize] as usize & (MAX_LETTERS - 1);
        let place = self.policy.states + (state << STATE_SHIFT);
        let chunk = self.chunks.get(place >> CHUNK_SHIFT)?;
        // SAFETY: within the chunk.
        Some(u32::from(unsafe {
            (*in_chunk::<State>(chunk, place)).next[letter]
        }))
    }

    #[inline(always)]
    fn finish(&self, generation: u32, state: u32, cache: *mut ClassCache) -> u32 {
        const CLASS_SHIFT: u32 = size_of::<StateClass>().ilog2();
        let place = self.policy.state_classes + (state << CLASS_SHIFT);
        let class = self.chunks.get(place >> CHUNK_SHIFT).map_or(0, |chunk| {
            // SAFETY: within the chunk.
            u32::from(unsafe { (*in_chunk::<StateClass>(chunk, place)).class })
        });
        let filled = ClassCache { generation, class };
        // SAFETY: `ClassCache` is two u32 in 8 bytes without padding.
        let word = unsafe { core::mem::transmute::<ClassCache, u64>(filled) };
        // SAFETY: an aligned word of a map value; concurrent writers write the same.
        unsafe { ptr::write_volatile(cache.cast::<u64>(), word) };
        class
    }
}
