//! The connections that exist now, without an agent and without loading anything:
//! what /proc says about sockets, and about the processes that hold them.
//!
//! Owns finding them and their holders; it judges nothing. TCP that is
//! established and UDP that is connected, in every network namespace that some
//! process is in. Best effort: a socket that one process holds on behalf of
//! another namespace, or UDP that is sent without connecting, is not in there, and
//! processes that the caller may not look into are counted.

mod holder;
mod logins;
mod table;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use holder::{Executable, Holder, ancestors, audit_session};
pub use logins::{Login, logins};
use table::Socket;

use crate::policy::{network::Network, source::Direction};

/// A connection of this host. Addresses are IPv4 where they are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// The near end.
    pub local: SocketAddr,
    /// The far end.
    pub peer: SocketAddr,
    /// Somebody listens on the near port, so the far end began it, for a reader. Without it,
    /// nothing is known of who did.
    pub accepted: bool,
    /// Which end began it, as the kernel knows it where it judges; `None` for a connection of TCP
    /// that is older than an agent.
    pub direction: Option<Direction>,
    /// User id of whoever opened the socket.
    pub uid: u32,
    /// The processes that hold it, lowest id first; none if it is not known, or
    /// if the socket is the kernel's.
    pub holders: Vec<Arc<Holder>>,
}

/// How far a look goes. Anybody may make network namespaces and processes, and each takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Most network namespaces that are read.
    pub namespaces: usize,
    /// How long it may take to read them, and again to find the processes.
    pub time: Duration,
}

impl Effort {
    /// While the host is not watched yet.
    pub const LITTLE: Self = Self {
        namespaces: 32,
        time: Duration::from_millis(500),
    };
    /// For somebody who has asked.
    pub const MUCH: Self = Self {
        namespaces: usize::MAX,
        time: Duration::from_secs(5),
    };
}

/// All that could be found.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// Those that leave their network namespace.
    pub list: Vec<Connection>,
    /// Processes that the caller may not look into, or that there was no time for. A socket that
    /// only they hold has no holder, and one in a namespace of theirs alone is missing.
    pub n_unread: usize,
    /// Network namespaces that there was no time for.
    pub n_unread_namespaces: usize,
}

/// Sockets of one network namespace.
struct Namespace {
    sockets: Vec<Socket>,
    own: Vec<Network>,
}

impl Connections {
    /// Looks at the processes below `proc`, which is `/proc` but for tests: at the caller and its
    /// ancestors first, and at their network namespaces.
    ///
    /// # Errors
    ///
    /// If the processes cannot be listed at all.
    pub fn read(proc: &Path, effort: Effort) -> io::Result<Self> {
        let own = std::process::id();
        let mut pids = vec![own];
        pids.extend(ancestors(proc, own));
        let first: HashSet<u32> = pids.iter().copied().collect();
        pids.extend(
            holder::pids(proc)?
                .iter()
                .filter(|pid| !first.contains(pid)),
        );
        let until = Instant::now() + effort.time;
        let mut namespaces: HashMap<u64, Namespace> = HashMap::new();
        let mut unread = HashSet::new();
        for pid in &pids {
            let dir = proc.join(pid.to_string());
            let Ok(namespace) = fs::metadata(dir.join("ns/net")) else {
                continue;
            };
            let n_read = namespaces.len();
            let is_enough = n_read >= effort.namespaces || n_read > 0 && Instant::now() > until;
            if let Entry::Vacant(vacant) = namespaces.entry(namespace.ino()) {
                if is_enough {
                    unread.insert(namespace.ino());
                } else if let Ok(found) = Namespace::read(&dir.join("net")) {
                    vacant.insert(found);
                }
            }
        }
        let wanted: HashSet<u64> = namespaces
            .values()
            .flat_map(|namespace| &namespace.sockets)
            .map(|socket| socket.inode)
            .collect();
        let until = Instant::now() + effort.time;
        let (by_inode, n_unread) = holder::find(proc, &pids, &wanted, until);
        let mut list: Vec<Connection> = namespaces
            .into_values()
            .flat_map(|namespace| namespace.connections(&by_inode))
            .collect();
        list.sort_by_key(|one| (one.protocol, one.local, one.peer));
        Ok(Self {
            list,
            n_unread,
            n_unread_namespaces: unread.len(),
        })
    }
}

impl Namespace {
    /// `net` is the directory of one of its processes.
    fn read(net: &Path) -> io::Result<Self> {
        let mut sockets = table::parse(&fs::read_to_string(net.join("tcp"))?, table::TCP);
        for (name, protocol) in [
            ("tcp6", table::TCP),
            ("udp", table::UDP),
            ("udp6", table::UDP),
        ] {
            // Without IPv6 there is no such file.
            let text = fs::read_to_string(net.join(name)).unwrap_or_default();
            sockets.extend(table::parse(&text, protocol));
        }
        let mut own = Vec::new();
        if sockets.iter().any(Socket::is_connected) {
            let text = |name| fs::read_to_string(net.join(name)).unwrap_or_default();
            own = table::own_networks_v4(&text("fib_trie"));
            own.extend(table::own_addresses_v6(&text("if_inet6")));
        }
        Ok(Self { sockets, own })
    }

    fn connections(self, by_inode: &HashMap<u64, Vec<Arc<Holder>>>) -> Vec<Connection> {
        let listeners: BTreeMap<u16, u64> = self
            .sockets
            .iter()
            .filter(|socket| socket.listens())
            .map(|socket| (socket.local.port(), socket.inode))
            .collect();
        let stays = |address: IpAddr| self.own.iter().any(|own| own.contains(address));
        let leaving = self
            .sockets
            .iter()
            .filter(|socket| socket.is_connected() && !stays(socket.peer.ip()));
        leaving
            .map(|socket| {
                let listener = match socket.protocol {
                    table::TCP => listeners.get(&socket.local.port()),
                    _ => None,
                };
                // A connection that nobody has accepted yet is the listener's.
                let inode = match (socket.inode, listener) {
                    (0, Some(listener)) => *listener,
                    (inode, _) => inode,
                };
                Connection {
                    protocol: socket.protocol,
                    local: socket.local,
                    peer: socket.peer,
                    accepted: listener.is_some(),
                    direction: (socket.protocol != table::TCP).then_some(Direction::Outbound),
                    uid: socket.uid,
                    holders: by_inode.get(&inode).cloned().unwrap_or_default(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
