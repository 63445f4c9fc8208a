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
    /// Kind of software (`veth`, `bond`, ...); empty for a device.
    pub kind: String,
    /// `ARPHRD_*`
    pub hardware: u16,
    /// The interface that it is built on, in the same network namespace.
    pub lower: Option<u32>,
    /// The interface that it is built on is in another network namespace.
    pub is_lower_elsewhere: bool,
    /// The bond or bridge that it is part of.
    pub master: Option<u32>,
    /// It is up: an interface that is not sends nothing.
    pub is_up: bool,
    /// It is the host's end of a function that a device gives to a guest.
    pub is_of_guest: bool,
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

    /// True if it leads out of the host, whatever routes there are. One whose link headers
    /// are not known cannot be watched, and does no harm while it is down.
    #[must_use]
    pub fn leads_out(&self) -> bool {
        let can_send = self.is_up || self.header_bytes().is_some();
        self.nature() == Nature::Out && can_send
    }

    /// True if it is a device, which leads out of the host in whatever network namespace.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.kind.is_empty() && self.hardware != Self::LOOPBACK && !self.is_of_guest
    }

    /// How it sends.
    fn nature(&self) -> Nature {
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
        const STACKED: [&str; 7] = [
            "vlan",
            "macvlan",
            "macvtap",
            "ipvlan",
            "ipvtap",
            "macsec",
            "virt_wifi",
        ];
        const INSIDE: [&str; 9] = [
            "veth",
            "netkit",
            "dummy",
            "ifb",
            "nlmon",
            "vsockmon",
            "vcan",
            "vxcan",
            "openvswitch",
        ];
        let is_one_of = |kinds: &[&str]| kinds.contains(&self.kind.as_str());
        if self.hardware == Self::LOOPBACK || is_one_of(&TUNNELS) {
            Nature::Elsewhere
        } else if is_one_of(&STACKED) {
            match self.lower {
                Some(lower) if !self.is_lower_elsewhere => Nature::On(lower),
                _ => Nature::Out,
            }
        } else if self.kind == "bridge" {
            Nature::Bridge
        } else if is_one_of(&["bond", "team", "vrf"]) {
            Nature::Parts
        } else if self.is_of_guest || is_one_of(&INSIDE) {
            Nature::Inside
        } else {
            Nature::Out
        }
    }
}

/// How an interface sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// Out of the host: a device, or software of a kind that is not known here.
    Out,
    /// To guests of this host, or to nobody, unless a route says that it leads farther.
    Inside,
    /// By the interface with this index, which it is built on.
    On(u32),
    /// By its parts.
    Parts,
    /// By those of its parts that are no guest's.
    Bridge,
    /// Wrapped into other packets, which leave by another interface or by a process and are
    /// judged there; or nowhere.
    Elsewhere,
}

/// Interfaces and routes that are known.
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
            // A destination that a software interface reaches without a gateway is on this
            // host: a container, a virtual machine. A device leads out without a route.
            if route.is_default || route.has_gateway {
                self.leads_out.insert(*index);
            }
        }
    }

    /// The interface with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The interfaces to watch: those that are named, or those that lead out.
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
            Uplinks::Auto => self.lead_out(),
        }
    }

    /// The interfaces that are up and lead out, and that the settings do not name. None if
    /// they say to watch no uplink at all.
    #[must_use]
    pub fn left_out(&self, wanted: &Uplinks) -> BTreeSet<u32> {
        match wanted {
            Uplinks::None | Uplinks::Auto => BTreeSet::new(),
            Uplinks::Named(_) => {
                let left_out = &self.lead_out() - &self.uplinks(wanted);
                let is_up = |index: &u32| self.link(*index).is_some_and(|link| link.is_up);
                left_out.into_iter().filter(is_up).collect()
            }
        }
    }

    /// The interfaces that lead out: devices, with a route or without one, since a process
    /// needs none; and what carries that by which routes lead out. Of a bond that is its
    /// parts, of a VLAN what it is built on, of a bridge the devices in it, so that each
    /// frame passes one of them.
    fn lead_out(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let by_themselves = self.links.values().filter(|link| link.leads_out());
        let by_themselves = by_themselves.map(|link| link.index);
        for index in by_themselves.chain(self.leads_out.iter().copied()) {
            self.carriers(index, &mut found, MAX_DEPTH);
        }
        found
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
        let parts = || {
            let links = self.links.values();
            links.filter(|part| part.master == Some(index))
        };
        match link.nature() {
            Nature::Elsewhere => {}
            Nature::Out | Nature::Inside => {
                found.insert(index);
            }
            Nature::On(lower) => self.carriers(lower, found, depth - 1),
            Nature::Parts => parts().for_each(|part| {
                self.carriers(part.index, found, depth - 1);
            }),
            // Tap devices and pairs in a bridge lead to guests of this host.
            Nature::Bridge => {
                let is_guest =
                    |part: &&Link| matches!(part.nature(), Nature::Inside | Nature::Elsewhere);
                for part in parts().filter(|part| !is_guest(part)) {
                    self.carriers(part.index, found, depth - 1);
                }
            }
        }
    }
}

/// Interfaces are built on each other no deeper than this: the kernel's own limit.
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests;
