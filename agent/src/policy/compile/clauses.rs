//! Rules as clauses: each one test of each dimension.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use trefoil_ebpf::abi::{ROW_WORDS, Row};

use super::limits::{Budget, Clause, Period};
use super::logins::origin_of;
use super::services::{all_of, keys_of_all, services, with_unread};
use super::set_bit;
use crate::geo::Country;
use crate::policy::geography::{Surroundings, Users};
use crate::policy::intervals::Intervals;
use crate::policy::network::{Extent, Network};
use crate::policy::pattern::{CgroupPattern, ContainerPattern, ExecutablePattern, UnitPattern};
use crate::policy::problem::{Fault, Problem};
use crate::policy::service;
use crate::policy::source::{
    Area, Direction, Endpoint, Group, Located, Policy, Rule, RuleVerdict, User,
};

/// All clauses, in the order of their rules.
pub(super) struct Clauses<'p> {
    pub(super) list: Vec<NumberedClause<'p>>,
}

/// A clause and the index of its rule.
pub(super) struct NumberedClause<'p> {
    pub(super) rule: usize,
    /// True if the clause denies: an unknown fact about a sender counts against him, and
    /// the clause matches.
    pub(super) denies: bool,
    pub(super) test: Test<'p>,
}

/// Stands for a user and a group that are not known. Nobody has this number.
pub(super) const UNKNOWN_ID: u32 = u32::MAX;

/// Which clauses use the patterns of one key.
pub(super) struct PatternUse {
    /// The clauses that do not have this key.
    unnamed: Row,
    /// For each pattern, the clauses that it is in.
    clauses_of: Vec<Vec<usize>>,
}

impl PatternUse {
    /// The clauses that a path satisfies, as far as this key is concerned, which
    /// matches these of the patterns.
    fn row(&self, matched: impl Iterator<Item = usize>) -> Row {
        let mut row = self.unnamed;
        for &clause in matched.flat_map(|pattern| &self.clauses_of[pattern]) {
            set_bit(&mut row, clause);
        }
        row
    }
}

/// The clauses that a path satisfies which matches these patterns. The indexes of
/// patterns go on from key to key; all keys of a clause must hold.
pub(super) fn row_of_path(keys: &[&PatternUse], matched: &[usize]) -> Row {
    let mut first = 0;
    let mut common = Row {
        words: [u64::MAX; ROW_WORDS],
    };
    for key in keys {
        let end = first + key.clauses_of.len();
        let own = matched
            .iter()
            .filter(|&&pattern| (first..end).contains(&pattern));
        let row = key.row(own.map(|pattern| pattern - first));
        for (word, own) in common.words.iter_mut().zip(row.words) {
            *word &= own;
        }
        first = end;
    }
    common
}

/// Condition that a flow must satisfy. `None`: any flow does.
#[derive(Clone, Default)]
pub(super) struct Test<'p> {
    pub(super) units: Option<Vec<&'p UnitPattern>>,
    pub(super) cgroups: Option<Vec<&'p CgroupPattern>>,
    pub(super) containers: Option<Vec<&'p ContainerPattern>>,
    pub(super) executables: Option<Vec<&'p ExecutablePattern>>,
    pub(super) users: Option<Intervals<u32>>,
    pub(super) groups: Option<Intervals<u32>>,
    pub(super) interactive: Option<bool>,
    /// Where somebody logged in from.
    pub(super) origin: Option<DestinationTest<'p>>,
    pub(super) direction: Option<Direction>,
    pub(super) near_ports: Option<Intervals<u32>>,
    pub(super) destination: Option<DestinationTest<'p>>,
    pub(super) services: Option<Intervals<u32>>,
}

impl Test<'_> {
    /// True if it asks for who opened the session, or for this host's port.
    pub(super) fn names_near_end(&self) -> bool {
        self.direction.is_some() || self.near_ports.is_some()
    }
}

