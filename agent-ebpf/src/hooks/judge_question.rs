//! The judge without a socket, for tests: `BPF_PROG_RUN` does not run socket
//! address programs, but it runs this one. It is never attached.
//!
//! Input: 14 bytes (a link header), then a [`Question`]. The return value is
//! `verdict | flags << 8 | rule << 16`.

use aya_ebpf::{macros::classifier, programs::TcContext};
use trefoil_ebpf::abi::Question;

use crate::{
    judge::{Source, judge},
    maps::{CONTROL, InForce, enforcement},
};

/// Bytes before the question: what `BPF_PROG_RUN` wants at least.
const LINK_HEADER: usize = 14;

/// No answer: verdict 0.
const UNANSWERED: i32 = 0;

#[classifier]
fn judge_question(ctx: TcContext) -> i32 {
    let Some(page) = CONTROL.get(0) else {
        return UNANSWERED;
    };
    let in_force = InForce {
        generation: page.control.generation,
        flags: enforcement(page.control.generation),
    };
    let Ok(question) = ctx.load::<Question>(LINK_HEADER) else {
        return UNANSWERED;
    };
    let source = Source {
        exe_id: question.exe_id,
        cgroup_id: question.cgroup_id,
        uid: question.uid,
    };
    let decision = judge(in_force, &source, &question.peer);
    (u32::from(decision.verdict) | u32::from(decision.flags) << 8 | u32::from(decision.rule) << 16)
        as i32
}
