//! Who sends on a socket that is tagged, where the running task is the one that does.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use trefoil_ebpf::abi::*;

use crate::{
    accounting::announce_owner, flows::set_running, maps::PROCESSES, uplink_flows::attribute_last,
};

/// Takes in that the running process has sent, or is about to.
#[inline(always)]
pub fn sends(tag: *mut Socket, has_sent: bool) -> Option<()> {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: map values; the verifier checks the access. So below.
    let (owner, flow) = unsafe { (&raw mut (*tag).tracked.owner, &raw mut (*tag).tracked.flow) };
    let (flags, state) = unsafe { ((*tag).flags, (*flow).state) };
    let is_certain = unsafe { (*owner).quality } == quality::DIRECT || state & FLOW_SHARED != 0;
    // A process that has called exec since is another sender, too.
    let exe_id = unsafe { PROCESSES.get(&pid) }.map_or(0, |process| process.exe_id);
    if unsafe { (*owner).pid == pid && (*owner).exe_id == exe_id } && is_certain {
        if state & FLOW_SENT == 0 && flags & SOCKET_HAS_PEER != 0 {
            unsafe { (*flow).state |= FLOW_SENT };
        }
        return None;
    }
    set_running(tag);
    if has_sent && flags & SOCKET_OF_FRAMES != 0 {
        attribute_last(tag);
    }
    if flags & SOCKET_HAS_PEER == 0 {
        return None;
    }
    // Who has connected and handed the socket on without a word has sent nothing.
    let is_shared = is_certain && state & (FLOW_SENT | FLOW_SHARED) != 0;
    if is_shared {
        // Two senders, one flow: whose bytes are whose is not known.
        unsafe {
            (*flow).state |= FLOW_SHARED;
            (*owner).quality = quality::INFERRED;
        }
    }
    unsafe { (*flow).state |= FLOW_SENT };
    // Rules may say something else about this sender.
    unsafe { (*flow).decision.generation = 0 };
    // Once: two senders in turn would fill the ring buffer.
    if state & FLOW_ANNOUNCED != 0 && state & FLOW_SHARED == 0 {
        announce_owner(unsafe { &raw const (*tag).tracked });
    }
    Some(())
}
