//! The tables of /proc/PID/net, as text: sockets, and the addresses that are the
//! namespace's own. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::policy::network::Network;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// A line of `tcp`, `tcp6`, `udp` or `udp6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// IP protocol number.
    pub protocol: u8,
    /// The near end; a mapped IPv4 address is an IPv4 address.
    pub local: SocketAddr,
    /// The far end, unspecified if there is none.
    pub peer: SocketAddr,
    /// State of TCP, which UDP uses two of.
    state: u8,
    /// Id of the user who opened it.
    pub uid: u32,
    /// Number of the socket; 0 if no process can hold it.
    pub inode: u64,
}

impl Socket {
    /// True if it has a far end that more may be sent to. A connection that the
    /// far end has closed for its part still sends.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, ESTABLISHED | CLOSE_WAIT) && !self.peer.ip().is_unspecified()
    }

    /// True if it accepts connections.
    pub fn listens(&self) -> bool {
        self.protocol == TCP && self.state == LISTEN
    }
}

/// The sockets of one table. Lines that are none, such as the header, are passed
/// over.
pub fn parse(text: &str, protocol: u8) -> Vec<Socket> {
    text.lines()
        .filter_map(|line| socket(line, protocol))
        .collect()
}

/// `1: 0100007F:0277 0A007B00:01BB 01 00000000:00000000 00:00000000 00000000 0 0 1527 ...`
fn socket(line: &str, protocol: u8) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = end(words.next()?)?;
    let peer = end(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    // Between them: queues, timer, retransmissions.
    let uid = words.nth(3)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    Some(Socket {
        protocol,
        local,
        peer,
        state,
        uid,
        inode,
    })
}

/// `0100007F:0277`: words of an address, each as a number of this machine's, and
/// a port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The destinations that `fib_trie` says are delivered in the namespace itself.
pub fn own_networks_v4(text: &str) -> Vec<Network> {
    let mut own = Vec::new();
    let mut address = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.trim_end().parse::<Ipv4Addr>().ok();
        } else if let Some(prefix) = line.strip_prefix('/')
            && prefix.trim_end().ends_with("host LOCAL")
            && let Some(address) = address
            && let Some((prefix, _)) = prefix.split_once(' ')
            && let Ok(prefix) = prefix.parse()
        {
            own.push(Network::containing(address.into(), prefix));
        }
    }
    // Each is in there twice: in the trie of all tables and in that of the local one.
    own.sort_unstable();
    own.dedup();
    own
}

/// The addresses of `if_inet6`: `20010db8000100000000000000000001 02 40 00 80 eth0`.
pub fn own_addresses_v6(text: &str) -> impl Iterator<Item = Network> {
    text.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        let address = (digits.len() == 32)
            .then(|| u128::from_str_radix(digits, 16).ok())
            .flatten()?;
        Some(Network::containing(Ipv6Addr::from(address).into(), 128))
    })
}
