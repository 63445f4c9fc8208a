//! One record of the agent, as JSON or as the journal has it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

/// A record or journal entry: named facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(Value);

impl Record {
    /// From one line of JSON.
    pub fn parse(line: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        value
            .as_object()
            .with_context(|| format!("not an object: {line}"))?;
        Ok(Self(value))
    }

    /// A fact as text; numbers in decimal. Empty if it is not there.
    pub fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// True if the fact `name` reads `text`.
    pub fn is(&self, name: &str, text: impl ToString) -> bool {
        self.text(name) == text.to_string()
    }

    /// A fact that is a number. The journal has text only.
    pub fn number(&self, name: &str) -> Result<u64> {
        self.text(name)
            .parse()
            .with_context(|| format!("no number {name:?} in {self}"))
    }

    /// A fact that is an address.
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        self.text(name)
            .parse()
            .with_context(|| format!("no address {name:?} in {self}"))
    }

    /// All facts.
    pub fn facts(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value))
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}
