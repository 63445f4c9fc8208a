//! The last thread of a process exits. Its sockets may live on; their tags say
//! whose they were.
//!
//! `void sched_process_exit(struct task_struct *p)` (6.16: and `bool group_dead`),
//! tp_btf, 5.5. Without it the agent finds out, later.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    owner::remove_process,
};

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    forget(ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn forget(task: Kernel) -> Option<()> {
    let signal = follow(task, offset!(task_signal))?;
    // The count of live threads was lowered before this hook runs.
    if read::<u32>(signal, offset!(signal_live))? == 0 {
        let pid = read::<u32>(task, offset!(task_tgid))?;
        remove_process(pid);
    }
    Some(())
}
