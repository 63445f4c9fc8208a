//! Somebody sends a signal: who stops or kills the agent is remembered, so that the agent,
//! or the next one, can say who it was.
//!
//! `void signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task,
//! int group, int result)`, tp_btf, 5.5, in the sender's context. Without it nobody is named.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use trefoil_ebpf::abi::Signalled;

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    maps::{AGENT, active},
    owner::set_current,
};

const SIGKILL: u32 = 9;
/// SIGSTOP, and what a terminal stops programs with: SIGTSTP, SIGTTIN, SIGTTOU.
const STOPS: core::ops::RangeInclusive<u32> = 19..=22;
/// `info` of what the kernel sends by itself.
const SEND_SIG_PRIV: u64 = 1;

#[btf_tracepoint(function = "signal_generate")]
fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    let signal = ctx.arg::<i32>(0) as u32;
    if signal == SIGKILL || STOPS.contains(&signal) {
        remember(signal, ctx.arg::<u64>(1), ctx.arg::<u64>(2));
    }
    0
}

#[inline(always)]
fn remember(signal: u32, info: u64, task: Kernel) -> Option<()> {
    active()?;
    let agent = AGENT.get_ptr_mut(0)?;
    // SAFETY: a map value; the verifier checks the access. So below.
    let (pid, start_ns) = unsafe { ((*agent).pid, (*agent).start_ns) };
    if pid == 0 || read::<u32>(task, offset!(task_tgid))? != pid {
        return None;
    }
    // The number may be another process's by now.
    let leader = follow(task, offset!(task_group_leader))?;
    if read::<u64>(leader, offset!(task_start_boottime))? != start_ns {
        return None;
    }
    let signalled: *mut Signalled = match signal {
        SIGKILL => unsafe { &raw mut (*agent).killed },
        _ => unsafe { &raw mut (*agent).stopped },
    };
    if unsafe { (*signalled).signal } != 0 {
        return None;
    }
    unsafe {
        (*signalled).time_ns = bpf_ktime_get_boot_ns();
        (*signalled).signal = signal;
    }
    // The kernel kills for want of memory, whoever happens to run; but it stops for who
    // runs, as for a debugger.
    if signal != SIGKILL || info != SEND_SIG_PRIV {
        set_current(unsafe { &raw mut (*signalled).sender });
    }
    Some(())
}
