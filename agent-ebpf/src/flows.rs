//! Flows of sockets with many peers, in map `FLOWS`.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce_owner, begin, set_state, succeed},
    maps::{EMPTY, FLOWS},
    named::is_named,
    owner::{is_same, is_same_process, set_current, set_one_of_several},
    packet::{Ends, is_same_peer, protocol},
    seal::is_whole,
    session::note_login,
    words::copy,
};

/// The flow with this key, if there is one.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<*mut Tracked> {
    FLOWS.get_ptr_mut(key).filter(is_complete)
}

/// The flow that an ordinary packet of a tagged socket goes on with: that of the socket's peer; of
/// datagrams without a connection, one of those that their senders have named. For packets
/// of flows that have begun.
#[inline(always)]
pub fn known(tag: *mut Socket, is_connected: bool, ends: &Ends) -> Option<*mut Tracked> {
    const SPECIAL: u32 = SOCKET_LISTENS | SOCKET_OF_MPTCP;
    // SAFETY: a map value; the verifier checks the access. So below.
    let (flags, tracked) = unsafe { ((*tag).flags, &raw mut (*tag).tracked) };
    if flags & SPECIAL != 0 {
        return None;
    }
    let peer = unsafe { &raw const (*tracked).flow.peer };
    if flags & SOCKET_HAS_PEER != 0 && is_same_peer(peer, &raw const ends.destination) {
        return Some(tracked);
    }
    // Of others the tag alone says who sends.
    let is_by_name = ends.destination.protocol == protocol::UDP && !is_connected;
    if flags & SOCKET_HAS_FLOWS == 0 || !is_by_name {
        return None;
    }
    // Calls say who sends to what they name, and to where that is translated.
    if !is_named(tag, &ends.destination) {
        return None;
    }
    let key = FlowKey {
        cookie: unsafe { (*tracked).flow.cookie },
        peer: ends.destination,
    };
    // From another port it is judged anew.
    find(&key).filter(|flow| unsafe { (**flow).flow.local_port } == ends.source_port)
}

/// True unless another processor is about to fill in whose a flow is. A packet that leaves at that
/// moment is told of by itself.
#[inline(always)]
pub fn is_complete(tracked: &*mut Tracked) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    unsafe { (&raw const (**tracked).flow.started_ns).read_volatile() != 0 }
}

/// As [`find`], for a process that is about to send: if another one did before,
/// the flow is shared, and its owner is the last one and not certain.
#[inline(always)]
pub fn find_for_sender(key: &FlowKey, sender: *const Owner) -> Option<*mut Tracked> {
    let tracked = find(key)?;
    set_sender(tracked, sender, quality::INFERRED);
    Some(tracked)
}

/// Takes in that the running process sends on a socket, which is not known to be the one that sent
/// last; 1 if it is another sender, be it a process that has changed its user, group, control group or
/// executable. `is_of_several` if somebody else has a part in what it sends. If another one sent
/// before, and the socket has many peers, what is told of it by itself is of one of them, and not
/// certain.
///
/// A function of its own, so that what it needs of the stack is free again when the judge is
/// asked.
#[inline(never)]
pub fn set_running(tag: *mut Socket, is_of_several: bool) -> u32 {
    // SAFETY: a map value; the verifier checks the access. So below.
    let (owner, flags) = unsafe { (&raw mut (*tag).tracked.owner, (*tag).flags) };
    let before = unsafe { *owner };
    if is_of_several {
        set_state(unsafe { &raw mut (*tag).tracked }, FLOW_SHARED);
        set_one_of_several(owner);
    } else {
        set_current(owner);
    }
    let is_same = is_same(owner, &raw const before);
    if is_same && is_whole(&raw const before) {
        return 0;
    }
    note_login(tag, &raw const before);
    // A process has sent as what it was, and that is told so. Bytes of another are in one flow with
    // those of the one before.
    let is_itself = unsafe { (*owner).pid == before.pid && (*owner).start_ns == before.start_ns };
    if is_itself && !is_same && flags & SOCKET_HAS_PEER != 0 {
        succeed(unsafe { &raw mut (*tag).tracked }, &raw const before);
    }
    if is_same_process(owner, &raw const before) {
        return CHANGED;
    }
    // A listener's flows are its answers, and it sends nothing itself.
    const KINDS: u32 = SOCKET_HAS_FLOWS | SOCKET_HAS_PEER | SOCKET_LISTENS;
    let has_many_peers = flags & KINDS == SOCKET_HAS_FLOWS;
    if has_many_peers && before.pid != 0 {
        set_state(unsafe { &raw mut (*tag).tracked }, FLOW_SHARED);
    }
    ANOTHER
}

/// Result of [`set_running`] if the process is the one that sent last, and has another user, group,
/// control group or session since: it is judged by its present ones.
pub const CHANGED: u32 = 1;
/// Result of [`set_running`] if another process sends, or the same has executed another file.
pub const ANOTHER: u32 = 2;

/// Takes in who sends on a flow. `first` is how certain it is that all of it is the
/// sender's, if nobody was known to send on it before.
///
/// A function of its own, as [`set_running`].
#[inline(never)]
pub fn set_sender(tracked: *mut Tracked, sender: *const Owner, first: u8) -> u32 {
    // SAFETY: map values; the verifier checks the access.
    unsafe {
        let before = &raw const (*tracked).owner;
        if is_same(before, sender) && is_whole(before) {
            (*tracked).owner.epoch = (*sender).epoch;
            let is_shared = (*tracked).flow.state & FLOW_SHARED != 0;
            if first == quality::DIRECT && !is_shared {
                (*tracked).owner.quality = (*sender).quality;
            }
            return 0;
        }
        let was_shared = (*tracked).flow.state & FLOW_SHARED != 0;
        let is_first = (*tracked).owner.pid == 0 && first == quality::DIRECT;
        let is_changed = !was_shared && is_same_process(&raw const (*tracked).owner, sender);
        let is_itself = (*before).pid == (*sender).pid && (*before).start_ns == (*sender).start_ns;
        if is_itself {
            succeed(tracked, before);
        }
        copy(sender, &raw mut (*tracked).owner);
        if !is_first && !is_changed {
            (*tracked).owner.quality = quality::INFERRED;
            set_state(tracked, FLOW_SHARED);
        }
        // Rules may say something else about this sender.
        (*tracked).flow.decision.generation = 0;
        // Once: two senders in turn would fill the ring buffer.
        if !was_shared && (*tracked).flow.state & FLOW_ANNOUNCED != 0 {
            announce_owner(tracked);
        }
    }
    0
}

/// Makes a flow; `None` if the table is full, or if another processor makes it at this moment. Then
/// its packet is told of by itself where it leaves.
#[inline(never)]
pub fn create(
    key: &FlowKey,
    owner: *const Owner,
    direction: u8,
    decision: Decision,
) -> Option<*mut Tracked> {
    let empty = EMPTY.get(0)?;
    const BPF_NOEXIST: u64 = 1;
    // Another CPU may have been faster, and that is as good.
    let inserted = FLOWS.insert(key, empty, BPF_NOEXIST).is_ok();
    let tracked = FLOWS.get_ptr_mut(key)?;
    if inserted {
        // SAFETY: map values; the verifier checks the access.
        copy(owner, unsafe { &raw mut (*tracked).owner });
        begin(tracked, key.cookie, &key.peer, direction, decision);
    }
    Some(tracked).filter(is_complete)
}
