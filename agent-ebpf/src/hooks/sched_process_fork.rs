//! A process is born: it runs what its parent runs.
//!
//! `void sched_process_fork(struct task_struct *parent, struct task_struct *child)`,
//! tp_btf, 5.5. No fallback: without it no process is known.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::{LOSS_PROCESSES_FULL, Process};

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    maps::{PROCESSES, lose},
    owner::{add_process, begin_epoch},
    room::payer,
};

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    record(ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    0
}

#[inline(always)]
fn record(parent: Kernel, child: Kernel) -> Option<()> {
    let pid = read::<u32>(child, offset!(task_tgid))?;
    if read::<u32>(child, offset!(task_pid))? != pid {
        return None; // A thread.
    }
    let parent_pid = read::<u32>(parent, offset!(task_tgid))?;
    // SAFETY: a map value that its writers only replace as a whole.
    let exe_id = unsafe { PROCESSES.get(&parent_pid) }.map_or(0, |process| process.exe_id);
    // Not `parent` where CLONE_PARENT made a sibling.
    let real_parent = follow(child, offset!(task_real_parent))?;
    let process = Process {
        start_ns: read::<u64>(child, offset!(task_start_boottime))?,
        exe_id,
        parent_exe_id: exe_id,
        ppid: read::<u32>(real_parent, offset!(task_tgid))?,
        charged: payer(child),
    };
    if add_process(pid, &process).is_none() {
        lose(LOSS_PROCESSES_FULL, 1);
    }
    begin_epoch(pid);
    Some(())
}
