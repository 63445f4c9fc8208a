//! Counters that were told of flows that are open: kept beyond an agent's life, however it ends, so
//! that bytes that are new in a record are new in all records. Facts with a name and a value, both
//! text.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use trefoil_ebpf::abi::{Address, Counters, Peer};

use super::{FlowId, kept::Change};

/// Counters of each open flow as records have told them.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By an agent before, of flows that did not show up yet.
    before: HashMap<FlowId, Counters>,
    /// Flows that began before this may have been told of without a fact that says so.
    unknown_until_ns: u64,
    /// Agents before have kept all.
    was_whole: bool,
    /// Flows that have a fact.
    kept: HashSet<FlowId>,
    /// Most of them.
    max: usize,
    changed: HashMap<FlowId, Option<Counters>>,
    /// `None` as long as it was not said whether all are kept.
    is_whole: Option<bool>,
    /// More than there is room for.
    is_cut: bool,
}

/// Name of the fact that says whether each flow that was told of has one.
const WHOLE: &str = "all";

impl Told {
    /// Keeps at most so many.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// A record has told so much of an open flow.
    pub(super) fn note(&mut self, id: FlowId, counted: Counters) {
        if self.kept.len() >= self.max && !self.kept.contains(&id) {
            self.is_cut = true;
            return;
        }
        self.kept.insert(id);
        self.changed.insert(id, Some(counted));
    }

    /// A flow is over.
    pub(super) fn forget(&mut self, id: &FlowId) {
        if self.kept.remove(id) {
            self.changed.insert(*id, None);
        }
    }

    /// Takes the counters that an agent before has told of a flow that shows up; and true if it may
    /// have told of more.
    pub(super) fn take(&mut self, id: &FlowId) -> (Counters, bool) {
        match self.before.remove(id) {
            Some(told) => (told, false),
            None => (Counters::default(), id.started_ns < self.unknown_until_ns),
        }
    }

    /// Begins, after [`restore`](Self::restore) was told all that was kept. `goes_on` if the
    /// flows of an agent before go on.
    pub(super) fn begin(&mut self, goes_on: bool, now_ns: u64) {
        if !goes_on {
            self.give_up();
        } else if !self.was_whole {
            self.unknown_until_ns = now_ns;
        }
    }

    /// Flows that did not show up by now never will.
    pub(super) fn give_up(&mut self) {
        for id in std::mem::take(&mut self.before).into_keys() {
            self.forget(&id);
        }
    }

    /// Changes since the last call.
    pub(super) fn changes(&mut self) -> impl Iterator<Item = Change> {
        let is_whole = !self.is_cut;
        let is_news = self.is_whole != Some(is_whole);
        self.is_whole = Some(is_whole);
        let whole = is_news.then(|| (WHOLE.to_owned(), Some(u8::from(is_whole).to_string())));
        let changed = self.changed.drain();
        let changed =
            changed.map(|(id, told)| (id_text(&id, ","), told.as_ref().map(counters_text)));
        whole.into_iter().chain(changed)
    }

    /// Takes in a fact of an agent before. False if it cannot be read.
    pub(super) fn restore(&mut self, name: &str, value: &str) -> bool {
        if name == WHOLE {
            self.was_whole = value == "1";
            self.is_cut = !self.was_whole;
            return true;
        }
        let id = parse_id(&mut name.split(','));
        let told = parse_counters(&mut value.split(' '));
        let Some((id, told)) = id.zip(told) else {
            return false;
        };
        self.before.insert(id, told);
        self.kept.insert(id);
        true
    }
}

/// A flow and its numbers, as words.
pub fn words_of(id: &FlowId, told: &Counters) -> String {
    format!("{} {}", id_text(id, " "), counters_text(told))
}

fn id_text(id: &FlowId, between: &str) -> String {
    let FlowId {
        cookie,
        started_ns,
        peer,
    } = id;
    let address = u128::from_be_bytes(peer.address.0);
    let (port, protocol) = (peer.port.to_string(), peer.protocol.to_string());
    let words = [
        cookie.to_string(),
        started_ns.to_string(),
        address.to_string(),
        port,
        protocol,
    ];
    words.join(between)
}

fn parse_id<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<FlowId> {
    let (cookie, started_ns) = (number(words)?, number(words)?);
    let address: u128 = number(words)?;
    let peer = Peer {
        address: Address(address.to_be_bytes()),
        port: number(words)?,
        protocol: number(words)?,
        ..Peer::default()
    };
    Some(FlowId {
        cookie,
        started_ns,
        peer,
    })
}

/// Reads what [`words_of`] has written.
pub fn parse_words<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<(FlowId, Counters)> {
    let id = parse_id(words)?;
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

    fn id(cookie: u64) -> FlowId {
        FlowId {
            cookie,
            started_ns: cookie * 10,
            peer: Peer {
                address: Address([cookie as u8; 16]),
                port: 443,
                protocol: 6,
                ..Peer::default()
            },
        }
    }

    fn restored(facts: &[Change]) -> Told {
        let mut next = Told::new(9);
        for (name, value) in facts {
            assert!(next.restore(name, value.as_deref().unwrap()), "{name}");
        }
        next.begin(true, 1_000);
        next
    }

    #[test]
    fn what_was_told_is_known_to_the_next_agent() {
        let told = Counters {
            bytes_out: u64::MAX,
            refused: 7,
            ..Counters::default()
        };
        let mut first = Told::new(2);
        first.note(id(1), told);
        first.note(id(2), told);
        first.forget(&id(2));
        let facts: Vec<_> = first
            .changes()
            .filter(|(_, value)| value.is_some())
            .collect();
        let mut next = restored(&facts);
        assert_eq!(next.take(&id(1)), (told, false));
        assert_eq!(next.take(&id(2)), (Counters::default(), false));
        assert!(!next.restore("1,2", "3"));
        // Of what has no room it is not known.
        first.note(id(3), told);
        first.note(id(4), told);
        let more: Vec<_> = facts
            .into_iter()
            .chain(first.changes())
            .filter(|(_, value)| value.is_some())
            .collect();
        let mut next = restored(&more);
        assert_eq!(next.take(&id(3)), (told, false));
        assert_eq!(next.take(&id(4)), (Counters::default(), true));
        assert_eq!(next.take(&id(1_000)), (Counters::default(), false));
    }

    #[test]
    fn what_did_not_show_up_is_forgotten() {
        let mut first = Told::new(2);
        first.note(id(1), Counters::default());
        let facts: Vec<_> = first.changes().collect();
        let mut next = restored(&facts);
        next.give_up();
        assert!(
            next.changes()
                .any(|(name, value)| name.starts_with("1,") && value.is_none())
        );
    }
}
