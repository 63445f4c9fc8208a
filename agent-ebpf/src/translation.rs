//! Whether the host may rewrite the destination that a process names, before its packets leave.
//!
//! Destinations are rewritten at the hook of netfilter that a host's own packets come to
//! (`NF_INET_LOCAL_OUT`), by what stands between mangling and filtering there: translation of
//! addresses (priority -100) and IPVS. Where nothing does, the address that is named is the one
//! that is sent to, and a call can be refused for it. Chains of other priorities that write
//! another destination into a packet are not looked for: there a call is refused for the address
//! that is named.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use trefoil_ebpf::abi::Address;

use crate::{
    globals::offset,
    kernel_memory::{Kernel, follow, read},
};

/// `NF_INET_LOCAL_OUT`
const LOCAL_OUT: usize = 3;
/// Hooks that are looked at. Behind as many, translation is taken for granted.
const MAX_HOOKS: usize = 24;
/// `NF_IP_PRI_MANGLE` and `NF_IP_PRI_FILTER`: in between, destinations are rewritten.
const BETWEEN: core::ops::Range<i32> = -149..0;

/// True if what the running process sends to this address may go to another. By its own network
/// namespace, which is mostly that of its sockets.
#[inline(always)]
pub fn may_translate(address: &Address) -> bool {
    let is_v4 = u32::from(address.as_v4().is_some());
    may_translate_family(is_v4) != 0
}

/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn may_translate_family(is_v4: u32) -> u32 {
    // What cannot be read is refused, as without translation.
    u32::from(has_translation(is_v4 != 0).unwrap_or(false))
}

#[inline(always)]
fn has_translation(is_v4: bool) -> Option<bool> {
    // SAFETY: a helper without arguments.
    let task: Kernel = unsafe { bpf_get_current_task() };
    let namespaces = follow(task, offset!(task_nsproxy))?;
    let network = follow(namespaces, offset!(nsproxy_net_ns))?;
    let hooks = match is_v4 {
        true => offset!(net_hooks_ipv4),
        false => offset!(net_hooks_ipv6),
    };
    let entries = follow(network, hooks + LOCAL_OUT * size_of::<Kernel>())?;
    let n = usize::from(read::<u16>(entries, 0)?);
    // `struct nf_hook_entries`: their number, as many of two words, then what registered each.
    const ENTRIES: usize = 8;
    const ENTRY: usize = 16;
    let registered = ENTRIES + n * ENTRY;
    for i in 0..MAX_HOOKS {
        if i >= n {
            return Some(false);
        }
        let hook = follow(entries, registered + i * size_of::<Kernel>())?;
        let priority = read::<i32>(hook, offset!(nf_hook_ops_priority))?;
        if BETWEEN.contains(&priority) {
            return Some(true);
        }
    }
    Some(true)
}
