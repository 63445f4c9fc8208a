//! Packets that list where they go: a routing header of IPv6 with segments left, a source route
//! of IPv4 that is not finished. Every address that they name is judged, and the strictest
//! verdict holds. Such a packet is never local, and what was decided about it is kept for no
//! other.
//!
//! Functions are `extern "C"` for the reason that [`crate::judge`] has.

use aya_ebpf::bindings::__sk_buff;
use trefoil_ebpf::abi::*;

use crate::{
    judge::{Asked, EMBEDS, Embedded, embedded_address, judge_flow, leaving, undetermined},
    maps::InForce,
    packet::{
        Bytes, Ends, FIRST_OPTION, Header, MAX_EXTENSIONS, NO_ROUTE, Route, UNREAD_ROUTE, header_v6,
    },
    source::Source,
};

/// Addresses of a packet that are judged, the destination in its IP header among them. Of one with
/// more nobody knows where it goes.
const MAX_STOPS: u32 = 17;

/// Judges a packet by every address that it names, whose IP header is at `start`; and says in
/// `farthest` which of them the verdict is about, as a place in the packet that [`address_at`]
/// takes.
#[inline(always)]
pub fn judge_listed(
    in_force: InForce,
    source: &Source,
    near: u32,
    skb: *mut __sk_buff,
    start: u32,
    ends: &Ends,
    farthest: &mut u64,
) -> Decision {
    // SAFETY: a field of the context; the verifier checks the access.
    let bytes = unsafe { (*skb).len };
    let Asked {
        policy,
        who,
        packet,
        ..
    } = Asked::new(in_force, source, near, &ends.destination, bytes);
    let mut decision = match ends.route {
        Route::Unread => UNREAD.to_word(),
        _ => NOTHING,
    };
    for number in 0..MAX_STOPS {
        let at = stop(skb, start, number);
        if at == NO_STOP {
            break;
        }
        // The address itself, then what it embeds: a call for each, and not one in the other,
        // for the sake of the stack.
        for nth in 0..=layout::MOST as u64 {
            let judged = judge_stop(skb, at | nth << NTH_SHIFT, policy, who, packet);
            if judged == NOTHING {
                break;
            }
            let both = stricter(decision, judged);
            if both != decision {
                *farthest = at;
            }
            decision = both;
        }
    }
    if stop(skb, start, MAX_STOPS) != NO_STOP {
        decision = stricter(decision, UNREAD.to_word());
    }
    in_force.flagged(Decision {
        generation: in_force.generation,
        ..Decision::from_word(decision)
    })
}

/// The address at a place that [`judge_listed`] has told; `None` if there is none to be read.
#[inline(always)]
pub fn address_at(skb: *mut __sk_buff, at: u64) -> Option<Address> {
    let offset = at as u32;
    if at == NO_STOP || at & UNREAD_STOP != 0 {
        return None;
    }
    if at & OF_V4 != 0 {
        let address = skb.load::<u32>(offset)?;
        return Some(Address::v4(u32::from_be(address)));
    }
    skb.load::<[u8; 16]>(offset).map(Address)
}

/// The part of a verdict that stands for what cannot be read.
const UNREAD: Decision = undetermined(InForce {
    generation: 0,
    flags: DECISION_ENFORCED,
});

/// No address at this number: as [`stop`].
const NO_STOP: u64 = 0;
/// An address that is there and cannot be read: as [`stop`].
const UNREAD_STOP: u64 = 1 << 62;
/// The address is one of IPv4: as [`stop`].
const OF_V4: u64 = 1 << 63;

/// Where the address of this number is that the headers of a packet name, 0 being the destination
/// in its IP header.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stop(skb: *mut __sk_buff, start: u32, number: u32) -> u64 {
    match skb.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => {
            let header_bytes = u32::from(first & 0x0f) * 4;
            match number {
                0 => OF_V4 | u64::from(start + 16),
                _ => stop_in_options(skb, start, header_bytes, number - 1),
            }
        }
        _ if number == 0 => u64::from(start + 24),
        _ => stop_in_headers(skb, start, number - 1),
    }
}

