//! The kernel's counters of losses: which moved, and what that means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trefoil_ebpf::abi::{Totals, verdict};

use crate::report::{Field, Record, words};

/// Every counter of `trefoil_ebpf::abi::LOSSES`, and what it costs when it moves.
pub const MEANINGS: &[(&str, &str)] = &[
    (
        "events-full",
        "the ring buffer was full; the numbers come later, nothing is missing",
    ),
    (
        "flows-full",
        "packets found no room for a flow, and each was told of as a flow of its own; raise \
         tables.flows or tables.uplink_flows",
    ),
    (
        "processes-full",
        "there was no room, or none for one user: flows of some processes have no executable; raise \
         tables.processes",
    ),
    (
        "executables-full",
        "there was no room, or none for one user: flows have no executable; raise tables.executables",
    ),
    (
        "cgroups-full",
        "there was no room, or none for one user: flows have no unit, so rules that approve one do \
         not match, and rules that deny one do; raise tables.cgroups",
    ),
    (
        "tags-failed",
        "no memory for a socket tag; packets were judged and are in the sums, but in no flow",
    ),
    (
        "ended-full",
        "the last numbers of flows are only in the sums; raise tables.ended",
    ),
    ("ended-bytes", "so many bytes are only in the sums"),
    (
        "packets-unparsed",
        "packets without a readable IP header were judged undetermined",
    ),
    (
        "processes-unknown",
        "tasks acted that no hook had seen; their flows have no executable",
    ),
    (
        "executables-unread",
        "the path of an executable could not be read",
    ),
    (
        "cgroups-unknown",
        "control groups that no hook had seen: rules that approve a unit did not match, and rules \
         that deny one did",
    ),
    (
        "policy-missing",
        "decisions found no complete policy and were undetermined",
    ),
    (
        "sockets-untagged",
        "sockets older than the agent or of the kernel; their flows have no process",
    ),
    (
        "uplinks-unknown",
        "frames left by an interface that has no books; they were judged, and are in no sum",
    ),
    (
        "remembered-full",
        "later fragments, and answers for connections that are over, were judged by themselves",
    ),
    (
        "headers-unheld",
        "the kernel had no memory to copy headers that their sender may still change; such frames were \
         judged undetermined",
    ),
    (
        "packets-untold",
        "packets of flows-full found no room in the ring buffer either and are only in the sums; \
         raise tables.events_bytes",
    ),
    ("untold-bytes", "so many bytes of them left"),
];

/// True for a counter that says how something came to be known, and not that it
/// got lost: such flows have attribution `none`, and are counted as that.
#[must_use]
pub fn is_harmless(counter: &str) -> bool {
    counter == "sockets-untagged"
}

/// When a counter was seen to have moved, microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Span {
    /// For the first time.
    pub first_us: u64,
    /// For the last time.
    pub last_us: u64,
}

/// Remembers what was reported.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    reported: BTreeMap<String, u64>,
    /// When that was.
    spans: BTreeMap<String, Span>,
    /// By verdict, bytes and packets that are in no event.
    untold: BTreeMap<u8, (u64, u64)>,
}

impl Losses {
    /// Goes on from what an agent before has reported; from zero if nothing is
    /// known of it, so that what was lost while nobody looked is reported now.
    #[must_use]
    pub fn since(reported: BTreeMap<String, u64>) -> Self {
        Self {
            reported,
            ..Self::default()
        }
    }

    /// All that was reported, as text of facts with these names.
    #[must_use]
    pub fn to_facts(&self) -> Vec<(String, String)> {
        let counters = self.reported.iter();
        let counters =
            counters.map(|(name, total)| (format!("{COUNTER}{name}"), total.to_string()));
        let untold = self.untold.iter().map(|(verdict, (bytes, packets))| {
            (format!("{UNTOLD}{verdict}"), format!("{bytes} {packets}"))
        });
        let spans = self.spans.iter().map(|(name, span)| {
            let Span { first_us, last_us } = span;
            (format!("{SPAN}{name}"), format!("{first_us} {last_us}"))
        });
        counters.chain(untold).chain(spans).collect()
    }

