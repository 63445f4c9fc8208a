//! A policy as its file says it.
//!
//! Owns the syntax: from TOML to rules whose values are known to be well formed, with
//! the place of each, or else every problem of the file at once. The meaning of a
//! policy for a flow is in [`mod@super::explain`] and [`mod@super::compile`].

mod limit;
mod reader;
mod recovery;
mod value;

use std::fmt;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};
use trefoil_ebpf::abi::verdict;

pub use self::limit::{Budget, Exception};
use super::geography::Users;
use super::network::Network;
use super::pattern::{CgroupPattern, ContainerPattern, ExecutablePattern, UnitPattern};
use super::problem::{Place, Problem, Problems};
use super::service::{Ports, Protocol};
use crate::geo::Country;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Treatment of traffic that is not approved.
    pub mode: Mode,
    /// Prefixes of translators of the operator's own, see RFC 6052.
    pub nat64: Vec<Network>,
    /// Named sets of places.
    pub zones: Vec<Zone>,
    /// Named ways out.
    pub gateways: Vec<Gateway>,
    /// In the order of the file: the first one that matches decides.
    pub rules: Vec<Rule>,
    /// Name of the file, for problems.
    pub file: String,
    /// SHA-256 of the text, in hexadecimal.
    pub fingerprint: String,
}

/// Treatment of traffic that is not approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It passes and is reported.
    Report,
    /// It is dropped and reported.
    Enforce,
}

/// A named set of places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Alternatives.
    pub areas: Vec<Area>,
}

/// A part of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Addresses.
    Network(Network),
    /// A country.
    Country(Country),
    /// A group of countries: its name and its members' codes.
    Group(&'static str, &'static [&'static str]),
}

/// A named way out of the region, and into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its name.
    pub name: Located<String>,
    /// Services that hosts send to. None if no host sends by it.
    pub endpoints: Vec<Endpoint>,
    /// Networks from which it opens sessions to hosts. None if it opens none.
    pub clients: Vec<Network>,
}

/// End that opened a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The far end, which connected to a service of this host.
    Accepted,
    /// This host, which named the destination.
    Outbound,
}

/// One service at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port; `None` for a protocol that has none.
    pub port: Option<u16>,
}

/// A rule. A key that it does not have holds for every flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it begins.
    pub place: Place,
    /// Its name.
    pub name: Located<String>,
    /// `direction`
    pub direction: Option<Direction>,
    /// `from.ports`: this host's
    pub near_ports: Option<Vec<Ports>>,
    /// `from.unit`
    pub units: Option<Vec<UnitPattern>>,
    /// `from.cgroup`
    pub cgroups: Option<Vec<CgroupPattern>>,
    /// `from.container`
    pub containers: Option<Vec<ContainerPattern>>,
    /// `from.exe`
    pub executables: Option<Vec<ExecutablePattern>>,
    /// `from.user`
    pub users: Option<Vec<Located<User>>>,
    /// `from.group`
    pub groups: Option<Vec<Located<Group>>>,
    /// `from.interactive`
    pub interactive: Option<bool>,
    /// `from.session`: where somebody logged in from
    pub session: Option<Origin>,
    /// `to.networks`
    pub networks: Option<Vec<Network>>,
    /// `to.countries`: countries and groups
    pub countries: Option<Vec<Area>>,
    /// `to.zones`: indexes into [`Policy::zones`]
    pub zones: Option<Vec<usize>>,
    /// `to.gateway`: indexes into [`Policy::gateways`]
    pub gateways: Option<Vec<usize>>,
    /// `to.asns`: numbers of autonomous systems
    pub asns: Option<Vec<Located<u32>>>,
    /// `to.ports`
    pub ports: Option<Vec<Ports>>,
    /// `to.protocols`
    pub protocols: Option<Vec<Protocol>>,
    /// `verdict`
    pub verdict: RuleVerdict,
    /// `budget`
    pub budget: Option<Budget>,
    /// `exception`
    pub exception: Option<Exception>,
}

/// Condition on where somebody logged in from: all of the keys must hold that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `networks`
    pub networks: Option<Vec<Network>>,
    /// `countries`: countries and groups
    pub countries: Option<Vec<Area>>,
    /// `gateway`: indexes into [`Policy::gateways`], whose clients are meant
    pub gateways: Option<Vec<usize>>,
}

/// A user of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By number.
    Id(u32),
    /// By login name.
    Name(String),
}

/// A group of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// Verdict of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleVerdict {
    /// The traffic may leave.
    Approve,
    /// It may not.
    Deny,
}

impl Default for Policy {
    /// The policy of a host that has none: report mode, nothing approved.
    fn default() -> Self {
        Self {
            mode: Mode::Report,
            nat64: Vec::new(),
            zones: Vec::new(),
            gateways: Vec::new(),
            rules: Vec::new(),
            file: "built in (empty)".to_owned(),
            fingerprint: fingerprint(""),
        }
    }
}

