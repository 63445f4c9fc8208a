//! Oddities of a policy that can be used: rules that never match, rules that contradict
//! each other, rules that approve of very much.
//!
//! Owns what is worth a word, not whether a policy may be used. Rules are compared by
//! the compiled form (`regions`), so that what is said of them is so for every flow whose
//! sender is known.

mod common;
mod login;
mod regions;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use trefoil_ebpf::abi::dimension;

use self::regions::{Cover, Regions};
use super::{
    Policy,
    compile::Compiled,
    network::Network,
    problem::{Fault, Problem},
    source::{Area, Rule, RuleVerdict},
};

/// Overlaps of one rule that are told of; the rest is a number.
const MOST_OVERLAPS: usize = 3;

/// Everything that is odd, in the order of the file. `compiled` is `policy` compiled.
#[must_use]
pub fn warnings(policy: &Policy, compiled: &Compiled) -> Vec<Problem> {
    let regions = Regions::new(compiled, policy.rules.len());
    let mut warnings = Vec::new();
    let mut is_dead = vec![false; policy.rules.len()];
    for (at, rule) in policy.rules.iter().enumerate() {
        let mut warn = |fault: Fault, key: &str| {
            warnings.push(fault.at(rule.place, format!("rules[{at}]{key}")));
        };
        if let Some(dimension) = regions.contradiction(at) {
            is_dead[at] = true;
            let (what, key) = match dimension {
                dimension::DESTINATION => ("address", ".to"),
                dimension::SERVICE => ("port or protocol", ".to"),
                dimension::CGROUP => ("control group", ".from"),
                dimension::EXECUTABLE => ("executable", ".from"),
                dimension::NEAR_END => ("direction or port of this host", ""),
                _ => ("user, group or session", ".from"),
            };
            let fault = Fault::new(format!(
                "the rule can never match: no {what} is all that it asks for, as far as this host and \
                 this country data say"
            ));
            warn(
                fault.help("all keys must hold for one flow; values of one list are alternatives"),
                key,
            );
        } else if let Some(cover) = regions.cover(at) {
            is_dead[at] = true;
            warn(shadowed(policy, rule, &cover), "");
        }
        if let Some(fault) = approves_much(policy, rule) {
            warn(fault, ".to");
        }
        if !is_dead[at] && login::is_open(policy, at, &regions) {
            warn(login::fault(rule), "");
        }
    }
    for (at, rule) in policy.rules.iter().enumerate() {
        if is_dead[at] {
            continue;
        }
        let mut n_more = 0;
        let mut n_told = 0;
        for (earlier, other) in policy.rules[..at].iter().enumerate() {
            if is_dead[earlier] || other.verdict == rule.verdict {
                continue;
            }
            let Some(common) = regions.common(earlier, at) else {
                continue;
            };
            if n_told == MOST_OVERLAPS {
                n_more += 1;
                continue;
            }
            n_told += 1;
            let fault = Fault::new(format!(
                "overlaps with {}, which comes first and says `{}`: both match {}",
                named(other),
                other.verdict.as_str(),
                common.words(other, rule)
            ))
            .help("if that is not meant, narrow one of them or change their order");
            warnings.push(fault.at(rule.place, format!("rules[{at}]")));
        }
        if n_more > 0 {
            let fault = Fault::new(format!(
                "overlaps with {n_more} more rules that decide otherwise"
            ));
            warnings.push(fault.at(rule.place, format!("rules[{at}]")));
        }
    }
    warnings.sort();
    warnings
}

fn named(rule: &Rule) -> String {
    format!("rule `{}` (line {})", rule.name.value, rule.place.line)
}

fn shadowed(policy: &Policy, rule: &Rule, cover: &Cover) -> Fault {
    let all: Vec<&Rule> = cover.rules.iter().map(|&at| &policy.rules[at]).collect();
    let names: Vec<String> = all.iter().map(|rule| named(rule)).collect();
    let (takes, says) = match (
        &names[..],
        all.iter().any(|one| one.verdict != rule.verdict),
    ) {
        ([_], false) => ("takes", ""),
        (_, false) => ("together take", ""),
        ([_], true) => ("takes", ", and decides otherwise"),
        (_, true) => ("together take", ", and do not all decide as it does"),
    };
    Fault::new(format!(
        "the rule can never match: {} {takes} all of it before{says}",
        names.join(" and ")
    ))
    .help("take it out, or move it up: the first rule that matches decides")
}

/// A rule that approves of whole countries, or of everything.
fn approves_much(policy: &Policy, rule: &Rule) -> Option<Fault> {
    if rule.verdict == RuleVerdict::Deny || rule.gateways.is_some() {
        return None;
    }
    let zones = || rule.zones.iter().flatten().map(|&zone| &policy.zones[zone]);
    let zone_areas = || zones().flat_map(|zone| &zone.areas);
    let is_everything = |network: &Network| {
        let whole = [IpAddr::from([0_u8; 4]), IpAddr::from([0_u16; 8])];
        whole
            .iter()
            .any(|&first| Network::containing(first, 0) == *network)
    };
    let of_all =
        |mut networks: Box<dyn Iterator<Item = &Network> + '_>| networks.any(is_everything);
    let networks_are_all = rule
        .networks
        .as_ref()
        .is_some_and(|networks| of_all(Box::new(networks.iter())));
    let zones_are_all = rule.zones.is_some()
        && zone_areas()
            .any(|area| matches!(area, Area::Network(network) if is_everything(network)));
    let has_narrow_networks = rule.networks.is_some() && !networks_are_all;
    // A network's operator is not a country, and an exception is signed by two.
    if has_narrow_networks || rule.asns.is_some() || rule.exception.is_some() {
        return None;
    }
    let is_country = |area: &&Area| !matches!(area, Area::Network(_));
    let mut countries: Vec<String> = Vec::new();
    if let Some(areas) = &rule.countries {
        countries.extend(areas.iter().map(|area| format!("`{area}`")));
    }
    for zone in zones() {
        let all: Vec<String> = zone
            .areas
            .iter()
            .filter(is_country)
            .map(ToString::to_string)
            .collect();
        if !all.is_empty() {
            countries.push(format!("zone `{}` ({})", zone.name, all.join(", ")));
        }
    }
    if rule.means_clients() {
        let is_everywhere = countries.is_empty() && (rule.zones.is_none() || zones_are_all);
        return is_everywhere.then(|| {
            Fault::new("approves of sessions that anybody may open, from everywhere").help(
                "name who may: a gateway, the clients' networks, or zones; what a service answers \
                 is data that leaves",
            )
        });
    }
    let narrows_by_zone = rule.zones.is_some() && !zones_are_all;
    let help = "name networks or a gateway: countries are large, and data about them is no promise";
    if !countries.is_empty() {
        return Some(
            Fault::new(format!(
                "approves of every address in whole countries: {}",
                countries.join(", ")
            ))
            .help(help),
        );
    }
    if narrows_by_zone || rule.countries.is_some() {
        return None;
    }
    let of_what = match (&rule.ports, &rule.protocols) {
        (None, None) => "",
        _ => ", on these ports or protocols",
    };
    Some(
        Fault::new(format!("approves of every destination there is{of_what}"))
            .help("name where it may go: networks, or a gateway"),
    )
}
