//! All that is kept beyond this agent's life, and what is given back to the kernel after that.
//!
//! An event, or a flow that is over, stays in the kernel until the records and rollups that it
//! amounts to are in the spool. So an agent that is killed has taken in a thing together with
//! what became of it, or has left it where it was. The spool says how far, for the case that
//! the agent was killed just before it gave something back.

use trefoil_ebpf::abi::{Address, Counters, EndedKey, FlowKey, Tracked, UplinkFlowKey};

use super::{EVENTS_A_BATCH, Monitor};
use crate::{
    clock,
    flow::{FlowId, counted, counters_text, number, parse_counters, parse_words, words_of},
    kernel::{KernelError, Position},
    report::Record,
};

/// Names of facts, or their beginnings.
const READ: &str = "read";
const OVER: &str = "over";
const ROLLUP: &str = "rollup.";
const LOSS: &str = "loss.";

/// Where a flow is that was taken for over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its last state found the ring buffer full.
    Ended(EndedKey),
    /// In the table of sockets with many peers.
    ManyPeers(FlowKey),
    /// In the table of uplinks.
    Uplinks(UplinkFlowKey),
}

/// A flow that was taken for over, with these numbers.
#[derive(Debug, PartialEq, Eq)]
struct Over {
    place: Place,
    id: FlowId,
    base: Counters,
    counted: Counters,
}

impl Over {
    fn to_text(&self) -> String {
        let flow = words_of(&self.id, &self.counted);
        let base = counters_text(&self.base);
        let place = match &self.place {
            Place::Ended(_) => "ended".to_owned(),
            Place::ManyPeers(_) => "many-peers".to_owned(),
            Place::Uplinks(key) => {
                let source = u128::from_be_bytes(key.source.0);
                let UplinkFlowKey {
                    cookie,
                    source_port,
                    sender,
                    quality,
                    came_in_by,
                    ..
                } = key;
                format!("uplinks {cookie} {source} {source_port} {sender} {quality} {came_in_by}")
            }
        };
        format!("{flow} {base} {place}")
    }

    /// Reads what [`to_text`](Self::to_text) has written.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (id, counted) = parse_words(&mut words)?;
        let base = parse_counters(&mut words)?;
        let place = match words.next()? {
            "ended" => Place::Ended(EndedKey {
                cookie: id.cookie,
                started_ns: id.started_ns,
            }),
            "many-peers" => Place::ManyPeers(FlowKey {
                cookie: id.cookie,
                peer: id.peer,
            }),
            _ => Place::Uplinks(UplinkFlowKey {
                cookie: number(&mut words)?,
                peer: id.peer,
                source: Address(number::<u128>(&mut words)?.to_be_bytes()),
                source_port: number(&mut words)?,
                sender: number(&mut words)?,
                quality: number(&mut words)?,
                came_in_by: number(&mut words)?,
            }),
        };
        Some(Self {
            place,
            id,
            base,
            counted,
        })
    }
}

/// Flows that were taken in and that the kernel still has.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Not kept yet.
    taken: Vec<Over>,
    /// Kept: the kernel need not have it any more.
    kept: Vec<Over>,
    /// The spool says that something is over.
    is_said: bool,
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
            let meaning = "another version of the agent has kept rollups in a form that this one \
                           does not read; they are in no record";
            let record = Record::loss(
                "rollups-unread",
                n_unread,
                n_unread,
                meaning,
                clock::unix_us(),
            );
            self.reporter.emit(record);
        }
        for (name, value) in losses {
            match self.kernel.took_over() {
                true => self.losses.restore(&name, &value),
                // The counters are new ones, and count from zero.
                false => self.reporter.set_fact(format!("{LOSS}{name}"), None),
            }
        }
        let over = self.reporter.fact(OVER).unwrap_or_default();
        self.keeping.kept = over.split(';').filter_map(Over::parse).collect();
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
        self.keeping.taken.push(Over {
            place,
            id: FlowId::of(&tracked.flow),
            base: tracked.flow.base,
            counted: counted(&tracked.flow),
        });
        if self.keeping.taken.len() < EVENTS_A_BATCH {
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
        } = &mut self.keeping;
        if *is_said || !taken.is_empty() {
            let over = kept.iter().chain(&*taken).map(Over::to_text);
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
        self.events.release();
        kept.append(taken);
        true
    }

    /// Takes what is kept out of the kernel's tables. What came to it meanwhile is told of like
    /// anything that comes late.
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

fn parse_position(text: &str) -> Option<Position> {
    let (map_id, bytes) = text.split_once(' ')?;
    Some(Position {
        map_id: map_id.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::Peer;

    use super::*;

    #[test]
    fn what_is_over_is_read_as_it_was_written() {
        let peer = Peer {
            address: Address([7; 16]),
            port: 443,
            protocol: 6,
            ..Peer::default()
        };
        let (cookie, started_ns) = (u64::MAX, 3);
        let places = [
            Place::Ended(EndedKey { cookie, started_ns }),
            Place::ManyPeers(FlowKey { cookie, peer }),
            Place::Uplinks(UplinkFlowKey {
                cookie: 0,
                peer,
                source: Address([9; 16]),
                source_port: 1,
                sender: 2,
                quality: 3,
                came_in_by: 4,
            }),
        ];
        for place in places {
            let over = Over {
                place,
                id: FlowId {
                    cookie,
                    started_ns,
                    peer,
                },
                base: Counters {
                    packets_out: 5,
                    ..Counters::default()
                },
                counted: Counters {
                    bytes_out: 6,
                    refused: 7,
                    ..Counters::default()
                },
            };
            assert_eq!(Over::parse(&over.to_text()), Some(over));
        }
        let text = "3 15";
        let position = parse_position(text).unwrap();
        assert_eq!((position.map_id, position.bytes), (3, 15));
    }
}
