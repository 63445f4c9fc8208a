//! Which families of sockets lead out of the host past every hook.

use trefoil_ebpf::abi::unseen;

/// Which way out a socket of this family is, one of [`unseen`]; `None` for what cannot leave
/// the host, or has hooks of its own: at its socket, at uplinks, or where it asks to send.
#[inline(always)]
pub fn way_out(family: u16) -> Option<u16> {
    const UNSPEC: u16 = 0;
    const UNIX: u16 = 1;
    const INET: u16 = 2;
    const INET6: u16 = 10;
    const KEY: u16 = 15;
    const NETLINK: u16 = 16;
    const PACKET: u16 = 17;
    const ALG: u16 = 38;
    const XDP: u16 = 44;
    match family {
        UNSPEC | UNIX | INET | INET6 | KEY | NETLINK | PACKET | ALG | XDP => None,
        // The kernel has no such families.
        0x100.. => None,
        family => Some(unseen::FAMILY | family),
    }
}
