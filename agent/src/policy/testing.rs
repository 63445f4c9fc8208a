//! Random policies, and flows to ask them about, for tests.
//!
//! Owns generators that make the same from the same seed. They aim at borders:
//! networks that overlap, addresses at and beside the ends of ranges, paths that
//! nearly match. The answers are not stated here.

mod places;
mod policies;
mod questions;

pub use places::Places;
pub use questions::{NOW_US, OwnedQuestion};

use super::geography::{Surroundings, Users};
use super::local::LinkLocal;
use super::network::{Extent, Network};
use super::problem::Problems;
use super::source::Policy;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A generator of random numbers (SplitMix64): fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// One whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next_u64() % n as u64).unwrap_or_default()
    }

    /// True in one case of `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `all`, of which there is at least one.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A policy and everything around it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The policy's text; it compiles.
    pub text: String,
    /// The same, read.
    pub policy: Policy,
    /// Country data.
    pub places: Places,
    /// The host's own addresses.
    pub own_addresses: Vec<IpAddr>,
    /// As in [`Surroundings`].
    pub link_local: LinkLocal,
    /// Addresses at and beside every border of the policy and of its surroundings.
    pub landmarks: Vec<IpAddr>,
}

/// Login names of every scene, and their ids.
pub const USERS: &[(&str, u32)] = &[
    ("root", 0),
    ("postgres", 26),
    ("support", 1000),
    ("nobody", 65534),
];

/// Ids that users of every scene may give to others, first and last, for user and group ids.
pub const SUBORDINATE: &[(u32, (u32, u32))] =
    &[(26, (100_000, 165_535)), (1000, (165_536, 231_071))];

struct KnownUsers;

/// Names of groups of every scene, and their ids.
pub const GROUPS: &[(&str, u32)] = &[("root", 0), ("adm", 4), ("staff", 50), ("support", 1000)];

impl Users for KnownUsers {
    fn uid(&self, name: &str) -> Option<u32> {
        USERS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, uid)| *uid)
    }

    fn gid(&self, name: &str) -> Option<u32> {
        let known = GROUPS.iter().find(|(known, _)| *known == name);
        known.map(|(_, gid)| *gid)
    }

    fn subordinate_uids(&self, uid: u32, _: Option<&str>) -> Option<Vec<(u32, u32)>> {
        let own = SUBORDINATE.iter().filter(|(owner, _)| *owner == uid);
        Some(own.map(|(_, ids)| *ids).collect())
    }

    fn subordinate_gids(&self) -> Option<Vec<(u32, u32)>> {
        Some(SUBORDINATE.iter().map(|(_, ids)| *ids).collect())
    }
}

impl Scene {
    /// The scene that follows from `seed`.
    ///
    /// # Panics
    ///
    /// If it made a policy that cannot be read: then either is wrong.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let places = Places::random(&mut random);
        let text = policies::text(&mut random);
        Self::within(places, &text, &mut random)
            .unwrap_or_else(|problems| panic!("seed {seed}: {problems}\n{text}"))
    }

    /// A scene with this policy in it.
    ///
    /// # Errors
    ///
    /// Returns the problems of the policy if it has any.
    pub fn around(text: &str, random: &mut Random) -> Result<Self, Problems> {
        let places = Places::random(random);
        Self::within(places, text, random)
    }

    fn within(places: Places, text: &str, random: &mut Random) -> Result<Self, Problems> {
        let policy = Policy::parse(text, "random.toml")?;
        let n_own = random.below(3);
        let own_addresses = (0..n_own).map(|_| policies::address(random)).collect();
        let mut scene = Self {
            text: text.to_owned(),
            policy,
            places,
            own_addresses,
            link_local: *random.pick(&[LinkLocal::Judged, LinkLocal::Local]),
            landmarks: Vec::new(),
        };
        scene.landmarks = scene.find_landmarks();
        Ok(scene)
    }

    /// Returns the surroundings to compile and to explain the policy with.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            geography: &self.places,
            users: &KnownUsers,
            own_addresses: &self.own_addresses,
            link_local: self.link_local,
        }
    }

    fn find_landmarks(&self) -> Vec<IpAddr> {
        let hosts = self
            .own_addresses
            .iter()
            .map(|address| Network::host(*address).extent());
        let named = policies::networks_of(&self.policy).map(|network| network.extent());
        let local = LinkLocal::Local.local().chain(super::local::own());
        let local = local.map(|network| network.extent());
        let mut landmarks = Vec::new();
        for extent in hosts.chain(named).chain(local).chain(self.places.extents()) {
            match extent {
                Extent::V4(first, last) => {
                    let beside = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                    landmarks.extend(beside.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))));
                }
                Extent::V6(first, last) => {
                    let beside = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                    landmarks.extend(beside.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
                }
            }
        }
        landmarks.sort_unstable();
        landmarks.dedup();
        landmarks
    }
}

#[cfg(test)]
mod tests;
