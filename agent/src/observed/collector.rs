//! Adds records up to what was seen.
//!
//! Counters of a flow are cumulative, so of all its records the largest numbers
//! count, and a record that is read twice counts once. A rollup is the only record of
//! the flows in it, so each counts, by its number.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    fmt,
    sync::Arc,
};

use serde::Serialize;

use super::{
    Amount, Observed, Said, Source, Target, Way,
    line::{self, Line},
};
use crate::{
    bounded::MAX_LINE,
    clock,
    geo::Country,
    policy::service::Protocol,
    report::{Field, Kind, NotARecord, Record, words},
};

/// Most flows, and owners with a destination of rolled-up ones, that are kept at a time.
/// Of 100,000 flows each to a place of its own, 300 MB are kept and made into rules.
pub const MAX_FLOWS: usize = 100_000;

/// Faults that are kept; the rest are counted.
const MOST_FAULTS: usize = 10;

/// Account of the reading: how much was read, and how much of it could not be used. Nothing
/// is left out silently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Records, of any kind.
    pub records: u64,
    /// Records of flows among them.
    pub flow_records: u64,
    /// Entries of the journal that are not from Trefoil.
    pub other_entries: u64,
    /// Entries that look like records and are not known to be root's.
    pub not_trusted: u64,
    /// Lines that could not be read.
    pub unreadable: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
    /// Numbers of records that are between those that were read and are not there:
    /// filtered out, removed, or lost.
    pub missing_records: u64,
    /// The same by host.
    pub missing_of: BTreeMap<String, u64>,
    /// Losses that the records tell of: what got lost is not among what was seen.
    pub losses: u64,
    /// Hosts that the records are from.
    pub hosts: BTreeSet<String>,
    /// When the first record was made.
    pub first: Option<String>,
    /// When the last one was made.
    pub last: Option<String>,
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its file.
    pub file: String,
    /// Its number, from 1.
    pub line: u64,
    /// The host that it is from, if it says so.
    pub host: Option<String>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            host,
            reason,
        } = self;
        write!(formatter, "{file}:{line}: {reason}")?;
        match host {
            Some(host) => write!(formatter, " (host {host})"),
            None => Ok(()),
        }
    }
}

/// Reads records one after the other, in any order.
#[derive(Debug, Default)]
pub struct Collector {
    reading: Reading,
    sources: HashSet<Arc<Source>>,
    /// By boot and name.
    flows: HashMap<(Arc<str>, Arc<str>), FlowSoFar>,
    rolled: HashMap<Key, Amount>,
    /// The numbers of records, by who gave them, with the name of the host.
    numbers: HashMap<Numbering, (Arc<str>, HashSet<u64>)>,
}

/// Origin of a record's number: boot, installation and instance of the agent.
type Numbering = [Arc<str>; 3];

type Key = (Arc<Source>, Target, Said);

/// Facts known of one flow by now.
#[derive(Debug)]
struct FlowSoFar {
    /// The order of its newest record.
    newest: (u64, Arc<str>),
    pid: Option<u64>,
    key: Key,
    amount: Amount,
}

