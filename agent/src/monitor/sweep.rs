//! The state of live flows, read from the kernel's tables once a second, so that a lost event
//! delays a number and does not lose it; and what is taken out of the tables.
//!
//! With very many flows sweeps are less often than once a second. Whatever a sweep does not come
//! to, since the sinks are backed up or there is too much for one turn, stays in the kernel till
//! the next one.

use std::collections::{HashMap, HashSet};

use trefoil_ebpf::abi::{
    EndedKey, FLOW_EMBRYONIC, FLOW_ENDED, FlowKey, Tracked, UplinkFlowKey, verdict,
};

use super::{Monitor, ended_flow::Place, intake::FLOWS_A_TURN, room::InUse};
use crate::{
    clock,
    flow::{FlowId, Sweep, may_become_a_session},
    kernel::KernelError,
};

/// How long nothing must have been seen of a flow in the table of sockets with
/// many peers before it is ended there, to make room.
const IDLE_NS: u64 = 60_000_000_000;

/// Least time between two sweeps, as a multiple of the time that the last one took: so they
/// take a twentieth of a processor at most, however many flows there are.
const PAUSE: u64 = 20;

/// States that are taken in before what they amount to is handed on.
const STATES_A_BATCH: usize = 256;

/// When a sweep is due.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// Not before.
    pause_until_ns: u64,
}

impl Sweeps {
    fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.pause_until_ns
    }

    fn end(&mut self, began_ns: u64, now_ns: u64) {
        self.pause_until_ns = now_ns + PAUSE * now_ns.saturating_sub(began_ns);
    }
}

/// All flows of the kernel at a moment.
struct All {
    many_peers: Vec<(FlowKey, Tracked)>,
    uplinks: Vec<(UplinkFlowKey, Tracked)>,
    tags: Vec<Tracked>,
}

impl All {
    fn in_use(&self) -> InUse {
        let many_peers = self.many_peers.iter().map(|(_, tracked)| tracked);
        let at_uplinks = self.uplinks.iter().map(|(_, tracked)| tracked);
        let mut in_use = InUse::default();
        let all = self.tags.iter().chain(many_peers).chain(at_uplinks);
        all.for_each(|tracked| in_use.add(tracked));
        in_use
    }
}

impl Monitor {
    /// Reads the state of all live flows, and what found the ring buffer full.
    pub fn sweep(&mut self) -> Result<(), KernelError> {
        self.release()?;
        while !self.is_backed_up() && self.take_remains()? {}
        if self.is_backed_up() || self.remains.is_some() {
            return Ok(());
        }
        let began_ns = clock::since_boot_ns();
        if self.is_at_end || self.sweeps.is_due(began_ns) {
            let ended = self.reader.ended(self.flows_a_turn())?;
            self.sweep_all(ended, began_ns)?;
            self.sweeps.end(began_ns, clock::since_boot_ns());
        }
        self.report()?;
        self.report_refusals()?;
        self.report_limits();
        self.report_losses()?;
        self.hand_over();
        self.release()
    }

    fn sweep_all(
        &mut self,
        ended: Vec<(EndedKey, Tracked)>,
        began_ns: u64,
    ) -> Result<(), KernelError> {
        // In this order: a flow whose socket is not among those that are looked at
        // afterwards has none any more.
        let many_peers = self.reader.many_peer_flows()?;
        let uplinks = self.reader.uplink_flows()?;
        let tags = self.kernel.socket_flows()?;
        let all = All {
            many_peers,
            uplinks,
            tags,
        };
        let in_use = all.in_use();
        self.cut_unapproved(&all.tags)?;
        // Flows that ended while this was read are in the ring buffer, which comes first; and of a
        // flow that is over, nothing may be left there that the next agent would take for another
        // flow.
        if !self.drain_all()? || !self.take_ended(ended, began_ns)? {
            return Ok(());
        }
        let at_uplinks: HashMap<FlowId, UplinkFlowKey> = all
            .uplinks
            .iter()
            .map(|(key, tracked)| (FlowId::of(&tracked.flow), *key))
            .collect();
        let Some(states) = self.end_without_socket(all, began_ns)? else {
            return Ok(());
        };
        if !self.take_states(&states, began_ns)? {
            return Ok(());
        }
        let sweep = Sweep {
            began_ns,
            complete: true,
            room: self.room_for_records(),
        };
        self.table
            .sweep(&sweep, [] as [Tracked; 0], &mut self.reports);
        self.report()?;
        self.end_idle(&at_uplinks, began_ns)?;
        // Sockets of which this was heard meanwhile: the kernel keeps their tags for a moment, so they
        // are among those that were read.
        self.take_gone(self.flows_a_turn())?;
        if self.room.is_due(began_ns) {
            let losses = self.reader.losses()?;
            self.make_room(in_use, &losses, began_ns)?;
        }
        Ok(())
    }