impl NumberedClause<'_> {
    /// The users that satisfy the clause; `None` if it does not ask.
    pub(super) fn users(&self) -> Option<Intervals<u32>> {
        Some(self.or_unknown(self.test.users.as_ref()?))
    }

    /// The groups that satisfy the clause, which has this index, in this case of a login session;
    /// `None` if it asks for neither.
    pub(super) fn groups_where(&self, index: usize, case: Login<'_>) -> Option<Intervals<u32>> {
        let groups = self.test.groups.as_ref().map(|ids| self.or_unknown(ids));
        let asks_origin = self.test.origin.is_some();
        if self.test.interactive.is_none() && !asks_origin {
            return groups;
        }
        let is_satisfied = match case {
            Login::Unknown => self.denies,
            Login::None => self.test.interactive != Some(true) && !asks_origin,
            Login::Session(is_met) => {
                self.test.interactive != Some(false) && (!asks_origin || is_met(index))
            }
        };
        Some(match is_satisfied {
            false => Intervals::default(),
            true => groups.unwrap_or_else(|| Intervals::union([(0, u32::MAX)])),
        })
    }

    /// The near ends that satisfy the clause where this is known of who opened the session;
    /// `None` if it asks for neither that nor this host's port.
    pub(super) fn near_ends_where(&self, known: Option<Direction>) -> Option<Intervals<u32>> {
        if !self.test.names_near_end() {
            return None;
        }
        let is_opened_so = match (self.test.direction, known) {
            // A port is nothing to approve by where it is not known who wrote it.
            (_, None) => self.denies,
            (None, Some(_)) => true,
            (Some(asked), Some(known)) => asked == known,
        };
        Some(match (is_opened_so, &self.test.near_ports) {
            (false, _) => Intervals::default(),
            (true, None) => Intervals::union([(0, u32::MAX)]),
            (true, Some(ports)) if self.denies => with_unread(ports),
            (true, Some(ports)) => ports.clone(),
        })
    }

    /// These numbers, and with them the one that is not known if the clause denies.
    fn or_unknown(&self, ids: &Intervals<u32>) -> Intervals<u32> {
        match self.denies {
            true => ids.with(UNKNOWN_ID),
            false => ids.intersection(&Intervals::union([(0, UNKNOWN_ID - 1)])),
        }
    }
}

/// Facts known of a login session.
#[derive(Clone, Copy)]
pub(super) enum Login<'f> {
    /// Nothing.
    Unknown,
    /// There is none.
    None,
    /// There is one. Whether its origin satisfies the clause with this index, where that asks.
    Session(&'f dyn Fn(usize) -> bool),
}

/// All of these must hold for a destination, or for the far end that somebody logged in from; one
/// that is `None` does.
#[derive(Clone, Default)]
pub(super) struct DestinationTest<'p> {
    pub(super) networks: Option<Addresses>,
    pub(super) countries: Option<&'p [Area]>,
    /// Indexes of zones.
    pub(super) zones: Option<&'p [usize]>,
    pub(super) gateway: Option<Addresses>,
    pub(super) asns: Option<&'p [Located<u32>]>,
}

/// A set of addresses.
#[derive(Clone, Default)]
pub(super) struct Addresses {
    pub(super) v4: Intervals<u32>,
    pub(super) v6: Intervals<u128>,
}

impl Addresses {
    pub(super) fn new(networks: impl IntoIterator<Item = Network>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network.extent() {
                Extent::V4(first, last) => v4.push((first, last)),
                Extent::V6(first, last) => v6.push((first, last)),
            }
        }
        Self {
            v4: Intervals::union(v4),
            v6: Intervals::union(v6),
        }
    }
}

impl<'p> Clauses<'p> {
    pub(super) fn new(
        policy: &'p Policy,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let users = surroundings.users;
        let mut problems = unknown_here(policy, surroundings);
        let mut list = Vec::new();
        for (index, rule) in policy.rules.iter().enumerate() {
            match clauses_of(policy, rule, users) {
                Ok(tests) => {
                    list.extend(tests.into_iter().map(|test| NumberedClause {
                        rule: index,
                        denies: rule.verdict == RuleVerdict::Deny,
                        test,
                    }));
                }
                Err(fault) => problems.push(fault.at(rule.place, format!("rules[{index}].to"))),
            }
        }
        if problems.is_empty() {
            Ok(Self { list })
        } else {
            Err(problems)
        }
    }

