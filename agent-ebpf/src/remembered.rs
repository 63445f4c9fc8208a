//! Decisions that outlive the packet that they were made about: in map `REMEMBERED`, about the
//! beginning of a datagram, for the rest of it, and about a connection of TCP that is over, in
//! whose name the kernel still answers; in `LARGE_DATAGRAMS`, about datagrams that may be cut
//! into fragments before they come to an uplink without their socket.
//!
//! A key names both ends and the sender. Only what may leave is remembered: all else is judged
//! once more, where it is.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_get_hash_recalc};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::{NOT_JUDGED, now_ns},
    atomic::add,
    maps::{LARGE_DATAGRAMS, REMEMBERED, is_new, lose},
    packet::{Ends, Part, protocol},
    words::low_half,
};

/// What a decision is about.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RememberedKey {
    /// The far end; without a port if it is about a datagram.
    peer: Peer,
    /// The near end.
    source: Address,
    /// Of a datagram: its sender, see [`sender_of`].
    sender: u64,
    /// Of a datagram: its identification.
    datagram: u32,
    /// The near port; 0 if it is about a datagram.
    source_port: u16,
    /// Zero.
    pad: u16,
}

impl RememberedKey {
    /// A connection of TCP that is over. Who it belonged to is gone.
    #[inline(always)]
    fn of_connection(peer: &Peer, local: &Address, local_port: u16) -> Self {
        Self {
            peer: *peer,
            source: *local,
            sender: 0,
            datagram: 0,
            source_port: local_port,
            pad: 0,
        }
    }

    /// A datagram.
    #[inline(always)]
    fn of_datagram(ends: &Ends, sender: u64, datagram: u32) -> Self {
        Self {
            peer: Peer {
                port: 0,
                ..ends.destination
            },
            source: ends.source,
            sender,
            datagram,
            source_port: 0,
            pad: 0,
        }
    }
}

/// A decision that is remembered.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Remembered {
    decision: Decision,
    /// When, in nanoseconds since boot.
    at_ns: u64,
    /// Of a connection: packets that were let pass since.
    n_passed: u64,
}

/// Names who sent a fragment, as long as its datagram is on its way: by its socket, or without
/// one by the hash of its flow, which has a secret of the kernel's in it, and the interface
/// that it came in by.
#[inline(always)]
fn sender_of(skb: *mut __sk_buff) -> u64 {
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if !socket.is_null() {
        return 1 << 63 | low_half(socket);
    }
    // Of fragments, the kernel takes the addresses alone where there was none.
    let (hash, came_in_by) = unsafe { (bpf_get_hash_recalc(skb), (*skb).ingress_ifindex) };
    u64::from(came_in_by) << 32 | u64::from(hash)
}

/// What was decided about the beginning of a fragment's datagram, under the policy in force; of
/// verdict `NONE` if nothing was.
#[inline(never)]
pub fn decision_of_beginning(skb: *mut __sk_buff, ends: &Ends, generation: u32) -> u64 {
    let key = RememberedKey::of_datagram(ends, sender_of(skb), ends.datagram);
    // SAFETY: a map value that its writers replace as a whole.
    match unsafe { REMEMBERED.get(&key) } {
        Some(known) if known.decision.generation == generation => known.decision.to_word(),
        _ => NOT_JUDGED.to_word(),
    }
}

/// Remembers for the rest of a datagram what was decided about its beginning. The rest of what
/// may not leave is forgotten.
#[inline(never)]
pub fn remember_beginning(skb: *mut __sk_buff, ends: &Ends, decision: u64) -> u32 {
    let key = RememberedKey::of_datagram(ends, sender_of(skb), ends.datagram);
    let mut decision = Decision::from_word(decision);
    // A budget is charged by the packet, and a time may be over: the rest is judged as what it is.
    const LIMITED_HERE: u8 = DECISION_LIMITED | DECISION_AT_UPLINK;
    if decision.flags & LIMITED_HERE == LIMITED_HERE {
        decision = NOT_JUDGED;
    }
    remember(&key, &decision);
    0
}