    /// Takes in one of them; anything else is nothing that was reported.
    pub fn restore(&mut self, name: &str, value: &str) {
        if let Some(counter) = name.strip_prefix(COUNTER)
            && let Ok(total) = value.parse()
        {
            self.reported.insert(counter.to_owned(), total);
        }
        if let Some(counter) = name.strip_prefix(SPAN)
            && let Some((first_us, last_us)) = value.split_once(' ')
            && let (Ok(first_us), Ok(last_us)) = (first_us.parse(), last_us.parse())
        {
            let span = Span { first_us, last_us };
            self.spans.insert(counter.to_owned(), span);
        }
        if let Some(verdict) = name.strip_prefix(UNTOLD)
            && let Some((bytes, packets)) = value.split_once(' ')
            && let (Ok(verdict), Ok(bytes), Ok(packets)) =
                (verdict.parse(), bytes.parse(), packets.parse())
        {
            self.untold.insert(verdict, (bytes, packets));
        }
    }

    /// Returns the losses that were reported so far.
    #[must_use]
    pub fn reported(&self) -> &BTreeMap<String, u64> {
        &self.reported
    }

    /// When each of them was seen to have moved.
    #[must_use]
    pub fn spans(&self) -> &BTreeMap<String, Span> {
        &self.spans
    }

    /// Sum of all that was reported.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.reported.values().sum()
    }

    /// By verdict, bytes and packets that were told of what the programs found no room for.
    #[must_use]
    pub fn untold(&self, verdict: u8) -> (u64, u64) {
        self.untold.get(&verdict).copied().unwrap_or_default()
    }

    /// An agent before has told of so much, or of more.
    pub fn restore_untold(&mut self, verdict: u8, told: (u64, u64)) {
        let known = self.untold.entry(verdict).or_default();
        *known = (known.0.max(told.0), known.1.max(told.1));
    }

    /// Somebody has set counters back: what they count from here on is reported again.
    pub fn set_back(&mut self, now: &BTreeMap<&'static str, u64>) {
        for (counter, reported) in &mut self.reported {
            let now = now.get(counter.as_str()).copied().unwrap_or(0);
            *reported = now.min(*reported);
        }
    }

    /// Records of the counters that moved.
    pub fn news(&mut self, now: &BTreeMap<&'static str, u64>, time_us: u64) -> Vec<Record> {
        let mut news = Vec::new();
        for (counter, total) in now.iter().filter(|(counter, _)| !is_harmless(counter)) {
            let before = self.reported.get(*counter).copied().unwrap_or(0);
            if *total > before {
                let meaning = MEANINGS
                    .iter()
                    .find(|(name, _)| name == counter)
                    .map_or("", |(_, meaning)| meaning);
                news.push(Record::loss(
                    counter,
                    total - before,
                    *total,
                    meaning,
                    time_us,
                ));
                self.reported.insert((*counter).to_owned(), *total);
                let span = self.spans.entry((*counter).to_owned()).or_insert(Span {
                    first_us: time_us,
                    last_us: time_us,
                });
                span.last_us = time_us;
            }
        }
        news
    }

    /// Records of traffic that the kernel programs found no room to tell of, by verdict.
    pub fn untold_news(&mut self, now: &[Totals], time_us: u64) -> Vec<Record> {
        let mut news = Vec::new();
        for (sums, verdict) in now.iter().zip(0_u8..) {
            let before = self.untold.entry(verdict).or_default();
            // Somebody may have set them back.
            let bytes = sums.bytes_out.saturating_sub(before.0);
            let packets = sums.packets_out.saturating_sub(before.1);
            *before = (sums.bytes_out, sums.packets_out);
            if verdict == verdict::LOCAL || (bytes, packets) == (0, 0) {
                continue;
            }
            let meaning = "the last numbers of flows found no room in the kernel's tables, and \
                           these bytes are in no other record; raise tables.events_bytes and \
                           tables.ended";
            let total = sums.packets_out;
            let mut record = Record::loss("packets-in-no-flow", packets, total, meaning, time_us);
            record.set_known(Field::Verdict, words::verdict(verdict));
            record.set(Field::BytesOut, bytes);
            record.set(Field::PacketsOut, packets);
            news.push(record);
        }
        news
    }
}

