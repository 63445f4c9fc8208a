//! A control group is made: its unit or container is known before a process can
//! enter it.
//!
//! `void cgroup_mkdir(struct cgroup *cgrp, const char *path)`, tp_btf, 5.5. It
//! runs before the directory can be seen. No fallback.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use trefoil_ebpf::abi::{
    CGROUP_PATH, CGROUP_TRUNCATED, ClassCache, LOSS_CGROUPS_FULL, ROOM_OF_CGROUPS,
};

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    maps::{CGROUP_SCRATCH, CGROUPS, lose},
    owner::cgroup_id,
    room::{BPF_NOEXIST, EEXIST, charge, payer, release},
};

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    record(ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    0
}

#[inline(always)]
fn record(cgroup: Kernel, path: Kernel) -> Option<()> {
    // The tracepoint is there for the v1 hierarchies as well, whose ids overlap.
    let root = follow(cgroup, offset!(cgroup_root))?;
    if read::<u32>(root, offset!(cgroup_root_hierarchy_id))? != 0 {
        return None;
    }
    let id = cgroup_id(cgroup)?;
    // SAFETY: a helper without arguments.
    let charged = payer(unsafe { bpf_get_current_task() });
    if charge(charged, ROOM_OF_CGROUPS) == 0 {
        lose(LOSS_CGROUPS_FULL, 1);
        return None;
    }
    let entry = CGROUP_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a value of a per-CPU array, and the tracepoint runs under a
    // spinlock; the verifier checks the access. So below.
    let len = unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut (*entry).path).cast::<c_void>(),
            CGROUP_PATH as u32,
            path as *const c_void,
        )
    };
    // The length counts the terminating zero.
    let (len, flags) = match len {
        1.. if len < CGROUP_PATH as i64 => (len as u16 - 1, 0),
        _ => (CGROUP_PATH as u16 - 1, CGROUP_TRUNCATED),
    };
    unsafe {
        (*entry).class = ClassCache {
            generation: 0,
            class: 0,
        };
        (*entry).path_len = len;
        (*entry).flags = flags;
        (*entry).charged = charged;
    }
    if let Err(error) = CGROUPS.insert(&id, unsafe { &*entry }, BPF_NOEXIST) {
        release(charged, ROOM_OF_CGROUPS);
        // In a takeover two of this program run.
        if error != EEXIST {
            lose(LOSS_CGROUPS_FULL, 1);
        }
    }
    Some(())
}
