//! All that is kept beyond this agent's life, and what is given back to the kernel after that.
//!
//! An event, or a flow that is over, stays in the kernel until the records and rollups that it
//! amounts to are in the spool. So an agent that is killed has taken in a thing together with
//! what became of it, or has left it where it was. The spool says how far, for the case that
//! the agent was killed just before it gave something back.

use trefoil_ebpf::abi::{Totals, Tracked, verdict};

use super::{
    EVENTS_A_BATCH, Monitor,
    ended_flow::{EndedFlow, Place},
};
use crate::{
    acknowledged::Acknowledged,
    clock,
    flow::{FlowId, counted},
    kernel::{Held, KernelError, Position, Superseded},
    report::{Coverage, Field, Origin, Record, words},
};

/// Names of facts, or their beginnings.
pub(super) const READ: &str = "read";
pub(super) const OVER: &str = "over";
pub(super) const ROLLUP: &str = "rollup.";
pub(super) const LOSS: &str = "loss.";
const COUNTED_BY: &str = "counted-by";
const ACKNOWLEDGED: &str = "acknowledged";

/// Flows that were taken in and that the kernel still has.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Not kept yet.
    taken: Vec<EndedFlow>,
    /// Kept: the kernel need not have it any more.
    kept: Vec<EndedFlow>,
    /// The spool says that something is over.
    is_said: bool,
    /// The page as it was noted in the kernel last.
    held: Held,
    read: Option<Position>,
}

