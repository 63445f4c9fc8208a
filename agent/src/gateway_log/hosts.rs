//! Flows of hosts, from their records.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Serialize;

use super::{Bytes, Ends, Span};
use crate::{
    clock,
    observed::Source,
    policy::service::Protocol,
    report::{Field, Kind, NotARecord, Record},
};

/// Most flows that are kept.
pub const MAX_FLOWS: usize = 1_000_000;

/// A flow as its host has recorded it.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// Both ends, that of the host first.
    #[serde(flatten)]
    pub ends: Ends,
    /// Moment of its beginning.
    pub started: String,
    /// Bytes.
    pub bytes: Bytes,
    /// Its verdict.
    pub verdict: String,
    /// Rule that decided.
    pub rule: Option<String>,
    /// Host that recorded it.
    pub host: Option<String>,
    /// Owner, in words.
    pub owner: String,
    /// Community id.
    #[serde(skip)]
    pub community_id: String,
    /// When it was.
    #[serde(skip)]
    pub span: Span,
    /// Its last record was read.
    #[serde(skip)]
    pub is_over: bool,
    #[serde(skip)]
    newest: (u64, u64),
}

/// All flows that records tell of one by one.
#[derive(Debug, Default)]
pub struct Hosts {
    by_name: HashMap<(String, String), Flow>,
    /// Flows that are rolled up, so that nobody knows where they went.
    pub rolled_up: u64,
    /// Flows of protocols that have no community id.
    pub without_id: u64,
    /// Span of the records; none if there are none.
    pub span: Option<Span>,
}

impl Hosts {
    /// Takes a record.
    ///
    /// # Errors
    ///
    /// A fact of it is not what its field says.
    pub fn add(&mut self, record: &Record) -> Result<(), NotARecord> {
        let time_us = time(record, Field::Time)?.unwrap_or(0);
        let now = Span {
            first_us: time_us,
            last_us: time_us,
        };
        self.span = Some(self.span.map_or(now, |span| span.joined(now)));
        if !matches!(record.kind(), Kind::Flow | Kind::Violation) {
            return Ok(());
        }
        let text = |field| record.text(field).map(str::to_owned);
        let number = |field| record.number(field).unwrap_or(0);
        if record.text(Field::State) == Some("rollup") {
            self.rolled_up += number(Field::Flows);
            return Ok(());
        }
        let Some(name) = text(Field::Flow) else {
            // Of a refused call nothing left.
            return Ok(());
        };
        if record.text(Field::Verdict) == Some("local") {
            return Ok(());
        }
        let Some(ends) = ends(record)? else {
            return Ok(());
        };
        let Some(community_id) = text(Field::CommunityId) else {
            self.without_id += 1;
            return Ok(());
        };
        let started_us = time(record, Field::Started)?.unwrap_or(time_us);
        let ended_us = time(record, Field::Ended)?;
        let flow = Flow {
            ends,
            started: clock::rfc3339(started_us),
            bytes: Bytes {
                out: number(Field::BytesOut),
                back: number(Field::BytesIn),
            },
            verdict: text(Field::Verdict).unwrap_or_default(),
            rule: text(Field::Rule),
            host: text(Field::Host),
            owner: Source::of(record).to_string(),
            community_id,
            span: Span {
                first_us: started_us,
                last_us: ended_us.unwrap_or(time_us).max(started_us),
            },
            is_over: record.text(Field::State) == Some("closed"),
            newest: (number(Field::Seq), time_us),
        };
        let boot = text(Field::BootId).unwrap_or_default();
        match self.by_name.get_mut(&(boot.clone(), name.clone())) {
            // Counters are cumulative.
            Some(known) if known.newest < flow.newest => *known = flow,
            Some(_) => {}
            None => drop(self.by_name.insert((boot, name), flow)),
        }
        Ok(())
    }

    /// True if there are more flows than are kept: read no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.by_name.len() > MAX_FLOWS
    }

    /// The hosts' own addresses, as far as they have sent by them.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let flows = self.by_name.values();
        flows.map(|flow| flow.ends.src_addr).collect()
    }

    /// The flows, in the order of their beginnings.
    #[must_use]
    pub fn into_flows(self) -> Vec<Flow> {
        let mut flows: Vec<Flow> = self.by_name.into_values().collect();
        flows.sort_by(|a, b| {
            let key = |flow: &Flow| (flow.span.first_us, flow.newest);
            key(a)
                .cmp(&key(b))
                .then_with(|| a.community_id.cmp(&b.community_id))
        });
        flows
    }
}

/// Both ends of a recorded flow; `None` if the record does not have them.
fn ends(record: &Record) -> Result<Option<Ends>, NotARecord> {
    let wrong = |field: Field| NotARecord::Form(field.name().to_owned());
    let address = |field: Field| {
        let text = record.text(field);
        text.map(|text| text.parse::<IpAddr>().map_err(|_| wrong(field)))
            .transpose()
    };
    let port = |field: Field| {
        let port = record.number(field).unwrap_or(0);
        u16::try_from(port).map_err(|_| wrong(field))
    };
    let (Some(src), Some(dst)) = (address(Field::SrcAddr)?, address(Field::DstAddr)?) else {
        return Ok(None);
    };
    let Some(protocol) = record.text(Field::Protocol) else {
        return Ok(None);
    };
    let protocol = Protocol::parse(protocol).map_err(|_| wrong(Field::Protocol))?;
    Ok(Some(Ends {
        protocol: protocol.0,
        src_addr: src.to_canonical(),
        src_port: port(Field::SrcPort)?,
        dst_addr: dst.to_canonical(),
        dst_port: port(Field::DstPort)?,
    }))
}

fn time(record: &Record, field: Field) -> Result<Option<u64>, NotARecord> {
    let Some(text) = record.text(field) else {
        return Ok(None);
    };
    let moment = clock::unix_us_of(text);
    moment
        .map(Some)
        .ok_or_else(|| NotARecord::Form(field.name().to_owned()))
}
