//! The judge without a socket, for tests and benchmarks: `BPF_PROG_RUN` does not
//! run socket address programs, but it runs this one. It is never attached.
//!
//! Input: 14 bytes (a link header), then up to [`MAX_QUESTIONS`] of [`Question`].
//! The answer to each is written into its first four bytes: `verdict | flags << 8
//! | rule << 16`.

use aya_ebpf::{macros::classifier, programs::TcContext};
use trefoil_ebpf::abi::{MAX_QUESTIONS, QUESTION_MAY_STAY, Question};

use crate::{
    judge::judge,
    maps::{CONTROL, InForce, enforcement},
    source::Source,
};

/// Bytes before the questions: what `BPF_PROG_RUN` wants at least.
const LINK_HEADER: usize = 14;

/// Returns how many questions were answered.
#[classifier]
fn judge_question(ctx: TcContext) -> i32 {
    let Some(page) = CONTROL.get(0) else {
        return 0;
    };
    let in_force = InForce {
        generation: page.control.generation,
        flags: enforcement(page.control.generation),
    };
    for number in 0..MAX_QUESTIONS {
        let offset = LINK_HEADER + number * size_of::<Question>();
        let Ok(question) = ctx.load::<Question>(offset) else {
            return number as i32;
        };
        let source = Source {
            exe_id: question.exe_id,
            cgroup_id: question.cgroup_id,
            uid: question.uid,
            gid: question.gid,
            session: question.session,
        };
        let in_force = match question.flags & QUESTION_MAY_STAY {
            0 => in_force,
            _ => in_force.may_stay(),
        };
        let decision = judge(
            in_force,
            &source,
            question.near,
            &question.peer,
            question.bytes,
        );
        let answer = u32::from(decision.verdict)
            | u32::from(decision.flags) << 8
            | u32::from(decision.rule) << 16;
        if ctx.store(offset, &answer, 0).is_err() {
            return number as i32;
        }
    }
    MAX_QUESTIONS as i32
}
