//! What comes back: counted for the flow it answers, never judged.
//!
//! `BPF_CGROUP_INET_INGRESS`, 4.10 (with socket storage 5.6). Without it, flows
//! have no `bytes_in`.

use aya_ebpf::{
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use trefoil_ebpf::abi::*;

use super::egress::LOOPBACK;
use crate::{
    atomic, flows, in_flight,
    maps::{SOCKETS, in_place},
    packet::ends,
};

/// Every path lets the packet in.
const PASS: i32 = 1;

#[cgroup_skb(ingress)]
fn ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx);
    PASS
}

#[inline(always)]
fn count(ctx: &SkBuffContext) -> Option<()> {
    in_place()?;
    let skb = ctx.skb.skb;
    // What stays on this host: its buffer may be used again before it is sent to an uplink.
    in_flight::forget(skb);
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let (bytes, interface, socket) = unsafe {
        (
            u64::from((*skb).len),
            (*skb).ifindex,
            (*skb).__bindgen_anon_2.sk,
        )
    };
    if interface == LOOPBACK || socket.is_null() {
        return None;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return None;
    }
    let tag = SOCKETS.get(socket)?;
    let flags = unsafe { (*tag).flags };
    let tracked = if flags & SOCKET_HAS_PEER != 0 {
        unsafe { &raw mut (*tag).tracked }
    } else if flags & SOCKET_HAS_FLOWS != 0 {
        let ends = ends(skb)?;
        let peer = Peer {
            address: ends.source,
            port: ends.source_port,
            protocol: ends.destination.protocol,
            pad: [0; 5],
        };
        flows::find(&FlowKey {
            cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
            peer,
        })?
    } else {
        return None;
    };
    let counters = unsafe { &raw mut (*tracked).flow.counters };
    atomic::add(unsafe { &raw mut (*counters).bytes_in }, bytes);
    atomic::add(unsafe { &raw mut (*counters).packets_in }, 1);
    Some(())
}
