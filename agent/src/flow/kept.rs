//! The part of the flow table that outlives an agent that is killed: rollups that are being filled. Facts
//! with a name and a value, both text.

use trefoil_ebpf::abi::{Counters, Decision, Flow, Owner, Tracked};

use super::{
    rollup::{Rollup, RollupGroup, RollupKey},
    told::{counters_text, number, parse_counters},
};
use crate::geo::Country;

/// A change of what is kept: a fact's name, and its value unless it is none any more.
pub type Change = (String, Option<String>);

/// Begin of the names of rollups of flows that may leave.
pub(super) const FLOWS: &str = "flow.";
/// The same of what was told of open flows.
pub(super) const TOLD: &str = "told.";
/// The same of violations.
pub(super) const VIOLATIONS: &str = "violation.";

/// Names a rollup among those of its kind.
pub(super) fn name(key: &RollupKey) -> String {
    let RollupKey {
        verdict,
        flags,
        group,
    } = key;
    let Some(group) = group else {
        return format!("{verdict},{flags}");
    };
    let RollupGroup {
        exe_id,
        cgroup_id,
        uid,
        without_process,
        generation,
        rule,
        country,
        protocol,
        direction,
        port,
    } = group;
    let country = country.map_or("-".to_owned(), |country| country.to_string());
    format!(
        "{verdict},{flags},{exe_id},{cgroup_id},{uid},{without_process},{generation},{rule},\
         {country},{protocol},{direction},{port}"
    )
}

fn parse_name(name: &str) -> Option<RollupKey> {
    let mut words = name.split(',').peekable();
    let (verdict, flags) = (number(&mut words)?, number(&mut words)?);
    let mut group = None;
    if words.peek().is_some() {
        group = Some(RollupGroup {
            exe_id: number(&mut words)?,
            cgroup_id: number(&mut words)?,
            uid: number(&mut words)?,
            without_process: number(&mut words)?,
            generation: number(&mut words)?,
            rule: number(&mut words)?,
            country: match words.next()? {
                "-" => None,
                country => Some(Country::parse(country)?),
            },
            protocol: number(&mut words)?,
            direction: number(&mut words)?,
            port: number(&mut words)?,
        });
    }
    Some(RollupKey {
        verdict,
        flags,
        group,
    })
}

/// The sums of a rollup in the interval that began then.
pub(super) fn value(rollup: &Rollup, began_ns: u64) -> String {
    let decision = rollup.sample.flow.decision;
    let new = rollup.new.as_ref();
    format!(
        "{began_ns} {} {} {} {} {} {}",
        decision.generation,
        decision.rule,
        rollup.sample.owner.quality,
        rollup.closed,
        counters_text(&rollup.counted),
        new.map_or("-".to_owned(), counters_text),
    )
}

/// A rollup, and when its interval began.
pub(super) struct Kept {
    pub(super) key: RollupKey,
    /// A flow with the decision and the quality of its owner; the rest is in the key.
    pub(super) sample: Tracked,
    pub(super) began_ns: u64,
    pub(super) closed: u64,
    pub(super) counted: Counters,
    pub(super) new: Option<Counters>,
}

/// Reads a name and a value; `None` if another version has written them otherwise.
pub(super) fn parse(name: &str, value: &str) -> Option<Kept> {
    let key = parse_name(name)?;
    let mut words = value.split(' ').peekable();
    let began_ns = number(&mut words)?;
    let decision = Decision {
        generation: number(&mut words)?,
        rule: number(&mut words)?,
        verdict: key.verdict,
        flags: key.flags,
    };
    let quality = number(&mut words)?;
    let closed = number(&mut words)?;
    let counted = parse_counters(&mut words)?;
    let new = match words.peek()? {
        &"-" => None,
        _ => Some(parse_counters(&mut words)?),
    };
    let sample = Tracked {
        owner: Owner {
            quality,
            ..Owner::default()
        },
        flow: Flow {
            decision,
            ..Flow::default()
        },
    };
    Some(Kept {
        key,
        sample,
        began_ns,
        closed,
        counted,
        new,
    })
}
