//! Packets that come back to the host that sends them, and whose answers leave: by the loopback interface,
//! or as the copy that a sender to a group gets itself.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    judge::{is_local, is_own},
    packet::{Ends, Route, ends, plain_ends_at},
    socket::{LOOPBACK, may_stay},
};

/// Result of [`answers`]: they stay where the packet goes.
pub const WHERE_IT_GOES: u32 = 0;
/// They go to where it says that it is from, and the packet itself stays.
pub const TO_ITS_SOURCE: u32 = 1;
/// They go there, and the packet itself leaves as well.
pub const TO_BOTH: u32 = 2;
/// The packet goes by loopback, and lists addresses to go on to.
pub const ON: u32 = 3;

/// Says where the answers to a packet go, if this host itself gets it and answers: by loopback, or as one of
/// several. Any user can send with the address of somebody elsewhere.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answers(skb: *mut __sk_buff, generation: u32, interface: u32) -> u32 {
    let Some(mut ends) = plain_ends_at(skb, 0).or_else(|| ends(skb)) else {
        return WHERE_IT_GOES;
    };
    if ends.route != Route::Direct {
        return match interface == LOOPBACK && !may_stay(skb) {
            true => ON,
            false => WHERE_IT_GOES,
        };
    }
    let is_near = interface == LOOPBACK;
    // By loopback it mostly goes where it comes from.
    let goes_back = ends.source.halves() == ends.destination.address.halves();
    if goes_back || !is_near && !goes_to_several(&ends) {
        return WHERE_IT_GOES;
    }
    let stays = is_near || is_local(generation, &ends.destination);
    if is_from_abroad(generation, &mut ends) == 0 {
        return WHERE_IT_GOES;
    }
    // Others of its own namespace get what a container sends so, or this host as its neighbour.
    match may_stay(skb) {
        true => WHERE_IT_GOES,
        false if stays => TO_ITS_SOURCE,
        false => TO_BOTH,
    }
}

#[inline(always)]
fn is_from_abroad(generation: u32, ends: &mut Ends) -> u32 {
    let (high, low) = ends.source.halves();
    goes_to_its_source(ends);
    u32::from(!is_own(generation, high, low) && !is_local(generation, &ends.destination))
}

/// True for a group, of which the host may be one. To a network's broadcast address nobody without privileges
/// sends with the address of somebody elsewhere.
#[inline(always)]
fn goes_to_several(ends: &Ends) -> bool {
    match ends.destination.address.as_v4() {
        Some(address) => address >> 28 == 0xe,
        None => ends.destination.address.0[0] == 0xff,
    }
}

/// Names as the destination of a packet where the answers to it go.
#[inline(always)]
pub fn goes_to_its_source(ends: &mut Ends) {
    ends.destination.address = ends.source;
    ends.destination.port = ends.source_port;
    ends.route = Route::Direct;
}
