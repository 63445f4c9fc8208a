//! The account of a log and of records: what both have, and what one of them has alone.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Serialize;

use super::{Bytes, Ends, Flow, Hosts, Line, Mapping, Span};
use crate::clock;

/// Most lines that are kept which no record is about.
const MOST_UNKNOWN: usize = 1_000_000;
/// Bytes that a gateway may have seen less than left the host, for one pair of ends: what was lost
/// between them.
const MOST_LOST: u64 = 64 << 10;

/// Flow that the gateway has seen and no host has recorded.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Both ends, who opened it first.
    #[serde(flatten)]
    pub ends: Ends,
    /// Moment of its beginning.
    pub started: String,
    /// Bytes from and to the host, as the gateway counted them.
    pub bytes: Option<Bytes>,
    #[serde(skip)]
    span: Span,
}

/// A flow that both have, of which less passed the gateway than left the host.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// As the host has it.
    #[serde(flatten)]
    pub flow: Flow,
    /// Bytes that the gateway counted.
    pub gateway_bytes: Bytes,
}

/// The account. Lists are in the order of time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Account {
    /// Lines of flows in the log.
    pub lines: u64,
    /// Flows that were joined.
    pub joined: u64,
    /// Their bytes as the hosts counted them.
    pub host_bytes: Bytes,
    /// Their bytes as the gateway counted them.
    pub gateway_bytes: Bytes,
    /// Approved as `gateway`, and not in the log.
    pub not_seen: Vec<Flow>,
    /// In the log, with an address of one of the hosts, and in no record.
    pub not_recorded: Vec<Seen>,
    /// Less passed the gateway than left the host.
    pub fewer_bytes: Vec<Held>,
    /// Flows that began before the log, or were not over at its end.
    pub flows_outside: u64,
    /// Lines about flows before the records, or not over at their end.
    pub lines_outside: u64,
    /// Lines that are about no address of the hosts.
    pub of_others: u64,
    /// Flows that are rolled up in the records.
    pub rolled_up: u64,
    /// Lines and flows of protocols without a community id.
    pub without_id: u64,
    /// Beginning and end of the log.
    pub log: Option<[String; 2]>,
    /// Beginning and end of the records.
    pub records: Option<[String; 2]>,
}

impl Account {
    /// True if something is only on one side, or less of it.
    #[must_use]
    pub fn has_findings(&self) -> bool {
        !(self.not_seen.is_empty() && self.not_recorded.is_empty() && self.fewer_bytes.is_empty())
    }
}

/// Takes the lines of a log, and holds them against flows.
#[derive(Debug)]
pub struct Ledger<'m> {
    mapping: &'m Mapping,
    flows: Vec<Flow>,
    of_id: HashMap<String, Vec<usize>>,
    /// For each flow, whether the gateway has seen it, and what it counted in the lines that are
    /// about this one flow alone.
    seen: Vec<(bool, Option<Bytes>)>,
    addresses: BTreeSet<IpAddr>,
    records: Option<Span>,
    log: Option<Span>,
    unknown: Vec<Seen>,
    account: Account,
}

