//! Packets on their way from their socket to an uplink: what was decided about each, and whose
//! it is.
//!
//! A packet is the same `sk_buff` from the hook of its socket to the uplink, through routing,
//! translation, bridges, into another network namespace and into a tunnel, unless something cuts
//! or copies it. So its entry is found by that address, in an array: no hash, no room that
//! somebody else could take, and nothing to remove. Addresses are used again, so an entry says
//! more of the packet than that, and all of it has to be so:
//!
//! - Where the packet still has its socket, that is the same. A socket's next packet has an
//!   entry of its own before it can get anywhere.
//! - Where it has lost its socket, its flow's hash is the same, which has a secret of the
//!   kernel's in it. A packet without one, and one that a process wrote into a tun device, is known
//!   by its length, for a second.
//! - It has not come to an uplink before: there its entry is forgotten.
//! - Where somebody else may have had it, a decision holds only if the packet is no longer than it was.
//! - A decision that ends at a time, or with a budget, holds for a second.
//! - Whatever else it is now, a decision holds only for the destination that it was made about.
//!
//! An entry that two packets write at once is nobody's: it is sealed by a sum of its words. A
//! packet without an entry is judged by its own headers.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_jiffies64,
};
use trefoil_ebpf::abi::*;

use crate::{
    accounting::NOT_JUDGED,
    kernel_memory::Kernel,
    maps::{IN_FLIGHT, IN_FLIGHT_OWNERS},
    owner::{set_current, set_one_of_several},
    packet::{Bytes, Ends, Route},
    remembered::LARGE_BYTES,
    running::is_of_another,
    words::{copy, low_half},
};

/// Packets that have an entry: more than queues of a host hold.
pub const N_PACKETS: usize = 1 << 14;

/// A packet, and what was decided about it at its socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InFlight {
    /// Address of its `sk_buff`.
    packet: u64,
    /// Address of its socket.
    socket: u64,
    /// Seals the entry.
    seal: u64,
    /// The decision; of verdict `NONE` if there is none yet.
    decision: Decision,
    /// The destination that the socket's hook saw. In `pad[0]`, `HAS_OWNER` and `HAS_NO_HASH`; behind
    /// them the identification of its datagram, and of a decision with an end when it was made, see
    /// [`age_clock`].
    named: Peer,
    /// Its flow's hash; when it was sent, in the kernel's ticks, if it has none.
    hash: u32,
    /// Its length, from the IP header on.
    bytes: u32,
}

/// The owner is in `IN_FLIGHT_OWNERS`, at the same index.
const HAS_OWNER: u8 = 1;
/// The packet's flow has no hash.
const HAS_NO_HASH: u8 = 2;
/// The identification of its datagram follows: the packet may be cut into fragments, of which it
/// is the first then.
const HAS_DATAGRAM: u8 = 4;

/// Stands in [`Peer::protocol`] for any, of a packet that was written into a tun device.
const WRITTEN: u8 = 255;
/// No destination.
pub const NOWHERE: Peer = Peer {
    address: Address([0; 16]),
    port: 0,
    protocol: 0,
    pad: [0; 5],
};

const WORDS: usize = size_of::<InFlight>() / 8;
const OWNER_WORDS: usize = size_of::<Owner>() / 8;
/// Words of an entry that its seal covers as they are: those behind it.
const FIRST_SEALED: usize = 3;
/// Ticks after which a packet without a hash is nobody's any more: at 250 a second, a second.
const LONGEST_WAY_TICKS: u32 = 250;

/// Units of [`age_clock`] for which a decision with an end holds.
const LONGEST_WAY: u16 = 4;

/// The kernel's ticks, 64 at a time: at 250 a second, a quarter of a second. Begins anew after hours.
#[inline(always)]
fn age_clock() -> u16 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_jiffies64() } >> 6) as u16
}

/// Index of a packet's entry. Factor: that of Fibonacci hashing.
#[inline(always)]
fn index(packet: u64) -> u32 {
    (packet as u32).wrapping_mul(0x9e37_79b9) >> (u32::BITS - N_PACKETS.ilog2())
}

