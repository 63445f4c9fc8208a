//! Limits of rules that approve: budgets and exceptions.
//!
//! Owns what they say and what is wrong with one; the kernel keeps count.

use std::fmt;
use std::time::Duration;

use toml::value::{Datetime, Offset};

use crate::policy::problem::Fault;
use crate::{clock, quantity};

/// How much may leave by a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// IP bytes, headers included.
    pub bytes: u64,
    /// Within any time of this length.
    pub per: Duration,
    /// Both as the policy writes them.
    pub written: String,
}

/// Exception for traffic that the policy does not approve: who has allowed it, for how long
/// and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Identifier outside of the policy, as in a register of exceptions.
    pub id: String,
    /// Legal basis, as in `Art. 49(1)(e)`.
    pub basis: String,
    /// Why.
    pub reason: String,
    /// Two names or more.
    pub approved_by: Vec<String>,
    /// From when on it holds, microseconds since 1970; `None`: from the beginning.
    pub starts_us: Option<u64>,
    /// From when on it does not hold any more, microseconds since 1970.
    pub expires_us: u64,
    /// IP bytes that may leave by it in all, headers included; `None`: no limit.
    pub bytes: Option<u64>,
}

impl Exception {
    /// True at this moment, in microseconds since 1970.
    #[must_use]
    pub fn holds_at(&self, time_us: u64) -> bool {
        self.starts_us.is_none_or(|starts_us| starts_us <= time_us) && time_us < self.expires_us
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.written)
    }
}

/// A number of bytes that is not 0.
pub(super) fn bytes(text: &str) -> Result<u64, Fault> {
    match quantity::bytes(text)? {
        0 => Err(Fault::new("nothing could ever leave by this rule")
            .help("give a number of bytes, or let the rule deny")),
        bytes => Ok(bytes),
    }
}

/// The length of a budget's window.
pub(super) fn window(text: &str) -> Result<Duration, Fault> {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(366 * 86_400);
    let window = quantity::duration(text)?;
    if (SHORTEST..=LONGEST).contains(&window) {
        return Ok(window);
    }
    Err(Fault::new(format!("`{text}` is no length for a window"))
        .help("it is from 1 second to 366 days long, as in `24h`"))
}

/// A line of text that is not empty.
pub(super) fn line(text: &str) -> Result<String, Fault> {
    if text.trim().is_empty() {
        return Err(Fault::new("is empty").help("reports and auditors need it: write it down"));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("has a control character in it").help("write it on one line"));
    }
    Ok(text.trim().to_owned())
}

/// At least two persons.
pub(super) fn approved_by(names: &[String]) -> Result<(), Fault> {
    let mut different: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    different.sort_unstable();
    different.dedup();
    if different.len() >= 2 {
        return Ok(());
    }
    Err(Fault::new("nobody approves of an exception alone")
        .help("name two who did: `approved_by = [\"dpo\", \"auditor\"]`"))
}

/// Microseconds since 1970 of a moment that says its offset from UTC.
pub(super) fn moment(datetime: &Datetime) -> Result<u64, Fault> {
    let text = datetime.to_string();
    let (Some(date), Some(time), Some(offset)) = (datetime.date, datetime.time, datetime.offset)
    else {
        return Err(Fault::new(format!(
            "`{text}` is not a moment: it is one in every time zone"
        ))
        .help("write date, time and offset, as in `2027-01-31T00:00:00Z`"));
    };
    let offset_s = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes) * 60,
    };
    let day = clock::days_since_1970(date.year, date.month, date.day);
    let second = day * 86_400
        + i64::from(time.hour) * 3_600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0))
        - offset_s;
    let second = u64::try_from(second).map_err(|_| {
        Fault::new(format!("`{text}` is before 1970")).help("give a moment that can be lived")
    })?;
    Ok(second * 1_000_000 + u64::from(time.nanosecond.unwrap_or(0) / 1_000))
}
