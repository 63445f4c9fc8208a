//! From what was seen to the text of a policy that approves of exactly that.
//!
//! Owns which rules these are and how they read. Pure: flows in, text out. It never
//! widens what was seen without saying so in a comment, and what no rule can say is a
//! comment as well.

mod owner;
mod prose;
mod text;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use self::owner::Owner;
use crate::{
    observed::{Amount, Observed, Reading, Way},
    policy::{Users, local::nameless, network::Network, service::Ports, service::Protocol},
};

/// A policy that was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Its text.
    pub text: String,
    /// Its rules.
    pub rules: usize,
    /// Flows that no rule could be made for.
    pub left_out: u64,
}

/// Makes the policy. `users` are those of the host where it will be read.
#[must_use]
pub fn learn(observed: &[Observed], reading: &Reading, users: &dyn Users) -> Learned {
    let mut lesson = Lesson::default();
    for one in observed {
        lesson.take(one);
    }
    let rules = lesson.rules();
    let left_out = lesson.left_out.values().map(|amount| amount.flows).sum();
    Learned {
        rules: rules.len(),
        left_out,
        text: text::policy(&rules, &lesson, reading, users),
    }
}

/// Kind of destination of a rule. No two are in one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    /// Ports that this host named.
    Ports,
    /// Protocols that have no ports.
    Protocols,
    /// Answers of this host's services to whoever connected. The far port is one that the peer
    /// picked.
    Answers,
    /// The same of another network namespace, whose word counts for nothing to rules.
    Claimed,
}

/// A protocol with its port, or 0. For answers it is the near one.
type Service = (Protocol, u16);
/// Flows that were seen of one owner in one section.
type Seen<'o> = BTreeMap<IpAddr, BTreeMap<Service, Vec<&'o Observed>>>;

/// All that was seen, in the order of the rules.
#[derive(Default)]
struct Lesson<'o> {
    seen: BTreeMap<(Owner, Section), Seen<'o>>,
    /// Traffic that is no rule's business.
    local: Amount,
    /// Traffic that no rule can approve, with the reason.
    left_out: BTreeMap<(String, &'static str), Amount>,
}

/// A rule to be written.
struct Draft<'o> {
    owner: &'o Owner,
    section: Section,
    addresses: BTreeSet<IpAddr>,
    services: BTreeSet<Service>,
    seen: Vec<&'o Observed>,
}

impl<'o> Lesson<'o> {
    fn take(&mut self, one: &'o Observed) {
        let target = &one.target;
        let is_local = |address| nameless().any(|network| network.contains(address));
        if one.is_local() || target.address.is_some_and(is_local) {
            self.local.add(&one.amount);
            return;
        }
        let (owner, address, section, service) = match sorted(one) {
            Ok(sorted) => sorted,
            Err(reason) => {
                let what = format!("{} to {target}", one.source);
                self.left_out
                    .entry((what, reason))
                    .or_default()
                    .add(&one.amount);
                return;
            }
        };
        let seen = self.seen.entry((owner, section)).or_default();
        for inner in target
            .embedded()
            .into_iter()
            .filter(|&inner| !is_local(inner))
        {
            // Both have to be approved of.
            let of_inner = seen.entry(inner).or_default();
            of_inner.entry(service).or_default();
        }
        let of_address = seen.entry(address).or_default();
        of_address.entry(service).or_default().push(one);
    }

    /// The rules. Addresses with the same services are in one, or services with the
    /// same addresses, whatever makes fewer rules: both approve of what was seen alone.
    fn rules(&self) -> Vec<Draft<'_>> {
        let mut rules = Vec::new();
        for ((owner, section), seen) in &self.seen {
            let mut by_services: BTreeMap<BTreeSet<Service>, BTreeSet<IpAddr>> = BTreeMap::new();
            let mut addresses_of: BTreeMap<Service, BTreeSet<IpAddr>> = BTreeMap::new();
            for (&address, services) in seen {
                let said = services.keys().map(|&service| section.says(service));
                by_services
                    .entry(said.clone().collect())
                    .or_default()
                    .insert(address);
                for service in said {
                    addresses_of.entry(service).or_default().insert(address);
                }
            }
            let mut by_addresses: BTreeMap<BTreeSet<IpAddr>, BTreeSet<Service>> = BTreeMap::new();
            for (service, addresses) in addresses_of {
                by_addresses.entry(addresses).or_default().insert(service);
            }
            let products: Vec<_> = if by_addresses.len() < by_services.len() {
                by_addresses.into_iter().collect()
            } else {
                let swapped = by_services.into_iter().map(|(services, at)| (at, services));
                swapped.collect()
            };
            let mut drafts: Vec<Draft<'_>> = products
                .into_iter()
                .map(|(addresses, services)| {
                    let seen = addresses.iter().flat_map(|address| &seen[address]);
                    let seen =
                        seen.filter(|(service, _)| services.contains(&section.says(**service)));
                    Draft {
                        owner,
                        section: *section,
                        seen: seen.flat_map(|(_, seen)| seen.iter().copied()).collect(),
                        addresses,
                        services,
                    }
                })
                .collect();
            drafts.sort_by(|a, b| (&a.addresses, &a.services).cmp(&(&b.addresses, &b.services)));
            rules.extend(drafts);
        }
        rules
    }
}