/// Keeps what was decided about a packet of a socket. `tag` is the socket's if the packet may
/// lose it on its way, else null.
#[inline(always)]
pub fn keep(skb: *mut __sk_buff, tag: *const Socket, named: &Peer, decision: Decision) {
    // SAFETY: fields of the context and map values; the verifier checks the access. So below.
    let (socket, hash, bytes) = unsafe { ((*skb).__bindgen_anon_2.sk, (*skb).hash, (*skb).len) };
    let number = index(low_half(skb));
    let Some(entry) = IN_FLIGHT.get_ptr_mut(number) else {
        return;
    };
    unsafe {
        copy(named, &raw mut (*entry).named);
        (*entry).decision = decision;
        (*entry).packet = skb as u64;
        (*entry).socket = socket as u64;
        (*entry).hash = hash;
        (*entry).bytes = bytes;
    }
    if decision.flags & DECISION_LIMITED != 0 {
        let [early, late] = age_clock().to_ne_bytes();
        unsafe {
            (*entry).named.pad[3] = early;
            (*entry).named.pad[4] = late;
        }
    }
    let mut seal = low_half(skb) << 32 | low_half(socket);
    if !tag.is_null() {
        let mut has = HAS_OWNER;
        if hash == 0 {
            has |= HAS_NO_HASH;
            unsafe { (*entry).hash = bpf_jiffies64() as u32 };
            if bytes > LARGE_BYTES
                && let Some([version, _, _, _, a, b]) = skb.load::<[u8; 6]>(0)
                && version >> 4 == 4
            {
                has |= HAS_DATAGRAM;
                unsafe {
                    (*entry).named.pad[1] = a;
                    (*entry).named.pad[2] = b;
                }
            }
        }
        unsafe { (*entry).named.pad[0] = has };
        let Some(of) = IN_FLIGHT_OWNERS.get_ptr_mut(number) else {
            return;
        };
        unsafe {
            let owner = &raw const (*tag).tracked.owner;
            copy(owner, &raw mut (*of).owner);
            (*of).flow.cookie = (*tag).tracked.flow.cookie;
            (*of).flow.peer = *named;
        }
        seal ^= seal_of_owner(of);
    }
    seal ^= sum_of_entry(entry);
    unsafe { (*entry).seal = seal };
}

/// Keeps that the running process has made a packet of `bytes`, which begins with `header`, by
/// writing it into a tun device that user `opener` has opened. A packet that a kernel thread writes is
/// nobody's; one that is written to what another has opened may be meant to be something else.
#[inline(always)]
pub fn keep_written(packet: Kernel, bytes: u32, header: &[u8; 40], opener: u32) -> Option<()> {
    let low_half = low_half(packet as *const u8);
    let number = index(low_half);
    let entry = IN_FLIGHT.get_ptr_mut(number)?;
    let of = IN_FLIGHT_OWNERS.get_ptr_mut(number)?;
    let named = Peer {
        address: match header[0] >> 4 {
            4 => Address::v4(u32::from_be_bytes([
                header[16], header[17], header[18], header[19],
            ])),
            _ => Address(*header.last_chunk()?),
        },
        port: 0,
        protocol: WRITTEN,
        pad: [HAS_OWNER | HAS_NO_HASH, 0, 0, 0, 0],
    };
    // SAFETY: map values; the verifier checks the access. So below.
    unsafe {
        // Until it is whole.
        (*entry).packet = 0;
        let owner = &raw mut (*of).owner;
        match is_of_another(opener) {
            true => set_one_of_several(owner),
            false => set_current(owner),
        };
        if (*owner).pid == 0 {
            return None;
        }
        (*of).flow.cookie = cookie_of_writer(owner);
        (*of).flow.peer = NOWHERE;
        copy(&raw const named, &raw mut (*entry).named);
        (*entry).decision = NOT_JUDGED;
        (*entry).socket = 0;
        (*entry).hash = bpf_jiffies64() as u32;
        (*entry).bytes = bytes;
        (*entry).seal = low_half << 32 ^ seal_of_owner(of) ^ sum_of_entry(entry);
        (*entry).packet = packet;
    }
    Some(())
}

