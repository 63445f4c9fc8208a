//! A flow that was taken for over while the kernel still has it: where that is, and with which
//! numbers, as a fact of the spool has them.
//!
//! It only reads and writes text: `keeping` decides when a flow is given back.

use trefoil_ebpf::abi::{Address, Counters, EndedKey, FlowKey, UplinkFlowKey};

use crate::flow::{FlowId, counters_text, number, parse_counters, parse_words, words_of};

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
pub(super) struct EndedFlow {
    pub(super) place: Place,
    pub(super) id: FlowId,
    pub(super) base: Counters,
    pub(super) counted: Counters,
}

impl EndedFlow {
    /// Writes it as a part of a fact.
    pub(super) fn to_text(&self) -> String {
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
    pub(super) fn parse(text: &str) -> Option<Self> {
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

/// Flows that an agent has taken for over, with their numbers.
pub(super) fn flows_over(text: &str) -> impl Iterator<Item = (FlowId, Counters)> {
    let all = text.split(';').filter_map(EndedFlow::parse);
    all.map(|over| (over.id, over.counted))
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
            let over = EndedFlow {
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
            assert_eq!(EndedFlow::parse(&over.to_text()), Some(over));
        }
    }
}
