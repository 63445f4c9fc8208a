//! Where a flow comes from, and the classes that a policy puts it in.
//!
//! Functions are `extern "C"` for the reason that [`crate::judge`] has.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::{
    bounds::masked,
    globals::ONLY_LOOKS,
    maps::{CGROUPS, EXECUTABLES, SESSIONS, lose},
    seal::sum,
    tables::{Tables, entry, in_chunk},
    tree::{find_number, find128},
    words::differ,
};

/// Facts about the source that the judge needs.
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
    /// Nothing is known of it: it could be anybody of this host, or the kernel for somebody.
    pub const NOBODY: Self = Self {
        exe_id: 0,
        cgroup_id: 0,
        uid: u32::MAX,
        gid: u32::MAX,
        session: 0,
    };

    /// As an owner says, which is nothing if that is not of one process.
    #[inline(always)]
    pub fn of(owner: *const Owner) -> Self {
        // SAFETY: a map value; the verifier checks the access.
        let owner = unsafe { &*owner };
        let broken = differ(sum(owner), owner.seal);
        // Without a process, the control group alone is known: that of the socket. Every other
        // id of the socket is one of somebody's user namespace.
        let no_process = broken | !differ(owner.pid.into(), 0);
        Self {
            exe_id: owner.exe_id & !no_process,
            cgroup_id: owner.cgroup_id & !broken,
            uid: owner.uid | no_process as u32,
            gid: owner.gid | no_process as u32,
            session: owner.session & !no_process as u32,
        }
    }

    /// True if both say the same.
    #[inline(always)]
    pub fn is_same(&self, other: &Self) -> bool {
        let word = |one: u32, two: u32| u64::from(one) << 32 | u64::from(two);
        let differs = differ(self.exe_id, other.exe_id)
            | differ(self.cgroup_id, other.cgroup_id)
            | differ(word(self.uid, self.gid), word(other.uid, other.gid))
            | differ(self.session.into(), other.session.into());
        differs == 0
    }

    /// `group << 32 | user`.
    #[inline(always)]
    pub fn who(&self) -> u64 {
        u64::from(self.gid) << 32 | u64::from(self.uid)
    }

    /// The classes of both paths under a policy: `executable << 16 | cgroup`.
    #[inline(always)]
    pub fn paths(&self, generation: u32) -> u32 {
        let executable = match self.exe_id {
            0 => UNKNOWN,
            id => executable_class(id, generation),
        };
        let cgroup = match self.cgroup_id {
            0 => UNKNOWN,
            id => cgroup_class(id, generation),
        };
        executable << 16 | cgroup
    }
}

const UNKNOWN: u32 = class::UNKNOWN as u32;

/// Class of an executable: that of its path, computed on first use under a policy.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn executable_class(exe_id: u64, generation: u32) -> u32 {
    let Some(executable) = EXECUTABLES.get_ptr_mut(&exe_id) else {
        return UNKNOWN;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (flags, cache) = unsafe { ((*executable).flags, &raw mut (*executable).class) };
    if flags & EXECUTABLE_TRUNCATED != 0 {
        return UNKNOWN;
    }
    if let Some(class) = cached(cache, generation) {
        return class;
    }
    let (path, len) = unsafe {
        (
            (&raw const (*executable).path).cast::<u8>(),
            usize::from((*executable).path_len),
        )
    };
    let Some(automaton) = Automaton::open(generation) else {
        return UNKNOWN;
    };
    let mut state = automaton.header.executable_start;
    for i in 0..EXECUTABLE_PATH {
        let i = masked::<{ EXECUTABLE_PATH - 1 }>(i);
        if i >= len {
            break;
        }
        // SAFETY: i < EXECUTABLE_PATH.
        let byte = unsafe { *path.add(i) };
        state = next_state(generation, state, u32::from(byte));
        if state == NO_STATE {
            return UNKNOWN;
        }
    }
    automaton.finish(generation, state, flags & EXECUTABLE_FOREIGN != 0, cache)
}

/// Class of a control group, as [`executable_class`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cgroup_class(cgroup_id: u64, generation: u32) -> u32 {
    let Some(cgroup) = CGROUPS.get_ptr_mut(&cgroup_id) else {
        lose(LOSS_CGROUPS_UNKNOWN, 1);
        return UNKNOWN;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (flags, cache) = unsafe { ((*cgroup).flags, &raw mut (*cgroup).class) };
    if flags & CGROUP_TRUNCATED != 0 {
        return UNKNOWN;
    }
    if let Some(class) = cached(cache, generation) {
        return class;
    }
    let (path, len) = unsafe {
        (
            (&raw const (*cgroup).path).cast::<u8>(),
            usize::from((*cgroup).path_len),
        )
    };
    let Some(automaton) = Automaton::open(generation) else {
        return UNKNOWN;
    };
    let mut state = automaton.header.cgroup_start;
    for i in 0..CGROUP_PATH {
        let i = masked::<{ CGROUP_PATH - 1 }>(i);
        if i >= len {
            break;
        }
        // SAFETY: i < CGROUP_PATH.
        let byte = unsafe { *path.add(i) };
        state = next_state(generation, state, u32::from(byte));
        if state == NO_STATE {
            return UNKNOWN;
        }
    }
    automaton.finish(generation, state, false, cache)
}