/// Where in the policy a flow belongs, or why nowhere.
fn sorted(one: &Observed) -> Result<(Owner, IpAddr, Section, Service), &'static str> {
    let target = &one.target;
    let (Some(address), Some(protocol)) = (target.address, target.protocol) else {
        return Err(
            "rolled up, so that their addresses are not in the records; with `flows = \"each\"` in \
             trefoil.toml they are",
        );
    };
    let owner = Owner::of(&one.source)?;
    Ok(match (protocol.has_ports(), target.way, target.port) {
        (false, _, _) => (owner, address, Section::Protocols, (protocol, 0)),
        (true, Way::Accepted, _) if target.near_port == 0 => {
            return Err("the service that answered is not in the records");
        }
        (true, Way::Accepted, _) if protocol == Protocol::TCP => {
            let service = (protocol, target.near_port);
            (owner, address, Section::Answers, service)
        }
        (true, Way::Claimed, _) => {
            let service = (protocol, target.near_port);
            (owner, address, Section::Claimed, service)
        }
        (true, _, 0) => return Err("the protocol has ports, and the packets named none"),
        (true, _, port) => (owner, address, Section::Ports, (protocol, port)),
    })
}

impl Section {
    /// Returns the service as a rule names it.
    fn says(self, (protocol, port): Service) -> Service {
        match self {
            Self::Ports | Self::Answers => (protocol, port),
            Self::Protocols | Self::Claimed => (protocol, 0),
        }
    }
}

impl Draft<'_> {
    fn amount(&self) -> Amount {
        let mut sum = Amount::default();
        for one in &self.seen {
            sum.add(&one.amount);
        }
        sum
    }

    /// The addresses as the fewest networks that have no other.
    fn networks(&self) -> Vec<Network> {
        let mut networks: Vec<Network> = Vec::new();
        for &address in &self.addresses {
            let mut next = Network::host(address);
            while let Some(whole) = networks.last().and_then(|last| last.joined(&next)) {
                networks.pop();
                next = whole;
            }
            networks.push(next);
        }
        networks
    }

    /// The ports, of answers the near ones, as the fewest ranges that have no other.
    fn ports(&self) -> Vec<Ports> {
        let mut ranges: Vec<Ports> = Vec::new();
        for &(protocol, port) in &self.services {
            match ranges.last_mut() {
                Some(last)
                    if last.protocol == Some(protocol)
                        && last.last.checked_add(1) == Some(port) =>
                {
                    last.last = port;
                }
                _ => ranges.push(Ports {
                    first: port,
                    last: port,
                    protocol: Some(protocol),
                }),
            }
        }
        ranges
    }

    fn protocols(&self) -> BTreeSet<Protocol> {
        self.services
            .iter()
            .map(|&(protocol, _)| protocol)
            .collect()
    }

    /// Near ports that peers connected to.
    fn answered(&self) -> BTreeSet<Service> {
        let accepted = self.seen.iter().map(|one| &one.target);
        accepted
            .filter_map(|target| Some((target.protocol?, target.near_port)))
            .filter(|&(_, port)| port != 0)
            .collect()
    }

    fn countries(&self) -> BTreeSet<&'static str> {
        let countries = self.seen.iter().map(|one| one.target.country);
        countries
            .map(|country| country.map_or("unknown", |country| country.as_str()))
            .collect()
    }

    fn texts(
        &self,
        of: impl Fn(&crate::observed::Source) -> Option<&Arc<str>>,
    ) -> BTreeSet<Arc<str>> {
        let all = self.seen.iter().filter_map(|one| of(&one.source));
        all.map(Arc::clone).collect()
    }
}