impl<'m> Ledger<'m> {
    /// Flows that lines are held against.
    #[must_use]
    pub fn new(hosts: Hosts, mapping: &'m Mapping) -> Self {
        let (addresses, records) = (hosts.addresses(), hosts.span);
        let account = Account {
            rolled_up: hosts.rolled_up,
            without_id: hosts.without_id,
            ..Account::default()
        };
        let flows = hosts.into_flows();
        let mut of_id: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, flow) in flows.iter().enumerate() {
            of_id.entry(flow.community_id.clone()).or_default().push(at);
        }
        Self {
            mapping,
            seen: vec![(false, None); flows.len()],
            flows,
            of_id,
            addresses,
            records,
            log: None,
            unknown: Vec::new(),
            account,
        }
    }

    fn skew_us(&self) -> u64 {
        self.mapping.clock_skew.as_micros() as u64
    }

    /// True if there are more lines than are kept: read no more.
    pub fn is_full(&self) -> bool {
        self.unknown.len() > MOST_UNKNOWN
    }

    /// Takes a line.
    pub fn add(&mut self, line: Line) {
        let account = &mut self.account;
        account.lines += 1;
        self.log = Some(self.log.map_or(line.span, |span| span.joined(line.span)));
        let (src, dst) = (line.ends.src_addr, line.ends.dst_addr);
        let is_of_src = self.addresses.contains(&src);
        if !is_of_src && !self.addresses.contains(&dst) {
            account.of_others += 1;
            return;
        }
        if line.community_ids.is_empty() {
            account.without_id += 1;
            return;
        }
        let skew_us = self.skew_us();
        let ids = line.community_ids.iter();
        let all = ids.filter_map(|id| self.of_id.get(id)).flatten();
        let mut met: Vec<usize> = all
            .copied()
            .filter(|&at| self.flows[at].span.meets(&line.span, skew_us))
            .collect();
        met.sort_unstable();
        met.dedup();
        let as_of = |address: IpAddr, bytes: Bytes| match address == src {
            true => bytes,
            false => Bytes {
                out: bytes.back,
                back: bytes.out,
            },
        };
        let Some(&first) = met.first() else {
            let own = if is_of_src { src } else { dst };
            self.unknown.push(Seen {
                ends: line.ends,
                started: clock::rfc3339(line.span.first_us),
                bytes: line.bytes.map(|bytes| as_of(own, bytes)),
                span: line.span,
            });
            return;
        };
        let bytes = line
            .bytes
            .map(|bytes| as_of(self.flows[first].ends.src_addr, bytes));
        if let Some(bytes) = bytes {
            self.account.gateway_bytes.add(bytes);
        }
        let is_alone = met.len() == 1;
        for at in met {
            let (is_seen, counted) = &mut self.seen[at];
            // Bytes that several flows share cannot be said of one.
            *counted = match (bytes.filter(|_| is_alone), *counted, *is_seen) {
                (Some(bytes), None, false) => Some(bytes),
                (Some(bytes), Some(mut sum), _) => {
                    sum.add(bytes);
                    Some(sum)
                }
                _ => None,
            };
            *is_seen = true;
        }
    }

    /// The account. `is_of_gateway` says which ends of a flow are the gateway's whose log it is.
    pub fn finish(mut self, is_of_gateway: impl Fn(&Ends) -> bool) -> Account {
        let (skew_us, delay_us) = (self.skew_us(), self.mapping.delay.as_micros() as u64);
        // A flow that is over long enough before the end has come in.
        let is_within = |span: &Span, whole: Option<Span>| {
            whole.is_some_and(|whole| {
                span.first_us >= whole.first_us.saturating_add(skew_us)
                    && span.last_us.saturating_add(delay_us) <= whole.last_us
            })
        };
        let account = &mut self.account;
        for (flow, (is_seen, counted)) in self.flows.into_iter().zip(self.seen) {
            if is_seen {
                account.joined += 1;
                account.host_bytes.add(flow.bytes);
                let least = |out: u64| (out - out / 8).saturating_sub(MOST_LOST);
                if let Some(gateway_bytes) = counted
                    && flow.is_over
                    && gateway_bytes.out < least(flow.bytes.out)
                    && is_of_gateway(&flow.ends)
                {
                    account.fewer_bytes.push(Held {
                        flow,
                        gateway_bytes,
                    });
                }
            } else if flow.verdict == "gateway" && is_of_gateway(&flow.ends) {
                match flow.is_over && is_within(&flow.span, self.log) {
                    true => account.not_seen.push(flow),
                    false => account.flows_outside += 1,
                }
            }
        }
        for seen in self.unknown {
            match is_within(&seen.span, self.records) {
                true => account.not_recorded.push(seen),
                false => account.lines_outside += 1,
            }
        }
        account
            .not_recorded
            .sort_by_key(|seen| (seen.span.first_us, seen.span.last_us));
        let words = |span: Span| [clock::rfc3339(span.first_us), clock::rfc3339(span.last_us)];
        account.log = self.log.map(words);
        account.records = self.records.map(words);
        self.account
    }
}
