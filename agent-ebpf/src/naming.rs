//! A process names a peer: that of a connection, that of a socket's datagrams from now on, or that
//! of one datagram. It is judged, and the call refused before a packet exists.
//!
//! The first peer that a socket is connected to has its flow in the tag. One for datagrams may be
//! connected to another at any time, by somebody else, while it sends: so the flow in the tag stays
//! that of the first, and those to others are in `FLOWS`. In both hooks the kernel holds the lock
//! of a socket for datagrams; `egress` runs meanwhile.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_get_socket_cookie},
    },
    programs::SockAddrContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::{NOT_JUDGED, SENDERS, begin_after, end},
    flows,
    judge::judge,
    kernel_memory::Kernel,
    maps::{PROCESSES, SOCKETS, in_force},
    owner::acts,
    packet::{has_ports, is_same_peer, protocol},
    refusals::refuse,
    sender::{Call, sends},
    settle::check,
    socket::is_of_own_namespace,
    source::Source,
    subflow::{inherit, mark},
    translation::{may_translate, socket_of},
    words::{differ, set_bit},
};

/// The call goes on.
pub const PASS: i32 = 1;
/// The call fails with EPERM.
pub const REFUSE: i32 = 0;

/// The use of a peer that is named.
#[derive(Clone, Copy, PartialEq)]
pub enum Purpose {
    /// All that the socket sends from now on.
    Connection,
    /// One datagram.
    Datagram,
}

/// Takes in that the running process names a peer. `None`: another instance judges, or there is no
/// memory for a tag, and then `egress` judges every packet by itself.
#[inline(always)]
pub fn name(ctx: &SockAddrContext, peer: Peer, purpose: Purpose) -> Option<i32> {
    const SOCK_DGRAM: u32 = 2;
    // By which interface it goes is not known yet.
    let in_force = in_force()?.may_stay();
    // SAFETY: fields of the context and map values; the verifier checks the access. So below.
    let (socket, kind) = unsafe { ((*ctx.sock_addr).__bindgen_anon_1.sk, (*ctx.sock_addr).type_) };
    let mut key = FlowKey { cookie: 0, peer };
    let peer = &key.peer;
    let tag = SOCKETS.get_or_create(socket)?;
    let tracked = unsafe { &raw mut (*tag).tracked };
    let owner = unsafe { &raw mut (*tracked).owner };
    let connects = purpose == Purpose::Connection;
    key.cookie = unsafe { (*tracked).flow.cookie };
    // A connection's tag may have its listener's.
    if key.cookie == 0 || connects {
        key.cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    }
    if connects && kind != SOCK_DGRAM {
        connects_by(ctx, tag, socket);
    } else {
        sends(
            tag,
            call_naming(ctx, peer.protocol, unsafe { (*tag).flags }),
        );
        if peer.port == 0 && !connects {
            return Some(PASS); // A connected socket, and a message with options.
        }
        unsafe {
            if !is_same_peer(&raw const (*tag).named, peer) {
                (*tag).translated.protocol = 0;
                (*tag).named = *peer;
            }
            if (*tag).translated.protocol != 0 {
                follow_translated(tag, key.cookie);
            }
        }
    }

    let near = near_end(socket, peer);
    let has_peer = unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0;
    let is_first = connects && !has_peer;
    // No `Option`: the compiler may move the value of one that has none, and the verifier minds.
    let known = match has_peer {
        true if is_same_peer(unsafe { &raw const (*tracked).flow.peer }, peer) => tracked,
        _ if is_first => ptr::null_mut(),
        _ => flows::find_for_sender(&key, owner).unwrap_or(ptr::null_mut()),
    };
    if !known.is_null() {
        forget_moved(known, near as u16);
    }
    let mut source = Source::of(owner);
    // Calls that send are told of without the socket's lock: another who uses it may have been
    // taken in meanwhile.
    let is_its = is_of_running(owner, &source);
    if !is_its {
        source = Source::NOBODY;
    }
    let is_judged = is_its
        && !known.is_null()
        && in_force.made(unsafe { &(*known).flow.decision })
        && unsafe { (*known).flow.state } & FLOW_SHARED == 0;
    let decision = match is_judged {
        true => unsafe { (*known).flow.decision },
        false => judge(in_force, &source, near, peer, 0),
    };
    // Where it goes to is judged when it goes; so is what stays on the host, which is not a flow.
    let is_left = decision.verdict == verdict::LOCAL || decision.blocks();
    if decision.blocks() && is_refused(ctx, tag, &key, decision) {
        return Some(REFUSE);
    }
    if is_first {
        let kept = if is_left { NOT_JUDGED } else { decision };
        // Data may come with the call that connects, or may wait for it.
        begin_after(
            SENDERS,
            tracked,
            key.cookie,
            peer,
            direction::OUTBOUND,
            kept,
        );
        set_near(tracked, near as u16);
        set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_HAS_PEER);
        check(tracked, &source);
    } else if known.is_null() && !connects && !is_left {
        if !has_peer {
            // By it the agent finds out whether the socket still lives, which may be older than it.
            unsafe { (*tracked).flow.cookie = key.cookie };
        }
        if let Some(tracked) = flows::create(&key, owner, direction::OUTBOUND, decision) {
            set_near(tracked, near as u16);
            check(tracked, &source);
        }
        set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_HAS_FLOWS);
    }
    Some(PASS)
}

