//! Records of report mode, and `check --against` of them, held against what enforce mode does,
//! call by call.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use trefoil_lab::battery::Grade;
use trefoil_lab::foretold::Foretold;
use trefoil_lab::sink::Arrived;
use trefoil_lab::{Lab, Record};

use crate::world::foretold;

/// Outcome of a way in enforce mode.
pub struct Enforced<'a> {
    /// Everything that arrived at its far addresses, by address.
    pub arrived: &'a BTreeMap<IpAddr, Arrived>,
    /// Bytes of it that are not those of somebody else, nor of what the sender was before.
    pub own_bytes: u64,
    /// Calls that its programs have made, if they say so.
    pub calls: u64,
}

/// Calls of a way to one address, as records of report mode tell and foretell them.
#[derive(Debug, Default)]
struct Calls {
    /// Packets that leave, that are blocked, and of which that is not certain.
    leave: u64,
    blocked: u64,
    uncertain: u64,
    is_stream: bool,
}

/// Grades what is foretold of a way: yes, if of each call that comes about which enforce mode
/// then does; no, if another thing. `left` are the final records about its far addresses that say
/// that something left, be it the way's or of somebody who was to be seen before; `calls` is
/// the number of calls if its programs tell it.
pub fn grade(
    lab: &Lab,
    policy: &str,
    left: &[Record],
    calls: u64,
    enforced: &Enforced<'_>,
) -> Result<(Grade, String)> {
    let records: Vec<&Record> = left.iter().collect();
    let said = foretold(lab, policy, &records)?;
    let mut by_address: BTreeMap<IpAddr, Calls> = BTreeMap::new();
    for (record, foretold) in records.iter().zip(&said) {
        let to = by_address
            .entry(record.address("dst_addr")?.to_canonical())
            .or_default();
        let packets = record.number("packets_out")?;
        match foretold {
            Foretold::Leaves => to.leave += packets,
            Foretold::Blocked => to.blocked += packets,
            Foretold::Uncertain => to.uncertain += packets,
        }
        to.is_stream |= ["tcp", "sctp", "dccp"].contains(&record.text("protocol").as_str());
    }
    if by_address.is_empty() {
        let is_blocked = enforced.own_bytes == 0;
        let grade = if is_blocked {
            Grade::No
        } else {
            Grade::Without
        };
        return Ok((grade, "no record tells of it".to_owned()));
    }
    let mut differences = Vec::new();
    if calls != enforced.calls {
        differences.push(format!(
            "{calls} calls, and {} in enforce mode",
            enforced.calls
        ));
    }
    let mut is_certain = true;
    for (address, calls) in &by_address {
        let arrived = enforced.arrived.get(address).copied().unwrap_or_default();
        is_certain &= calls.uncertain == 0;
        // Acknowledgements are as many as there happen to be.
        let is_as_foretold = match (calls.uncertain, calls.is_stream) {
            (0, false) => arrived.packets == calls.leave,
            (0, true) => (arrived.packets > 0) == (calls.leave > 0),
            (_, _) => arrived.packets >= calls.leave,
        };
        // Packets that are blocked of a connection come last.
        let is_stopped = calls.blocked == 0 || enforced.own_bytes == 0 || !calls.is_stream;
        if !is_as_foretold || !is_stopped {
            differences.push(format!("{address}: {arrived:?} of {calls:?}"));
        }
    }
    for (address, arrived) in enforced.arrived {
        if !by_address.contains_key(address) && arrived.packets > 0 {
            differences.push(format!("{address}: {arrived:?}, of which no record tells"));
        }
    }
    let grade = match (differences.is_empty(), is_certain) {
        (false, _) => Grade::No,
        (true, true) => Grade::Yes,
        (true, false) => Grade::Part,
    };
    Ok((grade, differences.join("; ")))
}
