//! Somebody removes a file: who removes a pin of the agent's is remembered, so that a record
//! about tampering can say who it may have been.
//!
//! `int security_inode_unlink(struct inode *dir, struct dentry *dentry)`, fentry, 5.5, x86-64,
//! in the context of who removes it. Without it nobody is named.

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use trefoil_ebpf::abi::{DeedKey, thing};

use crate::{
    deeds::remember_deed,
    globals::offset,
    kernel_memory::{Kernel, follow, read},
};

#[fentry(function = "security_inode_unlink")]
fn security_inode_unlink(ctx: FEntryContext) -> i32 {
    notice(ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn notice(directory: Kernel) -> Option<()> {
    let file_system = follow(directory, offset!(inode_sb))?;
    remember_deed(&DeedKey {
        kind: thing::DIRECTORY,
        device: read(file_system, offset!(super_block_dev))?,
        id: read(directory, offset!(inode_ino))?,
    })
}
