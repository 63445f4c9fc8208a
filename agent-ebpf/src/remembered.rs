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
    globals::ONLY_LOOKS,
    maps::{LARGE_DATAGRAMS, REMEMBERED, is_new, lose},
    packet::{Ends, Part, protocol},
    words::low_half,
};

/// Subject of a remembered decision.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RememberedKey {
    /// The far end; without a port if it is about a datagram.
    peer: Peer,
    /// The near end; zero of a datagram that may be cut.
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
    /// Makes the key of a connection of TCP that is over. Its owner is gone.
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

    /// Makes the key of a datagram that may be cut, by its flow's hash. The host that forwards it may
    /// translate its source.
    #[inline(always)]
    fn of_large(ends: &Ends, hash: u32) -> Self {
        Self {
            source: Address([0; 16]),
            ..Self::of_datagram(ends, hash.into(), 0)
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
    /// Of a connection: packets that were let pass since. Of a datagram: bytes of its rest, counted
    /// so that [`MOST_BYTES`] is reached when all of it has passed.
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
    let (hash, came_in_by) = match ONLY_LOOKS {
        true => unsafe { ((*skb).hash, (*skb).ingress_ifindex) },
        false => unsafe { (bpf_get_hash_recalc(skb), (*skb).ingress_ifindex) },
    };
    u64::from(came_in_by) << 32 | u64::from(hash)
}

/// Most bytes that a datagram has.
pub const MOST_BYTES: u32 = 65_535;

/// Returns the decision about the beginning of the datagram that a fragment at `start` belongs to,
/// under the policy in force; of verdict `NONE` if there was none, or if the rest of the datagram
/// has passed. A sender that makes fragments by hand can make any number.
#[inline(never)]
pub fn decision_of_beginning(skb: *mut __sk_buff, start: u32, ends: &Ends, generation: u32) -> u64 {
    /// Nobody puts a datagram together for longer.
    const LONGEST_NS: u64 = 60_000_000_000;
    let key = RememberedKey::of_datagram(ends, sender_of(skb), ends.datagram);
    let Some(known) = REMEMBERED.get_ptr_mut(&key) else {
        return NOT_JUDGED.to_word();
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (decision, at_ns) = unsafe { ((*known).decision, (*known).at_ns) };
    if decision.generation != generation || now_ns() > at_ns + LONGEST_NS {
        return NOT_JUDGED.to_word();
    }
    let bytes = u64::from(fragment_bytes(skb, start, ends));
    match spend(unsafe { &raw mut (*known).n_passed }, bytes) > u64::from(MOST_BYTES) {
        true => NOT_JUDGED.to_word(),
        false => decision.to_word(),
    }
}

/// Bytes of a datagram that are in a fragment of it.
#[inline(always)]
fn fragment_bytes(skb: *mut __sk_buff, start: u32, ends: &Ends) -> u32 {
    /// Of IPv4; of IPv6, with the extension that each fragment has.
    const HEADERS: [u32; 2] = [20, 48];
    let headers = HEADERS[usize::from(ends.source.as_v4().is_none())];
    // SAFETY: a field of the context.
    unsafe { (*skb).len }.saturating_sub(start + headers)
}

/// Remembers for the rest of a datagram, which has `rest_bytes` at the most, what was decided about
/// its beginning. The rest of what may not leave is forgotten.
#[inline(never)]
pub fn remember_beginning(skb: *mut __sk_buff, ends: &Ends, decision: u64, rest_bytes: u32) -> u32 {
    let key = RememberedKey::of_datagram(ends, sender_of(skb), ends.datagram);
    let mut decision = Decision::from_word(decision);
    // A budget is charged by the packet, and a time may be over: the rest is judged as what it is.
    const LIMITED_HERE: u8 = DECISION_LIMITED | DECISION_AT_UPLINK;
    if decision.flags & LIMITED_HERE == LIMITED_HERE {
        decision = NOT_JUDGED;
    }
    remember(
        &key,
        &decision,
        MOST_BYTES.saturating_sub(rest_bytes).into(),
    );
    0
}

/// As [`decision_of_beginning`], about a connection of TCP that is over.
///
/// Returns the decision about a connection that is over. Its owner is gone, so that it cannot be
/// judged anew: the decision holds for as long as the kernel goes on with the connection, in
/// FIN_WAIT2 and in TIME_WAIT, each for a minute; also a decision made before another policy came
/// into force. Packets that the kernel then sends have no data. But anybody who can have the kernel
/// answer chooses their number, so the decision holds for few packets.
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
    if !ONLY_LOOKS {
        add(unsafe { &raw mut (*known).n_passed }, 1);
    }
    decision.to_word()
}

/// Remembers a connection of TCP that is over. Packets that the kernel sends in its name carry no
/// data.
#[inline(never)]
pub fn remember_ended(flow: *const Flow) -> u32 {
    // SAFETY: a map value; the verifier checks the access.
    let flow = unsafe { &*flow };
    let key = RememberedKey::of_connection(&flow.peer, &flow.local, flow.local_port);
    remember(&key, &flow.decision, 0);
    0
}

/// Remembers a decision. A decision that blocks is as good as none.
#[inline(always)]
fn remember(key: &RememberedKey, decision: &Decision, n_passed: u64) {
    if decision.blocks() || decision.verdict == verdict::NONE {
        let _ = REMEMBERED.remove(key);
        return;
    }
    let remembered = Remembered {
        decision: *decision,
        at_ns: now_ns(),
        n_passed,
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
        insert_large(skb, tag, ends, decision.to_word());
    }
}

#[inline(never)]
fn insert_large(skb: *mut __sk_buff, tag: *const Socket, ends: &Ends, decision: u64) -> u32 {
    // SAFETY: fields of the context and map values; the verifier checks the access. So below.
    let (bytes, hash) = unsafe { ((*skb).len, (*skb).hash) };
    let key = RememberedKey::of_large(ends, hash);
    // Those before may still be on their way.
    let (sent, passed) = match LARGE_DATAGRAMS.get_ptr(&key) {
        Some(before) => unsafe {
            let counters = &(*before).flow.counters;
            (counters.bytes_out, counters.bytes_in)
        },
        None => (0, 0),
    };
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
            (*kept).flow.counters.bytes_out = sent + u64::from(bytes);
            (*kept).flow.counters.bytes_in = passed;
        }
    }
    0
}

