//! Whether a packet or call is asked for, and whether there may be another line in this second.

use core::ptr;

use trefoil_ebpf::abi::{
    Address, CGROUP_PATH,
    trace::{TRACE_UNIT, TraceFilter},
};

use super::story::{Story, TRACE_COUNTS};
use crate::{bounds::masked, maps::CGROUPS};

/// Filter that is asked for. The loader sets it.
#[unsafe(no_mangle)]
static TRACE_FILTER: TraceFilter = TraceFilter {
    network: Address([0; 16]),
    mask: Address([0; 16]),
    until_ns: 0,
    per_second: 0,
    pid: 0,
    port: 0,
    unit_len: 0,
    knows_answers: 0,
    unit: [0; TRACE_UNIT],
};

macro_rules! asked {
    ($field:ident) => {
        // SAFETY: a static; volatile because the loader overwrites it.
        unsafe { ptr::read_volatile(&raw const TRACE_FILTER.$field) }
    };
}

/// True if the kernel says what programs before this one have answered.
#[inline(always)]
pub fn knows_answers() -> bool {
    asked!(knows_answers) != 0
}

/// True if it is asked for.
#[inline(always)]
pub fn wants(story: &Story) -> bool {
    let pid = asked!(pid);
    let port = asked!(port);
    if pid != 0 && story.owner.pid != pid || port != 0 && story.peer.port != port {
        return false;
    }
    let words = |address: *const Address| address.cast::<u64>();
    let (network, mask) = (
        words(&raw const TRACE_FILTER.network),
        words(&raw const TRACE_FILTER.mask),
    );
    let address = words(&raw const story.peer.address);
    for i in 0..2 {
        // SAFETY: 16 bytes each; volatile because the loader overwrites two of them.
        let differs = unsafe {
            let mask = ptr::read_volatile(mask.add(i));
            (*address.add(i) & mask) ^ ptr::read_volatile(network.add(i))
        };
        if differs != 0 {
            return false;
        }
    }
    asked!(unit_len) == 0 || is_in_unit(story.owner.cgroup_id) != 0
}

/// 1 if the path of a control group has the component that is asked for, or begins with the
/// components.
///
/// A global function to the kernel, so that its loop is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_in_unit(cgroup_id: u64) -> u32 {
    let Some(cgroup) = CGROUPS.get_ptr(&cgroup_id) else {
        return 0;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (path, len) = unsafe {
        (
            (&raw const (*cgroup).path).cast::<u8>(),
            usize::from((*cgroup).path_len),
        )
    };
    let unit = (&raw const TRACE_FILTER.unit).cast::<u8>();
    let unit_len = usize::from(asked!(unit_len));
    let is_path = unsafe { ptr::read_volatile(unit) } == b'/';
    // Bytes of the unit that have matched; past its end for a component that is another.
    let mut at = 0;
    for i in 0..=CGROUP_PATH {
        let is_end = i >= len;
        let byte = match is_end {
            true => b'/',
            // SAFETY: i < CGROUP_PATH.
            false => unsafe { *path.add(masked::<{ CGROUP_PATH - 1 }>(i)) },
        };
        if byte == b'/' && at == unit_len {
            return 1;
        }
        if is_end {
            return 0;
        }
        let wanted = unsafe { ptr::read_volatile(unit.add(masked::<{ TRACE_UNIT - 1 }>(at))) };
        at = if byte == b'/' && !is_path {
            0
        } else if at < unit_len && byte == wanted {
            at + 1
        } else {
            TRACE_UNIT
        };
    }
    0
}

/// True if there may be another line now, at this moment; counts it.
#[inline(always)]
pub fn has_room(now_ns: u64) -> bool {
    let Some(counts) = TRACE_COUNTS.get_ptr_mut(0) else {
        return false;
    };
    if now_ns > asked!(until_ns) {
        return false;
    }
    // SAFETY: a map value of this processor; the verifier checks the access.
    let counts = unsafe { &mut *counts };
    let second = now_ns / 1_000_000_000;
    if counts.second != second {
        counts.second = second;
        counts.in_second = 0;
    }
    if counts.in_second >= u64::from(asked!(per_second)) {
        counts.over_rate += 1;
        return false;
    }
    counts.in_second += 1;
    counts.told += 1;
    true
}
