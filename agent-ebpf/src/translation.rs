//! Whether the host may rewrite the destination that a process names, before its packets leave; and whether it has.
//!
//! Destinations are rewritten at the hook of netfilter that a host's own packets come to
//! (`NF_INET_LOCAL_OUT`), by what stands between mangling and filtering there: translation of
//! addresses (priority -100) and IPVS. Where nothing does, the address that is named is the one
//! that is sent to, and a call can be refused for it. Chains of other priorities that write
//! another destination into a packet are not looked for: there a call is refused for the address
//! that is named.

use aya_ebpf::bindings::__sk_buff;
use trefoil_ebpf::abi::{Address, Peer};

use crate::{
    globals::offset,
    in_flight,
    kernel_memory::{Kernel, follow, read, read_or_zero},
};

/// `NF_INET_LOCAL_OUT`
const LOCAL_OUT: usize = 3;
/// Hooks that are looked at. Behind as many, translation is taken for granted.
const MAX_HOOKS: usize = 24;
/// `NF_IP_PRI_MANGLE` and `NF_IP_PRI_FILTER`: in between, destinations are rewritten.
const BETWEEN: core::ops::Range<i32> = -149..0;

/// True if packets that the socket of this call sends to this address may go to another, by the rules of
/// its network namespace: that of the process may be one of its own making.
#[inline(always)]
pub fn may_translate(call: Kernel, address: &Address) -> bool {
    translates(call, address.as_v4().is_some())
}

/// A function of its own for the sake of the stack.
#[inline(never)]
fn translates(call: Kernel, is_v4: bool) -> bool {
    may_translate_family(network_of(socket_of(call)), is_v4.into()) != 0
}

/// The `struct sock` of a call that names a peer; 0 if it cannot be read.
#[inline(always)]
pub fn socket_of(call: Kernel) -> Kernel {
    /// `bpf_sock_addr_kern.sk`
    const SOCKET: usize = 0;
    read_or_zero(call, SOCKET)
}

/// The network namespace of a `struct sock`; 0 if it cannot be read.
#[inline(always)]
fn network_of(socket: Kernel) -> Kernel {
    read_or_zero(socket, offset!(sock_net))
}

/// A global function to the kernel, as those of the judge: it takes a number, and not a pointer that
/// the verifier knows the type of.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn may_translate_family(network: Kernel, is_v4: u32) -> u32 {
    // If the hooks cannot be read, a call is refused, as without translation.
    u32::from(has_translation(network, is_v4 != 0).unwrap_or(false))
}

#[inline(always)]
fn has_translation(network: Kernel, is_v4: bool) -> Option<bool> {
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

/// Not 0 if a packet that lost its socket has another destination by now because this host translated it: the
/// connection tracking of the namespace that it leaves by has seen it come with the one that its socket named.
/// Whoever else had it on the way did not rewrite that.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_translated_here(skb: *mut __sk_buff, start: u32) -> u32 {
    let Some(found) = in_flight::find(skb, start) else {
        return 0;
    };
    u32::from(has_come_for(skb as Kernel, found.named()) == Some(true))
}

/// True if the connection of a packet began, in the namespace that it leaves by, for this destination.
#[inline(always)]
fn has_come_for(packet: Kernel, named: &Peer) -> Option<bool> {
    /// Of `sk_buff._nfct`, what says how the packet belongs to the connection: `enum ip_conntrack_info`.
    const INFO: Kernel = 7;
    /// `IP_CT_ESTABLISHED` and `IP_CT_NEW`: it goes as the first one did. The others answer, or are about it, and
    /// whoever had such a packet on the way has made it that.
    const FORTH: [Kernel; 2] = [0, 2];
    const AF_INET: u16 = 2;
    // `struct nf_conntrack_tuple`: both ends with an address of 16 bytes and a port, and behind the first its family.
    const FAMILY: usize = 18;
    const ADDRESS: usize = 20;
    const PORT: usize = 36;
    let original = offset!(nf_conn_original);
    if original == 0 {
        return None;
    }
    let tracked = follow(packet, offset!(sk_buff_nfct))?;
    if !FORTH.contains(&(tracked & INFO)) {
        return Some(false);
    }
    let connection = tracked & !INFO;
    let device = follow(packet, offset!(sk_buff_dev))?;
    if follow(device, offset!(net_device_nd_net))? != follow(connection, offset!(nf_conn_net))? {
        return Some(false);
    }
    let is_v4 = read::<u16>(connection, original + FAMILY)? == AF_INET;
    let address = match is_v4 {
        true => Address::v4(u32::from_be(read(connection, original + ADDRESS)?)),
        false => read(connection, original + ADDRESS)?,
    };
    let port = u16::from_be(read(connection, original + PORT)?);
    let is_same = address.halves() == named.address.halves();
    Some(is_same && (named.port == 0 || named.port == port))
}
