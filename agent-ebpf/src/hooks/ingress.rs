//! Packets that come back: counted for the flow that they answer, never judged.
//!
//! `BPF_CGROUP_INET_INGRESS`, 4.10 (with socket storage 5.6). Without it, flows
//! have no `bytes_in`.

use aya_ebpf::{
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use trefoil_ebpf::abi::*;

use crate::{
    atomic, flows, in_flight,
    maps::{SOCKETS, in_place},
    packet::{ends, is_same_peer},
    socket::{LOOPBACK, is_tcp},
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
    // The packet stays on this host: its buffer may be used again before it is sent to an uplink.
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
    let slot = unsafe { &raw mut (*tag).tracked };
    let tracked = if flags & (SOCKET_HAS_PEER | SOCKET_HAS_FLOWS) == 0 {
        return None;
    } else if flags & SOCKET_HAS_PEER != 0 && is_tcp(socket) {
        slot
    } else {
        let ends = ends(skb)?;
        let mut peer = Peer {
            address: ends.source,
            port: ends.source_port,
            protocol: ends.destination.protocol,
            pad: [0; 5],
        };
        let (named, translated) = unsafe { (&raw const (*tag).named, (*tag).translated) };
        if translated.protocol != 0 && is_same_peer(named, &raw const peer) {
            peer = translated;
        }
        let is_first = flags & SOCKET_HAS_PEER != 0
            && is_same_peer(unsafe { &raw const (*slot).flow.peer }, &raw const peer);
        match is_first {
            true => slot,
            false => flows::find(&FlowKey {
                cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
                peer,
            })?,
        }
    };
    let counters = unsafe { &raw mut (*tracked).flow.counters };
    atomic::add(unsafe { &raw mut (*counters).bytes_in }, bytes);
    atomic::add(unsafe { &raw mut (*counters).packets_in }, 1);
    Some(())
}
