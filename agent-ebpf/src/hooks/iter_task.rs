//! Processes that no hook has seen, or for which there was no room: read at start, and when there
//! may be room again.
//!
//! Iterator `task`, 5.8. No fallback: without it older processes have no
//! executable until they call exec.

use core::ffi::c_void;

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    maps::HOST_ROOT,
    owner::{find_process, root_of},
};

/// Index of this program in `EXECUTABLE_SCRATCH`.
const SCRATCH: u32 = 1;

/// `struct bpf_iter__task`
#[repr(C)]
struct Context {
    meta: *const c_void,
    task: Kernel,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn iter_task(ctx: *const Context) -> i32 {
    // SAFETY: the iterator's context; the verifier checks the access.
    let task = unsafe { (*ctx).task };
    if task != 0 {
        record(task);
    }
    0
}

#[inline(always)]
fn record(task: Kernel) -> Option<()> {
    let pid = read::<u32>(task, offset!(task_pid))?;
    if read::<u32>(task, offset!(task_tgid))? != pid {
        return None; // A thread.
    }
    // Tasks come in the order of their ids, so the host's root is known before any other
    // executable is looked at.
    if pid == 1 || HOST_ROOT.get(0)?.dentry == 0 {
        set_host_root(task);
    }
    find_process(task, SCRATCH)
}

/// Generations between a process and the first one that are looked at.
const MAX_GENERATIONS: usize = 16;

/// Takes the root of the first process, from which this task descends, for the host's. Some
/// kernels do not show that process to iterators.
#[inline(never)]
fn set_host_root(mut task: Kernel) -> u32 {
    let mut look = || {
        for _ in 0..MAX_GENERATIONS {
            if read::<u32>(task, offset!(task_tgid))? == 1 {
                let root = root_of(task)?;
                let _ = HOST_ROOT.set(0, &root, 0);
                break;
            }
            task = follow(task, offset!(task_real_parent))?;
        }
        Some(())
    };
    look();
    0
}
