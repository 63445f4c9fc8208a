//! Flows that /proc does not know: UDP that is sent without connecting, other protocols, and
//! the side that opened a connection. The tables in the kernel have them, if there are any.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use trefoil_ebpf::abi::{
    EXECUTABLE_FOREIGN, EXECUTABLE_TRUNCATED, FLOW_EMBRYONIC, FLOW_ENDED, Owner, Tracked,
    direction, quality,
};

use crate::{
    connections::{Connection, Executable, Holder},
    flow::{counted, ip_address},
    kernel::{KernelError, PinDir, Reader},
    owner::process::{cgroup_path, comm, executable_path, logged_in},
    policy::source::Direction,
};

const TCP: u8 = 6;

/// Adds the flows of sockets with many peers that are open in the tables of a pin
/// directory. Where there are none, or they cannot be read, nothing is added.
pub fn add_flows(connections: &mut Vec<Connection>, pin_dir: &Path) {
    let Ok(reader) = Reader::open(&PinDir::new(pin_dir)) else {
        return;
    };
    if let Ok(sockets) = reader.socket_flows() {
        set_directions(connections, &sockets);
    }
    if let Ok(flows) = flows(&reader) {
        add(connections, flows);
    }
}

/// Where the login sessions of holders came from that the kernel programs of a pin directory have
/// seen begin, by audit session. No rule takes another's word for it.
pub fn origins(connections: &[Connection], pin_dir: &Path) -> HashMap<u32, IpAddr> {
    let Ok(reader) = Reader::open(&PinDir::new(pin_dir)) else {
        return HashMap::new();
    };
    let holders = connections.iter().flat_map(|one| &one.holders);
    let sessions: HashSet<u32> = holders.filter_map(|holder| holder.session).collect();
    let origin = |session| {
        let origin = reader.session(session).ok().flatten()?;
        let is_seen = origin.quality == quality::DIRECT;
        is_seen.then(|| (session, ip_address(&origin.peer.address)))
    };
    sessions.into_iter().filter_map(origin).collect()
}

/// Takes in who has opened the connections of TCP that have a tag.
fn set_directions(connections: &mut [Connection], sockets: &[Tracked]) {
    let known: HashMap<_, _> = sockets
        .iter()
        .filter(|socket| socket.flow.peer.protocol == TCP && socket.flow.state & FLOW_ENDED == 0)
        .filter_map(|Tracked { flow, .. }| {
            let peer = SocketAddr::new(ip_address(&flow.peer.address), flow.peer.port);
            Some(((flow.local_port, peer), direction_of(flow.direction)?))
        })
        .collect();
    for one in connections.iter_mut().filter(|one| one.protocol == TCP) {
        one.direction = known.get(&(one.local.port(), one.peer)).copied();
    }
}

fn direction_of(number: u8) -> Option<Direction> {
    match number {
        direction::OUTBOUND => Some(Direction::Outbound),
        direction::ACCEPTED => Some(Direction::Accepted),
        _ => None,
    }
}

/// Without those that are in the list: a socket that was connected before it was
/// watched is in the tables as one with many peers.
fn add(connections: &mut Vec<Connection>, flows: Vec<Connection>) {
    let key = |one: &Connection| (one.protocol, one.local.port(), one.peer);
    let known: HashSet<_> = connections.iter().map(key).collect();
    connections.extend(flows.into_iter().filter(|one| !known.contains(&key(one))));
}

fn flows(reader: &Reader) -> Result<Vec<Connection>, KernelError> {
    let mut holders = Holders {
        reader,
        known: HashMap::new(),
    };
    // In this order, as the agent does that takes such flows out when it runs: one
    // whose socket is not among those that are looked at afterwards is over.
    let flows = reader.many_peer_flows()?;
    let sockets = reader.socket_flows()?;
    let live: HashSet<u64> = sockets.iter().map(|socket| socket.flow.cookie).collect();
    let sees_sockets = reader
        .links()
        .contains(&(reader.instance(), "iter_sockets".to_owned()));
    flows
        .into_iter()
        .filter(|(key, _)| !sees_sockets || live.contains(&key.cookie))
        .map(|(_, tracked)| tracked)
        .filter(|tracked| {
            let counted = counted(&tracked.flow);
            // Of TCP there are only connections that are being opened.
            tracked.flow.peer.protocol != TCP
                && tracked.flow.state & (FLOW_ENDED | FLOW_EMBRYONIC) == 0
                && counted.packets_out + counted.blocked_packets > 0
        })
        .map(|Tracked { owner, flow }| {
            let end = |address, port| SocketAddr::new(address, port);
            let local: IpAddr = ip_address(&flow.local);
            Ok(Connection {
                protocol: flow.peer.protocol,
                local: end(local, flow.local_port),
                peer: end(ip_address(&flow.peer.address), flow.peer.port),
                accepted: direction::is_answer(flow.direction),
                direction: direction_of(flow.direction),
                uid: owner.uid,
                holders: holders.of(&owner)?.into_iter().collect(),
            })
        })
        .collect()
}

/// Processes as the tables describe them.
struct Holders<'a> {
    reader: &'a Reader,
    known: HashMap<(u32, u64, u64), Arc<Holder>>,
}

impl Holders<'_> {
    fn of(&mut self, owner: &Owner) -> Result<Option<Arc<Holder>>, KernelError> {
        if owner.pid == 0 {
            return Ok(None);
        }
        let key = (owner.pid, owner.exe_id, owner.cgroup_id);
        if let Some(known) = self.known.get(&key) {
            return Ok(Some(Arc::clone(known)));
        }
        let executable = self.reader.executable(owner.exe_id)?;
        let executable = executable.as_ref().and_then(|executable| {
            Some(Executable {
                path: executable_path(executable)?.into(),
                foreign: executable.flags & (EXECUTABLE_TRUNCATED | EXECUTABLE_FOREIGN) != 0,
            })
        });
        let cgroup = self.reader.cgroup(owner.cgroup_id)?;
        let holder = Arc::new(Holder {
            pid: owner.pid,
            comm: comm(&owner.comm),
            uid: Some(owner.uid),
            gid: Some(owner.gid),
            interactive: Some(logged_in(owner.session).is_some()),
            session: logged_in(owner.session),
            executable,
            cgroup: cgroup.as_ref().and_then(cgroup_path),
        });
        self.known.insert(key, Arc::clone(&holder));
        Ok(Some(holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_know_is_there_once() {
        let udp = |local: &str, peer: &str| Connection {
            protocol: 17,
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            accepted: false,
            direction: Some(Direction::Outbound),
            uid: 0,
            holders: Vec::new(),
        };
        let mut list = vec![udp("192.0.2.1:5000", "203.0.113.10:53")];
        add(
            &mut list,
            vec![
                // The kernel's address of a socket that has none of its own.
                udp("0.0.0.0:5000", "203.0.113.10:53"),
                udp("192.0.2.1:5001", "203.0.113.10:53"),
                udp("192.0.2.1:5000", "203.0.113.11:53"),
            ],
        );
        assert_eq!(list.len(), 3);
        assert_eq!(list[0].local.port(), 5000);
        assert_eq!(list[1].local.port(), 5001);
        assert_eq!(list[2].peer.ip().to_string(), "203.0.113.11");
    }
}