impl Collector {
    /// Reads all lines of a file. `file` is its name, for faults.
    pub fn add_text(&mut self, file: &str, text: &[u8]) {
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            self.add_line(file, number, line);
        }
    }

    /// Reads one line, without its end. A line that cannot be read is counted. False for such a line,
    /// and for an empty one.
    pub fn add_line(&mut self, file: &str, number: u64, line: &[u8]) -> bool {
        if line.trim_ascii().is_empty() {
            return false;
        }
        let added = match line::read(line) {
            Ok(Line::Record(record)) => self.add(&record).map_err(|error| error.to_string()),
            Ok(Line::Other) => {
                self.reading.other_entries += 1;
                Ok(())
            }
            Ok(Line::NotTrusted) => {
                self.reading.not_trusted += 1;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = &added {
            self.complain(file, number, line, reason);
        }
        added.is_ok()
    }

    /// Counts a line that was too long to be kept. Returns false, as [`add_line`](Self::add_line) does.
    pub fn add_long_line(&mut self, file: &str, number: u64) -> bool {
        let reason = format!("longer than {MAX_LINE} bytes, which no record is");
        self.complain(file, number, b"", &reason);
        false
    }

    /// True if there are more flows than are kept: read no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.flows.len() + self.rolled.len() > MAX_FLOWS
    }

    fn complain(&mut self, file: &str, number: u64, line: &[u8], reason: &str) {
        self.reading.unreadable += 1;
        if self.reading.faults.len() < MOST_FAULTS {
            // A fault of a line often names a part of it, which others wrote.
            self.reading.faults.push(Fault {
                file: file.to_owned(),
                line: number,
                host: line::host(line).map(|host| words::clean(&host).into_owned()),
                reason: words::clean(reason).into_owned(),
            });
        }
    }

    /// Takes a record.
    ///
    /// # Errors
    ///
    /// A fact of it is not what its field says. Nothing of it is taken then.
    pub fn add(&mut self, record: &Record) -> Result<(), NotARecord> {
        let time = time(record, Field::Time)?;
        let boot: Arc<str> = record.text(Field::BootId).unwrap_or_default().into();
        let number = record.number(Field::Seq);
        let is_of_flows = matches!(record.kind(), Kind::Flow | Kind::Violation);
        let is_named =
            record.text(Field::Flow).is_some() && record.text(Field::State) != Some("rollup");
        if is_of_flows && !is_named && number.is_none() {
            // Nothing would tell whether it was read before.
            return Err(NotARecord::Lacks(Field::Seq.name().to_owned()));
        }
        let seen = is_of_flows.then(|| seen(record)).transpose()?;
        let is_new = match number {
            Some(number) => {
                let text = |field| Arc::from(record.text(field).unwrap_or_default());
                let numbering = [
                    Arc::clone(&boot),
                    text(Field::MachineId),
                    text(Field::Instance),
                ];
                let (host, numbers) = self.numbers.entry(numbering).or_default();
                if let Some(name) = record.text(Field::Host).filter(|name| *name != &**host) {
                    *host = name.into();
                }
                numbers.insert(number)
            }
            None => true,
        };

        let reading = &mut self.reading;
        reading.records += 1;
        if let Some(time) = time.as_deref() {
            if reading.first.as_deref().is_none_or(|first| time < first) {
                reading.first = Some(time.to_owned());
            }
            if reading.last.as_deref().is_none_or(|last| time > last) {
                reading.last = Some(time.to_owned());
            }
        }
        if let Some(host) = record.text(Field::Host)
            && !reading.hosts.contains(host)
        {
            reading.hosts.insert(host.to_owned());
        }
        if record.kind() == Kind::Loss && is_new {
            let lost = record.number(Field::Count).unwrap_or(1);
            reading.losses = reading.losses.saturating_add(lost);
        }
        let Some((key, amount)) = seen else {
            return Ok(());
        };
        self.reading.flow_records += 1;
        let key = (self.interned(key.0), key.1, key.2);
        match record.text(Field::Flow) {
            Some(name) if is_named => {
                let newest = (number.unwrap_or(0), time.unwrap_or_default());
                let pid = record.number(Field::Pid);
                self.add_flow((boot, name.into()), newest, pid, key, amount);
            }
            _ if is_new => self.rolled.entry(key).or_default().add(&amount),
            _ => {}
        }
        Ok(())
    }

    /// Returns the flows that were seen, in an order that does not depend on that of the
    /// records.
    #[must_use]
    pub fn finish(self) -> (Vec<Observed>, Reading) {
        let mut reading = self.reading;
        for ([_, _, instance], (host, numbers)) in &self.numbers {
            if let (Some(first), Some(last)) = (numbers.iter().min(), numbers.iter().max()) {
                let between = (last - first).saturating_sub(numbers.len() as u64 - 1);
                reading.missing_records = reading.missing_records.saturating_add(between);
                if between > 0 {
                    let name = match (&**host, &**instance) {
                        ("", _) => "no host".to_owned(),
                        (host, "") => host.to_owned(),
                        (host, instance) => format!("{host} ({instance})"),
                    };
                    *reading.missing_of.entry(name).or_default() += between;
                }
            }
        }
        let mut all: BTreeMap<Key, Amount> = BTreeMap::new();
        let flows = self.flows.into_values().map(|flow| (flow.key, flow.amount));
        for (key, amount) in flows.chain(self.rolled) {
            all.entry(key).or_default().add(&amount);
        }
        let observed = all
            .into_iter()
            .map(|((source, target, said), amount)| Observed {
                source,
                target,
                said,
                amount,
            })
            .collect();
        (observed, reading)
    }

    fn add_flow(
        &mut self,
        name: (Arc<str>, Arc<str>),
        newest: (u64, Arc<str>),
        pid: Option<u64>,
        key: Key,
        amount: Amount,
    ) {
        let known = match self.flows.entry(name) {
            Entry::Vacant(place) => {
                place.insert(FlowSoFar {
                    newest,
                    pid,
                    key,
                    amount,
                });
                return;
            }
            Entry::Occupied(known) => known.into_mut(),
        };
        let (newer, older) = if newest >= known.newest {
            (&key.0, &known.key.0)
        } else {
            (&known.key.0, &key.0)
        };
        // A unit may be gone, and its name with it, before its last flow is told of.
        let source = (pid == known.pid)
            .then(|| newer.filled_from(older))
            .flatten();
        if newest >= known.newest {
            known.newest = newest;
            known.pid = pid;
            known.key = key;
        }
        let sum = &mut known.amount;
        sum.bytes_out = sum.bytes_out.max(amount.bytes_out);
        sum.packets_out = sum.packets_out.max(amount.packets_out);
        sum.blocked = sum.blocked.max(amount.blocked);
        sum.see(amount.first.as_ref());
        sum.see(amount.last.as_ref());
        if let Some(source) = source {
            known.key.0 = match self.sources.get(&source) {
                Some(known) => Arc::clone(known),
                None => Arc::new(source),
            };
        }
    }

    fn interned(&mut self, source: Source) -> Arc<Source> {
        if let Some(known) = self.sources.get(&source) {
            return Arc::clone(known);
        }
        let source = Arc::new(source);
        self.sources.insert(Arc::clone(&source));
        source
    }
}

