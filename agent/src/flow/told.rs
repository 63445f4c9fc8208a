//! What was told of flows that outlive an agent, from one to the next: so that what is new
//! in a record is new in all records. Text, one flow a line.

use std::collections::HashMap;

use trefoil_ebpf::abi::{Address, Counters, Peer};

use super::FlowId;

/// What an agent before has told of flows that were open when it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(pub(super) HashMap<FlowId, Counters>);

const HEADER: &str = "trefoil-told 1";

impl Told {
    /// As text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER} {}\n", self.0.len());
        for (id, told) in &self.0 {
            let FlowId {
                cookie,
                started_ns,
                peer,
            } = id;
            let address = u128::from_be_bytes(peer.address.0);
            let Counters {
                bytes_out,
                packets_out,
                bytes_in,
                packets_in,
                blocked_bytes,
                blocked_packets,
                refused,
            } = told;
            text += &format!(
                "{cookie} {started_ns} {address} {} {} {bytes_out} {packets_out} {bytes_in} \
                 {packets_in} {blocked_bytes} {blocked_packets} {refused}\n",
                peer.port, peer.protocol
            );
        }
        text
    }

    /// Reads what [`to_text`](Self::to_text) has written; `None` if a part of it is missing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (header, rest) = text.split_once('\n')?;
        let n_flows: usize = header.strip_prefix(HEADER)?.trim().parse().ok()?;
        let mut told = HashMap::new();
        for line in rest.lines() {
            let mut words = line.split(' ');
            let (cookie, started_ns) = (number(&mut words)?, number(&mut words)?);
            let address: u128 = words.next()?.parse().ok()?;
            let peer = Peer {
                address: Address(address.to_be_bytes()),
                port: u16::try_from(number(&mut words)?).ok()?,
                protocol: u8::try_from(number(&mut words)?).ok()?,
                ..Peer::default()
            };
            let id = FlowId {
                cookie,
                started_ns,
                peer,
            };
            let counters = Counters {
                bytes_out: number(&mut words)?,
                packets_out: number(&mut words)?,
                bytes_in: number(&mut words)?,
                packets_in: number(&mut words)?,
                blocked_bytes: number(&mut words)?,
                blocked_packets: number(&mut words)?,
                refused: number(&mut words)?,
            };
            told.insert(id, counters);
        }
        (told.len() == n_flows).then_some(Self(told))
    }
}

fn number<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<u64> {
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read_whole_or_not_at_all() {
        let id = |cookie| FlowId {
            cookie,
            started_ns: u64::MAX,
            peer: Peer {
                address: Address([cookie as u8; 16]),
                port: 443,
                protocol: 6,
                ..Peer::default()
            },
        };
        let counters = Counters {
            bytes_out: u64::MAX,
            refused: 7,
            ..Counters::default()
        };
        let told = Told(HashMap::from([(id(1), counters), (id(200), counters)]));
        let text = told.to_text();
        assert_eq!(Told::parse(&text), Some(told));
        for end in 0..text.len() - 1 {
            assert_ne!(
                Told::parse(&text[..end]).map(|it| it.0.len()),
                Some(2),
                "{end}"
            );
        }
        assert_eq!(
            Told::parse(&Told::default().to_text()),
            Some(Told::default())
        );
    }
}
