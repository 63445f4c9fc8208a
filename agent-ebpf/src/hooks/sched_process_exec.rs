//! A process runs another executable: known before its first instruction.
//!
//! `void sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`,
//! tp_btf, 5.5. No fallback.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::owner::record_process;

/// Index of this program in `EXECUTABLE_SCRATCH`.
const SCRATCH: u32 = 0;

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    record_process(ctx.arg::<u64>(0), SCRATCH);
    0
}