/// Takes in that a fragment of a large datagram passes as that was decided. False if more would
/// have passed than was sent: root of a container copies and changes what it has sent.
#[inline(always)]
pub fn passes(large: *mut Tracked, skb: *mut __sk_buff, start: u32, ends: &Ends) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    let counters = unsafe { &raw mut (*large).flow.counters };
    let bytes = u64::from(fragment_bytes(skb, start, ends));
    spend(unsafe { &raw mut (*counters).bytes_in }, bytes) <= unsafe { (*counters).bytes_out }
}

/// Adds to a counter, and returns what it is then, whoever else has added meanwhile.
#[inline(always)]
fn spend(counter: *mut u64, bytes: u64) -> u64 {
    // SAFETY: a map value; the verifier checks the access.
    if ONLY_LOOKS {
        return unsafe { counter.read_volatile() } + bytes;
    }
    add(counter, bytes);
    unsafe { counter.read_volatile() }
}

/// Finds the facts that [`keep_large`] kept about the datagram of a packet that has lost its
/// socket: owner, destination and decision. Null if it kept none.
#[inline(never)]
pub fn large(skb: *mut __sk_buff, ends: &Ends) -> *mut Tracked {
    // SAFETY: fields of the context; the verifier checks the access.
    let (socket, hash) = unsafe { ((*skb).__bindgen_anon_2.sk, (*skb).hash) };
    if !socket.is_null() || hash == 0 || ends.part == Part::Whole {
        return core::ptr::null_mut();
    }
    let key = RememberedKey::of_large(ends, hash);
    LARGE_DATAGRAMS
        .get_ptr_mut(&key)
        .unwrap_or(core::ptr::null_mut())
}

const _: () = assert!(size_of::<RememberedKey>() == 64 - 8);
