//! Read-only globals that the agent sets before it loads the programs. The
//! verifier treats them as constants.

use core::ptr;

use trefoil_ebpf::abi::{N_ROOMS, Offsets, Room, Rooms};

use crate::bounds::masked;

/// True in programs of `trefoil trace`: what they share with those that decide they only read.
pub const ONLY_LOOKS: bool = cfg!(feature = "trace");

/// Number of this set of programs, see [`trefoil_ebpf::abi::Control::instance`].
#[unsafe(no_mangle)]
static INSTANCE: u32 = 0;

/// Number of the set that these programs are put in the place of, one by one; the same
/// as `INSTANCE` if they are attached beside others, or are the first.
#[unsafe(no_mangle)]
static REPLACES: u32 = 0;

/// 1 if `inet_sock_set_state` is attached, which ends TCP flows; else 0, and
/// `sock_release` does.
#[unsafe(no_mangle)]
static TCP_STATE_SEEN: u32 = 0;

/// 1 if the kernel tells which socket of MPTCP a subflow belongs to (5.19); else 0.
#[unsafe(no_mangle)]
static SUBFLOWS_KNOWN: u32 = 0;

/// 1 if programs of every kind may read the running task's structures (5.15); else 0.
#[unsafe(no_mangle)]
static TASK_READABLE: u32 = 0;

/// Cookie of the agent's network namespace; 0 if this kernel does not tell.
#[unsafe(no_mangle)]
static NAMESPACE: u64 = 0;

/// 1 if flows that stay on the host are told like any other; else 0.
#[unsafe(no_mangle)]
static LOCAL_FLOWS: u32 = 0;

/// 1 if interfaces that lead out are watched, now or when there are any; else 0.
#[unsafe(no_mangle)]
static UPLINKS_WATCHED: u32 = 0;

/// Inode number of the agent's network namespace.
#[unsafe(no_mangle)]
static NAMESPACE_INODE: u32 = 0;

/// The parts of the tables that are for others than root.
#[unsafe(no_mangle)]
static ROOMS: Rooms = Rooms {
    rooms: [Room { one: 0, all: 0 }; N_ROOMS],
};

/// Where the fields are.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = NO_OFFSETS;

// `Offsets::default()` is not const.
// SAFETY: every field is an integer, for which zero is a value.
const NO_OFFSETS: Offsets = unsafe { core::mem::zeroed() };

#[inline(always)]
pub fn instance() -> u32 {
    // SAFETY: a static; volatile because the loader overwrites it.
    unsafe { ptr::read_volatile(&INSTANCE) }
}

#[inline(always)]
pub fn replaces() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&REPLACES) }
}

#[inline(always)]
pub fn namespace() -> u64 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&NAMESPACE) }
}

#[inline(always)]
pub fn local_flows() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&LOCAL_FLOWS) != 0 }
}

#[inline(always)]
pub fn uplinks_watched() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&UPLINKS_WATCHED) != 0 }
}

#[inline(always)]
pub fn namespace_inode() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&NAMESPACE_INODE) }
}

#[inline(always)]
pub fn tcp_state_seen() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&TCP_STATE_SEEN) != 0 }
}

#[inline(always)]
pub fn subflows_known() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&SUBFLOWS_KNOWN) != 0 }
}

#[inline(always)]
pub fn task_readable() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&TASK_READABLE) != 0 }
}

/// The part of the table with this index that is for others than root.
#[inline(always)]
pub fn room(table: u32) -> Room {
    let index = masked::<{ N_ROOMS - 1 }>(table as usize);
    // SAFETY: as above; the index is within.
    unsafe { ptr::read_volatile((&raw const ROOMS.rooms).cast::<Room>().add(index)) }
}

/// The offset of one field, e.g. `offset!(task_tgid)`.
macro_rules! offset {
    ($field:ident) => {
        $crate::globals::constant(&$crate::globals::offsets().$field)
    };
}
pub(crate) use offset;

#[inline(always)]
pub fn offsets() -> &'static Offsets {
    &OFFSETS
}

#[inline(always)]
pub fn constant(offset: &'static u32) -> usize {
    // SAFETY: a reference; volatile because the loader overwrites the static.
    unsafe { ptr::read_volatile(offset) as usize }
}