/// ESP and AH: what no call names, and translation makes of nothing.
const ENCRYPTED: Protocol = Protocol(50);
/// See [`ENCRYPTED`].
const AUTHENTICATED: Protocol = Protocol(51);

/// Reads source, target, verdict and amount from a record of flows.
fn seen(record: &Record) -> Result<((Source, Target, Said), Amount), NotARecord> {
    let is_rollup = record.text(Field::State) == Some("rollup");
    let wrong = |field: Field| NotARecord::Form(field.name().to_owned());
    let text = |field: Field| record.text(field);
    let port = |field: Field| match record.number(field) {
        None => Ok(0),
        Some(port) => u16::try_from(port).map_err(|_| wrong(field)),
    };
    let address = match text(Field::DstAddr) {
        None if is_rollup => None,
        None => return Err(NotARecord::Lacks(Field::DstAddr.name().to_owned())),
        Some(text) => {
            let address: std::net::IpAddr = text.parse().map_err(|_| wrong(Field::DstAddr))?;
            Some(address.to_canonical())
        }
    };
    let named = match text(Field::DstNamed) {
        None => None,
        Some(text) => {
            let named: std::net::IpAddr = text.parse().map_err(|_| wrong(Field::DstNamed))?;
            Some(named.to_canonical())
        }
    };
    let protocol = match text(Field::Protocol) {
        None if is_rollup => None,
        None => return Err(NotARecord::Lacks(Field::Protocol.name().to_owned())),
        Some(text) => Some(Protocol::parse(text).map_err(|_| wrong(Field::Protocol))?),
    };
    let country = match text(Field::DstCountry) {
        None => None,
        Some(code) => Some(Country::parse(code).ok_or_else(|| wrong(Field::DstCountry))?),
    };
    let way = match text(Field::Direction) {
        Some("outbound") => Way::Outbound,
        Some("accepted") => Way::Accepted,
        Some("claimed") => Way::Claimed,
        _ => Way::Unknown,
    };
    let near_port = match way {
        Way::Accepted | Way::Claimed => port(Field::SrcPort)?,
        Way::Outbound | Way::Unknown => 0,
    };
    let target = Target {
        way,
        address,
        country,
        protocol,
        port: port(Field::DstPort)?,
        near_port,
        encrypted_to: match protocol {
            Some(ENCRYPTED | AUTHENTICATED) => named,
            _ => None,
        },
    };
    let said = Said {
        verdict: text(Field::Verdict).unwrap_or_default().into(),
        rule: text(Field::Rule).map(Arc::from),
        outcome: text(Field::Outcome).unwrap_or_default().into(),
    };
    let number = |field| record.number(field).unwrap_or(0);
    let mut amount = Amount {
        flows: match is_rollup {
            true => number(Field::Flows),
            false => 1,
        },
        bytes_out: number(Field::BytesOut),
        packets_out: number(Field::PacketsOut),
        blocked: number(Field::BlockedPackets).saturating_add(number(Field::Refused)),
        first: None,
        last: None,
    };
    for field in [Field::Started, Field::Time, Field::Ended] {
        amount.see(time(record, field)?.as_ref());
    }
    Ok(((Source::of(record), target, said), amount))
}

/// A moment, in the form in which the agent writes it, so that moments compare as text does.
fn time(record: &Record, field: Field) -> Result<Option<Arc<str>>, NotARecord> {
    let Some(text) = record.text(field) else {
        return Ok(None);
    };
    let unix_us = clock::unix_us_of(text);
    let unix_us = unix_us.ok_or_else(|| NotARecord::Form(field.name().to_owned()))?;
    Ok(Some(clock::rfc3339(unix_us).into()))
}

const MISSING: &str = "numbers of records in between are not there: filtered out, removed or lost";

impl Reading {
    /// Returns the gaps of the reading, in words; empty if there are none.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let all = [
            (self.unreadable, "lines could not be read"),
            (
                self.not_trusted,
                "entries of the journal look like records and are not known to be from root",
            ),
            (self.missing_records, MISSING),
            (
                self.losses,
                "losses of events, flows or records were reported",
            ),
        ];
        let complaints = all.into_iter().filter(|(n, _)| *n > 0);
        let of = self.missing_of.iter().take(MOST_FAULTS);
        let of: Vec<_> = of
            .map(|(host, n)| format!("{}: {n}", words::clean(host)))
            .collect();
        complaints
            .map(|(n, what)| match what == MISSING {
                true => format!("{n} {what} ({})", of.join(", ")),
                false => format!("{n} {what}"),
            })
            .collect()
    }

    /// True if something was there that could not be read or believed.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        self.unreadable > 0 || self.not_trusted > 0
    }
}
