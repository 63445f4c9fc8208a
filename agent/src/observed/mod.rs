//! Flows that were seen to leave, from records of the past, for the verbs that hold a
//! policy against them.
//!
//! Owns reading the records ([`mod@line`]), adding them up so that every byte counts once
//! ([`Collector`]), and asking a policy about what was seen ([`Judge`]). Pure: bytes
//! and policies in, values out. A fact that no record has is never guessed.

mod collector;
mod judge;
pub mod line;
mod source;

#[cfg(test)]
pub(crate) mod tests;

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{
    clock,
    geo::Country,
    policy::{Policy, Question, explain::embedded_in, service::Protocol, source::Direction},
    report::words,
};

pub use crate::policy::explain::Ruling;
pub use collector::{Collector, Fault, MAX_FLOWS, Reading};
pub use judge::{Judge, Judgement};
pub use source::Source;

/// Which end opened the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// This host named the destination.
    Outbound,
    /// A peer connected to this host, and the far port is one that it picked.
    Accepted,
    /// As accepted, as far as another network namespace can say: to rules it is not known.
    Claimed,
    /// Not known: the connection is older than the agent that saw it, or it is no socket's.
    Unknown,
}

/// Where flows went, and by what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Which end opened them.
    pub way: Way,
    /// The far end; `None` where flows to several were rolled up.
    pub address: Option<IpAddr>,
    /// Its country when it was seen; `None` if it was not known.
    pub country: Option<Country>,
    /// `None` where flows of several were rolled up.
    pub protocol: Option<Protocol>,
    /// The far end's port; 0 for none, or if it is not known.
    pub port: u16,
    /// The near end's port of what was or may have been accepted; else 0.
    pub near_port: u16,
    /// Address that a call named, whose packets the kernel has encrypted (IPsec) and sent to
    /// `address`; else `None`.
    pub encrypted_to: Option<IpAddr>,
}

/// Decision of a policy about flows when they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Said {
    /// The verdict, by its name in reports; empty if there was none.
    pub verdict: Arc<str>,
    /// The rule.
    pub rule: Option<Arc<str>>,
    /// Outcome of the flows.
    pub outcome: Arc<str>,
}

/// How much, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Flows.
    pub flows: u64,
    /// Bytes that left.
    pub bytes_out: u64,
    /// Packets that left.
    pub packets_out: u64,
    /// Packets that were dropped and calls that were refused.
    pub blocked: u64,
    /// The first time, as records write it; `None` if none said it.
    pub first: Option<Arc<str>>,
    /// The last time.
    pub last: Option<Arc<str>>,
}

/// Flows of one owner to one end, on which one policy said the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Owner and origin of the flows.
    pub source: Arc<Source>,
    /// Where to.
    pub target: Target,
    /// Decision about them.
    pub said: Said,
    /// How much it was.
    pub amount: Amount,
}

impl Observed {
    /// True for what never left the host or its link.
    #[must_use]
    pub fn is_local(&self) -> bool {
        &*self.said.verdict == "local"
    }

    /// The call that sent what was encrypted, as far as it is known: by which protocol, and to
    /// which port, is not.
    #[must_use]
    pub fn of_call(&self) -> Option<Self> {
        let named = self.target.encrypted_to?;
        let mut call = self.clone();
        call.target = Target {
            address: Some(named),
            country: None,
            protocol: None,
            port: 0,
            encrypted_to: None,
            ..call.target
        };
        Some(call)
    }

    /// The question to a policy, about the last of them; a fact that is not known matches
    /// rules that deny alone. `None` if it is not known where the flows went.
    #[must_use]
    pub fn question(&self) -> Option<Question<'_>> {
        self.target.protocol?;
        let address = self.target.address?;
        Some(
            self.source
                .asks(address, &self.target, self.amount.last_us()),
        )
    }
}

impl Target {
    /// The IPv4 addresses that the far end's address embeds, by which it is judged as well,
    /// whatever a policy says of translators.
    #[must_use]
    pub fn embedded(&self) -> Vec<IpAddr> {
        let address = self.address.into_iter();
        address
            .flat_map(|address| embedded_in(&Policy::default(), address))
            .collect()
    }
}

impl Amount {
    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.flows = self.flows.saturating_add(other.flows);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.packets_out = self.packets_out.saturating_add(other.packets_out);
        self.blocked = self.blocked.saturating_add(other.blocked);
        self.see(other.first.as_ref());
        self.see(other.last.as_ref());
    }

    /// The last time, in microseconds since 1970; 0 if it is not known.
    #[must_use]
    pub fn last_us(&self) -> u64 {
        let last = self.last.as_deref().and_then(clock::unix_us_of);
        last.unwrap_or(0)
    }

    /// Widens the time to this moment. Moments have one form, so that they compare as
    /// text does.
    fn see(&mut self, time: Option<&Arc<str>>) {
        let Some(time) = time else { return };
        if self.first.as_ref().is_none_or(|first| time < first) {
            self.first = Some(Arc::clone(time));
        }
        if self.last.as_ref().is_none_or(|last| time > last) {
            self.last = Some(Arc::clone(time));
        }
    }
}

impl fmt::Display for Target {
    /// `203.0.113.9:443/tcp`; for what was accepted `203.0.113.9 on port 22/tcp`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Some(protocol) => protocol.to_string(),
            None => "several protocols".to_owned(),
        };
        match (self.address, self.way) {
            (Some(address), Way::Accepted | Way::Claimed) if self.near_port != 0 => {
                write!(formatter, "{address} on port {}/{protocol}", self.near_port)
            }
            (Some(address), _) => {
                formatter.write_str(&words::endpoint(address, self.port, &protocol))
            }
            (None, way) => {
                match self.country {
                    Some(country) => write!(formatter, "addresses in {country}")?,
                    None => formatter.write_str("addresses in no known country")?,
                }
                match (way, self.near_port, self.port) {
                    (Way::Accepted | Way::Claimed, near @ 1.., _) => {
                        write!(formatter, " on port {near}/{protocol}")
                    }
                    (_, _, port @ 1..) => write!(formatter, ", {port}/{protocol}"),
                    _ => write!(formatter, ", {protocol}"),
                }
            }
        }
    }
}

impl Way {
    /// As policies have it; `None` if it is not known.
    #[must_use]
    pub const fn direction(self) -> Option<Direction> {
        match self {
            Self::Outbound => Some(Direction::Outbound),
            Self::Accepted => Some(Direction::Accepted),
            Self::Claimed | Self::Unknown => None,
        }
    }

    /// As records write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Accepted => "accepted",
            Self::Claimed => "claimed",
            Self::Unknown => "unknown",
        }
    }
}
