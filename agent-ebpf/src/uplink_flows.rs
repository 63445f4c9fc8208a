//! Flows of frames that no socket's hooks have judged, in map `UPLINK_FLOWS`.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{Alone, NOT_JUDGED, begin, tell_alone},
    flows::{is_complete, set_sender},
    judge::is_local,
    maps::{EMPTY, UPLINK_FLOWS, lose},
    owner::set_nobody,
    packet::Ends,
};

/// Sender of a frame.
#[derive(Clone, Copy)]
pub struct Who {
    /// Of the socket whose data is in it; 0 if none is known.
    pub cookie: u64,
    /// One of [`sender`].
    pub sender: u8,
    /// How much is known of the owner of a flow that is new.
    pub quality: u8,
    /// Index of the interface that it came in by; 0 if it is this host's.
    pub came_in_by: u32,
}

/// Finds or makes the flow that a frame belongs to, which no socket's hooks have judged;
/// `tag` is null if it has no socket that is tagged. Null if it goes no farther than the link,
/// or if there is no room.
///
/// A function of its own, so that what it needs of the stack is free again when the
/// judge is asked.
#[inline(never)]
pub fn slot(generation: u32, tag: *mut Socket, who: &Who, ends: &Ends) -> *mut Tracked {
    find_or_create(generation, tag, who, ends).unwrap_or(ptr::null_mut())
}

#[inline(always)]
fn find_or_create(
    generation: u32,
    tag: *mut Socket,
    who: &Who,
    ends: &Ends,
) -> Option<*mut Tracked> {
    let key = key(who, ends);
    if !tag.is_null() && who.sender == sender::PACKET {
        // SAFETY: a map value; the verifier checks the access.
        let last = unsafe { &mut (*tag).tracked.flow };
        last.peer = key.peer;
        last.local = key.source;
        last.local_port = key.source_port;
    }
    match find(&key) {
        Some(tracked) => Some(tracked),
        None if is_local(generation, &key.peer) => None,
        None => create(&key, who.quality),
    }
}

#[inline(always)]
fn key(who: &Who, ends: &Ends) -> UplinkFlowKey {
    UplinkFlowKey {
        cookie: who.cookie,
        peer: ends.destination,
        source: ends.source,
        source_port: ends.source_port,
        sender: who.sender,
        quality: if who.cookie == 0 { who.quality } else { 0 },
        came_in_by: if who.cookie == 0 { who.came_in_by } else { 0 },
    }
}

/// The flow that a frame belongs to, as [`slot`], if there is one.
#[inline(always)]
pub fn known_flow(who: &Who, ends: &Ends) -> Option<*mut Tracked> {
    find(&key(who, ends))
}

/// As [`known_flow`]; null if there is none yet.
#[cfg(feature = "trace")]
#[inline(never)]
pub fn known_slot(who: &Who, ends: &Ends) -> *const Tracked {
    match find(&key(who, ends)) {
        Some(tracked) => tracked,
        None => ptr::null(),
    }
}

/// The flow with this key, if there is one.
#[inline(always)]
fn find(key: &UplinkFlowKey) -> Option<*mut Tracked> {
    UPLINK_FLOWS.get_ptr_mut(key).filter(is_complete)
}

/// Makes a flow whose owner is nobody yet, and only of this `quality`; `None` as of `FLOWS`.
#[inline(always)]
fn create(key: &UplinkFlowKey, quality: u8) -> Option<*mut Tracked> {
    let empty = EMPTY.get(0)?;
    const BPF_NOEXIST: u64 = 1;
    // Another CPU may have been faster, and that is as good.
    let inserted = UPLINK_FLOWS.insert(key, empty, BPF_NOEXIST).is_ok();
    let Some(tracked) = UPLINK_FLOWS.get_ptr_mut(key) else {
        lose(LOSS_FLOWS_FULL, 1);
        return None;
    };
    if inserted {
        // SAFETY: a map value; the verifier checks the access.
        unsafe {
            set_nobody(&raw mut (*tracked).owner);
            (*tracked).owner.quality = quality;
        }
        let cookie = match key.cookie {
            0 => cookie_of_no_socket(&key.source, key.source_port, key.sender, key.quality),
            cookie => cookie,
        };
        begin(tracked, cookie, &key.peer, direction::UNKNOWN, NOT_JUDGED);
    }
    Some(tracked).filter(is_complete)
}

/// Tells of a packet of `bytes` by itself, for whose flow there is no room; the rest as in
/// [`slot`]. The owner of a packet socket's first frame stays unknown then: it is known once
/// the frame was sent, and nothing waits for it.
#[inline(always)]
pub fn tell(
    tag: *const Socket,
    owner: *const Owner,
    who: &Who,
    ends: &Ends,
    decision: Decision,
    bytes: u32,
) {
    // SAFETY: map values and the event; the verifier checks the access. So below.
    let is_shared = !tag.is_null() && unsafe { (*tag).tracked.flow.state } & FLOW_SHARED != 0;
    let cookie = match who.cookie {
        0 => cookie_of_no_socket(&ends.source, ends.source_port, who.sender, who.quality),
        cookie => cookie,
    };
    let mut named = ptr::null();
    let mut known = who.quality;
    if !owner.is_null() && unsafe { (*owner).pid } != 0 {
        named = owner;
        // As of a slot, see `flows::set_sender`.
        known = match who.quality {
            quality::DIRECT | quality::FORWARDED if !is_shared => unsafe { (*owner).quality },
            _ => quality::INFERRED,
        };
    }
    let packet = Alone {
        cookie,
        decision,
        bytes,
        direction: direction::UNKNOWN,
        quality: known,
    };
    tell_alone(named, ends, &packet);
}

/// A number that differs for all that differs in these, and is no socket's cookie. With the
/// time and the far end it names the flow.
#[inline(always)]
fn cookie_of_no_socket(source: &Address, source_port: u16, sender: u8, quality: u8) -> u64 {
    // Multiplied by an odd number, as Fibonacci hashing does: near addresses get far.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (high, low) = source.halves();
    let who = u64::from(sender) << 4 | u64::from(quality);
    let ends = u64::from(source_port) << 8 | who;
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
        came_in_by: 0,
    };
    if let Some(tracked) = find(&key) {
        set_sender(tracked, owner, quality::DIRECT);
    }
    0
}