    /// Takes in what found the ring buffer full. False if some is left.
    fn take_ended(
        &mut self,
        ended: Vec<(EndedKey, Tracked)>,
        began_ns: u64,
    ) -> Result<bool, KernelError> {
        let is_all = ended.len() < self.flows_a_turn();
        for (key, tracked) in ended {
            if self.is_backed_up() {
                return Ok(false);
            }
            self.take_in(Place::Ended(key), &tracked, began_ns)?;
            self.report()?;
        }
        Ok(is_all)
    }

    /// Takes out flows whose socket is gone, and those to this host itself at uplinks. Returns the
    /// others; `None` if there was too much for one turn.
    fn end_without_socket(
        &mut self,
        all: All,
        began_ns: u64,
    ) -> Result<Option<Vec<Tracked>>, KernelError> {
        let All {
            many_peers,
            uplinks,
            tags,
        } = all;
        let live: HashSet<u64> = tags.iter().map(|tracked| tracked.flow.cookie).collect();
        let sees_sockets = self.kernel.sees_sockets();
        let mut n_left = self.flows_a_turn();
        let mut states: Vec<Tracked> = tags.into_iter().filter(is_live).collect();
        self.many_peers
            .replace(many_peers.iter().map(|(key, _)| *key));
        for (key, tracked) in many_peers {
            let is_over = match tracked.flow.state & FLOW_EMBRYONIC {
                // An answer to a connection request that never became a session.
                FLOW_EMBRYONIC => self.is_at_end || tracked.flow.started_ns + IDLE_NS < began_ns,
                _ => sees_sockets && !live.contains(&key.cookie),
            };
            if is_over {
                if n_left == 0 || self.is_backed_up() {
                    return Ok(None);
                }
                n_left -= 1;
                self.take(&key, began_ns)?;
                self.report()?;
            } else if !may_become_a_session(&tracked.flow) {
                states.push(tracked);
            }
        }
        for (key, tracked) in &uplinks {
            let is_local = tracked.flow.decision.verdict == verdict::LOCAL;
            let has_socket = key.cookie != 0 && sees_sockets;
            if is_local || has_socket && !live.contains(&key.cookie) {
                if n_left == 0 || self.is_backed_up() {
                    return Ok(None);
                }
                n_left -= 1;
                self.take_from_uplink(key, began_ns)?;
                self.report()?;
            } else {
                states.push(*tracked);
            }
        }
        Ok(Some(states))
    }

    /// Takes in states, as fast as what they amount to is handed on. False if some are left.
    fn take_states(&mut self, states: &[Tracked], began_ns: u64) -> Result<bool, KernelError> {
        let mut left = states;
        while !left.is_empty() {
            let room = self.room_for_records();
            if room == 0 {
                return Ok(false);
            }
            let (batch, rest) = left.split_at(left.len().min(room).min(STATES_A_BATCH));
            left = rest;
            let sweep = Sweep {
                began_ns,
                complete: false,
                room: 0,
            };
            self.table.sweep(&sweep, batch, &mut self.reports);
            self.report()?;
            self.hand_over();
        }
        Ok(true)
    }

    /// Ends flows of which nothing was seen for long.
    fn end_idle(
        &mut self,
        at_uplinks: &HashMap<FlowId, UplinkFlowKey>,
        began_ns: u64,
    ) -> Result<(), KernelError> {
        let most = self.flows_a_turn();
        let idle = self.table.idle(began_ns.saturating_sub(IDLE_NS));
        let key = |id: &FlowId| FlowKey {
            cookie: id.cookie,
            peer: id.peer,
        };
        // The others are in the tags of their sockets, and take no room.
        let is_in_table =
            |id: &FlowId| self.many_peers.contains(&key(id)) || at_uplinks.contains_key(id);
        let idle: Vec<FlowId> = idle.filter(is_in_table).take(most).collect();
        for id in idle {
            if self.is_backed_up() {
                return Ok(());
            }
            match at_uplinks.get(&id) {
                Some(at_uplink) => self.take_from_uplink(at_uplink, began_ns)?,
                None => self.take(&key(&id), began_ns)?,
            }
            self.report()?;
        }
        Ok(())
    }

    fn flows_a_turn(&self) -> usize {
        match self.is_at_end {
            true => usize::MAX,
            false => FLOWS_A_TURN,
        }
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
}

/// The end of a flow in a tag is told by an event of its own.
fn is_live(tracked: &Tracked) -> bool {
    tracked.flow.state & FLOW_ENDED == 0
}
