//! Services to log in by, which are to be reached by a gateway alone.
//!
//! Owns which these are, and which rules let others in. A session that is not known to come from
//! a gateway is from elsewhere.

use super::regions::Regions;
use crate::policy::{
    Policy,
    network::Network,
    pattern::cgroup_of_unit,
    problem::Fault,
    service::{self, Protocol},
    source::{Area, Direction, Rule, RuleVerdict},
};

/// Where ssh listens.
const PORT: u16 = 22;

/// Programs that let people in, where distributions have them.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/sshd",
    "/usr/bin/sshd",
    "/usr/lib/openssh/sshd-session",
    "/usr/lib/openssh/sshd-auth",
    "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
    "/usr/lib/ssh/sshd-session",
    "/usr/lib/ssh/sshd-auth",
    "/usr/sbin/dropbear",
    "/usr/sbin/in.telnetd",
    "/usr/sbin/telnetd",
    "/usr/sbin/in.rlogind",
    "/usr/sbin/xrdp",
];

/// Units that they are in.
const UNITS: &[&str] = &[
    "ssh.service",
    "sshd.service",
    "ssh@1.service",
    "sshd@1.service",
    "dropbear.service",
    "xrdp.service",
    "telnet.service",
    "session-1.scope",
];

/// True if a rule approves of sessions to such a service that may come from elsewhere than a
/// gateway.
pub(super) fn is_open(policy: &Policy, at: usize, regions: &Regions<'_>) -> bool {
    let rule = &policy.rules[at];
    // One that names ports of the far end means what this host opens.
    let may_be_meant = match rule.direction {
        Some(Direction::Outbound) => false,
        Some(Direction::Accepted) => true,
        // A rule that says nothing of who may come in, and names no such service, is about the
        // sessions that its own side opens.
        None => rule.ports.is_none() && (names_service(rule) || speaks_of_clients(policy)),
    };
    if rule.verdict == RuleVerdict::Deny
        || !may_be_meant
        || rule.gateways.is_some()
        || rule.containers.is_some()
        || rule.cgroups.is_some()
        || rule.exception.is_some()
        || is_of_gateways(policy, rule)
    {
        return false;
    }
    let of_program = rule.executables.as_ref().map(|patterns| {
        patterns.iter().any(|pattern| {
            let mut programs = PROGRAMS.iter();
            programs.any(|program| pattern.glob().matches(program.as_bytes()))
        })
    });
    let of_unit = rule.units.as_ref().map(|patterns| {
        let path = |unit: &&str| cgroup_of_unit(unit).ok();
        let paths: Vec<String> = UNITS.iter().filter_map(path).collect();
        patterns
            .iter()
            .any(|pattern| paths.iter().any(|path| pattern.matches(path.as_bytes())))
    });
    if of_program == Some(false) || of_unit == Some(false) {
        return false;
    }
    let key = service::key(Protocol::TCP.0, PORT);
    if regions.decides_about_service(at, key) {
        return true;
    }
    // It listens elsewhere, and is named.
    let is_named = |pattern: String| PROGRAMS.contains(&&*pattern) || UNITS.contains(&&*pattern);
    let programs = rule.executables.iter().flatten().map(ToString::to_string);
    let units = rule.units.iter().flatten().map(ToString::to_string);
    rule.near_ports.is_some() && programs.chain(units).any(is_named)
}

/// True if a rule names programs or units.
fn names_service(rule: &Rule) -> bool {
    rule.executables.is_some() || rule.units.is_some()
}

/// True if a policy says of any gateway from where it opens sessions.
fn speaks_of_clients(policy: &Policy) -> bool {
    let mut gateways = policy.gateways.iter();
    gateways.any(|gateway| !gateway.clients.is_empty())
}

/// True if all that a rule's destination can be is where gateways open sessions from.
fn is_of_gateways(policy: &Policy, rule: &Rule) -> bool {
    let clients: Vec<&Network> = policy
        .gateways
        .iter()
        .flat_map(|gateway| &gateway.clients)
        .collect();
    let is_within = |network: &Network| clients.iter().any(|clients| clients.covers(network));
    let by_networks = rule
        .networks
        .as_ref()
        .is_some_and(|networks| networks.iter().all(is_within));
    let by_zones = rule.zones.as_ref().is_some_and(|zones| {
        let mut areas = zones.iter().flat_map(|&zone| &policy.zones[zone].areas);
        areas.all(|area| matches!(area, Area::Network(network) if is_within(network)))
    });
    by_networks || by_zones
}

/// Returns the warning about such a rule.
pub(super) fn fault(rule: &Rule) -> Fault {
    let fault = Fault::new(
        "lets sessions in to a service to log in by, such as ssh, from elsewhere than a gateway",
    );
    fault.help(match rule.direction {
        Some(_) => {
            "approve them from gateways alone: `to = { gateway = ... }`, and give the gateways `clients`"
        }
        None => {
            "if it means what this host opens, write `direction = \"outbound\"`; else deny \
             `from = { ports = [\"22/tcp\"] }` by a rule before it, behind one for the gateway"
        }
    })
}
