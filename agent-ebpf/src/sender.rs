//! Sender on a tagged socket, where the running task is the sender; and whether that sender has
//! become another since.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce_owner, set_state, succeed},
    flows::{ANOTHER, set_running},
    maps::PROCESSES,
    owner::{epoch_of, is_running, is_whole, sum},
    uplink_flows::attribute_last,
};

/// Takes in that the running process has sent, or is about to.
///
/// A function of its own, so that what comes after it is not verified once for each that it can be.
#[inline(never)]
pub fn sends(tag: *mut Socket, has_sent: bool) -> u32 {
    take_in(tag, has_sent);
    0
}

#[inline(always)]
fn take_in(tag: *mut Socket, has_sent: bool) -> Option<()> {
    // SAFETY: map values; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let (owner, flow) = unsafe { (&raw mut (*tracked).owner, &raw mut (*tracked).flow) };
    let (flags, state) = unsafe { ((*tag).flags, (*flow).state) };
    let is_certain = unsafe { (*owner).quality } == quality::DIRECT || state & FLOW_SHARED != 0;
    // A process that has changed since is another sender, too.
    let change = match is_certain && is_running(owner) {
        true => 0,
        false => set_running(tag),
    };
    if is_certain && change == 0 {
        if flags & SOCKET_HAS_PEER != 0 {
            if state & FLOW_SENT == 0 {
                set_state(tracked, FLOW_SENT);
            }
            if state & FLOW_SHARED != 0 {
                unsafe { (*owner).quality = quality::INFERRED };
            }
        }
        return None;
    }
    if has_sent && flags & SOCKET_OF_FRAMES != 0 {
        attribute_last(tag);
    }
    // Rules may say something else about this sender. Also if there is no peer as yet: it may be
    // named at this moment, by another.
    unsafe { (*flow).decision.generation = 0 };
    if flags & SOCKET_HAS_PEER == 0 {
        return None;
    }
    // A process that has connected and handed the socket on without a word has sent nothing.
    let is_shared = is_certain && change == ANOTHER && state & (FLOW_SENT | FLOW_SHARED) != 0;
    if is_shared {
        // Two senders, one flow: whose bytes are whose is not known.
        set_state(tracked, FLOW_SHARED);
        unsafe { (*owner).quality = quality::INFERRED };
    }
    set_state(tracked, FLOW_SENT);
    // Once: two senders in turn would fill the ring buffer.
    let is_announced = unsafe { (*flow).state } & FLOW_ANNOUNCED != 0;
    if is_announced && state & FLOW_SHARED == 0 {
        announce_owner(tracked);
    }
    Some(())
}

/// True unless who sent on a flow may be another by now: one look into an array.
#[inline(always)]
pub fn is_current(tracked: *const Tracked) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    let (pid, epoch) = unsafe { ((*tracked).owner.pid, (*tracked).owner.epoch) };
    pid == 0 || epoch == epoch_of(pid)
}

/// Takes in what the process that sent on a flow executes now, if it is another file: what
/// leaves from here on may be of either, and is judged as the later.
///
/// For hooks where anybody's task may run. A function of its own for the sake of the stack.
#[inline(never)]
pub fn refresh(tracked: *mut Tracked) -> u32 {
    // SAFETY: map values; the verifier checks the access. So below.
    let (owner, flow) = unsafe { (&raw mut (*tracked).owner, &raw mut (*tracked).flow) };
    let (pid, start_ns, exe_id) = unsafe { ((*owner).pid, (*owner).start_ns, (*owner).exe_id) };
    let known = unsafe { *owner };
    let epoch = epoch_of(pid);
    // Of one that has ended nothing changes any more, though its id may be another's.
    if let Some(process) = unsafe { PROCESSES.get(&pid) }
        && process.start_ns == start_ns
        && process.exe_id != exe_id
        && is_whole(&raw const known)
    {
        succeed(tracked, owner);
        let state = unsafe { (*flow).state };
        unsafe {
            (*owner).exe_id = process.exe_id;
            (*owner).parent_exe_id = process.parent_exe_id;
            (*owner).quality = quality::INFERRED;
            // Not known here, and not what it was.
            (*owner).comm = [0; 16];
            (*flow).decision.generation = 0;
        }
        let sealed = Owner {
            exe_id: process.exe_id,
            ..known
        };
        unsafe { (*owner).seal = sum(&sealed) };
        if state & (FLOW_SENT | FLOW_SHARED) != 0 {
            set_state(tracked, FLOW_SHARED);
            if state & (FLOW_ANNOUNCED | FLOW_SHARED) == FLOW_ANNOUNCED {
                announce_owner(tracked);
            }
        }
    }
    unsafe { (*owner).epoch = epoch };
    0
}
