//! Frames on their way out, before `uplink_egress`: what that will find, and decide by the same
//! functions.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use trefoil_ebpf::abi::{
    DECISION_AT_UPLINK, Decision, ETHERNET_HEADER, UPLINK_IS_TUNNEL,
    trace::{basis, hook, known as age, outcome},
    verdict,
};

use super::{
    story,
    uplink_egress::{carried, is_needed_by_link, judge_anew, known, read_frame_ends},
};
use crate::{
    accounting::decision_of,
    checksum::{SAME, changes_headers},
    frame::{Frame, NOT_IP, frame_ends},
    frame_owner::{owner, sender, sent, tag, who_sent},
    judge::undetermined,
    maps::{InForce, in_force, uplink},
    owner::is_same,
    packet::Route,
    uplink_flows::known_slot,
};

/// On to the next program. `TCX_NEXT`, which is `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;

#[classifier]
fn trace_uplink(ctx: TcContext) -> i32 {
    look(ctx.skb.skb);
    NEXT
}

#[inline(always)]
fn look(skb: *mut __sk_buff) -> Option<()> {
    let in_force = in_force()?;
    // SAFETY: fields of the context; the verifier checks the access.
    let (interface, bytes) = unsafe { ((*skb).ifindex, (*skb).len) };
    let header_bytes = match uplink(interface) {
        Some(uplink) if u32::from(uplink.flags) & UPLINK_IS_TUNNEL != 0 => return None,
        Some(uplink) => uplink.header_bytes.into(),
        None => ETHERNET_HEADER,
    };
    let story = story::begin(hook::UPLINK)?;
    story.interface = interface;
    story.bytes = bytes;
    let start = carried(skb, header_bytes);
    let is_needed = match Frame::from_number(start) {
        Frame::Other(kind) => is_needed_by_link(skb, kind),
        Frame::Ip(_) => false,
    };
    let is_read = read_frame_ends(skb, start) != 0;
    if is_needed {
        story.basis = basis::LINK;
        story.decision = Decision {
            verdict: verdict::LOCAL,
            ..undetermined(in_force)
        };
        if let Some(ends) = frame_ends() {
            story.set_peer(ends);
        }
    } else if !is_read {
        story.basis = basis::UNREADABLE;
        story.decision = undetermined(in_force);
    } else {
        look_at_sender(skb, start);
        let known = match start & NOT_IP {
            0 => Decision::from_word(look_at_known(skb, start, in_force.generation)),
            _ => crate::accounting::NOT_JUDGED,
        };
        if known.verdict != verdict::NONE {
            story.decision = known;
            story.basis = match known.flags & DECISION_AT_UPLINK {
                0 => basis::SOCKET,
                _ => basis::DATAGRAM,
            };
        } else if start & NOT_IP == 0 && changes_headers(skb, start) != SAME {
            story.basis = basis::UNREADABLE;
            story.decision = undetermined(in_force);
        } else if look_at_frames_flow(skb, start, in_force.generation, in_force.flags.into()) == 0 {
            let judged = judge_anew(skb, start, in_force.generation, in_force.flags.into());
            story.decision = Decision::from_word(judged);
        }
    }
    // A packet that its socket's hooks have let pass goes on, whatever the policy says by now.
    if story.basis != basis::SOCKET && story.decision.blocks() {
        story.outcome = outcome::DROPPED;
    }
    story::tell();
    Some(())
}

/// Takes in destination, owner and sender of a frame. A global function to the kernel, as those
/// below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_at_sender(skb: *mut __sk_buff, start: u32) -> u32 {
    let Some(story) = story::open() else {
        return 0;
    };
    let Some(ends) = frame_ends() else {
        return 0;
    };
    story.set_peer(ends);
    let sender = sender(skb);
    story.sender = sender;
    let tag = tag(skb, sender);
    let owner = owner(tag, sent(skb, start, tag));
    if !owner.is_null() {
        story.set_owner(owner);
    }
    0
}

/// Returns the decision that exists already about a packet, as a word; of verdict `NONE` if
/// there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_at_known(skb: *mut __sk_buff, start: u32, generation: u32) -> u64 {
    match frame_ends() {
        Some(ends) => known(generation, skb, start, ends),
        None => crate::accounting::NOT_JUDGED.to_word(),
    }
}

/// Takes in the flow of a frame; 1 if what was decided about that holds for the frame.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_at_frames_flow(
    skb: *mut __sk_buff,
    start: u32,
    generation: u32,
    flags: u32,
) -> u32 {
    let in_force = InForce {
        generation,
        flags: flags as u8,
    };
    let Some(story) = story::open() else {
        return 0;
    };
    let Some(ends) = frame_ends() else {
        return 0;
    };
    let who = who_sent(skb, start);
    if story.owner.pid == 0 {
        story.owner.quality = who.quality;
    }
    let tracked = known_slot(&who, ends);
    if tracked.is_null() {
        story.flow = age::NEW;
        return 0;
    }
    story.flow = age::KNOWN;
    let kept = decision_of(tracked);
    // SAFETY: a map value; the verifier checks the access.
    let is_same_owner = is_same(
        unsafe { &raw const (*tracked).owner },
        &raw const story.owner,
    );
    if ends.route != Route::Direct || !is_same_owner || !in_force.made(&kept) {
        return 0;
    }
    story.decision = kept;
    story.basis = basis::FLOW;
    1
}
