//! A control group is removed. Sockets that were made in it may live on, so its
//! entry stays, marked, until the agent removes it, and is charged until then.
//!
//! `void cgroup_rmdir(struct cgroup *cgrp, const char *path)`, tp_btf, 5.5.
//! Without it `CGROUPS` fills up.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use trefoil_ebpf::abi::CGROUP_REMOVED;

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
    maps::CGROUPS,
    owner::cgroup_id,
};

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    mark(ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn mark(cgroup: Kernel) -> Option<()> {
    let root = follow(cgroup, offset!(cgroup_root))?;
    if read::<u32>(root, offset!(cgroup_root_hierarchy_id))? == 0 {
        let entry = CGROUPS.get_ptr_mut(&cgroup_id(cgroup)?)?;
        // SAFETY: a map value; the verifier checks the access.
        unsafe { (*entry).flags |= CGROUP_REMOVED };
    }
    Some(())
}
