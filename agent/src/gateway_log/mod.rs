//! A gateway's own log of flows, held against the records of hosts.
//!
//! Owns reading such a log, and which of its lines are about which flows: by community id and time.
//! Pure: lines and records in, an account out. It judges nothing.

mod account;
mod hosts;
mod line;
mod mapping;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use self::{
    account::{Account, Held, Ledger, Seen},
    hosts::{Flow, Hosts, MAX_FLOWS},
    line::{Form, FormError, Line, Lines},
    mapping::{Mapping, Translation},
};

/// Both ends of a flow, in the order of who wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Ends {
    /// IP protocol number.
    #[serde(serialize_with = "mapping::protocol_name")]
    pub protocol: u8,
    /// Address of the first end.
    pub src_addr: IpAddr,
    /// Its port; 0 without one.
    pub src_port: u16,
    /// Address of the other.
    pub dst_addr: IpAddr,
    /// Its port; 0 without one.
    pub dst_port: u16,
}

impl Ends {
    /// Community id; `None` for protocols that have none here.
    #[must_use]
    pub fn community_id(&self) -> Option<String> {
        crate::report::community_id(
            self.protocol,
            (self.src_addr, self.src_port),
            (self.dst_addr, self.dst_port),
        )
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |address, port| match port {
            0 => IpAddr::to_string(&address),
            port => std::net::SocketAddr::new(address, port).to_string(),
        };
        let protocol = crate::policy::service::Protocol(self.protocol);
        let (src, dst) = (
            end(self.src_addr, self.src_port),
            end(self.dst_addr, self.dst_port),
        );
        write!(formatter, "{protocol} {src} -> {dst}")
    }
}

/// From when to when something was, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Beginning.
    pub first_us: u64,
    /// End.
    pub last_us: u64,
}

impl Span {
    /// True if both have a moment in common, where clocks differ by so much.
    #[must_use]
    pub fn meets(&self, other: &Self, skew_us: u64) -> bool {
        self.first_us <= other.last_us.saturating_add(skew_us)
            && other.first_us <= self.last_us.saturating_add(skew_us)
    }

    /// The span that has both.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        Self {
            first_us: self.first_us.min(other.first_us),
            last_us: self.last_us.max(other.last_us),
        }
    }
}

/// Bytes of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Bytes {
    /// From the host.
    pub out: u64,
    /// To the host.
    #[serde(rename = "in")]
    pub back: u64,
}

impl Bytes {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.out = self.out.saturating_add(other.out);
        self.back = self.back.saturating_add(other.back);
    }
}
