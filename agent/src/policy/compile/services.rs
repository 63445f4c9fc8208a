//! Protocols and ports of both ends, as sets of the numbers that the tables have.

use crate::policy::intervals::Intervals;
use crate::policy::problem::Fault;
use crate::policy::service::{self, PROTOCOLS_WITH_PORTS, Ports, Protocol};
use crate::policy::source::{Rule, RuleVerdict};

/// The services that `ports` and `protocols` leave, and the protocols of this host's ports; `None`
/// for all.
pub(super) fn services(rule: &Rule) -> Result<Option<Intervals<u32>>, Fault> {
    let all_of_these = |protocols: &[Protocol]| {
        Intervals::union(protocols.iter().map(|&protocol| all_of(protocol)))
    };
    let ports = rule.ports.as_deref().map(keys_of_all);
    let protocols = rule.protocols.as_deref().map(all_of_these);
    let services = both(ports, protocols);
    if services.as_ref().is_some_and(Intervals::is_empty) {
        return Err(
            Fault::new("no flow can have one of `ports` and one of `protocols`")
                .help("both must hold: leave out `protocols`, or give ports of these protocols"),
        );
    }
    let near = rule.near_ports.as_deref().map(protocols_of);
    let services = both(services, near.as_deref().map(all_of_these));
    if services.as_ref().is_some_and(Intervals::is_empty) {
        return Err(Fault::new(
            "no flow can have one of `from.ports` and be of a protocol that `to` asks for",
        )
        .help("all keys must hold: both ends of a flow have the same protocol"));
    }
    let of_tcp = all_of_these(&[Protocol::TCP]);
    let approves_sessions = rule.means_clients() && rule.verdict == RuleVerdict::Approve;
    if approves_sessions && both(services.clone(), Some(of_tcp)).is_some_and(|all| all.is_empty()) {
        return Err(Fault::new(
            "the rule can approve of nothing: sessions are known to be accepted by TCP alone",
        )
        .help(
            "what answers datagrams is `outbound`: name this host's port by `from.ports`, and the \
             networks of those who ask",
        ));
    }
    Ok(services)
}

/// Returns the intervals that are in both; `None` is all.
fn both(one: Option<Intervals<u32>>, other: Option<Intervals<u32>>) -> Option<Intervals<u32>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.intersection(&other)),
        (one, other) => one.or(other),
    }
}

/// Protocols that have one of these ports.
fn protocols_of(ports: &[Ports]) -> Vec<Protocol> {
    let mut all: Vec<Protocol> = PROTOCOLS_WITH_PORTS.map(Protocol).to_vec();
    all.retain(|&protocol| {
        let is_its = |ports: &Ports| ports.protocol.is_none_or(|own| own == protocol);
        ports.iter().any(is_its)
    });
    all
}

/// Near ends with one of these ports, and those of the same protocols whose port cannot be read.
pub(super) fn with_unread(ports: &Intervals<u32>) -> Intervals<u32> {
    let of = PROTOCOLS_WITH_PORTS.into_iter().map(Protocol);
    let has_ports = |protocol: &Protocol| {
        let all = Intervals::union([all_of(*protocol)]);
        !ports.intersection(&all).is_empty()
    };
    of.filter(has_ports).fold(ports.clone(), |ports, protocol| {
        ports.with(service::key(protocol.0, 0))
    })
}

pub(super) fn keys_of_all(ports: &[Ports]) -> Intervals<u32> {
    Intervals::union(ports.iter().flat_map(keys_of))
}

fn keys_of(ports: &Ports) -> Vec<(u32, u32)> {
    let protocols = match ports.protocol {
        Some(protocol) => vec![protocol.0],
        None => PROTOCOLS_WITH_PORTS.to_vec(),
    };
    let keys = |protocol: u8| {
        (
            service::key(protocol, ports.first),
            service::key(protocol, ports.last),
        )
    };
    protocols.into_iter().map(keys).collect()
}

pub(super) fn all_of(protocol: Protocol) -> (u32, u32) {
    (
        service::key(protocol.0, 0),
        service::key(protocol.0, u16::MAX),
    )
}
