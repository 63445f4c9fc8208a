//! Which interfaces lead out of the host, and whether what is known of each adds up.
//!
//! Links, routes and counters in, answers out: nothing here looks at the system.

mod balance;

use std::collections::{BTreeMap, BTreeSet};

pub use balance::{Balance, Look};

use crate::settings::Uplinks;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of software it is (`veth`, `bond`, ...); empty for a device.
    pub kind: String,
    /// `ARPHRD_*`
    pub hardware: u16,
    /// The interface that it is built on, in the same network namespace.
    pub lower: Option<u32>,
    /// The bond or bridge that it is part of.
    pub master: Option<u32>,
}

/// A route to somewhere that is not the host and not on the link alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// It is to everywhere.
    pub is_default: bool,
    /// It leads through another host.
    pub has_gateway: bool,
    /// The interfaces that it goes by.
    pub interfaces: Vec<u32>,
}

impl Link {
    const ETHERNET: u16 = 1;
    const LOOPBACK: u16 = 772;

    /// Bytes of the header before the IP header; `None` if that is not known here.
    #[must_use]
    pub fn header_bytes(&self) -> Option<u32> {
        /// ARPHRD_PPP, _TUNNEL, _TUNNEL6, _SIT, _RAWIP, _NONE: nothing comes before it.
        const BARE: [u16; 6] = [512, 768, 769, 776, 519, 0xfffe];
        match self.hardware {
            Self::ETHERNET => Some(trefoil_ebpf::abi::ETHERNET_HEADER),
            hardware if BARE.contains(&hardware) => Some(0),
            _ => None,
        }
    }

    /// True if its transmit counter is that of frames before segmentation. Devices that
    /// segment count what is on the wire.
    #[must_use]
    pub fn counts_before_segmentation(&self) -> bool {
        self.kind == "veth"
    }

    /// True for software that wraps packets into others, which leave by another interface
    /// or by a process, and are judged there.
    fn is_tunnel(&self) -> bool {
        const TUNNELS: [&str; 17] = [
            "vxlan",
            "geneve",
            "wireguard",
            "gre",
            "gretap",
            "ip6gre",
            "ip6gretap",
            "erspan",
            "ip6erspan",
            "ipip",
            "sit",
            "ip6tnl",
            "vti",
            "vti6",
            "xfrm",
            "tun",
            "gtp",
        ];
        TUNNELS.contains(&self.kind.as_str())
    }

    /// True for software that sends by the interface it is built on.
    fn is_stacked(&self) -> bool {
        const STACKED: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];
        STACKED.contains(&self.kind.as_str())
    }
}

/// What is known of interfaces and routes.
#[derive(Clone, Debug, Default)]
pub struct Network {
    links: BTreeMap<u32, Link>,
    /// Interfaces that a route leads out by. A route that goes does not take them out
    /// again: an interface that once led out may still carry something.
    leads_out: BTreeSet<u32>,
}

impl Network {
    /// There is an interface, or it is not as it was.
    pub fn add_link(&mut self, link: Link) {
        self.links.insert(link.index, link);
    }

    /// An interface is gone.
    pub fn remove_link(&mut self, index: u32) {
        self.links.remove(&index);
        self.leads_out.remove(&index);
    }

    /// There is a route.
    pub fn add_route(&mut self, route: &Route) {
        for index in &route.interfaces {
            // What is reached without a gateway by software is on this host: a container,
            // a virtual machine. By a device it is another host.
            let is_device = self
                .links
                .get(index)
                .is_some_and(|link| link.kind.is_empty());
            if route.is_default || route.has_gateway || is_device {
                self.leads_out.insert(*index);
            }
        }
    }

    /// The interface with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The interfaces to watch.
    ///
    /// Those that are named; or those that carry what routes lead out by: of a bond its
    /// parts, of a VLAN what it is built on, of a bridge the devices in it, so that each
    /// frame passes one of them.
    #[must_use]
    pub fn uplinks(&self, wanted: &Uplinks) -> BTreeSet<u32> {
        match wanted {
            Uplinks::None => BTreeSet::new(),
            Uplinks::Named(names) => self
                .links
                .values()
                .filter(|link| names.contains(&link.name))
                .map(|link| link.index)
                .collect(),
            Uplinks::Auto => {
                let mut found = BTreeSet::new();
                for index in &self.leads_out {
                    self.carriers(*index, &mut found, MAX_DEPTH);
                }
                found
            }
        }
    }

    /// The tunnels that take packets from their sockets while these wait, and send them later.
    /// None if no uplink is to be watched, by which they leave, and none that is itself to be
    /// watched as one.
    #[must_use]
    pub fn tunnels(&self, wanted: &Uplinks) -> BTreeSet<u32> {
        if *wanted == Uplinks::None {
            return BTreeSet::new();
        }
        let tunnels = self.links.values().filter(|link| link.kind == "wireguard");
        let tunnels: BTreeSet<u32> = tunnels.map(|link| link.index).collect();
        &tunnels - &self.uplinks(wanted)
    }

    /// Adds the lowest interfaces that carry what is sent by this one.
    fn carriers(&self, index: u32, found: &mut BTreeSet<u32>, depth: usize) {
        let Some(link) = self.links.get(&index).filter(|_| depth > 0) else {
            return;
        };
        if link.hardware == Link::LOOPBACK || link.is_tunnel() {
            return;
        }
        let parts = || {
            self.links
                .values()
                .filter(|part| part.master == Some(index))
        };
        match link.kind.as_str() {
            // Tap devices and pairs in a bridge lead to guests of this host.
            "bridge" => {
                for part in parts()
                    .filter(|part| part.kind.is_empty() || part.is_stacked() || part.kind == "bond")
                {
                    self.carriers(part.index, found, depth - 1);
                }
            }
            "bond" | "team" => parts().for_each(|part| {
                self.carriers(part.index, found, depth - 1);
            }),
            _ => match link.lower.filter(|_| link.is_stacked()) {
                Some(lower) => self.carriers(lower, found, depth - 1),
                None => {
                    found.insert(index);
                }
            },
        }
    }
}

/// Interfaces are built on each other no deeper than this: the kernel's own limit.
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests;
