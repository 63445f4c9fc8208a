//! Packets that list where they go: a routing header of IPv6 with segments left, a source route
//! of IPv4 that is not finished. Every address that they name is judged, and the strictest
//! verdict holds. Such a packet is never local, and what was decided about it is kept for no
//! other.
//!
//! Functions are `extern "C"` for the reason that [`crate::judge`] has.

use aya_ebpf::bindings::__sk_buff;
use trefoil_ebpf::abi::*;

use crate::{
    bounds::masked,
    judge::{Asked, judge_address, undetermined},
    maps::InForce,
    packet::{
        Bytes, Ends, Header, MAX_EXTENSIONS, MAX_OPTIONS_V4, OptionV4, Route, header_v6, option_v4,
    },
    source::Source,
};

/// Lists of a packet that are judged. There should be one; of a packet with more than this many
/// nobody knows where it goes.
const MAX_LISTS: u32 = 2;
/// Addresses of one list that are judged, likewise.
const MAX_STOPS: u32 = 16;

/// Judges a packet that does not go straight to its destination, whose IP header is at `start`.
#[inline(always)]
pub fn judge_listed(
    in_force: InForce,
    source: &Source,
    skb: *mut __sk_buff,
    start: u32,
    ends: &Ends,
    bytes: u32,
) -> Decision {
    let Asked {
        policy,
        who,
        packet,
    } = Asked::new(in_force, source, &ends.destination, bytes);
    let mut decision = judge_list(skb, first_stop(skb, start), policy, who, packet);
    for number in 0..MAX_LISTS {
        let list = list(skb, start, number);
        if list == NO_LIST {
            break;
        }
        decision = stricter(decision, judge_list(skb, list, policy, who, packet));
    }
    if ends.route == Route::Unread || list(skb, start, MAX_LISTS) != NO_LIST {
        decision = stricter(decision, UNREAD.to_word());
    }
    in_force.flagged(Decision {
        generation: in_force.generation,
        ..Decision::from_word(decision)
    })
}

/// The part of a verdict that stands for what cannot be read.
const UNREAD: Decision = undetermined(InForce {
    generation: 0,
    flags: DECISION_ENFORCED,
});

/// No list: as [`stops`].
const NO_LIST: u64 = 0;
/// The addresses are those of IPv4: as [`stops`].
const OF_V4: u64 = 1 << 63;

/// A list of `n` addresses, of which the first is at this offset, as a number.
#[inline(always)]
const fn stops(first: u32, n: u32) -> u64 {
    (first as u64) << 16 | n as u64 | 1 << 62
}

/// The destination in the IP header at `start`, as a list.
#[inline(always)]
fn first_stop(skb: *mut __sk_buff, start: u32) -> u64 {
    match skb.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => stops(start + 16, 1) | OF_V4,
        _ => stops(start + 24, 1),
    }
}

/// The list of this number in the headers of a packet, or [`NO_LIST`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn list(skb: *mut __sk_buff, start: u32, number: u32) -> u64 {
    match skb.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => {
            list_of_options(skb, start, u32::from(first & 0x0f) * 4, number)
        }
        _ => list_of_headers(skb, start, number),
    }
}

#[inline(always)]
fn list_of_headers(skb: *mut __sk_buff, start: u32, mut number: u32) -> u64 {
    let Some(mut kind) = skb.load::<u8>(start + 6) else {
        return NO_LIST;
    };
    let mut offset = start + 40;
    for _ in 0..MAX_EXTENSIONS {
        match header_v6(skb, kind, offset) {
            Header::Next(next, at) | Header::Fragment(next, at, _) => (kind, offset) = (next, at),
            Header::Route(_, _, segments) if number == 0 => {
                return stops(segments.first, segments.n);
            }
            Header::Route(next, at, _) => {
                (kind, offset) = (next, at);
                number -= 1;
            }
            Header::Last | Header::Unread => break,
        }
    }
    NO_LIST
}

#[inline(always)]
fn list_of_options(skb: *mut __sk_buff, start: u32, header_bytes: u32, mut number: u32) -> u64 {
    let mut offset = 20;
    for _ in 0..MAX_OPTIONS_V4 {
        if offset >= header_bytes {
            break;
        }
        match option_v4(skb, start, offset, header_bytes) {
            OptionV4::End | OptionV4::Unread => break,
            OptionV4::Other(len) => offset += len,
            OptionV4::Route { first, end } if number == 0 => {
                return stops(start + first, end.saturating_sub(first) / 4) | OF_V4;
            }
            OptionV4::Route { end, .. } => {
                offset = end;
                number -= 1;
            }
        }
    }
    NO_LIST
}

/// Judges every address of a list; the strictest verdict holds.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_list(
    skb: *mut __sk_buff,
    list: u64,
    policy: u64,
    who: u64,
    packet: u64,
) -> u64 {
    let n = list as u32 & 0xffff;
    if n == 0 || n > MAX_STOPS {
        return UNREAD.to_word();
    }
    // Or the compiler would leave out that the loop ends whatever the number is.
    let n = masked::<{ 2 * MAX_STOPS as usize - 1 }>(n as usize) as u32;
    let mut offset = (list >> 16) as u32;
    let mut decision = NOTHING_YET;
    for i in 0..MAX_STOPS {
        if i >= n {
            break;
        }
        let stop = if list & OF_V4 != 0 {
            let address = skb.load::<u32>(offset);
            offset += 4;
            address.map(|address| Address::v4(u32::from_be(address)).halves())
        } else {
            let halves = skb.load::<[u64; 2]>(offset);
            offset += 16;
            halves.map(|[high, low]| (u64::from_be(high), u64::from_be(low)))
        };
        let judged = match stop {
            Some((high, low)) => judge_stop(policy, high, low, who, packet),
            None => UNREAD.to_word(),
        };
        decision = stricter(decision, judged);
    }
    decision
}

/// Judges one address of a list.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_stop(policy: u64, high: u64, low: u64, who: u64, packet: u64) -> u64 {
    let asked = Asked {
        policy,
        who,
        packet,
    };
    judge_address(&asked, high, low).leading_on().to_word()
}

/// What [`stricter`] takes anything for.
const NOTHING_YET: u64 = 0;

/// The stricter of two decisions.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stricter(a: u64, b: u64) -> u64 {
    if a == NOTHING_YET {
        return b;
    }
    let (a, b) = (Decision::from_word(a), Decision::from_word(b));
    a.or_stricter(b).to_word()
}