/// A number that stands for a process in the place of a socket's cookie.
#[inline(always)]
fn cookie_of_writer(owner: *const Owner) -> u64 {
    // Multiplied by an odd number, as Fibonacci hashing does.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    // SAFETY: a map value; the verifier checks the access.
    let (start_ns, pid) = unsafe { ((*owner).start_ns, (*owner).pid) };
    let mixed = start_ns.wrapping_mul(FACTOR) ^ u64::from(pid);
    COOKIE_OF_NO_SOCKET | mixed.wrapping_mul(FACTOR) >> 1
}

/// Sum of the words of an entry that need no other treatment.
#[inline(always)]
fn sum_of_entry(entry: *const InFlight) -> u64 {
    sum::<{ WORDS - FIRST_SEALED }>(entry.cast::<u64>().wrapping_add(FIRST_SEALED))
}

#[inline(always)]
fn seal_of_owner(of: *const Tracked) -> u64 {
    // SAFETY: a map value; the verifier checks the access.
    let (owner, cookie) = unsafe { (&raw const (*of).owner, (*of).flow.cookie) };
    sum::<OWNER_WORDS>(owner.cast()) ^ cookie
}

#[inline(always)]
fn sum<const N: usize>(words: *const u64) -> u64 {
    let mut sum = 0_u64;
    for i in 0..N {
        // SAFETY: within a map value. Volatile: it is read once, as it is then.
        let word = unsafe { ptr::read_volatile(words.wrapping_add(i)) };
        sum = sum.rotate_left(7) ^ word;
    }
    sum
}

/// Forgets a packet that has come to an uplink: what has its address next is another.
#[inline(always)]
pub fn forget(skb: *mut __sk_buff) {
    if let Some(entry) = IN_FLIGHT.get_ptr_mut(index(low_half(skb))) {
        // SAFETY: a map value; the verifier checks the access.
        unsafe {
            if (*entry).packet == skb as u64 {
                (*entry).packet = 0;
            }
        }
    }
}

/// True if a packet that somebody else may have had is longer than it was when its socket sent it: there is
/// more in it than was counted.
#[inline(always)]
pub fn is_longer(skb: *mut __sk_buff, start: u32) -> bool {
    let Some(entry) = IN_FLIGHT.get_ptr(index(low_half(skb))) else {
        return false;
    };
    // SAFETY: a field of the context and a map value; the verifier checks the access.
    let (was, bytes, has) = unsafe { ((*entry).bytes, (*skb).len, (*entry).named.pad[0]) };
    has & HAS_OWNER != 0 && bytes > was + start
}

/// Facts known of a packet from its socket.
#[derive(Clone, Copy)]
pub struct Found {
    entry: *const InFlight,
    of: *const Tracked,
}

impl Found {
    /// Returns the decision made about this destination; of verdict `NONE` if the decision is about
    /// another, or if nothing was decided.
    #[inline(always)]
    pub fn decision_about(&self, ends: &Ends) -> Decision {
        // SAFETY: a map value; the verifier checks the access. So below.
        let named = unsafe { &raw const (*self.entry).named };
        if self.names(named, ends) {
            unsafe { (*self.entry).decision }
        } else {
            NOT_JUDGED
        }
    }

    #[inline(always)]
    fn names(&self, named: *const Peer, ends: &Ends) -> bool {
        // The last five bytes say something else.
        let rest = |peer: *const Peer| unsafe { *peer.cast::<u64>().add(2) << 40 };
        let (a, b) = (
            named.cast::<u64>(),
            (&raw const ends.destination).cast::<u64>(),
        );
        unsafe {
            *a == *b && *a.add(1) == *b.add(1) && rest(named) == rest(&raw const ends.destination)
        }
    }

    /// True if the packet still goes to the address that its socket's hook saw. Whoever else is
    /// handed a packet may rewrite it and send it on: then it is not its sender's any more. A
    /// tunnel's packet, to which that hook named nothing, is.
    #[inline(always)]
    pub fn is_to(&self, ends: &Ends) -> bool {
        // SAFETY: a map value; the verifier checks the access. So below.
        let named = self.named();
        // One that lists addresses may list others now.
        let is_same = ends.route == Route::Direct
            && named.address.halves() == ends.destination.address.halves();
        named.protocol == 0 || is_same
    }

