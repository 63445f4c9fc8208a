//! Origins of login sessions: which accepted connection somebody logged in by.
//!
//! A login service accepts a connection, answers on it while nobody is logged in, and then lets a
//! process of the new audit session answer: sshd by a child of the process that accepted, others by
//! that process itself. This change of senders names the connection.

use trefoil_ebpf::abi::*;

use crate::{maps::SESSIONS, room::BPF_NOEXIST};

/// Notes where the session of a socket's new owner came from, if it is this connection and the
/// session has no origin yet. `before` is who sent on the socket before.
#[inline(always)]
pub fn note_login(tag: *mut Socket, before: *const Owner) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let (flags, direction) = unsafe { ((*tag).flags, (*tracked).flow.direction) };
    // A peer can be made up where somebody else than the host's root rules the network.
    let is_accepted = flags & SOCKET_HAS_PEER != 0 && direction == direction::ACCEPTED;
    if is_accepted && has_logged_in(before, unsafe { &raw const (*tracked).owner }) {
        note(tracked);
    }
}

/// True if the new owner has a login session that the one before had not, and both are one process,
/// or parent and child, or children of one parent that is not the first process: a socket that was
/// passed to somebody else says nothing of his login.
#[inline(always)]
fn has_logged_in(before: *const Owner, owner: *const Owner) -> bool {
    // SAFETY: map values or the stack; the verifier checks the access.
    let (before, owner) = unsafe { (&*before, &*owner) };
    if before.session != NOBODY_LOGGED_IN || owner.session == NOBODY_LOGGED_IN || before.pid == 0 {
        return false;
    }
    owner.pid == before.pid
        || owner.pid == before.ppid
        || owner.ppid == before.pid
        || owner.ppid > 1 && owner.ppid == before.ppid
}

/// A function of its own for the sake of the stack.
#[inline(never)]
fn note(tracked: *const Tracked) -> u32 {
    // SAFETY: a map value; the verifier checks the access.
    let (flow, session) = unsafe { (&raw const (*tracked).flow, (*tracked).owner.session) };
    let origin = unsafe {
        SessionOrigin {
            peer: (*flow).peer,
            local: (*flow).local,
            local_port: (*flow).local_port,
            quality: quality::DIRECT,
            pad: [0; 5],
        }
    };
    // The first holds: it is not known better later.
    let _ = SESSIONS.insert(&session, &origin, BPF_NOEXIST);
    0
}
