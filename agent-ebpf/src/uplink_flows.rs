//! Flows of frames that no socket's hooks have judged, in map `UPLINK_FLOWS`.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{NOT_JUDGED, begin},
    flows::set_sender,
    maps::{EMPTY, UPLINK_FLOWS, lose},
};

/// The flow with this key, if there is one.
#[inline(always)]
pub fn find(key: &UplinkFlowKey) -> Option<*mut Tracked> {
    UPLINK_FLOWS.get_ptr_mut(key)
}

/// Makes a flow whose owner is nobody yet, and only of this `quality`; `None`, and
/// counted, if the table is full.
#[inline(always)]
pub fn create(key: &UplinkFlowKey, quality: u8) -> Option<*mut Tracked> {
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
    let ends = u64::from(key.source_port) << 8 | u64::from(key.sender);
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
        pad: [0; 5],
    };
    if let Some(tracked) = find(&key) {
        set_sender(tracked, owner, quality::DIRECT);
    }
    0
}
