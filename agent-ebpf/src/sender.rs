//! Sender on a tagged socket, where the running task is the sender; and whether that sender has
//! become another since.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce_owner, set_state, succeed},
    flows::{ANOTHER, CHANGED, set_running},
    globals::offset,
    maps::PROCESSES,
    owner::{epoch_of, is_running, is_whole, sum},
    packet::protocol,
    uplink_flows::attribute_last,
    words::differ,
};

/// Of a call that sends: it has done so.
pub const HAS_SENT: u32 = 1;
/// Of a call that sends: by a stream, which sends its peer all that it was handed before it had one.
const BY_STREAM: u32 = 2;
/// Of a call that sends: what the stream was handed before may still be in its queue.
const BEHIND_OTHERS: u32 = 4;
/// Of a call that sends: by a socket that is connected past the hooks that judge a peer. Whoever has
/// connected it has chosen where it goes.
pub const WITHOUT_NAME: u32 = 8;

/// A call that is about to send by this socket, as bits of [`sends`].
///
/// `socket` is a `struct sock` that the verifier knows the type of.
#[inline(always)]
pub fn call_by(socket: *const u8) -> u32 {
    const SOCK_STREAM: u16 = 1;
    const SOCK_RAW: u16 = 3;
    const MPTCP: u16 = 262;
    // SAFETY: loads through a pointer that the verifier knows the type of.
    let (kind, protocol, unsent, queued) = unsafe {
        (
            socket.add(offset!(sock_type)).cast::<u16>().read(),
            socket.add(offset!(sock_protocol)).cast::<u16>().read(),
            socket
                .add(offset!(sock_write_queue_len))
                .cast::<u32>()
                .read(),
            socket.add(offset!(sock_wmem_queued)).cast::<u32>().read(),
        )
    };
    // Without a branch: what comes after would be verified once for each.
    let is_no = |one: u16, other: u16| differ(one.into(), other.into()) as u32;
    let is_mptcp = !is_no(protocol, MPTCP);
    let is_stream = !is_no(kind, SOCK_STREAM);
    // Of MPTCP, the queue is that of its subflows, and what is not acknowledged counts.
    let is_behind = is_stream & differ((unsent | queued & is_mptcp).into(), 0) as u32;
    let is_other =
        !is_mptcp & is_no(protocol, protocol::TCP.into()) & is_no(protocol, protocol::UDP.into());
    let is_without_name = is_other | !is_no(kind, SOCK_RAW);
    is_stream & BY_STREAM | is_behind & BEHIND_OTHERS | is_without_name & WITHOUT_NAME
}

/// Takes in that the running process has sent, or is about to.
///
/// A function of its own, so that what comes after it is not verified once for each that it can be.
#[inline(never)]
pub fn sends(tag: *mut Socket, call: u32) -> u32 {
    take_in(tag, call);
    0
}

#[inline(always)]
fn take_in(tag: *mut Socket, call: u32) -> Option<()> {
    // SAFETY: map values; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let (owner, flow) = unsafe { (&raw mut (*tracked).owner, &raw mut (*tracked).flow) };
    let (flags, state) = unsafe { ((*tag).flags, (*flow).state) };
    let is_certain = unsafe { (*owner).quality } == quality::DIRECT || state & FLOW_SHARED != 0;
    // A process that has changed since is another sender, too.
    let change = match is_certain && is_running(owner) {
        true => 0,
        false => set_running(tag, call),
    };
    let has_peer = flags & SOCKET_HAS_PEER != 0 || call & BY_STREAM != 0;
    if is_certain && change == 0 {
        if has_peer {
            if state & FLOW_SENT == 0 {
                set_state(tracked, FLOW_SENT);
            }
            if state & FLOW_SHARED != 0 {
                unsafe { (*owner).quality = quality::INFERRED };
            }
        }
        return None;
    }
    if call & HAS_SENT != 0 && flags & SOCKET_OF_FRAMES != 0 {
        attribute_last(tag);
    }
    // Rules may say something else about this sender. Also if there is no peer as yet: it may be
    // named at this moment, by another.
    unsafe { (*flow).decision.generation = 0 };
    if !has_peer {
        return None;
    }
    // A process that has connected and handed the socket on without a word has sent nothing.
    let is_other = change == ANOTHER || change == CHANGED && call & BEHIND_OTHERS != 0;
    let is_shared = is_certain && is_other && state & (FLOW_SENT | FLOW_SHARED) != 0;
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