impl Monitor {
    /// Goes on with what agents before this one have kept.
    pub(super) fn restore(&mut self) {
        let facts = |prefix| -> Vec<(String, String)> {
            let facts = self.reporter.facts(prefix);
            facts
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let (rollups, losses) = (facts(ROLLUP), facts(LOSS));
        let mut n_unread = 0;
        for (name, value) in rollups {
            if !self.table.restore(&name, &value) {
                n_unread += 1;
                self.reporter.set_fact(format!("{ROLLUP}{name}"), None);
            }
        }
        if n_unread > 0 {
            let meaning = "another version of the agent has kept rollups, or what was told of open \
                           flows, in a form that this one does not read; they are in no record";
            let record = Record::loss(
                "rollups-unread",
                n_unread,
                n_unread,
                meaning,
                clock::unix_us(),
            );
            self.reporter.emit(record);
        }
        let goes_on = self.kernel.took_over();
        self.table.begin(goes_on, clock::since_boot_ns());
        for (name, value) in losses {
            match self.kernel.took_over() {
                true => self.losses.restore(&name, &value),
                // The counters are new ones, and count from zero.
                false => self.reporter.set_fact(format!("{LOSS}{name}"), None),
            }
        }
        let over = self.reporter.fact(OVER).unwrap_or_default();
        self.keeping.kept = over.split(';').filter_map(EndedFlow::parse).collect();
        self.keeping.is_said = !self.keeping.kept.is_empty();
        for over in &self.keeping.kept {
            self.table.remember_over(over.id, over.counted);
        }
        if let Some(position) = self.reporter.fact(READ).and_then(parse_position) {
            self.events.skip_to(position);
            if let Some(remains) = &mut self.remains {
                remains.skip_to(position);
            }
        }
    }

    /// True when events and flows are to stay in the kernel. At the end, nobody would find them
    /// there: what does not fit is told as lost.
    pub(super) fn is_backed_up(&self) -> bool {
        !self.is_at_end && self.reporter.is_backed_up()
    }

    /// Records that the sinks take before events and flows are to stay where they are. At the end,
    /// nobody would tell what is left.
    pub(super) fn room_for_records(&self) -> usize {
        match self.is_at_end {
            true => usize::MAX,
            false => self.reporter.room(),
        }
    }

    /// Ends a flow of one of the kernel's tables with these numbers. It stays there until that
    /// is kept.
    pub(super) fn take_in(
        &mut self,
        place: Place,
        tracked: &Tracked,
        time_ns: u64,
    ) -> Result<(), KernelError> {
        // Another begins in its place at this moment: the next sweep finds it.
        if tracked.flow.started_ns == 0 {
            return Ok(());
        }
        self.end(*tracked, time_ns);
        self.keeping.taken.push(EndedFlow {
            place,
            id: FlowId::of(&tracked.flow),
            base: tracked.flow.base,
            counted: counted(&tracked.flow),
        });
        // Where the spool has no room, it is tried again once there is another batch.
        if !self.keeping.taken.len().is_multiple_of(EVENTS_A_BATCH) {
            return Ok(());
        }
        self.report()?;
        self.persist();
        self.release()
    }

    /// Keeps all that was taken in, and what became of it. False if that cannot be; then the
    /// kernel has it for longer.
    pub(super) fn persist(&mut self) -> bool {
        debug_assert!(self.reports.is_empty(), "they belong to what is kept");
        for (name, value) in self.table.changes() {
            self.reporter.set_fact(format!("{ROLLUP}{name}"), value);
        }
        let Keeping {
            taken,
            kept,
            is_said,
            read,
            ..
        } = &mut self.keeping;
        if *is_said || !taken.is_empty() {
            let over = kept.iter().chain(&*taken).map(EndedFlow::to_text);
            let over = over.collect::<Vec<_>>().join(";");
            *is_said = !over.is_empty();
            self.reporter
                .set_fact(OVER.to_owned(), is_said.then_some(over));
        }
        let position = self.events.position();
        if *read != Some(position) {
            let Position { map_id, bytes } = position;
            let text = format!("{map_id} {bytes}");
            self.reporter.set_fact(READ.to_owned(), Some(text));
        }
        if !self.reporter.keep() {
            return false;
        }
        *read = Some(position);
        kept.append(taken);
        // Before the kernel lets go of it.
        self.hold();
        self.events.release();
        true
    }

    /// Notes in the kernel what is in the spool and in no sink, in case that somebody takes the
    /// spool away.
    pub(super) fn hold(&mut self) {
        let Position { map_id, bytes } = self.events.position();
        let mut held = Held {
            batch: self.reporter.batch(),
            next: self.reporter.next(),
            read: (map_id, bytes),
            sums: self.table.held(),
            ..Held::default()
        };
        for verdict in 0..verdict::N {
            let index = usize::from(verdict);
            let (bytes, packets) = words::verdict(verdict)
                .map(|name| self.reporter.held(name))
                .unwrap_or_default();
            let sum = &mut held.sums[index];
            *sum = (sum.0 + bytes, sum.1 + packets);
            held.untold[index] = self.losses.untold(verdict);
        }
        if self.keeping.held != held {
            self.held.set(&held);
            self.keeping.held = held;
        }
    }

    /// Tells what is missing of the spool that the agent before had, to the byte.
    pub(super) fn tell_of_spool(&mut self) {
        let before = self.held.get();
        let is_first = *self.reporter.origin() == Origin::First;
        let is_behind = before.batch > self.reporter.batch();
        if !self.kernel.took_over() || !is_first && !is_behind {
            return;
        }
        self.reporter.skip_to(before.next);
        let time_us = clock::unix_us();
        let reason = match is_first {
            true => "it is gone, and with it what the agent before had not handed over",
            false => "a part of it is gone, and with it what the agent before had not handed over",
        };
        let record = Record::tamper("the spool", reason, time_us);
        self.reporter.emit(record);
        if !is_behind {
            return;
        }
        self.events.skip_to(before.position());
        if let Some(remains) = &mut self.remains {
            remains.skip_to(before.position());
        }
        let table = self.table.held();
        for verdict in 0..verdict::N {
            let index = usize::from(verdict);
            self.losses.restore_untold(verdict, before.untold[index]);
            let Some(name) = words::verdict(verdict) else {
                continue;
            };
            let here = self.reporter.held(name);
            let missing = |before: u64, here: u64| before.saturating_sub(here);
            let bytes = missing(before.sums[index].0, here.0 + table[index].0);
            let packets = missing(before.sums[index].1, here.1 + table[index].1);
            if (bytes, packets) == (0, 0) {
                continue;
            }
            let meaning = "somebody has taken away the spool, or a part of it, in which the agent \
                           before had what these packets belong to; they are in no other record";
            let mut loss = Record::loss("records-removed", packets, packets, meaning, time_us);
            loss.set(Field::Verdict, name);
            loss.set(Field::BytesOut, bytes);
            loss.set(Field::PacketsOut, packets);
            self.reporter.emit(loss);
        }
    }

    /// Takes what is kept out of the kernel's tables. Counts that came to them meanwhile are told
    /// of like anything that comes late.
    pub(super) fn release(&mut self) -> Result<(), KernelError> {
        for over in std::mem::take(&mut self.keeping.kept) {
            let taken = match over.place {
                Place::Ended(key) => {
                    self.reader.remove_ended(&key)?;
                    continue;
                }
                Place::ManyPeers(key) => self.reader.take_flow(&key)?,
                Place::Uplinks(key) => self.reader.take_uplink_flow(&key)?,
            };
            let Some(mut tracked) = taken else { continue };
            if tracked.flow.started_ns == 0 && tracked.flow.base == over.base {
                // It was about to make way for another, and is the same yet.
                tracked.flow.started_ns = over.id.started_ns;
            }
            if FlowId::of(&tracked.flow) != over.id || counted(&tracked.flow) != over.counted {
                self.end(tracked, clock::since_boot_ns());
            }
        }
        self.report()
    }

    /// Tells what another version has counted and no agent has told, and takes it out. From here
    /// on, what is told is counted for this version's tables.
    pub(super) fn tell_of_others(&mut self) -> Result<(), KernelError> {
        let time_us = clock::unix_us();
        let own = self.kernel.counted_by()?;
        let counted_by: Option<u64> = self
            .reporter
            .fact(COUNTED_BY)
            .and_then(|it| it.parse().ok());
        let others = self.kernel.superseded();
        for other in &others {
            let subject = format!("version v{} of the kernel part", other.abi());
            // One that was killed may have told of it already.
            let is_known = counted_by == Some(other.counted_by);
            let reason = match (&other.totals, is_known || counted_by == Some(own)) {
                (Some(_), true) => {
                    "this version has taken its place; what it had counted and no agent has told is \
                     told as lost"
                }
                _ => {
                    "this version has taken its place; what it had counted and no agent has told is \
                     in no record, and nobody knows how much that is"
                }
            };
            let record = Record::coverage(&subject, Coverage::Partly, Some(reason), time_us);
            self.reporter.emit(record);
            if let Some(totals) = other.totals.filter(|_| is_known) {
                self.tell_untold_of(&totals, time_us);
            }
        }
        if counted_by != Some(own) {
            let held = self.table.held();
            for verdict in 0..verdict::N {
                if let Some(name) = words::verdict(verdict) {
                    // Rollups of before are told later, and belong to other tables.
                    let (bytes, packets) = held[usize::from(verdict)];
                    let none = (0_u64.wrapping_sub(bytes), 0_u64.wrapping_sub(packets));
                    self.reporter.set_told_for_good(name, none);
                }
            }
            let own = Some(own.to_string());
            self.reporter.set_fact(COUNTED_BY.to_owned(), own);
        }
        // Sums of the tables that are told of are kept first.
        if others.is_empty() || !self.persist() {
            return Ok(());
        }
        others.iter().try_for_each(Superseded::remove)
    }

    fn tell_untold_of(&mut self, totals: &[Totals], time_us: u64) {
        let held = self.table.held();
        for (verdict, totals) in (0..).zip(totals) {
            let Some(name) = words::verdict(verdict).filter(|_| verdict != verdict::LOCAL) else {
                continue;
            };
            let told = self.reporter.told_for_good(name);
            let held = held[usize::from(verdict)];
            let missing = |counted: u64, told: u64, held: u64| {
                let missing = counted.wrapping_sub(told.wrapping_add(held)) as i64;
                u64::try_from(missing).unwrap_or(0)
            };
            let bytes = missing(totals.bytes_out, told.0, held.0);
            let packets = missing(totals.packets_out, told.1, held.1);
            if (bytes, packets) == (0, 0) {
                continue;
            }
            let meaning = "another version of the agent has counted these packets, whose flows \
                           this one cannot read; they are in no other record";
            let mut loss = Record::loss("flows-unread", packets, packets, meaning, time_us);
            loss.set(Field::Verdict, name);
            loss.set(Field::BytesOut, bytes);
            loss.set(Field::PacketsOut, packets);
            self.reporter.emit(loss);
        }
    }

    /// Tells which losses moved.
    pub(super) fn report_losses(&mut self) -> Result<(), KernelError> {
        let time_us = clock::unix_us();
        let mut news = self.losses.news(&self.reader.losses()?, time_us);
        news.extend(self.losses.untold_news(&self.reader.untold()?, time_us));
        if news.is_empty() {
            return Ok(());
        }
        for record in news {
            self.reporter.emit(record);
        }
        for (name, value) in self.losses.to_facts() {
            self.reporter.set_fact(format!("{LOSS}{name}"), Some(value));
        }
        Ok(())
    }
}

impl Monitor {
    /// Makes records of what somebody has acknowledged and no agent has told.
    pub fn tell_acknowledged(&mut self) {
        let pin_dir = self.kernel.pins().base().to_owned();
        let file = std::fs::metadata(Acknowledged::file(&pin_dir));
        let bytes = file.map_or(0, |file| file.len());
        if bytes == self.acknowledged_bytes {
            return;
        }
        self.acknowledged_bytes = bytes;
        let all = Acknowledged::read(&pin_dir).0;
        let told = self
            .reporter
            .fact(ACKNOWLEDGED)
            .and_then(|it| it.parse().ok());
        let time_us = clock::unix_us();
        for acknowledgement in all.iter().skip(told.unwrap_or(0)) {
            for covered in &acknowledgement.covered {
                let record = Record::acknowledged(covered, acknowledgement, time_us);
                self.reporter.emit(record);
            }
        }
        let n_told = Some(all.len().to_string());
        self.reporter.set_fact(ACKNOWLEDGED.to_owned(), n_told);
    }
}

pub(super) fn parse_position(text: &str) -> Option<Position> {
    let (map_id, bytes) = text.split_once(' ')?;
    Some(Position {
        map_id: map_id.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let text = "3 15";
        let position = parse_position(text).unwrap();
        assert_eq!((position.map_id, position.bytes), (3, 15));
    }
}
