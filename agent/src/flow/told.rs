//! What was told of flows that outlive an agent, from one to the next: so that what is new
//! in a record is new in all records. Text, one flow a line or a word.

use std::{collections::HashMap, str::FromStr};

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
            text += &words_of(id, told);
            text.push('\n');
        }
        text
    }

    /// Reads what [`to_text`](Self::to_text) has written; `None` if a part of it is missing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (header, rest) = text.split_once('\n')?;
        let n_flows: usize = header.strip_prefix(HEADER)?.trim().parse().ok()?;
        let told: Option<HashMap<_, _>> = rest
            .lines()
            .map(|line| parse_words(&mut line.split(' ')))
            .collect();
        told.filter(|told| told.len() == n_flows).map(Self)
    }
}

/// A flow and its numbers, as words.
pub fn words_of(id: &FlowId, told: &Counters) -> String {
    let FlowId {
        cookie,
        started_ns,
        peer,
    } = id;
    let address = u128::from_be_bytes(peer.address.0);
    let (port, protocol) = (peer.port, peer.protocol);
    let told = counters_text(told);
    format!("{cookie} {started_ns} {address} {port} {protocol} {told}")
}

/// Reads what [`words_of`] has written.
pub fn parse_words<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<(FlowId, Counters)> {
    let (cookie, started_ns) = (number(words)?, number(words)?);
    let address: u128 = number(words)?;
    let peer = Peer {
        address: Address(address.to_be_bytes()),
        port: number(words)?,
        protocol: number(words)?,
        ..Peer::default()
    };
    let id = FlowId {
        cookie,
        started_ns,
        peer,
    };
    Some((id, parse_counters(words)?))
}

/// Counters as words.
pub fn counters_text(counters: &Counters) -> String {
    let Counters {
        bytes_out,
        packets_out,
        bytes_in,
        packets_in,
        blocked_bytes,
        blocked_packets,
        refused,
    } = counters;
    format!(
        "{bytes_out} {packets_out} {bytes_in} {packets_in} {blocked_bytes} {blocked_packets} \
         {refused}"
    )
}

/// Reads what [`counters_text`] has written.
pub fn parse_counters<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<Counters> {
    Some(Counters {
        bytes_out: number(words)?,
        packets_out: number(words)?,
        bytes_in: number(words)?,
        packets_in: number(words)?,
        blocked_bytes: number(words)?,
        blocked_packets: number(words)?,
        refused: number(words)?,
    })
}

/// Reads one word.
pub fn number<'w, N: FromStr>(words: &mut impl Iterator<Item = &'w str>) -> Option<N> {
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
