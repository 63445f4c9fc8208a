//! What was decided where a socket was to be seen, for packets that come to an uplink
//! without it; in map `REMEMBERED`.
//!
//! Holds while the policy is in force that it was decided under, or a little longer, and only
//! of what may leave: all else is judged once more, where it is.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::NOT_JUDGED,
    maps::{REMEMBERED, is_new, lose},
};

/// What was decided about a key under this policy; of verdict `NONE` if nothing, or that it
/// may not leave.
#[inline(always)]
pub fn remembered(generation: u32, key: &Peer) -> Decision {
    // SAFETY: eight bytes that are written as one.
    match unsafe { REMEMBERED.get(key) } {
        Some(decision) if decision.generation == generation && !decision.blocks() => *decision,
        _ => NOT_JUDGED,
    }
}

/// As [`remembered`], about a connection of TCP that is over, by its two ports.
///
/// Who it belonged to is gone, and it cannot be judged anew. So what was decided holds for as
/// long as the kernel goes on with what was over when another policy came into force: in
/// FIN_WAIT2 and in TIME_WAIT, each for a minute. What it sends then has no data.
#[inline(always)]
pub fn ended(generation: u32, peer: &Peer, own_port: u16) -> Decision {
    const LONGEST_END_NS: u64 = 120_000_000_000;
    let key = connection(peer, own_port);
    // SAFETY: eight bytes that are written as one.
    let Some(decision) = (unsafe { REMEMBERED.get(&key) }) else {
        return NOT_JUDGED;
    };
    let holds = decision.generation == generation || is_new(generation, LONGEST_END_NS);
    if holds && !decision.blocks() {
        *decision
    } else {
        NOT_JUDGED
    }
}

/// Remembers a decision, unless it is that nothing may leave.
#[inline(always)]
pub fn remember(key: &Peer, decision: Decision) {
    let (high, low) = key.address.halves();
    remember_words(high, low, key.rest(), decision.to_word());
}

/// By a key in words, which is on no caller's stack then. A global function to the kernel, as
/// those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_words(high: u64, low: u64, rest: u64, decision: u64) -> u32 {
    let decision = Decision::from_word(decision);
    if decision.blocks() || decision.verdict == verdict::NONE {
        return 0;
    }
    let key = Peer::new(Address::from_halves(high, low), rest);
    // SAFETY: eight bytes that are written as one.
    let known = unsafe { REMEMBERED.get(&key) };
    if known != Some(&decision) && REMEMBERED.insert(&key, &decision, 0).is_err() {
        lose(LOSS_REMEMBERED_FULL, 1);
    }
    0
}

/// The key of a connection of TCP that is over, by its two ports: the kernel still
/// acknowledges and resets in its name, and the socket is gone.
#[inline(always)]
pub fn connection(peer: &Peer, own_port: u16) -> Peer {
    let [a, b] = own_port.to_be_bytes();
    Peer {
        pad: [a, b, 0, 0, 1],
        ..*peer
    }
}

/// The key of what a socket sends to a peer for whom there is no room in `FLOWS`. Cookies are
/// counted from 1, so the highest bit is in no other key.
#[inline(always)]
pub fn without_room(peer: &Peer, cookie: u64) -> Peer {
    let [a, b, c, d, e, ..] = cookie.to_le_bytes();
    Peer {
        pad: [a, b, c, d, e | 0x80],
        ..*peer
    }
}

/// The key of the rest of a datagram: the destination without a port, and the socket's
/// cookie where there is one, else 0.
#[inline(always)]
pub fn rest_of(peer: &Peer, cookie: u64) -> Peer {
    let [a, b, c, d, e, ..] = cookie.to_le_bytes();
    Peer {
        port: 0,
        pad: [a, b, c, d, e],
        ..*peer
    }
}