    /// The clauses of which this is true.
    pub(super) fn all(&self, of: impl Fn(&NumberedClause<'_>) -> bool) -> Row {
        let mut row = Row::default();
        for (index, clause) in self.list.iter().enumerate() {
            if of(clause) {
                set_bit(&mut row, index);
            }
        }
        row
    }

    /// The patterns of one key, each once, and who uses them.
    pub(super) fn patterns<P: Eq + Hash>(
        &self,
        of: impl for<'t> Fn(&'t Test<'p>) -> Option<&'t [&'p P]>,
    ) -> (Vec<&'p P>, PatternUse) {
        let mut unnamed = Row::default();
        let mut numbers: HashMap<&P, usize> = HashMap::new();
        let mut patterns = Vec::new();
        let mut clauses_of: Vec<Vec<usize>> = Vec::new();
        for (clause, NumberedClause { test, .. }) in self.list.iter().enumerate() {
            let Some(alternatives) = of(test) else {
                set_bit(&mut unnamed, clause);
                continue;
            };
            for &pattern in alternatives {
                let number = *numbers.entry(pattern).or_insert_with(|| {
                    patterns.push(pattern);
                    clauses_of.push(Vec::new());
                    patterns.len() - 1
                });
                clauses_of[number].push(clause);
            }
        }
        (
            patterns,
            PatternUse {
                unnamed,
                clauses_of,
            },
        )
    }
}

impl NumberedClause<'_> {
    /// Returns the outcome of the clause. `budgets` are those of the policy.
    pub(super) fn decides(&self, policy: &Policy, budgets: &[Budget]) -> Clause {
        let rule = &policy.rules[self.rule];
        // A rule has a clause, and clauses are fewer than u16 numbers.
        let number = self.rule as u16;
        Clause {
            rule: number,
            verdict: rule.approval(),
            holds: rule.exception.as_ref().map(|exception| Period {
                starts_us: exception.starts_us.unwrap_or(0),
                expires_us: exception.expires_us,
            }),
            budget: budgets.iter().position(|budget| budget.rule == number),
        }
    }
}

/// Users and groups that rules name and the host does not know, and numbers that no
/// country data is there for. A rule for nobody would look as if it were in force.
pub(super) fn unknown_here(policy: &Policy, surroundings: &Surroundings<'_>) -> Vec<Problem> {
    let users = surroundings.users;
    let mut problems = Vec::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        let denies = rule.verdict == RuleVerdict::Deny;
        for user in rule.users.iter().flatten() {
            if let User::Name(name) = &user.value
                && users.uid(name).is_none()
            {
                let fault = Fault::new(format!("this host has no user `{name}`"))
                    .help("write the login name of a user, or the number");
                problems.push(fault.at(user.place, format!("rules[{index}].from.user")));
            } else if denies
                && let Some(uid) = user.value.id(users)
                && user.value.subordinate_ids(uid, users).is_none()
            {
                let user_of = format!("rules[{index}].from.user");
                problems.push(no_subordinate_ids("subuid").at(user.place, user_of));
            }
        }
        if let Some(asn) = rule.asns.iter().flatten().next()
            && !surroundings.geography.has_asns()
        {
            let fault = Fault::new("no file of country data has the numbers of autonomous systems")
                .help(
                    "name an ASN database (MMDB) beside the other files: `geo` in trefoil.toml, \
                     or --geo",
                );
            problems.push(fault.at(asn.place, format!("rules[{index}].to.asns")));
        }
        for group in rule.groups.iter().flatten() {
            if let Group::Name(name) = &group.value
                && users.gid(name).is_none()
            {
                let fault = Fault::new(format!("this host has no group `{name}`"))
                    .help("write the name of a group, or the number");
                problems.push(fault.at(group.place, format!("rules[{index}].from.group")));
            } else if denies && users.subordinate_gids().is_none() {
                let group_of = format!("rules[{index}].from.group");
                problems.push(no_subordinate_ids("subgid").at(group.place, group_of));
            }
        }
    }
    problems
}

fn no_subordinate_ids(file: &str) -> Fault {
    Fault::new(format!(
        "the subordinate ids of users in /etc/{file} cannot be read"
    ))
    .help(
        "write NAME:FIRST:COUNT in decimal on each line, at most 4 MiB in all: whoever is denied may \
         send under these ids",
    )
}

