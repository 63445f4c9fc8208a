//! Matches that two rules have in common, in words.

use crate::policy::{
    network::Network,
    service::{Ports, Protocol},
    source::{Group, Rule, User},
};

/// Values that are listed of what two rules have in common.
const MOST_LISTED: usize = 3;

/// Matches that two rules have in common.
pub(super) struct Common {
    pub(super) addresses: Vec<String>,
    pub(super) services: Vec<String>,
}

impl Common {
    /// Words for all that both rules match.
    pub(super) fn words(&self, earlier: &Rule, later: &Rule) -> String {
        let mut words = Vec::new();
        let from = |one: &Option<Vec<String>>, other: &Option<Vec<String>>| match (one, other) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => Some(listed(one)),
            (Some(one), Some(other)) if one == other => Some(listed(one)),
            (Some(one), Some(other)) => {
                Some(format!("{} that is also {}", listed(one), listed(other)))
            }
        };
        let quoted = |all: Vec<String>| all.into_iter().map(|one| format!("`{one}`")).collect();
        type Key = fn(&Rule) -> Option<Vec<String>>;
        let keys: [(&str, Key); 11] = [
            ("direction", |rule| {
                Some(vec![rule.direction?.as_str().to_owned()])
            }),
            ("port of this host", |rule| strings(&rule.near_ports)),
            ("unit", |rule| strings(&rule.units)),
            ("control group", |rule| strings(&rule.cgroups)),
            ("container", |rule| strings(&rule.containers)),
            ("executable", |rule| strings(&rule.executables)),
            ("user", |rule| {
                let users = rule.users.as_ref()?.iter();
                Some(users.map(|user| User::to_string(&user.value)).collect())
            }),
            ("group", |rule| {
                let groups = rule.groups.as_ref()?.iter();
                Some(groups.map(|group| Group::to_string(&group.value)).collect())
            }),
            ("interactive", |rule| {
                Some(vec![rule.interactive?.to_string()])
            }),
            ("login session from", |rule| {
                strings(&rule.session.as_ref()?.networks)
            }),
            ("login session from", |rule| {
                strings(&rule.session.as_ref()?.countries)
            }),
        ];
        for (name, key) in keys {
            if let Some(who) = from(&key(earlier).map(quoted), &key(later).map(quoted)) {
                words.push(format!("{name} {who}"));
            }
        }
        let names_place = |rule: &Rule| {
            rule.networks.is_some()
                || rule.countries.is_some()
                || rule.zones.is_some()
                || rule.asns.is_some()
                || rule.gateways.is_some()
        };
        if names_place(earlier) || names_place(later) {
            words.push(format!("to {}", listed(&self.addresses)));
        }
        let names_service = |rule: &Rule| {
            rule.ports.is_some() || rule.protocols.is_some() || rule.gateways.is_some()
        };
        if names_service(earlier) || names_service(later) {
            words.push(format!("by {}", listed(&self.services)));
        }
        words.join(", ")
    }
}

fn strings<T: ToString>(values: &Option<Vec<T>>) -> Option<Vec<String>> {
    Some(values.as_ref()?.iter().map(T::to_string).collect())
}

/// The first few of them.
fn listed(all: &[String]) -> String {
    let n_more = all.len().saturating_sub(MOST_LISTED);
    let shown = all[..all.len() - n_more].join(", ");
    match n_more {
        0 => shown,
        n => format!("{shown} and {n} more"),
    }
}

/// The ranges that are in, those that touch joined. Each reaches to the next.
pub(super) fn joined(ranges: impl Iterator<Item = (u128, bool)>, end: u128) -> Vec<(u128, u128)> {
    let mut joined = Vec::new();
    let mut begun = None;
    for (first, is_in) in ranges {
        if first > end {
            break;
        }
        match (begun, is_in) {
            (None, true) => begun = Some(first),
            (Some(start), false) => {
                joined.push((start, first - 1));
                begun = None;
            }
            _ => {}
        }
    }
    joined.extend(begun.map(|start| (start, end)));
    joined
}

/// A network, if it is one, else both ends.
pub(super) fn extent(first: std::net::IpAddr, last: std::net::IpAddr) -> String {
    let longest = if first.is_ipv4() { 32 } else { 128 };
    let exact = (0..=longest).find_map(|prefix| {
        let network = Network::containing(first, prefix);
        (network.ends() == (first, last)).then_some(network)
    });
    match exact {
        Some(network) => network.to_string(),
        None => format!("{first}-{last}"),
    }
}

/// Services in words: ports of one protocol, or protocols.
pub(super) fn service(first: u32, last: u32) -> String {
    let part = |key: u32| (Protocol((key >> 16) as u8), key as u16);
    let ((protocol, from), (last_protocol, to)) = (part(first), part(last));
    match (protocol == last_protocol, from, to) {
        (true, 0, u16::MAX) => protocol.to_string(),
        (true, first, last) => Ports {
            first,
            last,
            protocol: Some(protocol),
        }
        .to_string(),
        (false, _, _) if first == 0 && last == (256 << 16) - 1 => "any protocol".to_owned(),
        (false, _, _) => format!("protocols {protocol} to {last_protocol}"),
    }
}