    /// Returns the destination that the socket's hook saw. The last five bytes say something else.
    #[inline(always)]
    pub fn named(&self) -> &Peer {
        // SAFETY: a map value; the verifier checks the access.
        unsafe { &(*self.entry).named }
    }

    /// Bytes of the packet when it was sent, from its IP header on.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        // SAFETY: a map value; the verifier checks the access.
        unsafe { (*self.entry).bytes }
    }

    /// True if the packet was held back on its way, so that a decision with an end may not hold any more.
    #[inline(always)]
    pub fn is_late(&self) -> bool {
        // SAFETY: a map value; the verifier checks the access.
        let [_, _, _, early, late] = unsafe { (*self.entry).named.pad };
        age_clock().wrapping_sub(u16::from_ne_bytes([early, late])) > LONGEST_WAY
    }

    /// True if the packet may have lost its socket.
    #[inline(always)]
    pub fn has_owner(&self) -> bool {
        unsafe { (*self.entry).named.pad[0] & HAS_OWNER != 0 }
    }

    /// Returns the packet's owner, the cookie of its socket and the destination that the socket's
    /// hook saw, if it [`has_owner`](Self::has_owner).
    #[inline(always)]
    pub fn sent(&self) -> *const Tracked {
        self.of
    }
}

/// True if a packet is the first fragment of the datagram that an entry is about.
#[inline(always)]
fn is_beginning(skb: *mut __sk_buff, start: u32, entry: *const InFlight) -> bool {
    let Some([_, _, _, _, a, b, c, d]) = skb.load::<[u8; 8]>(start) else {
        return false;
    };
    // SAFETY: a map value; the verifier checks the access.
    let [_, e, f, ..] = unsafe { (*entry).named.pad };
    // More fragments, and none before.
    [a, b] == [e, f] && u16::from_be_bytes([c, d]) & 0x3fff == 0x2000
}

/// Finds what is known of a packet that was sent by a socket. `start` is where its IP header is.
#[inline(always)]
pub fn find(skb: *mut __sk_buff, start: u32) -> Option<Found> {
    // SAFETY: a field of the context; the verifier checks the access.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    find_of(skb, start, socket)
}

/// As [`find`], of a packet that this socket sent, whichever it has now.
#[inline(always)]
pub fn find_of(skb: *mut __sk_buff, start: u32, socket: *mut bpf_sock) -> Option<Found> {
    let number = index(low_half(skb));
    let entry = IN_FLIGHT.get_ptr(number)?;
    // SAFETY: fields of the context and map values; the verifier checks the access. So below.
    let (hash, bytes) = unsafe { ((*skb).hash, (*skb).len) };
    if unsafe { (*entry).packet } != skb as u64 {
        return None;
    }
    let has = unsafe { (*entry).named.pad[0] };
    let mut seal = low_half(skb) << 32;
    if socket.is_null() {
        let known = unsafe { (*entry).hash };
        let is_same = match has & HAS_NO_HASH {
            0 => known == hash,
            _ => {
                let age = (unsafe { bpf_jiffies64() } as u32).wrapping_sub(known);
                let is_whole = unsafe { (*entry).bytes } + start == bytes;
                age < LONGEST_WAY_TICKS
                    && (is_whole || has & HAS_DATAGRAM != 0 && is_beginning(skb, start, entry))
            }
        };
        if has & HAS_OWNER == 0 || !is_same {
            return None;
        }
        seal |= unsafe { (*entry).socket } & 0xffff_ffff;
    } else {
        if unsafe { (*entry).socket } != socket as u64 {
            return None;
        }
        seal |= low_half(socket);
    }
    seal ^= sum_of_entry(entry);
    let mut of = ptr::null();
    if has & HAS_OWNER != 0 {
        of = IN_FLIGHT_OWNERS.get_ptr(number)?;
        seal ^= seal_of_owner(of);
    }
    (seal == unsafe { (*entry).seal }).then_some(Found { entry, of })
}

const _: () = assert!(size_of::<InFlight>() == 64);
const _: () = assert!(size_of::<Owner>().is_multiple_of(8));