/// One clause, or for a gateway with different services at its addresses one for
/// each set of services, in the order of the policy.
fn clauses_of<'p>(
    policy: &'p Policy,
    rule: &'p Rule,
    users: &dyn Users,
) -> Result<Vec<Test<'p>>, Fault> {
    let services = services(rule)?;
    let destination = DestinationTest {
        networks: rule
            .networks
            .as_ref()
            .map(|networks| Addresses::new(networks.iter().copied())),
        countries: rule.countries.as_deref(),
        zones: rule.zones.as_deref(),
        gateway: None,
        asns: rule.asns.as_deref(),
    };
    let names_destination = rule.networks.is_some()
        || rule.countries.is_some()
        || rule.zones.is_some()
        || rule.asns.is_some();
    let denies = rule.verdict == RuleVerdict::Deny;
    let test = Test {
        units: rule.units.as_ref().map(|units| units.iter().collect()),
        cgroups: rule.cgroups.as_ref().map(|paths| paths.iter().collect()),
        containers: rule
            .containers
            .as_ref()
            .map(|containers| containers.iter().collect()),
        executables: rule
            .executables
            .as_ref()
            .map(|paths| paths.iter().collect()),
        users: rule.users.as_ref().map(|named| {
            Intervals::union(named.iter().flat_map(|user| user.value.ids(users, denies)))
        }),
        groups: rule.groups.as_ref().map(|named| {
            Intervals::union(
                named
                    .iter()
                    .flat_map(|group| group.value.ids(users, denies)),
            )
        }),
        interactive: rule.interactive,
        origin: rule.session.as_ref().map(|own| origin_of(policy, own)),
        direction: rule.direction,
        near_ports: rule.near_ports.as_deref().map(keys_of_all),
        destination: names_destination.then(|| destination.clone()),
        services,
    };
    let Some(gateways) = &rule.gateways else {
        return Ok(vec![test]);
    };
    if rule.means_clients() {
        let clients = gateways
            .iter()
            .flat_map(|&index| &policy.gateways[index].clients);
        return Ok(vec![Test {
            destination: Some(DestinationTest {
                gateway: Some(Addresses::new(clients.copied())),
                ..destination
            }),
            ..test
        }]);
    }

    let endpoints: Vec<&Endpoint> = gateways
        .iter()
        .flat_map(|&index| &policy.gateways[index].endpoints)
        .collect();
    let mut clauses = Vec::new();
    for (addresses, endpoint_services) in by_services(&endpoints) {
        let services = match &test.services {
            None => endpoint_services,
            Some(own) => own.intersection(&endpoint_services),
        };
        if services.is_empty() {
            continue;
        }
        clauses.push(Test {
            services: Some(services),
            destination: Some(DestinationTest {
                gateway: Some(Addresses::new(addresses.into_iter().map(Network::host))),
                ..destination.clone()
            }),
            ..test.clone()
        });
    }
    if clauses.is_empty() {
        return Err(
            Fault::new("no endpoint of the gateway has one of these ports and protocols")
                .help("leave out `ports` and `protocols`: the endpoints say them"),
        );
    }
    Ok(clauses)
}

/// Addresses that offer the same services, together.
fn by_services(endpoints: &[&Endpoint]) -> Vec<(Vec<IpAddr>, Intervals<u32>)> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for endpoint in endpoints {
        if !addresses.contains(&endpoint.address) {
            addresses.push(endpoint.address);
        }
    }
    let mut groups: Vec<(Vec<IpAddr>, Intervals<u32>)> = Vec::new();
    for address in addresses {
        let here = endpoints
            .iter()
            .filter(|endpoint| endpoint.address == address);
        let services = Intervals::union(here.map(|endpoint| match endpoint.port {
            Some(port) => {
                let key = service::key(endpoint.protocol.0, port);
                (key, key)
            }
            None => all_of(endpoint.protocol),
        }));
        match groups.iter_mut().find(|(_, known)| *known == services) {
            Some((members, _)) => members.push(address),
            None => groups.push((vec![address], services)),
        }
    }
    groups
}

/// Every country that `areas` name, by itself or in a group.
pub(super) fn countries(areas: &[Area]) -> Vec<Country> {
    Country::all()
        .filter(|&country| areas.iter().any(|area| area.has_country(country)))
        .collect()
}

/// Every network that `areas` name.
pub(super) fn networks(areas: &[Area]) -> impl Iterator<Item = Network> {
    areas.iter().filter_map(|area| match area {
        Area::Network(network) => Some(*network),
        Area::Country(_) | Area::Group(..) => None,
    })
}
