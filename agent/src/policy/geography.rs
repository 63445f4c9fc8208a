//! Surroundings that a policy is compiled against: where addresses are, and who users are.
//!
//! Owns the questions, not the answers: policies stay free of files and data bases.

use std::net::IpAddr;

use super::local::LinkLocal;
use crate::geo::{Countries, Country};

/// Country data.
pub trait Geography {
    /// Every IPv4 range whose country is known: first and last address in host
    /// byte order, and the country. Sorted, without overlap.
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_>;

    /// The same for IPv6.
    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_>;

    /// Every IPv4 range for which the data gives more than one country, as [`v4`](Self::v4),
    /// and without overlap with that.
    fn several_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Countries)> + '_> {
        Box::new(std::iter::empty())
    }

    /// The same for IPv6.
    fn several_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Countries)> + '_> {
        Box::new(std::iter::empty())
    }

    /// The countries of `address`, if the data gives more than one.
    fn several(&self, _address: IpAddr) -> Option<Countries> {
        None
    }

    /// The country that `address` is in, by the same data.
    fn country(&self, address: IpAddr) -> Option<Country>;

    /// Why `address` is in no country, if more can be said than that it is in none.
    fn undetermined(&self, _address: IpAddr) -> Option<String> {
        None
    }

    /// Every IPv4 range whose autonomous system is known, as [`v4`](Self::v4).
    fn asns_v4(&self) -> Box<dyn Iterator<Item = (u32, u32, u32)> + '_> {
        Box::new(std::iter::empty())
    }

    /// The same for IPv6.
    fn asns_v6(&self) -> Box<dyn Iterator<Item = (u128, u128, u32)> + '_> {
        Box::new(std::iter::empty())
    }

    /// The autonomous system that `address` is in, by the same data.
    fn asn(&self, _address: IpAddr) -> Option<u32> {
        None
    }

    /// True if the data knows any autonomous system.
    fn has_asns(&self) -> bool {
        false
    }

    /// Names this state of the data in reports.
    fn build_id(&self) -> &str;
}

/// No country data: every country is unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Geography for Nowhere {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        Box::new(std::iter::empty())
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        Box::new(std::iter::empty())
    }

    fn country(&self, _: IpAddr) -> Option<Country> {
        None
    }

    fn build_id(&self) -> &str {
        "none"
    }
}

/// The host's users and groups.
pub trait Users {
    /// The id of the user with this login name.
    fn uid(&self, name: &str) -> Option<u32>;

    /// The id of the group with this name.
    fn gid(&self, _name: &str) -> Option<u32> {
        None
    }

    /// The user ids that a user may give to processes in user namespaces that he makes
    /// (subuid(5)), by his id and by a login name of his: the first and the last of each range. `None` if
    /// that cannot be known.
    fn subordinate_uids(&self, _uid: u32, _name: Option<&str>) -> Option<Vec<(u32, u32)>> {
        Some(Vec::new())
    }

    /// The group ids that users may give to such processes (subgid(5)), of all users. `None` if that
    /// cannot be known.
    fn subordinate_gids(&self) -> Option<Vec<(u32, u32)>> {
        Some(Vec::new())
    }
}

impl<F: Fn(&str) -> Option<u32>> Users for F {
    fn uid(&self, name: &str) -> Option<u32> {
        self(name)
    }
}

/// Everything outside a policy that its meaning depends on.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Country data.
    pub geography: &'a dyn Geography,
    /// Login names.
    pub users: &'a dyn Users,
    /// The host's own addresses; traffic to them is local where it may stay.
    pub own_addresses: &'a [IpAddr],
    /// Treatment of unicast to the link's scope.
    pub link_local: LinkLocal,
}