/// The class of a group and a login session, with [`DECISION_LIMITED`] above it as in
/// [`limited`](crate::judge::Asked::limited).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn group_class(generation: u32, gid: u32, session: u32) -> u32 {
    const BRANCH_SHIFT: u32 = size_of::<Branch>().ilog2();
    let slot = generation & 1;
    let Some(tables) = Tables::of(slot) else {
        return UNKNOWN;
    };
    let header = tables.header();
    let mut limited = 0;
    let mut branch = match session {
        0 => header.groups[login::UNKNOWN],
        NOBODY_LOGGED_IN => header.groups[login::NONE],
        _ => header.groups[login::SESSION],
    };
    let is_session = session != 0 && session != NOBODY_LOGGED_IN;
    if is_session && header.origin_groups != 0 {
        let found = origin(slot, session);
        // It may become known.
        limited = found & NO_ORIGIN;
        let place = (found & (NO_ORIGIN - 1)) << BRANCH_SHIFT;
        if let Some(of_origin) = entry::<Branch>(slot, header.origin_groups.wrapping_add(place)) {
            branch = *of_origin;
        }
    }
    let class = match branch.kind() {
        Branch::VALUE => branch.0,
        _ => find_number(slot, branch.0, gid),
    };
    limited | class & 0xffff
}

/// In what [`origin`] returns: none is known yet. Where [`DECISION_LIMITED`] is in what
/// [`group_class`] returns.
const NO_ORIGIN: u32 = (DECISION_LIMITED as u32) << 16;

/// The case of where a login session came from, as [`Header::origins_v4`] has it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn origin(slot: u32, session: u32) -> u32 {
    let Some(origin) = SESSIONS.get_ptr(&session) else {
        return NO_ORIGIN;
    };
    // SAFETY: a map value of integers; the verifier checks the access. So below.
    let (known, address) = unsafe { ((*origin).quality, (*origin).peer.address) };
    // A connection that exists says who holds it now, and not who logged in by it.
    if known != quality::DIRECT {
        return UNKNOWN;
    }
    let Some(tables) = Tables::of(slot & 1) else {
        return UNKNOWN;
    };
    let header = tables.header();
    let (branch, high, low) = match address.as_v4() {
        Some(v4) => (header.origins_v4, u64::from(v4) << 32, 0),
        None => {
            let (high, low) = address.halves();
            (header.origins_v6, high, low)
        }
    };
    find128(&tables, branch, high, low) & 0xffff
}

/// The class of a near end, with [`DECISION_LIMITED`] above it as in [`limited`](crate::judge::Asked::limited).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn near_class(generation: u32, near: u32) -> u32 {
    const KEY: u32 = (1 << near::SHIFT) - 1;
    let Some(tables) = Tables::of(generation & 1) else {
        return class::UNKNOWN.into();
    };
    let direction = masked::<{ near::N - 1 }>((near >> near::SHIFT) as usize);
    // SAFETY: the index is masked, which the compiler cannot see.
    let branch = unsafe { *tables.header().near_ends.as_ptr().add(direction) };
    if branch.kind() == Branch::VALUE {
        return u32::from(branch.0 as u16);
    }
    let class = find_number(generation & 1, branch.0, near & KEY) as u16;
    let limited = match near & KEY {
        near::NO_PORT => DECISION_LIMITED,
        _ => 0,
    };
    u32::from(limited) << 16 | u32::from(class)
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

/// Result of [`next_state`] if the tables cannot be read.
const NO_STATE: u32 = u32::MAX;

/// The state that a byte of a path leads to. A function of its own: the verifier goes
/// through the loops that call it byte by byte, and through this once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_state(generation: u32, state: u32, byte: u32) -> u32 {
    let next = || {
        const STATE_SHIFT: u32 = size_of::<State>().ilog2();
        let tables = Tables::of(generation & 1)?;
        let header = tables.header();
        let letter = header.letters[byte as usize & 0xff] as usize & (MAX_LETTERS - 1);
        let place = header.states + (state << STATE_SHIFT);
        let chunk = tables.chunk(place)?;
        // SAFETY: within the chunk.
        Some(unsafe { (*in_chunk::<State>(chunk, u64::from(place))).next[letter] })
    };
    next().map_or(NO_STATE, u32::from)
}

/// The automata of one policy.
struct Automaton {
    header: &'static Header,
    tables: Tables,
}

impl Automaton {
    #[inline(always)]
    fn open(generation: u32) -> Option<Self> {
        let tables = Tables::of(generation & 1)?;
        let header = tables.header();
        Some(Self { header, tables })
    }

    #[inline(always)]
    fn finish(&self, generation: u32, state: u32, is_foreign: bool, cache: *mut ClassCache) -> u32 {
        const CLASS_SHIFT: u32 = size_of::<StateClass>().ilog2();
        let place = self.header.state_classes + (state << CLASS_SHIFT);
        let class = self.tables.chunk(place).map_or(UNKNOWN, |chunk| {
            // SAFETY: within the chunk.
            let classes = unsafe { *in_chunk::<StateClass>(chunk, u64::from(place)) };
            u32::from(match is_foreign {
                true => classes.foreign,
                false => classes.class,
            })
        });
        if ONLY_LOOKS {
            return class;
        }
        let filled = ClassCache { generation, class };
        // SAFETY: `ClassCache` is two u32 in 8 bytes without padding.
        let word = unsafe { core::mem::transmute::<ClassCache, u64>(filled) };
        // SAFETY: an aligned word of a map value; concurrent writers write the same.
        unsafe { ptr::write_volatile(cache.cast::<u64>(), word) };
        class
    }
}
