//! A process writes a packet into a tun or tap device: whose the packet is stays with it, for the
//! uplink by which the host forwards it.
//!
//! `void netif_receive_skb_entry(const struct sk_buff *skb)`, tp_btf, 5.5. It runs in the
//! context of whoever writes, before the kernel may put the packet off (RPS); what a device
//! made with IFF_NAPI is given does not come here. Drivers of hardware mostly come by another
//! way, and are told by one read. Without it such packets are forwarded by nobody.
//!
//! Not only what is written comes here: traffic control sends packets into a device as if they had
//! come in by it, and at any moment, with any process running. So the packet still has the socket
//! that stands for the open device, and has come in nowhere before; and the device is in the agent's
//! network namespace, where that is not for a container to set up.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    globals::{namespace_inode, offset},
    in_flight::keep_written,
    kernel_memory::{Kernel, follow, read},
    maps::active,
};

/// Protocol of the sockets that stand for open tun and tap devices, as the kernel names it.
const TUN: [u8; 4] = *b"tun\0";

#[btf_tracepoint(function = "netif_receive_skb_entry")]
fn netif_receive_skb_entry(ctx: BtfTracePointContext) -> i32 {
    notice(ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn notice(skb: Kernel) -> Option<()> {
    // A packet that hardware receives has no socket.
    let socket = follow(skb, offset!(sk_buff_sk))?;
    let protocol = follow(socket, offset!(sock_prot))?;
    if read::<[u8; 4]>(protocol, offset!(proto_name))? != TUN
        || read::<u32>(skb, offset!(sk_buff_skb_iif))? != 0
    {
        return None;
    }
    active()?;
    let device = follow(skb, offset!(sk_buff_dev))?;
    let namespace = follow(device, offset!(net_device_nd_net))?;
    if read::<u32>(namespace, offset!(net_ns_inum))? != namespace_inode() {
        return None;
    }
    let bytes = read::<u32>(skb, offset!(sk_buff_len))?;
    // Of a tap device, too, the frame's header was taken off.
    let header = read::<[u8; 40]>(follow(skb, offset!(sk_buff_data))?, 0)?;
    // Before Linux 6.3, and without its backports, the number is anybody's.
    let opener = read::<u32>(socket, offset!(sock_uid))?;
    keep_written(skb, bytes, &header, opener)
}