/// Begin of the names of facts.
const COUNTER: &str = "counter.";
const UNTOLD: &str = "untold.";
const SPAN: &str = "span.";

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::LOSSES;

    use super::*;
    use crate::report::Field;

    #[test]
    fn every_counter_has_a_meaning() {
        let names: Vec<&str> = MEANINGS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, LOSSES);
    }

    #[test]
    fn what_was_lost_while_nobody_looked_is_reported_once() {
        let before = BTreeMap::from([("events-full".to_owned(), 3)]);
        let mut losses = Losses::since(before);
        let now = BTreeMap::from([("events-full", 5), ("flows-full", 2), ("tags-failed", 0)]);
        let news = losses.news(&now, 0);
        let counts: Vec<_> = news
            .iter()
            .map(|record| record.number(Field::Count))
            .collect();
        assert_eq!(counts, [Some(2), Some(2)]);
        assert!(losses.news(&now, 0).is_empty());
        assert_eq!(losses.sum(), 7);
    }

    #[test]
    fn what_is_lost_after_a_counter_was_set_back_is_reported() {
        let mut losses = Losses::since(BTreeMap::from([("events-full".to_owned(), 3)]));
        losses.set_back(&BTreeMap::from([("events-full", 1)]));
        let news = losses.news(&BTreeMap::from([("events-full", 2)]), 0);
        let counts: Vec<_> = news
            .iter()
            .map(|record| record.number(Field::Count))
            .collect();
        assert_eq!(counts, [Some(1)]);
    }

    #[test]
    fn when_something_was_lost_is_remembered_by_whichever_agent() {
        let mut losses = Losses::default();
        for (total, time_us) in [(0, 10), (1, 20), (1, 30), (2, 40), (2, 50)] {
            losses.news(&BTreeMap::from([("flows-full", total)]), time_us);
        }
        let mut next = Losses::default();
        for (name, value) in losses.to_facts() {
            next.restore(&name, &value);
        }
        let span = Span {
            first_us: 20,
            last_us: 40,
        };
        assert_eq!(next.spans().get("flows-full"), Some(&span));
    }

    #[test]
    fn traffic_that_nobody_told_of_is_told_once_by_whichever_agent() {
        let mut sums = [Totals::default(); verdict::N as usize];
        sums[usize::from(verdict::LOCAL)].bytes_out = 9;
        let approved = &mut sums[usize::from(verdict::APPROVED)];
        (approved.bytes_out, approved.packets_out) = (700, 7);
        let mut losses = Losses::default();
        let news = losses.untold_news(&sums, 0);
        let told: Vec<_> = news
            .iter()
            .map(|it| (it.text(Field::Verdict), it.number(Field::BytesOut)))
            .collect();
        assert_eq!(told, [(Some("approved"), Some(700))]);
        let mut next = Losses::default();
        for (name, value) in losses.to_facts() {
            next.restore(&name, &value);
        }
        assert!(next.untold_news(&sums, 0).is_empty());
        sums[usize::from(verdict::APPROVED)].bytes_out = 800;
        assert_eq!(next.untold_news(&sums, 0).len(), 1);
    }

    #[test]
    fn an_untagged_socket_is_no_loss() {
        let now = BTreeMap::from([("sockets-untagged", 9)]);
        assert!(Losses::default().news(&now, 0).is_empty());
    }
}
