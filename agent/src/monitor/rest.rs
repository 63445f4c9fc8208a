//! Flows and losses that an agent which is gone has left in the kernel, told before they are
//! taken out.
//!
//! No programs are loaded for it: it reads what is pinned, once, when nothing counts any more.

use std::sync::Arc;

use trefoil_ebpf::abi::{Event, FLOW_EMBRYONIC, FLOW_ENDED, Tracked, reason};

use super::{
    ended_flow::flows_over,
    keeping::{self, OVER, READ, ROLLUP},
};
use crate::{
    clock::{self, BootClock},
    flow::{FlowSettings, FlowTable, Report, Sweep},
    geo::Geo,
    kernel::{KernelError, Reader, RefusalTable, Remain, Remains},
    losses::Losses,
    names::Names,
    refusals::{REFUSED, RefusalsTold},
    report::{Coverage, Record, Reporter},
};

/// Parts that telling of the rest takes.
pub struct Rest {
    /// Access to the tables.
    pub reader: Reader,
    /// Takes records, with the spool that the agent had.
    pub reporter: Reporter,
    /// Gives names to ids.
    pub names: Names,
    /// Country data, for rollups.
    pub geo: Arc<Geo>,
    /// Losses that the agent has reported.
    pub losses: Losses,
    /// How flows are told.
    pub flow_settings: FlowSettings,
    /// Frames were judged that go to a driver past traffic control.
    pub judges_direct: bool,
}

impl Rest {
    /// Stops counting and judging, tells of everything that was counted, and keeps that in the spool.
    /// Returns the reporter, for records to be handed over.
    pub fn tell(mut self) -> Result<Reporter, KernelError> {
        let instance = self.reader.instance();
        self.reader.stop_counting();
        let geo = Arc::clone(&self.geo);
        let country = move |address| geo.country(address);
        let mut table = FlowTable::new(self.flow_settings, country);
        self.restore(&mut table);
        let mut out = Vec::new();
        self.take_events(&mut table, &mut out)?;
        self.take_refusals(&mut table, &mut out)?;
        self.take_states(instance, &mut table, &mut out)?;
        let time_us = clock::unix_us();
        let clock = BootClock::read();
        for report in out {
            let record = match &report {
                Report::Flow(flow) => {
                    let facts = self.names.facts(&self.reader, &flow.tracked)?;
                    Record::flow(flow, &facts, &clock)
                }
                Report::Rollup(rollup) => {
                    let facts = self.names.facts(&self.reader, &rollup.sample)?;
                    Record::rollup(rollup, &facts, &clock)
                }
            };
            self.reporter.emit(record);
        }
        for (name, value) in table.changes() {
            self.reporter.set_fact(format!("{ROLLUP}{name}"), value);
        }
        let mut losses = self.losses.news(&self.reader.losses()?, time_us);
        losses.extend(self.losses.untold_news(&self.reader.untold()?, time_us));
        losses.into_iter().for_each(|it| self.reporter.emit(it));
        let reason = Some("somebody ran `trefoil detach`");
        let record = Record::coverage("this host", Coverage::Uncovered, reason, time_us);
        self.reporter.emit(record);
        Ok(self.reporter)
    }

    /// Goes on with what the agent has kept.
    fn restore(&mut self, table: &mut FlowTable) {
        for (name, value) in self.reporter.facts(ROLLUP) {
            // A fact that cannot be read stays for an agent that says so.
            table.restore(name, value);
        }
        table.begin(true, clock::since_boot_ns());
        let over = self.reporter.fact(OVER).unwrap_or_default();
        for (id, counted) in flows_over(over) {
            table.remember_over(id, counted);
        }
        for (name, value) in self.reporter.facts(keeping::LOSS) {
            self.losses.restore(name, value);
        }
    }

    /// Takes in refused calls that the kernel has counted by sender.
    fn take_refusals(
        &mut self,
        table: &mut FlowTable,
        out: &mut Vec<Report>,
    ) -> Result<(), KernelError> {
        // A kernel part of before has no such table.
        let Ok(refusals) = RefusalTable::open(self.reader.pins()) else {
            return Ok(());
        };
        let mut told = RefusalsTold::default();
        for (name, value) in self.reporter.facts(REFUSED) {
            told.restore(name, value);
        }
        told.begin(refusals.map_id());
        for (tracked, (name, value)) in told.news(&refusals.all()?) {
            table.count_refused(tracked, clock::since_boot_ns(), out);
            self.reporter.set_fact(name, Some(value));
        }
        Ok(())
    }

    fn take_events(
        &mut self,
        table: &mut FlowTable,
        out: &mut Vec<Report>,
    ) -> Result<(), KernelError> {
        let mut events = self.reader.events()?;
        let mut remains = Remains::of(self.reader.pins())?;
        let read = self.reporter.fact(READ).and_then(keeping::parse_position);
        if let Some(position) = read {
            events.skip_to(position);
            remains.skip_to(position);
        }
        while let Some(remain) = remains.next()? {
            match remain {
                Remain::Event(Some(event)) => self.observe(&event, table, out)?,
                Remain::Event(None) => {}
                Remain::Flow(tracked) => table.observe(&closed(tracked), out),
            }
        }
        while let Some(event) = events.next() {
            if let Some(event) = event {
                self.observe(&event, table, out)?;
            }
        }
        events.release();
        Ok(())
    }

    fn observe(
        &mut self,
        event: &Event,
        table: &mut FlowTable,
        out: &mut Vec<Report>,
    ) -> Result<(), KernelError> {
        if event.reason != reason::UNSEEN {
            table.observe(event, out);
            return Ok(());
        }
        let facts = self.names.facts(&self.reader, &event.tracked)?;
        let clock = BootClock::read();
        let record = Record::unseen(event, self.judges_direct, &facts, &clock);
        self.reporter.emit(record);
        Ok(())
    }

    fn take_states(
        &mut self,
        instance: u32,
        table: &mut FlowTable,
        out: &mut Vec<Report>,
    ) -> Result<(), KernelError> {
        let now_ns = clock::since_boot_ns();
        for (_, tracked) in self.reader.ended(usize::MAX)? {
            table.observe(&closed(tracked), out);
        }
        let many_peers = self.reader.many_peer_flows()?.into_iter();
        let at_uplinks = self.reader.uplink_flows()?.into_iter();
        let mut states = self.reader.socket_flows_of(instance)?;
        states.retain(|tracked| tracked.flow.state & FLOW_ENDED == 0);
        for tracked in many_peers
            .map(|(_, tracked)| tracked)
            .chain(at_uplinks.map(|(_, tracked)| tracked))
        {
            match tracked.flow.state & FLOW_EMBRYONIC {
                0 => states.push(tracked),
                // Answers to a connection request that no session will take over.
                _ => table.observe(&closed(tracked), out),
            }
        }
        let sweep = Sweep {
            began_ns: now_ns,
            complete: false,
            room: usize::MAX,
        };
        table.sweep(&sweep, states, out);
        table.close_all(now_ns, out);
        Ok(())
    }
}

fn closed(tracked: Tracked) -> Event {
    Event {
        time_ns: clock::since_boot_ns(),
        reason: reason::CLOSED,
        pad: 0,
        tracked,
    }
}
