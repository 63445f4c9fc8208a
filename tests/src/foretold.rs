//! Records of report mode, and `check --against` of them, for tests that hold both against what
//! enforce mode does.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::record::Record;

/// False if some flows of a way would be blocked in enforce mode, true if all would leave, as
/// report mode and `check --against` say both, flow by flow. None if these do not agree, or if no
/// record is about it.
///
/// `records` are all that are about the way and say that something left; `outcome` is the name of the field
/// of that; `check` returns what `trefoil check --json --against` prints of some of them.
pub fn foretold(
    records: &[Record],
    outcome: &str,
    mut check: impl FnMut(&[&Record]) -> Result<String>,
) -> Result<Option<bool>> {
    let (passed, blocked): (Vec<&Record>, Vec<&Record>) = records
        .iter()
        .partition(|record| record.is(outcome, "passed"));
    let mut said_of = |records: &[&Record]| flows_and_dropped(&check(records)?);
    if !passed.is_empty() && said_of(&passed)?.1 != 0 {
        return Ok(None);
    }
    if blocked.is_empty() {
        return Ok((!passed.is_empty()).then_some(true));
    }
    let (flows, dropped) = said_of(&blocked)?;
    Ok((flows > 0 && flows == dropped).then_some(false))
}

/// Number of flows that were held against a policy, and of how many of them it is said that they
/// would be dropped.
fn flows_and_dropped(said: &str) -> Result<(u64, u64)> {
    let said: Value = serde_json::from_str(said).with_context(|| format!("not JSON: {said}"))?;
    let said = &said["against"];
    let flows = said["flows"].as_u64().context("how many flows")?;
    let dropped = ["would_drop", "may_drop"]
        .iter()
        .filter_map(|list| said[list].as_array());
    let dropped = dropped
        .flatten()
        .filter_map(|group| group["flows"].as_u64());
    Ok((flows, dropped.sum()))
}