/// Takes in that the running process connects a socket that is not for datagrams.
#[inline(always)]
fn connects_by(ctx: &SockAddrContext, tag: *mut Socket, socket: *mut bpf_sock) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let owner = unsafe { &raw mut (*tracked).owner };
    // A connection that failed may be tried again.
    if unsafe { (*tag).flags } & SOCKET_HAS_PEER != 0 {
        end(tracked);
        unsafe { (*tag).flags &= !SOCKET_HAS_PEER };
    }
    // One that the kernel has made for a process has no tag yet.
    if unsafe { (*owner).pid } == 0 {
        note_namespace(tag, ctx.sock_addr as Kernel);
    }
    // It listens no more, and what it opens is not accepted.
    unsafe { (*tag).flags &= !SOCKET_LISTENS };
    acts(owner);
    if unsafe { (*owner).pid } == 0 {
        inherit(tag, socket);
    } else {
        mark(tag, socket);
    }
}

/// Notes in a tag whether the socket of this call is of the agent's own network namespace.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn note_namespace(tag: *mut Socket, call: Kernel) -> u32 {
    if is_of_own_namespace(socket_of(call)) {
        // SAFETY: a map value; the verifier checks the access.
        set_bit(unsafe { &raw mut (*tag).flags }, SOCKET_OWN_NAMESPACE);
    }
    0
}

/// Takes in who sends to where the named peer is translated: those packets are of another flow.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn follow_translated(tag: *mut Socket, cookie: u64) -> u32 {
    // SAFETY: map values; the verifier checks the access. So below.
    let peer = unsafe { (*tag).translated };
    let owner = unsafe { &raw const (*tag).tracked.owner };
    flows::find_for_sender(&FlowKey { cookie, peer }, owner);
    0
}

/// The call that names a peer on a socket for datagrams. Where that socket has none, the process names
/// it, and nobody else has chosen.
#[inline(always)]
fn call_naming(ctx: &SockAddrContext, protocol: u8, flags: u32) -> Call {
    let is_judged = protocol == protocol::UDP;
    if is_judged && flags & (SOCKET_HAS_PEER | SOCKET_IS_OLDER) == 0 {
        return Call::ANY;
    }
    Call::naming(socket_of(ctx.sock_addr as Kernel), is_judged)
}

/// Refuses a call that names a peer, and tells so; false if the host may translate where it goes.
#[inline(always)]
fn is_refused(ctx: &SockAddrContext, tag: *mut Socket, key: &FlowKey, decision: Decision) -> bool {
    if may_translate(ctx.sock_addr as Kernel, &key.peer.address) {
        return false;
    }
    // SAFETY: a map value; the verifier checks the access.
    let owner = unsafe { &raw const (*tag).tracked.owner };
    refuse(owner, key.cookie, &key.peer, decision.to_word());
    true
}

/// The near end, see [`trefoil_ebpf::abi::near`], of what a socket sends to a peer that is named.
#[inline(always)]
pub fn near_end(socket: *const bpf_sock, peer: &Peer) -> u32 {
    const OUTBOUND: u32 = near::of(direction::OUTBOUND, 0, 0);
    if !has_ports(peer.protocol) {
        return OUTBOUND | near::of(0, peer.protocol, 0);
    }
    // SAFETY: a field of the socket; the verifier checks the access.
    match unsafe { (*socket).src_port } as u16 {
        0 => OUTBOUND | near::NO_PORT,
        port => OUTBOUND | near::of(0, peer.protocol, port),
    }
}

/// Notes which port of this host a decision is about, before a packet has left by it.
#[inline(always)]
fn set_near(tracked: *mut Tracked, near_port: u16) {
    // SAFETY: a map value; the verifier checks the access.
    unsafe { (*tracked).flow.local_port = near_port };
}

/// Forgets what was decided about packets of another port of this host: a socket for datagrams that
/// was not bound to it has another one once its peer was taken away.
#[inline(always)]
fn forget_moved(tracked: *mut Tracked, near_port: u16) {
    // SAFETY: a map value; the verifier checks the access. So below.
    let before = unsafe { (*tracked).flow.local_port };
    if before != 0 && before != near_port {
        unsafe { (*tracked).flow.decision.generation = 0 };
    }
}

/// True if what an owner says is what the running process is, be it that or another of the same.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn is_of_running(owner: *const Owner, source: &Source) -> bool {
    let running = (bpf_get_current_pid_tgid() >> 32) as u32;
    // Its number is written by itself.
    if source.who() != bpf_get_current_uid_gid() {
        return false;
    }
    // SAFETY: a map value; the verifier checks the access.
    let pid = unsafe { (&raw const (*owner).pid).read_volatile() };
    if pid == running {
        return true;
    }
    // SAFETY: a map value that its writers only replace as a whole, and a helper.
    let (exe_id, cgroup_id) = unsafe {
        (
            PROCESSES.get(&running).map_or(0, |process| process.exe_id),
            bpf_get_current_cgroup_id(),
        )
    };
    differ(source.cgroup_id, cgroup_id) | differ(source.exe_id, exe_id) == 0
}
