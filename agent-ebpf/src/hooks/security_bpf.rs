//! Somebody calls bpf(2): who detaches a link of the agent's or writes to one of its maps is
//! remembered, so that a record about tampering can say who it may have been.
//!
//! `int security_bpf(int cmd, union bpf_attr *attr, unsigned int size)`, fentry, 5.5, x86-64,
//! in the context of who calls, before it is known whether the call will succeed. Without it
//! nobody is named.

use aya_ebpf::{helpers::generated::bpf_get_current_task, macros::fentry, programs::FEntryContext};
use trefoil_ebpf::abi::{DeedKey, thing};

use crate::{
    deeds::remember_deed,
    globals::offset,
    kernel_memory::{Kernel, follow, read},
};

const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const MAP_LOOKUP_AND_DELETE_BATCH: u32 = 25;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// Where the attributes of commands for many elements have the map.
const MAP_OF_BATCH: usize = 36;

#[fentry(function = "security_bpf")]
fn security_bpf(ctx: FEntryContext) -> i32 {
    notice(ctx.arg::<u32>(0), ctx.arg::<u64>(1));
    0
}

#[inline(always)]
fn notice(command: u32, attributes: Kernel) -> Option<()> {
    let (kind, descriptor_at, id_at) = match command {
        MAP_UPDATE_ELEM | MAP_DELETE_ELEM | MAP_LOOKUP_AND_DELETE_ELEM => {
            (thing::MAP, 0, offset!(bpf_map_id))
        }
        MAP_LOOKUP_AND_DELETE_BATCH | MAP_UPDATE_BATCH | MAP_DELETE_BATCH => {
            (thing::MAP, MAP_OF_BATCH, offset!(bpf_map_id))
        }
        LINK_UPDATE | LINK_DETACH => (thing::LINK, 0, offset!(bpf_link_id)),
        _ => return None,
    };
    let object = opened(read::<u32>(attributes, descriptor_at)?)?;
    remember_deed(&DeedKey {
        kind,
        device: 0,
        id: read::<u32>(object, id_at)?.into(),
    })
}

/// Returns the private data of the file that the running task has open as this descriptor: a link
/// or a map, if it is one. Another file has something else there, and the call will fail.
#[inline(always)]
fn opened(descriptor: u32) -> Option<Kernel> {
    // SAFETY: a helper without arguments.
    let task: Kernel = unsafe { bpf_get_current_task() };
    let table = follow(follow(task, offset!(task_files))?, offset!(files_fdt))?;
    if descriptor >= read::<u32>(table, offset!(fdtable_max_fds))? {
        return None;
    }
    let files = follow(table, offset!(fdtable_fd))?;
    let file = follow(files, descriptor as usize * size_of::<u64>())?;
    follow(file, offset!(file_private_data))
}
