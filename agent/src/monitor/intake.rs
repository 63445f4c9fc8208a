//! Intake: what the kernel has to tell, taken in piece by piece, and no faster than it is handed on.
//!
//! Each turn is bounded. While the sinks are backed up nothing is taken: the kernel keeps it, and
//! counts what it cannot keep.

use trefoil_ebpf::abi::{COOKIE_OF_NO_SOCKET, Event, FlowKey, Tracked, reason};

use super::{EVENTS_A_BATCH, EVENTS_A_TURN, Monitor};
use crate::{
    clock::{self, BootClock},
    kernel::{KernelError, Remain},
    report::Record,
};

/// Flows that are over and that are taken out of the kernel's tables in one turn.
pub(super) const FLOWS_A_TURN: usize = 4_096;

impl Monitor {
    /// Takes events from the ring buffer and reports what they amount to.
    pub fn drain(&mut self) -> Result<(), KernelError> {
        let mut n_taken = 0;
        while n_taken < EVENTS_A_TURN && !self.is_backed_up() && self.take_remains()? {
            n_taken += 1;
        }
        if self.remains.is_none() {
            self.drain_some(EVENTS_A_TURN - n_taken, None)?;
            self.take_gone(FLOWS_A_TURN)?;
        }
        self.take_cuts()?;
        self.take_uplink_news()?;
        let (now_ns, room) = (clock::since_boot_ns(), self.room_for_records());
        self.table.tick(now_ns, room, &mut self.reports);
        self.report()?;
        self.hand_over();
        self.release()
    }

    /// Takes in one thing that an agent before, whose tables had another size, did not tell. False
    /// if there is nothing any more.
    pub(super) fn take_remains(&mut self) -> Result<bool, KernelError> {
        let Some(remains) = &mut self.remains else {
            return Ok(false);
        };
        match remains.next()? {
            Some(Remain::Event(Some(event))) => self.observe(&event)?,
            Some(Remain::Event(None)) => self.unreadable_events += 1,
            Some(Remain::Flow(tracked)) => self.end(tracked, clock::since_boot_ns()),
            None => self.remains = None,
        }
        self.report()?;
        self.persist();
        Ok(self.remains.is_some())
    }

    /// Takes in all events that are in the ring buffer at this moment. False if the sinks have
    /// not let it, and some are there still.
    pub(super) fn drain_all(&mut self) -> Result<bool, KernelError> {
        while !self.is_backed_up() && self.take_remains()? {}
        if self.remains.is_some() {
            return Ok(false);
        }
        let end = self.events.end();
        self.drain_some(usize::MAX, Some(end))?;
        Ok(!self.is_backed_up())
    }

    /// Takes in at most so many events, and none that was written after `end`.
    fn drain_some(&mut self, max: usize, end: Option<u64>) -> Result<(), KernelError> {
        let mut n_taken = 0;
        while n_taken < max && !self.is_backed_up() {
            if end.is_some_and(|end| self.events.position().bytes >= end) {
                break;
            }
            let Some(event) = self.events.next() else {
                break;
            };
            n_taken += 1;
            match event {
                Some(event) => self.observe(&event)?,
                None => self.unreadable_events += 1,
            }
            self.report()?;
            if n_taken.is_multiple_of(EVENTS_A_BATCH) {
                self.persist();
            }
        }
        Ok(())
    }

    /// Ends flows of sockets that are gone, at most so many. Flows that a killed agent leaves have
    /// no socket any more, and the next agent ends them the same way.
    pub(super) fn take_gone(&mut self, max: usize) -> Result<(), KernelError> {
        for _ in 0..max {
            if self.is_backed_up() {
                break;
            }
            let Some((key, time_ns)) = self.many_peers.next_gone() else {
                break;
            };
            self.take(&key, time_ns)?;
            self.report()?;
        }
        Ok(())
    }

    pub(super) fn observe(&mut self, event: &Event) -> Result<(), KernelError> {
        const TCP: u8 = 6;
        let flow = &event.tracked.flow;
        let key = FlowKey {
            cookie: flow.cookie,
            peer: flow.peer,
        };
        match event.reason {
            reason::SOCKET_GONE => {
                self.many_peers.close(flow.cookie, event.time_ns);
                return Ok(());
            }
            reason::UNSEEN => return self.observe_unseen(event),
            // TCP has one peer, and its flows end by themselves.
            reason::OPENED
                if flow.peer.protocol != TCP && flow.cookie & COOKIE_OF_NO_SOCKET == 0 =>
            {
                self.many_peers.insert(key);
            }
            reason::CLOSED => self.many_peers.remove(&key),
            _ => {}
        }
        self.table.observe(event, &mut self.reports);
        Ok(())
    }

    fn observe_unseen(&mut self, event: &Event) -> Result<(), KernelError> {
        let (way, owner) = (event.tracked.flow.local_port, &event.tracked.owner);
        if !self.unjudged.is_news(way, owner) {
            return Ok(());
        }
        let facts = self.facts(&event.tracked)?;
        if !self.unjudged.is_watched(way, &facts) {
            return Ok(());
        }
        let clock = BootClock::read();
        let record = Record::unseen(event, self.judges_direct, &facts, &clock);
        self.reporter.emit(record);
        Ok(())
    }

    /// Ends a flow that the kernel does not have any more.
    pub(super) fn end(&mut self, tracked: Tracked, time_ns: u64) {
        self.many_peers.remove(&FlowKey {
            cookie: tracked.flow.cookie,
            peer: tracked.flow.peer,
        });
        let event = Event {
            time_ns,
            reason: reason::CLOSED,
            pad: 0,
            tracked,
        };
        self.table.observe(&event, &mut self.reports);
    }
}
