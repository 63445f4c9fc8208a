//! Names of a log's fields, and what the gateway translates.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::Ends;
use crate::policy::{problem::Fault, service::Protocol};

/// Where in a line of a gateway's log each fact is. The default is Zeek's `conn.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Field of the beginning: seconds since 1970 or RFC 3339.
    pub time: String,
    /// Field of the duration in seconds; a line without it is about one moment.
    pub duration: String,
    /// Field of the address of whoever opened the flow.
    pub src_addr: String,
    /// Field of its port.
    pub src_port: String,
    /// Field of the other address.
    pub dst_addr: String,
    /// Field of its port.
    pub dst_port: String,
    /// Field of the protocol, by name or number.
    pub protocol: String,
    /// Field of the community id; it may be missing.
    pub community_id: String,
    /// Field of the bytes of IP packets from `src_addr`; it may be missing.
    pub src_bytes: String,
    /// Field of the bytes of IP packets from `dst_addr`; it may be missing.
    pub dst_bytes: String,
    /// Ends that the log has otherwise than the hosts.
    pub translations: Vec<Translation>,
    /// Most that the clocks of gateway and hosts differ by.
    pub clock_skew: Duration,
    /// Longest time between the end of a flow and its line in the log, or its record.
    pub delay: Duration,
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            time: "ts".to_owned(),
            duration: "duration".to_owned(),
            src_addr: "id.orig_h".to_owned(),
            src_port: "id.orig_p".to_owned(),
            dst_addr: "id.resp_h".to_owned(),
            dst_port: "id.resp_p".to_owned(),
            protocol: "proto".to_owned(),
            community_id: "community_id".to_owned(),
            src_bytes: "orig_ip_bytes".to_owned(),
            dst_bytes: "resp_ip_bytes".to_owned(),
            translations: Vec::new(),
            clock_skew: Duration::from_secs(5),
            delay: Duration::from_secs(60),
        }
    }
}

/// An end of flows that the gateway rewrites: `LOG -> HOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// As its log has it, with a port or with any.
    log: (IpAddr, Option<u16>),
    /// As hosts have it; without a port the same as in the log.
    host: (IpAddr, Option<u16>),
}

impl Translation {
    /// Reads `203.0.113.50:443 -> 192.0.2.10:443`, or addresses alone.
    ///
    /// # Errors
    ///
    /// Not of this form.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let wrong = || {
            Fault::new(format!("`{text}` is not a translation")).help(
                "write an end as the log has it, and as hosts have it: \
                 `\"203.0.113.50:443 -> 192.0.2.10:443\"`, or both without a port",
            )
        };
        let (log, host) = text.split_once("->").ok_or_else(wrong)?;
        let end = |text: &str| {
            let text = text.trim();
            let with_port = text.parse::<SocketAddr>().ok();
            let with_port = with_port.map(|end| (end.ip().to_canonical(), Some(end.port())));
            let alone = || Some((text.parse::<IpAddr>().ok()?.to_canonical(), None));
            with_port.or_else(alone).ok_or_else(wrong)
        };
        let (log, host) = (end(log)?, end(host)?);
        match (log.1, host.1) {
            (Some(_), None) | (None, Some(_)) => Err(wrong()),
            _ => Ok(Self { log, host }),
        }
    }
}

impl Mapping {
    /// Both ends as hosts have them, and whether they are others than those of the log.
    #[must_use]
    pub fn as_hosts_have(&self, ends: Ends) -> (Ends, bool) {
        let end = |address, port| {
            let is_it = |one: &&Translation| {
                one.log.0 == address && one.log.1.is_none_or(|own| own == port)
            };
            match self.translations.iter().find(is_it) {
                Some(one) => (one.host.0, one.host.1.unwrap_or(port)),
                None => (address, port),
            }
        };
        let (src_addr, src_port) = end(ends.src_addr, ends.src_port);
        let (dst_addr, dst_port) = end(ends.dst_addr, ends.dst_port);
        let translated = Ends {
            src_addr,
            src_port,
            dst_addr,
            dst_port,
            ..ends
        };
        (translated, translated != ends)
    }
}

/// Writes a protocol by its name.
pub(super) fn protocol_name<S: serde::Serializer>(
    protocol: &u8,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Protocol(*protocol))
}
