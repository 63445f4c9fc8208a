//! Deeds: remembers which process does something to the agent's objects in the kernel.

use core::ptr;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use trefoil_ebpf::abi::{Deed, DeedKey};

use crate::{
    accounting::now_ns,
    maps::{AGENT, DEEDS, active},
    owner::set_current,
};

/// Remembers the running process as who did something to this, if it is looked after, and if
/// the process is not the agent itself.
#[inline(always)]
pub fn remember_deed(key: &DeedKey) -> Option<()> {
    active()?;
    let deed: *mut Deed = DEEDS.get_ptr_mut(key)?;
    // SAFETY: map values; the verifier checks the access. So below.
    let agent = unsafe { (*AGENT.get_ptr(0)?).pid };
    // Where its number is not known, nobody could be told from it.
    if agent == 0 || agent == (bpf_get_current_pid_tgid() >> 32) as u32 {
        return None;
    }
    // The agent does not believe what it reads in between.
    unsafe { ptr::write_volatile(&raw mut (*deed).time_ns, 0) };
    set_current(unsafe { &raw mut (*deed).by });
    unsafe { ptr::write_volatile(&raw mut (*deed).time_ns, now_ns()) };
    Some(())
}
