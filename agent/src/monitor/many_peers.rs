//! Flows in the kernel's table of sockets with many peers, by socket: so that they end when it is
//! closed, without a look at all others.
//!
//! Flows that are missing here, since an event was lost, are found by the next full sweep.

use std::collections::{BTreeSet, VecDeque};

use trefoil_ebpf::abi::{FlowKey, Peer};

/// Flows that may be in the table, and sockets whose flows are about to be taken out of it.
#[derive(Debug, Default)]
pub(super) struct ManyPeers {
    flows: BTreeSet<FlowKey>,
    /// Cookies of sockets that are gone, and when they went.
    gone: VecDeque<(u64, u64)>,
}

impl ManyPeers {
    /// Notes that a flow has begun.
    pub(super) fn insert(&mut self, key: FlowKey) {
        self.flows.insert(key);
    }

    /// Notes that a flow is over.
    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.flows.remove(key);
    }

    /// True if the flow may be in the table.
    pub(super) fn contains(&self, key: &FlowKey) -> bool {
        self.flows.contains(key)
    }

    /// Goes on with the flows that the table has, and no others.
    pub(super) fn replace(&mut self, keys: impl IntoIterator<Item = FlowKey>) {
        self.flows = keys.into_iter().collect();
    }

    /// Notes that a socket is gone, and with it all its flows.
    pub(super) fn close(&mut self, cookie: u64, time_ns: u64) {
        if self.first_of(cookie).is_some() {
            self.gone.push_back((cookie, time_ns));
        }
    }

    /// A flow whose socket is gone, and when it went. It is not returned twice.
    pub(super) fn next_gone(&mut self) -> Option<(FlowKey, u64)> {
        while let Some(&(cookie, time_ns)) = self.gone.front() {
            if let Some(key) = self.first_of(cookie) {
                self.flows.remove(&key);
                return Some((key, time_ns));
            }
            self.gone.pop_front();
        }
        None
    }

    fn first_of(&self, cookie: u64) -> Option<FlowKey> {
        let least = FlowKey {
            cookie,
            peer: Peer::default(),
        };
        let key = self.flows.range(least..).next()?;
        (key.cookie == cookie).then_some(*key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cookie: u64, port: u16) -> FlowKey {
        let peer = Peer {
            port,
            protocol: 17,
            ..Peer::default()
        };
        FlowKey { cookie, peer }
    }

    #[test]
    fn a_socket_that_is_gone_ends_its_flows_and_no_others() {
        let mut all = ManyPeers::default();
        for flow in [key(1, 1), key(2, 1), key(2, 2), key(2, 2), key(3, 1)] {
            all.insert(flow);
        }
        all.remove(&key(2, 1));
        all.close(2, 10);
        all.close(4, 11);
        all.close(3, 12);
        assert_eq!(all.next_gone(), Some((key(2, 2), 10)));
        assert_eq!(all.next_gone(), Some((key(3, 1), 12)));
        assert_eq!(all.next_gone(), None);
        all.replace([key(1, 7)]);
        all.close(1, 13);
        assert_eq!(all.next_gone(), Some((key(1, 7), 13)));
        assert_eq!(all.next_gone(), None);
    }
}
