//! A process writes a packet into a tun or tap device: who that is is remembered, for the
//! uplink by which the host forwards the packet.
//!
//! `void netif_receive_skb_entry(const struct sk_buff *skb)`, tp_btf, 5.5. It runs in the
//! context of whoever writes, before the kernel may put the packet off (RPS); what a device
//! made with IFF_NAPI is given does not come here. Drivers of hardware mostly come by another
//! way, and are told by one read. Without it such packets are forwarded by nobody.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    globals::{namespace_inode, offset},
    kernel_memory::{Kernel, follow, read},
    maps::{PROCESSES, WRITERS, active, lose},
    owner::set_current,
};

/// The kind of tun and tap devices, as the kernel names it.
const TUN: [u8; 4] = *b"tun\0";

#[btf_tracepoint(function = "netif_receive_skb_entry")]
fn netif_receive_skb_entry(ctx: BtfTracePointContext) -> i32 {
    notice(ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn notice(skb: Kernel) -> Option<()> {
    let device = follow(skb, offset!(sk_buff_dev))?;
    // Devices of hardware have none.
    let operations = follow(device, offset!(net_device_rtnl_link_ops))?;
    let kind = follow(operations, offset!(rtnl_link_ops_kind))?;
    if read::<[u8; 4]>(kind, 0)? != TUN {
        return None;
    }
    active()?;
    // Another namespace has other interfaces of the same number.
    let namespace = follow(device, offset!(net_device_nd_net))?;
    if read::<u32>(namespace, offset!(net_ns_inum))? != namespace_inode() {
        return None;
    }
    let interface = read::<u32>(device, offset!(net_device_ifindex))?;
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // Threads of the kernel are not among them; for whom they write, nobody knows.
    // SAFETY: map values that their writers only replace as a whole. So below.
    let process = unsafe { PROCESSES.get(&pid) }?;
    let last = unsafe { WRITERS.get(&interface) };
    if last.is_some_and(|last| is_same(last, pid, process) && last.exe_id == process.exe_id) {
        return None;
    }
    // Of two that write in turn, nobody could say whose a packet is.
    let others = last.is_some_and(|last| {
        !is_same(last, pid, process)
            && unsafe { PROCESSES.get(&last.pid) }
                .is_some_and(|process| is_same(last, last.pid, process))
    });
    let mut writer = MaybeUninit::<Owner>::zeroed();
    set_current(writer.as_mut_ptr());
    // SAFETY: integers, for which zero is a value.
    let mut writer = unsafe { writer.assume_init() };
    if others {
        writer.quality = quality::INFERRED;
    }
    if WRITERS.insert(&interface, &writer, 0).is_err() {
        lose(LOSS_WRITERS_FULL, 1);
    }
    Some(())
}

/// True if an owner is this process.
#[inline(always)]
fn is_same(owner: &Owner, pid: u32, process: &Process) -> bool {
    owner.pid == pid && owner.start_ns == process.start_ns
}
