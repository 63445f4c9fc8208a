//! Code shared by the socket address hooks: reads the address that a process
//! names.

use aya_ebpf::programs::SockAddrContext;
use trefoil_ebpf::abi::{Address, Peer};

#[inline(always)]
pub fn peer_v4(ctx: &SockAddrContext) -> Peer {
    // SAFETY: a field of the context; the verifier checks the access.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    peer(ctx, Address::v4(u32::from_be(address)))
}

/// IPv4-mapped addresses come here too, and are what they embed.
#[inline(always)]
pub fn peer_v6(ctx: &SockAddrContext) -> Peer {
    // SAFETY: fields of the context, each read by itself as the verifier wants.
    let [a, b, c, d] = unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        [
            (&raw const (*words)[0]).read_volatile().to_ne_bytes(),
            (&raw const (*words)[1]).read_volatile().to_ne_bytes(),
            (&raw const (*words)[2]).read_volatile().to_ne_bytes(),
            (&raw const (*words)[3]).read_volatile().to_ne_bytes(),
        ]
    };
    peer(
        ctx,
        Address([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]),
    )
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: Address) -> Peer {
    // SAFETY: fields of the context; the verifier checks the access.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    Peer {
        address,
        port: u16::from_be(port as u16),
        protocol: protocol as u8,
        pad: [0; 5],
    }
}
