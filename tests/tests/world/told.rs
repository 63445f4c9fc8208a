//! The sums that records of several agents tell, by verdict, and what has left by that.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trefoil_lab::agent::kernel_verb;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::{Lab, Record, wait_for};

use super::is_final;

/// Bytes and packets.
pub type Sum = (u64, u64);

/// The records of agents that followed each other, by number. One may come twice, and then it is
/// the same to the last byte; none is missing.
pub fn numbered(records: &[Record]) -> Result<Vec<&Record>> {
    let mut numbered: BTreeMap<u64, &Record> = BTreeMap::new();
    for record in records {
        let before = numbered.insert(record.number("seq")?, record);
        ensure!(
            before.is_none_or(|before| before == record),
            "one number, two records: {record} and {before:?}"
        );
    }
    let last = numbered.keys().next_back().copied().unwrap_or(0);
    for (expected, seq) in (1..=last).zip(numbered.keys()) {
        ensure!(*seq == expected, "record {expected} is in no sink");
    }
    Ok(numbered.into_values().collect())
}

/// The sums of final records and of `loss` records, by verdict.
pub fn told_by_verdict(records: &[Record]) -> Result<BTreeMap<String, Sum>> {
    let mut told: BTreeMap<String, Sum> = BTreeMap::new();
    for record in numbered(records)? {
        let is_lost = record.is("event", "loss") && !record.text("verdict").is_empty();
        if is_final(record) || record.is("state", "rollup") || is_lost {
            let sum = told.entry(record.text("verdict")).or_default();
            sum.0 += record.number("bytes_out").unwrap_or(0);
            sum.1 += record.number("packets_out").unwrap_or(0);
        }
    }
    told.retain(|_, sum| *sum != (0, 0));
    Ok(told)
}

/// Sums the new bytes of records of all kinds, over all verdicts: none of the records may lack
/// the field.
pub fn told_as_new(records: &[Record]) -> Result<Sum> {
    let mut new = (0, 0);
    for record in numbered(records)? {
        if record.is("event", "flow") || record.is("event", "violation") {
            new.0 += record.number("bytes_new")?;
            new.1 += record.number("packets_new")?;
        }
    }
    Ok(new)
}

/// The sums of `loss` records alone.
pub fn lost(records: &[Record]) -> Result<Sum> {
    let mut lost = (0, 0);
    for record in numbered(records)? {
        if record.is("event", "loss") && !record.text("verdict").is_empty() {
            lost.0 += record.number("bytes_out")?;
            lost.1 += record.number("packets_out")?;
        }
    }
    Ok(lost)
}

/// The sums that arrived at these places, each of which one verdict is about.
pub fn arrived(lab: &Lab, places: &[(&str, &Namespace)]) -> Result<BTreeMap<String, Sum>> {
    let mut arrived = BTreeMap::new();
    for (verdict, place) in places {
        let link = lab.link_to(place)?;
        ensure!(
            link.tx_dropped == 0,
            "the link dropped packets: there is no truth to compare to"
        );
        arrived.insert(
            (*verdict).to_owned(),
            (link.ip_bytes_out(), link.tx_packets),
        );
    }
    arrived.retain(|_, sum| *sum != (0, 0));
    Ok(arrived)
}

/// Waits until the agent has nothing left to tell of what others have left to it.
pub fn wait_until_nothing_waits(lab: &Lab) -> Result<()> {
    let mut said = String::new();
    let waited = wait_for("nothing waits", || {
        said = kernel_verb(lab, "status", &["--json"])?.stdout;
        let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        Ok((status["agent"]["pending"] == 0).then_some(()))
    });
    waited.with_context(|| format!("status was {said}"))
}