impl Policy {
    /// Reads a policy. `file` is its name, for problems.
    ///
    /// # Errors
    ///
    /// Every mistake in the text. Mistakes that depend on the host, such as
    /// unknown names of users, are found by [`super::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, Problems> {
        let (policy, problems) = Self::read(text, file);
        if problems.is_empty() {
            Ok(policy)
        } else {
            Err(Problems::new(file, problems))
        }
    }

    /// Reads what can be understood of a policy, so that checks which need more
    /// than the text can add to its problems. With a problem, the policy is not
    /// what its author meant.
    pub(super) fn read(text: &str, file: &str) -> (Self, Vec<Problem>) {
        let (mut policy, problems) = reader::read(text);
        file.clone_into(&mut policy.file);
        policy.fingerprint = fingerprint(text);
        (policy, problems)
    }
}

fn fingerprint(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Rule {
    /// The verdict about a flow for which this rule is the first that matches, one of
    /// `abi::verdict`, as long as its budget lasts.
    #[must_use]
    pub fn approval(&self) -> u8 {
        match self.verdict {
            RuleVerdict::Deny => verdict::DENIED,
            RuleVerdict::Approve if self.exception.is_some() => verdict::EXCEPTION,
            RuleVerdict::Approve if self.gateways.is_some() => verdict::GATEWAY,
            RuleVerdict::Approve => verdict::APPROVED,
        }
    }
}

impl Rule {
    /// True if the gateways that it names are those of whose clients it speaks.
    #[must_use]
    pub fn means_clients(&self) -> bool {
        self.direction == Some(Direction::Accepted)
    }
}

impl Area {
    /// True when an address in `country` is in this area because of its country.
    #[must_use]
    pub fn has_country(&self, country: Country) -> bool {
        match self {
            Self::Network(_) => false,
            Self::Country(own) => *own == country,
            Self::Group(_, members) => members.contains(&country.as_str()),
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(formatter),
            Self::Country(country) => country.fmt(formatter),
            Self::Group(name, _) => formatter.pad(name),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (IpAddr::V4(v4), Some(port)) => write!(formatter, "{v4}:{port}")?,
            (IpAddr::V6(v6), Some(port)) => write!(formatter, "[{v6}]:{port}")?,
            (address, None) => write!(formatter, "{address}")?,
        }
        write!(formatter, "/{}", self.protocol)
    }
}

impl User {
    /// The user's id; `None` if the host does not know the name.
    pub(super) fn id(&self, users: &dyn Users) -> Option<u32> {
        match self {
            Self::Id(uid) => Some(*uid),
            Self::Name(name) => users.uid(name),
        }
    }

    /// The ids that this user, who has this id, may give to others; `None` if that cannot be known.
    pub(super) fn subordinate_ids(&self, uid: u32, users: &dyn Users) -> Option<Vec<(u32, u32)>> {
        let name = match self {
            Self::Id(_) => None,
            Self::Name(name) => Some(name.as_ref()),
        };
        users.subordinate_uids(uid, name)
    }

    /// The user ids that a rule means by this user; none if the host does not know the name. One that
    /// denies also means those that the user may become without privileges.
    pub(super) fn ids(&self, users: &dyn Users, denies: bool) -> Vec<(u32, u32)> {
        let Some(uid) = self.id(users) else {
            return Vec::new();
        };
        let mut ids = vec![(uid, uid)];
        if denies {
            ids.extend(self.subordinate_ids(uid, users).into_iter().flatten());
        }
        ids
    }
}

impl Group {
    /// As [`User::ids`]. Nobody can say of which group somebody was who has a subordinate group id, so
    /// a rule that denies a group means all of these.
    pub(super) fn ids(&self, users: &dyn Users, denies: bool) -> Vec<(u32, u32)> {
        let own = match self {
            Self::Id(gid) => Some(*gid),
            Self::Name(name) => users.gid(name),
        };
        let Some(gid) = own else {
            return Vec::new();
        };
        let mut ids = vec![(gid, gid)];
        if denies {
            ids.extend(users.subordinate_gids().into_iter().flatten());
        }
        ids
    }
}

impl fmt::Display for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(uid) => write!(formatter, "{uid}"),
            Self::Name(name) => formatter.pad(name),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(gid) => write!(formatter, "{gid}"),
            Self::Name(name) => formatter.pad(name),
        }
    }
}

impl Direction {
    /// As the policy and records write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Outbound => "outbound",
        }
    }
}

impl Mode {
    /// As the policy writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Enforce => "enforce",
        }
    }
}

impl RuleVerdict {
    /// As the policy writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

#[cfg(test)]
mod tests;
