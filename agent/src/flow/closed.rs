//! Flows that are over, remembered for a while.
//!
//! Kernel states arrive late and twice: a sweep may have read a flow before its
//! last event was handled. Without this memory such a state would open the flow
//! again, and its bytes would be in two final records.

use std::collections::HashMap;

use trefoil_ebpf::abi::Counters;

use super::FlowId;

/// Two generations: what nobody asked for while a generation was the young one
/// is forgotten with the next turn.
#[derive(Debug)]
pub(super) struct Closed {
    young: HashMap<FlowId, Counters>,
    old: HashMap<FlowId, Counters>,
    turned_ns: u64,
    keep_ns: u64,
    max: usize,
}

impl Closed {
    pub(super) fn new(keep_ns: u64, max: usize) -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self {
            young,
            old,
            turned_ns: 0,
            keep_ns,
            max,
        }
    }

    /// Remembers a flow with the numbers that were reported for it.
    pub(super) fn insert(&mut self, id: FlowId, counted: Counters) {
        if self.young.len() >= self.max {
            self.turn();
        }
        self.young.insert(id, counted);
    }

    /// The reported numbers of a flow, if it is remembered. Asking keeps it.
    pub(super) fn get_mut(&mut self, id: &FlowId) -> Option<&mut Counters> {
        if let Some((id, counted)) = self.old.remove_entry(id) {
            self.insert(id, counted);
        }
        self.young.get_mut(id)
    }

    /// Forgets what is old enough.
    pub(super) fn tick(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.turned_ns) >= self.keep_ns {
            self.turned_ns = now_ns;
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.old = std::mem::take(&mut self.young);
    }
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::Peer;

    use super::*;

    const KEEP_NS: u64 = 10;

    fn id(cookie: u64) -> FlowId {
        FlowId {
            cookie,
            started_ns: 1,
            peer: Peer::default(),
        }
    }

    #[test]
    fn a_flow_is_remembered_for_at_least_the_time_and_forgotten_after_twice_as_much() {
        let mut closed = Closed::new(KEEP_NS, 100);
        closed.tick(100);
        closed.insert(id(1), Counters::default());
        closed.insert(id(2), Counters::default());
        closed.tick(110);
        assert!(closed.get_mut(&id(1)).is_some(), "asking keeps it");
        closed.tick(120);
        assert!(closed.get_mut(&id(1)).is_some());
        assert!(closed.get_mut(&id(2)).is_none());
    }

    #[test]
    fn the_oldest_make_room_for_new_ones() {
        let mut closed = Closed::new(KEEP_NS, 2);
        for cookie in 0..5 {
            closed.insert(id(cookie), Counters::default());
        }
        assert!(closed.get_mut(&id(0)).is_none());
        assert!(closed.get_mut(&id(4)).is_some());
        assert!(closed.young.len() <= 2 && closed.old.len() <= 2);
    }
}