/// As [`decision_of_beginning`], about a connection of TCP that is over.
///
/// Who it belonged to is gone, and it cannot be judged anew. So what was decided holds for as
/// long as the kernel goes on with it, in FIN_WAIT2 and in TIME_WAIT, each for a minute; also what
/// was decided before another policy came into force. What it sends then has no data. But whoever
/// can have the kernel answer chooses its numbers, so that it holds for few packets.
#[inline(never)]
pub fn ended(generation: u32, ends: &Ends) -> u64 {
    const LONGEST_END_NS: u64 = 120_000_000_000;
    const MOST: u64 = 16;
    let key = RememberedKey::of_connection(&ends.destination, &ends.source, ends.source_port);
    let Some(known) = REMEMBERED.get_ptr_mut(&key) else {
        return NOT_JUDGED.to_word();
    };
    // SAFETY: a map value; the verifier checks the access.
    let (decision, at_ns, n_passed) =
        unsafe { ((*known).decision, (*known).at_ns, (*known).n_passed) };
    let is_of_policy = decision.generation == generation || is_new(generation, LONGEST_END_NS);
    if !is_of_policy || n_passed >= MOST || now_ns() > at_ns + LONGEST_END_NS {
        return NOT_JUDGED.to_word();
    }
    add(unsafe { &raw mut (*known).n_passed }, 1);
    decision.to_word()
}

/// Remembers a connection of TCP that is over. What the kernel sends in its name carries no
/// data.
#[inline(never)]
pub fn remember_ended(flow: *const Flow) -> u32 {
    // SAFETY: a map value; the verifier checks the access.
    let flow = unsafe { &*flow };
    let key = RememberedKey::of_connection(&flow.peer, &flow.local, flow.local_port);
    remember(&key, &flow.decision);
    0
}

/// Remembers a decision. That something may not leave is as good as nothing.
#[inline(always)]
fn remember(key: &RememberedKey, decision: &Decision) {
    if decision.blocks() || decision.verdict == verdict::NONE {
        let _ = REMEMBERED.remove(key);
        return;
    }
    // SAFETY: read only to be compared.
    let known = unsafe { REMEMBERED.get(key) };
    let is_of_datagram = key.source_port == 0;
    if is_of_datagram && known.map(|known| known.decision.to_word()) == Some(decision.to_word()) {
        return;
    }
    let remembered = Remembered {
        decision: *decision,
        at_ns: now_ns(),
        n_passed: 0,
    };
    if REMEMBERED.insert(key, &remembered, 0).is_err() {
        lose(LOSS_REMEMBERED_FULL, 1);
    }
}

/// Least bytes of a datagram that some link may cut: what each link for IPv6 takes.
pub const LARGE_BYTES: u32 = 1280;

/// Keeps what was decided about a datagram, and whose it is, if it may be cut into fragments:
/// each of them is another `sk_buff`, with its flow's hash. Without a hash nothing is kept, since
/// nothing that it has names its sender.
#[inline(always)]
pub fn keep_large(skb: *mut __sk_buff, tag: *const Socket, ends: &Ends, decision: Decision) {
    // SAFETY: fields of the context; the verifier checks the access.
    let (bytes, segments, hash) = unsafe { ((*skb).len, (*skb).gso_segs, (*skb).hash) };
    let is_kept = bytes > LARGE_BYTES
        && segments < 2
        && hash != 0
        && ends.destination.protocol != protocol::TCP;
    if is_kept {
        insert_large(hash, tag, ends, decision.to_word());
    }
}

#[inline(never)]
fn insert_large(hash: u32, tag: *const Socket, ends: &Ends, decision: u64) -> u32 {
    let key = RememberedKey::of_datagram(ends, hash.into(), 0);
    // SAFETY: map values; the verifier checks the access. So below.
    if LARGE_DATAGRAMS
        .insert(&key, unsafe { &(*tag).tracked }, 0)
        .is_err()
    {
        lose(LOSS_REMEMBERED_FULL, 1);
        return 0;
    }
    if let Some(kept) = LARGE_DATAGRAMS.get_ptr_mut(&key) {
        unsafe {
            (*kept).flow.peer = ends.destination;
            (*kept).flow.decision = Decision::from_word(decision);
        }
    }
    0
}

/// What [`keep_large`] kept about the datagram of a packet that has lost its socket: whose it is,
/// its destination and decision. Null if it kept nothing.
#[inline(never)]
pub fn large(skb: *mut __sk_buff, ends: &Ends) -> *const Tracked {
    // SAFETY: fields of the context; the verifier checks the access.
    let (socket, hash) = unsafe { ((*skb).__bindgen_anon_2.sk, (*skb).hash) };
    if !socket.is_null() || hash == 0 || ends.part == Part::Whole {
        return core::ptr::null();
    }
    let key = RememberedKey::of_datagram(ends, hash.into(), 0);
    LARGE_DATAGRAMS.get_ptr(&key).unwrap_or(core::ptr::null())
}

const _: () = assert!(size_of::<RememberedKey>() == 64 - 8);
