//! Packets that go by the loopback interface, and whose answers leave.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    judge::{is_local, is_own},
    packet::{Ends, Route, ends},
};

/// Not 0 if a packet is from an address elsewhere: whoever gets it on this host answers there, with
/// what is in it. Any user can bind a socket so.
#[inline(never)]
pub fn answers_abroad(generation: u32, skb: *mut __sk_buff) -> u32 {
    let Some(mut ends) = ends(skb) else {
        return 0;
    };
    let (high, low) = ends.source.halves();
    // Mostly it goes where it comes from.
    if (high, low) == ends.destination.address.halves() {
        return 0;
    }
    goes_to_its_source(&mut ends);
    u32::from(!is_own(generation, high, low) && !is_local(generation, &ends.destination))
}

/// Names as the destination of a packet where the answers to it go.
#[inline(always)]
pub fn goes_to_its_source(ends: &mut Ends) {
    ends.destination.address = ends.source;
    ends.destination.port = ends.source_port;
    ends.route = Route::Direct;
}
