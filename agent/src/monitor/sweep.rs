//! The state of all live flows, read from the kernel's tables once a second, so that a lost
//! event delays a number and does not lose it; and what is taken out of the tables.

use std::collections::{HashMap, HashSet};

use trefoil_ebpf::abi::{
    Event, FLOW_EMBRYONIC, FLOW_ENDED, FlowKey, Tracked, UplinkFlowKey, reason, verdict,
};

use super::{Monitor, keeping::Place, room::InUse};
use crate::{
    clock,
    flow::{FlowId, Sweep, may_become_a_session},
    kernel::KernelError,
};

/// How long nothing must have been seen of a flow in the table of sockets with
/// many peers before it is ended there, to make room.
const IDLE_NS: u64 = 60_000_000_000;

impl Monitor {
    /// Reads the state of all live flows, and what found the ring buffer full.
    pub fn sweep(&mut self) -> Result<(), KernelError> {
        self.release()?;
        while !self.is_backed_up() && self.take_remains()? {}
        if self.is_backed_up() || self.remains.is_some() {
            return Ok(());
        }
        let began_ns = clock::since_boot_ns();
        let ended = self.reader.ended()?;
        // In this order: a flow whose socket is not among those that are looked at
        // afterwards has none any more.
        let many_peer_flows = self.reader.many_peer_flows()?;
        let uplink_flows = self.reader.uplink_flows()?;
        let mut states = self.kernel.socket_flows()?;
        let mut in_use = InUse::default();
        let is_room_due = self.room.is_due(began_ns);
        if is_room_due {
            let many_peers = many_peer_flows.iter().map(|(_, tracked)| tracked);
            let at_uplinks = uplink_flows.iter().map(|(_, tracked)| tracked);
            let all = states.iter().chain(many_peers).chain(at_uplinks);
            all.for_each(|tracked| in_use.add(tracked));
        }
        self.cut_unapproved(&states)?;
        let live: HashSet<u64> = states.iter().map(|tracked| tracked.flow.cookie).collect();
        // What ended while this was read is in the ring buffer, which comes first; and of what is
        // over, nothing may be left there that the next agent would take for another flow.
        self.drain_all()?;
        if self.is_backed_up() {
            return Ok(());
        }
        for (key, tracked) in ended {
            self.take_in(Place::Ended(key), &tracked, began_ns)?;
        }
        states.retain(|tracked| tracked.flow.state & FLOW_ENDED == 0);
        for (key, tracked) in many_peer_flows {
            let is_over = match tracked.flow.state & FLOW_EMBRYONIC {
                // An answer to a connection request that never became a session.
                FLOW_EMBRYONIC => tracked.flow.started_ns + IDLE_NS < began_ns,
                _ => self.kernel.sees_sockets() && !live.contains(&key.cookie),
            };
            if is_over {
                self.take(&key, began_ns)?;
            } else if !may_become_a_session(&tracked.flow) {
                states.push(tracked);
            }
        }
        for (key, tracked) in &uplink_flows {
            let is_local = tracked.flow.decision.verdict == verdict::LOCAL;
            let has_socket = key.cookie != 0 && self.kernel.sees_sockets();
            if is_local || has_socket && !live.contains(&key.cookie) {
                self.take_from_uplink(key, began_ns)?;
            } else {
                states.push(*tracked);
            }
        }
        let sweep = Sweep {
            began_ns,
            complete: true,
        };
        self.table.sweep(&sweep, states.iter(), &mut self.reports);
        let at_uplinks: HashMap<FlowId, UplinkFlowKey> = uplink_flows
            .iter()
            .map(|(key, tracked)| (FlowId::of(&tracked.flow), *key))
            .collect();
        let idle: Vec<FlowId> = self.table.idle(began_ns.saturating_sub(IDLE_NS)).collect();
        for id in idle {
            match at_uplinks.get(&id) {
                Some(key) => self.take_from_uplink(key, began_ns)?,
                None => self.take(
                    &FlowKey {
                        cookie: id.cookie,
                        peer: id.peer,
                    },
                    began_ns,
                )?,
            }
        }
        self.report()?;
        self.report_limits();
        let losses = self.reader.losses()?;
        self.report_losses()?;
        if is_room_due {
            self.make_room(in_use, &losses, began_ns)?;
        }
        self.hand_over();
        self.release()
    }

    /// Ends a flow of the kernel's table of sockets with many peers.
    pub(super) fn take(&mut self, key: &FlowKey, time_ns: u64) -> Result<(), KernelError> {
        match self.reader.many_peer_flow(key)? {
            // Its session may take the numbers over at any moment, or never.
            Some(tracked) if tracked.flow.state & FLOW_EMBRYONIC != 0 => {
                if let Some(tracked) = self.reader.take_flow(key)? {
                    self.end(tracked, time_ns);
                }
                Ok(())
            }
            Some(tracked) => self.take_in(Place::ManyPeers(*key), &tracked, time_ns),
            None => Ok(()),
        }
    }

    /// As [`take`](Self::take), of the table of uplinks.
    fn take_from_uplink(&mut self, key: &UplinkFlowKey, time_ns: u64) -> Result<(), KernelError> {
        if let Some(tracked) = self.reader.uplink_flow(key)? {
            self.take_in(Place::Uplinks(*key), &tracked, time_ns)?;
        }
        Ok(())
    }

    pub(super) fn end(&mut self, tracked: Tracked, time_ns: u64) {
        let event = Event {
            time_ns,
            reason: reason::CLOSED,
            pad: 0,
            tracked,
        };
        self.table.observe(&event, &mut self.reports);
    }
}
