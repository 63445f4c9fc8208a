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

use crate::maps::{
    CGROUPS, CLAUSES, EXECUTABLES, InForce, POLICIES, RANGES32, RANGES128, ROWS, STATES, lose,
};
use crate::tables::Table;

/// What the judge needs to know about the source.
#[derive(Clone, Copy)]
pub struct Source {
    pub exe_id: u64,
    pub cgroup_id: u64,
    pub uid: u32,
}

impl Source {
    #[inline(always)]
    pub fn of(owner: *const Owner) -> Self {
        // SAFETY: a map value; the verifier checks the access.
        unsafe {
            Self {
                exe_id: (*owner).exe_id,
                cgroup_id: (*owner).cgroup_id,
                uid: (*owner).uid,
            }
        }
    }
}

/// Judges under the policy in force, which the caller read from `CONTROL` once.
///
/// Without a complete policy the answer is `undetermined`, and never a guess;
/// nothing is blocked then, since no policy said to enforce.
#[inline(always)]
pub fn judge(in_force: InForce, source: &Source, peer: &Peer) -> Decision {
    let generation = in_force.generation;
    let user = user_class(generation, source.uid);
    let executable = executable_class(source.exe_id, generation);
    let cgroup = cgroup_class(source.cgroup_id, generation);
    let classes = u64::from(user) << 32 | u64::from(executable) << 16 | u64::from(cgroup);
    let service = u32::from(peer.protocol) << 16 | u32::from(peer.port);
    let (high, low) = peer.address.halves();
    let word = judge_classes(generation, classes, service, high, low);
    // SAFETY: `Decision` is 8 bytes of integers; `judge_classes` made it from one.
    let mut decision = unsafe { core::mem::transmute::<u64, Decision>(word) };
    decision.flags &= in_force.flags;
    decision
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

/// Judges by classes of the source, `user << 32 | executable << 16 | cgroup`, and
/// returns a `Decision`, as of a policy that enforces.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_classes(
    generation: u32,
    classes: u64,
    service: u32,
    address_high: u64,
    address_low: u64,
) -> u64 {
    let decision =
        decide(generation, classes, service, address_high, address_low).unwrap_or_else(|| {
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
fn decide(generation: u32, classes: u64, service: u32, high: u64, low: u64) -> Option<Decision> {
    let slot = generation & 1;
    let policy = POLICIES.get(slot)?;
    let mut decision = Decision {
        generation,
        rule: NO_RULE,
        verdict: verdict::LOCAL,
        flags: DECISION_ENFORCED,
    };
    let address = Address::from_halves(high, low);
    let (destination, fallback) = match address.as_v4() {
        Some(v4) => {
            let range =
                RANGES32.get_value(slot, &search32(slot, policy.v4.start, policy.v4.len, v4))?;
            (range.class, range.fallback)
        }
        None => {
            let index = search128(slot, policy.v6.start, policy.v6.len, high, low);
            let range = RANGES128.get_value(slot, &index)?;
            (range.class, range.fallback)
        }
    };
    if fallback == verdict::LOCAL {
        return Some(decision);
    }
    decision.verdict = fallback;

    let services = policy.services;
    let service = RANGES32
        .get_value(slot, &search32(slot, services.start, services.len, service))?
        .class;
    let row = |dimension: usize, class: u16| {
        ROWS.get_value(slot, &(policy.rows[dimension] + u32::from(class)))
    };
    let by_destination = row(dimension::DESTINATION, destination)?;
    let by_service = row(dimension::SERVICE, service)?;
    let by_user = row(dimension::USER, (classes >> 32) as u16)?;
    let by_executable = row(dimension::EXECUTABLE, (classes >> 16) as u16)?;
    let by_cgroup = row(dimension::CGROUP, classes as u16)?;
    for i in 0..ROW_WORDS {
        if i as u32 >= policy.n_words {
            break;
        }
        let clauses = by_destination.words[i]
            & by_service.words[i]
            & by_user.words[i]
            & by_executable.words[i]
            & by_cgroup.words[i];
        if clauses != 0 {
            let index = (i as u32) << 6 | clauses.trailing_zeros();
            let clause = CLAUSES.get_value(slot, &index)?;
            decision.rule = clause.rule;
            decision.verdict = clause.verdict;
            break;
        }
    }
    Some(decision)
}

/// Index of the last range of a part of `RANGES32` that begins at or before `key`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search32(slot: u32, start: u32, len: u32, key: u32) -> u32 {
    let mut base = start;
    let mut len = len;
    for _ in 0..MAX_SEARCH_STEPS {
        if len <= 1 {
            break;
        }
        let half = len / 2;
        let Some(range) = RANGES32.get_value(slot, &(base + half)) else {
            break;
        };
        if range.first <= key {
            base += half;
        }
        len -= half;
    }
    base
}

/// As [`search32`], for `RANGES128`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search128(slot: u32, start: u32, len: u32, high: u64, low: u64) -> u32 {
    let mut base = start;
    let mut len = len;
    for _ in 0..MAX_SEARCH_STEPS {
        if len <= 1 {
            break;
        }
        let half = len / 2;
        let Some(range) = RANGES128.get_value(slot, &(base + half)) else {
            break;
        };
        if (range.first_high, range.first_low) <= (high, low) {
            base += half;
        }
        len -= half;
    }
    base
}

/// Class of a user.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn user_class(generation: u32, uid: u32) -> u32 {
    let slot = generation & 1;
    let Some(policy) = POLICIES.get(slot) else {
        return 0;
    };
    let index = search32(slot, policy.users.start, policy.users.len, uid);
    RANGES32
        .get_value(slot, &index)
        .map_or(0, |range| u32::from(range.class))
}

/// Class of an executable: that of its path, computed on first use under a policy.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn executable_class(exe_id: u64, generation: u32) -> u32 {
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
        state = automaton.step(state, unsafe { *path.add(i as usize) });
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
        state = automaton.step(state, unsafe { *path.add(i as usize) });
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
    states: &'static Table<State, { size_of::<State>() }>,
}

impl Automaton {
    #[inline(always)]
    fn open(generation: u32) -> Option<Self> {
        let slot = generation & 1;
        Some(Self {
            policy: POLICIES.get(slot)?,
            states: STATES.get(slot)?,
        })
    }

    /// State 0 is where no pattern can match any more; unreadable tables lead there.
    #[inline(always)]
    fn step(&self, state: u32, byte: u8) -> u32 {
        let letter = self.policy.letters[byte as usize] as usize & (MAX_LETTERS - 1);
        match self.states.get(state) {
            Some(state) => u32::from(state.next[letter]),
            None => 0,
        }
    }

    #[inline(always)]
    fn finish(&self, generation: u32, state: u32, cache: *mut ClassCache) -> u32 {
        let class = self
            .states
            .get(state)
            .map_or(0, |state| u32::from(state.class));
        let filled = ClassCache { generation, class };
        // SAFETY: `ClassCache` is two u32 in 8 bytes without padding.
        let word = unsafe { core::mem::transmute::<ClassCache, u64>(filled) };
        // SAFETY: an aligned word of a map value; concurrent writers write the same.
        unsafe { ptr::write_volatile(cache.cast::<u64>(), word) };
        class
    }
}