#[inline(always)]
fn stop_in_headers(skb: *mut __sk_buff, start: u32, mut number: u32) -> u64 {
    let Some(mut kind) = skb.load::<u8>(start + 6) else {
        return NO_STOP;
    };
    let mut offset = start + 40;
    for _ in 0..MAX_EXTENSIONS {
        match header_v6(skb, kind, offset) {
            Header::Next(next, at) | Header::Fragment(next, at, _) => (kind, offset) = (next, at),
            Header::Route(next, at, segments) => {
                (kind, offset) = (next, at);
                // One without any counts as one.
                if segments.n == 0 && number == 0 {
                    return UNREAD_STOP;
                }
                if number < segments.n {
                    return u64::from(segments.first + 16 * number);
                }
                number -= segments.n.max(1);
            }
            Header::Last | Header::Unread => break,
        }
    }
    NO_STOP
}

#[inline(always)]
fn stop_in_options(skb: *mut __sk_buff, start: u32, header_bytes: u32, mut number: u32) -> u64 {
    /// There is one. Of a packet with more nobody knows where it goes.
    const MAX_ROUTES: usize = 2;
    let mut from = FIRST_OPTION;
    for _ in 0..MAX_ROUTES {
        let route = skb.source_route(start, header_bytes, from);
        match route {
            NO_ROUTE => return NO_STOP,
            UNREAD_ROUTE if number == 0 => return UNREAD_STOP,
            UNREAD_ROUTE => return NO_STOP,
            _ => {}
        }
        let (first, end) = (route >> 8, route & 0xff);
        // A rest that is no whole address counts as one.
        let n = end.saturating_sub(first).div_ceil(4);
        if number < n {
            return OF_V4 | u64::from(start + first + 4 * number);
        }
        number -= n;
        from = end;
    }
    match skb.source_route(start, header_bytes, from) {
        NO_ROUTE => NO_STOP,
        _ if number == 0 => UNREAD_STOP,
        _ => NO_STOP,
    }
}

/// Where [`judge_stop`] is told, beside the place of an address, which address is meant: 0 for
/// itself, then those that it embeds.
const NTH_SHIFT: u32 = 48;

/// Judges the address that is where [`stop`] says, or one that it embeds, see [`NTH_SHIFT`];
/// [`NOTHING`] if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_stop(skb: *mut __sk_buff, at: u64, policy: u64, who: u64, packet: u64) -> u64 {
    let offset = at as u32;
    let address = if at & UNREAD_STOP != 0 {
        None
    } else if at & OF_V4 != 0 {
        let address = skb.load::<u32>(offset);
        address.map(|address| Address::v4(u32::from_be(address)).halves())
    } else {
        let halves = skb.load::<[u64; 2]>(offset);
        halves.map(|[high, low]| (u64::from_be(high), u64::from_be(low)))
    };
    let Some((high, low)) = address else {
        return UNREAD.to_word();
    };
    let (high, low, packet) = match at >> NTH_SHIFT & 0xff {
        0 => (high, low, leaving(packet)),
        nth => match embedded_address(policy, high, low, nth as u32 - 1) {
            Embedded::NoMore => return NOTHING,
            // Not the one of several that is meant: as strict as none.
            Embedded::Nowhere => return MOST_LENIENT.to_word(),
            Embedded::At(high, low) => (high, low, leaving(packet)),
        },
    };
    let judged = Decision::from_word(judge_flow(policy, high, low, who, packet));
    Decision {
        flags: judged.flags & !EMBEDS,
        ..judged
    }
    .leading_on()
    .to_word()
}

/// No decision: what [`stricter`] takes anything for.
const NOTHING: u64 = 0;

/// A decision that no other is more lenient than.
const MOST_LENIENT: Decision = Decision {
    generation: 0,
    rule: NO_RULE,
    verdict: verdict::GATEWAY,
    flags: 0,
};

/// The stricter of two decisions.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stricter(a: u64, b: u64) -> u64 {
    if a == NOTHING {
        return b;
    }
    let (a, b) = (Decision::from_word(a), Decision::from_word(b));
    a.or_stricter(b).to_word()
}
