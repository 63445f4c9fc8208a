//! Which IPv6 addresses embed others, and how.
//!
//! Owns the forms as the tables know them. [`mod@crate::policy::explain`] says the same in the
//! terms of the documents.

use std::net::{IpAddr, Ipv6Addr};

use trefoil_ebpf::abi::layout;

use crate::policy::{network::Network, source::Policy};

/// A network whose addresses embed others.
pub(super) struct Embedding {
    pub(super) network: Network,
    layouts: &'static [u16],
    /// Whoever runs the translator chooses how. A prefix of the policy's own in it says it.
    is_open: bool,
}

/// All of them: those that documents set aside, then those of the policy.
pub(super) fn forms(policy: &Policy) -> impl Iterator<Item = Embedding> {
    let set_aside = [
        ([0x64, 0xff9b, 0, 0], 96, &[layout::PREFIX_96][..]),
        (
            [0x64, 0xff9b, 1, 0],
            48,
            &[
                layout::PREFIX_48,
                layout::PREFIX_56,
                layout::PREFIX_64,
                layout::PREFIX_96,
            ],
        ),
        ([0x2002, 0, 0, 0], 16, &[layout::SIX_TO_FOUR]),
        ([0x2001, 0, 0, 0], 32, &[layout::TEREDO]),
        ([0, 0, 0, 0], 96, &[layout::PREFIX_96]),
    ];
    let set_aside = set_aside
        .into_iter()
        .map(|([a, b, c, d], prefix, layouts)| {
            let first = IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0));
            Embedding {
                network: Network::containing(first, prefix),
                layouts,
                is_open: layouts.len() > 1,
            }
        });
    let own = policy.nat64.iter().map(|network| Embedding {
        network: *network,
        layouts: match network.prefix() {
            32 => &[layout::PREFIX_32],
            40 => &[layout::PREFIX_40],
            48 => &[layout::PREFIX_48],
            56 => &[layout::PREFIX_56],
            64 => &[layout::PREFIX_64],
            _ => &[layout::PREFIX_96],
        },
        is_open: false,
    });
    set_aside.chain(own)
}

/// The layouts of an address that these networks have.
pub(super) fn layouts<'e>(networks: impl Iterator<Item = &'e Embedding> + Clone) -> Vec<u16> {
    let is_said = networks.clone().any(|network| !network.is_open);
    let meant = networks.filter(|network| !(is_said && network.is_open));
    let mut all: Vec<u16> = meant.flat_map(|network| network.layouts).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}
