//! The judge of whole packets without an interface, for tests. It is never attached.
//!
//! Input: 14 bytes (a link header), then a packet of IP. Returned is what is decided about it if
//! nobody knows who sent it: `verdict | flags << 8 | rule << 16`.

use aya_ebpf::{macros::classifier, programs::TcContext};
use trefoil_ebpf::abi::{Decision, ETHERNET_HEADER, direction};

use crate::{
    judge::{judge, undetermined},
    maps::{CONTROL, InForce, enforcement},
    packet::{Route, ends_at},
    route::judge_listed,
    source::Source,
};

#[classifier]
fn judge_packet(ctx: TcContext) -> i32 {
    let Some(page) = CONTROL.get(0) else {
        return 0;
    };
    let in_force = InForce {
        generation: page.control.generation,
        flags: enforcement(page.control.generation),
    };
    let decision = decide(in_force, &ctx);
    let answer = u32::from(decision.verdict)
        | u32::from(decision.flags) << 8
        | u32::from(decision.rule) << 16;
    answer as i32
}

#[inline(always)]
fn decide(in_force: InForce, ctx: &TcContext) -> Decision {
    let skb = ctx.skb.skb;
    match ends_at(skb, ETHERNET_HEADER) {
        None => undetermined(in_force),
        Some(ends) if ends.route == Route::Direct => judge(
            in_force,
            &Source::NOBODY,
            ends.near(direction::UNKNOWN),
            &ends.destination,
            ctx.len(),
        ),
        Some(ends) => judge_listed(
            in_force,
            &Source::NOBODY,
            ends.near(direction::UNKNOWN),
            skb,
            ETHERNET_HEADER,
            &ends,
            &mut 0,
        ),
    }
}
