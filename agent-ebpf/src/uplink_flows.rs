//! Flows of frames that no socket's hooks have judged, in map `UPLINK_FLOWS`.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{NOT_JUDGED, begin},
    flows::set_sender,
    judge::is_local,
    maps::{EMPTY, UPLINK_FLOWS, lose},
    packet::Ends,
};

/// Finds or makes the flow that a frame belongs to, which no socket's hooks have judged;
/// `tag` is null if it has no socket that is tagged. `quality` is how much is known of the
/// owner of a flow that is new. Null if it goes no farther than the link, or if there is no
/// room.
///
/// A function of its own, so that what it needs of the stack is free again when the
/// judge is asked.
#[inline(never)]
pub fn slot(
    generation: u32,
    tag: *mut Socket,
    sender: u8,
    quality: u8,
    ends: &Ends,
) -> *mut Tracked {
    find_or_create(generation, tag, sender, quality, ends).unwrap_or(ptr::null_mut())
}

#[inline(always)]
fn find_or_create(
    generation: u32,
    tag: *mut Socket,
    sender: u8,
    quality: u8,
    ends: &Ends,
) -> Option<*mut Tracked> {
    let mut key = UplinkFlowKey {
        cookie: 0,
        peer: ends.destination,
        source: ends.source,
        source_port: ends.source_port,
        sender,
        quality: 0,
        pad: [0; 4],
    };
    if tag.is_null() {
        key.quality = quality;
    } else {
        // SAFETY: a map value; the verifier checks the access. So below.
        let last = unsafe { &mut (*tag).tracked.flow };
        key.cookie = last.cookie;
        if sender == sender::PACKET {
            last.peer = key.peer;
            last.local = key.source;
            last.local_port = key.source_port;
        }
    }
    match find(&key) {
        Some(tracked) => Some(tracked),
        None if is_local(generation, &key.peer) => None,
        None => create(&key, quality),
    }
}

/// The flow with this key, if there is one.
#[inline(always)]
fn find(key: &UplinkFlowKey) -> Option<*mut Tracked> {
    UPLINK_FLOWS.get_ptr_mut(key)
}

/// Makes a flow whose owner is nobody yet, and only of this `quality`; `None`, and
/// counted, if the table is full.
#[inline(always)]
fn create(key: &UplinkFlowKey, quality: u8) -> Option<*mut Tracked> {
    let empty = EMPTY.get(0)?;
    const BPF_NOEXIST: u64 = 1;
    // Another CPU may have been faster, and that is as good.
    let inserted = UPLINK_FLOWS.insert(key, empty, BPF_NOEXIST).is_ok();
    let Some(tracked) = find(key) else {
        lose(LOSS_FLOWS_FULL, 1);
        return None;
    };
    if inserted {
        // SAFETY: a map value; the verifier checks the access.
        unsafe {
            let owner = &raw mut (*tracked).owner;
            (*owner).uid = u32::MAX;
            (*owner).gid = u32::MAX;
            (*owner).loginuid = NOBODY_LOGGED_IN;
            (*owner).session = NOBODY_LOGGED_IN;
            (*owner).quality = quality;
        }
        let direction = match key.sender {
            sender::PACKET => direction::OUTBOUND,
            _ => direction::UNKNOWN,
        };
        begin(tracked, cookie_of(key), &key.peer, direction, NOT_JUDGED);
    }
    Some(tracked)
}

/// The socket's cookie; where there is none, a number that differs for all that differs
/// in the key, and is no socket's. With the time it names the flow.
#[inline(always)]
fn cookie_of(key: &UplinkFlowKey) -> u64 {
    if key.cookie != 0 {
        return key.cookie;
    }
    // Multiplied by an odd number, as Fibonacci hashing does: near addresses get far.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (high, low) = key.source.halves();
    let who = u64::from(key.sender) << 4 | u64::from(key.quality);
    let ends = u64::from(key.source_port) << 8 | who;
    let mixed = (high.wrapping_mul(FACTOR) ^ low).wrapping_mul(FACTOR) ^ ends;
    COOKIE_OF_NO_SOCKET | mixed.wrapping_mul(FACTOR) >> 1
}

/// Takes in who has sent the last frame of a packet socket, once that is known.
#[inline(never)]
pub fn attribute_last(tag: *mut Socket) -> u32 {
    // SAFETY: a map value; the verifier checks the access.
    let (flow, owner) = unsafe { (&(*tag).tracked.flow, &raw const (*tag).tracked.owner) };
    let key = UplinkFlowKey {
        cookie: flow.cookie,
        peer: flow.peer,
        source: flow.local,
        source_port: flow.local_port,
        sender: sender::PACKET,
        quality: 0,
        pad: [0; 4],
    };
    if let Some(tracked) = find(&key) {
        set_sender(tracked, owner, quality::DIRECT);
    }
    0
}
