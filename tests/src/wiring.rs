//! The lab's cables: the host is connected with each far place by one of its own,
//! so that an interface's counters are about one place.
//!
//! Nothing but the traffic of a test may pass: neighbours are static, and the
//! cables have no addresses that would be announced. Addresses are on the
//! loopback interfaces.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::places::{FOREIGN, FOREIGN6, GATEWAY, GATEWAY6, HOST, HOST6, PEER, PEER6};

/// Connects the host with the far places, in the order gateway, peer, foreign.
pub fn connect(host: &Namespace, far: [&Namespace; 3]) -> Result<()> {
    let prefixes = [
        [(GATEWAY, "192.0.2.10/32"), (GATEWAY6, "2001:db8:1::10/128")],
        [(PEER, "198.51.100.0/24"), (PEER6, "2001:db8:2::/48")],
        [(FOREIGN, "203.0.113.0/24"), (FOREIGN6, "2001:db8:3::/48")],
    ];
    let cables: Vec<Cable<'_>> = far
        .into_iter()
        .zip(prefixes)
        .zip(1..)
        .map(|((place, far), number)| Cable { place, number, far })
        .collect();
    host.enter(quieten)?;
    let mut commands = format!(
        "link set lo up\n\
         address add {HOST}/32 dev lo\n\
         address add {HOST6}/128 dev lo nodad\n"
    );
    for cable in &cables {
        cable.place.enter(quieten)?;
        commands.push_str(&cable.near());
    }
    host.ip(&commands)?;
    for cable in &cables {
        cable.place.ip(&cable.far())?;
    }
    Ok(())
}

/// Lets the host forward.
pub fn forward(host: &Namespace) -> Result<()> {
    host.enter(|| {
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1")?;
        }
        Ok(())
    })
}

/// Something behind the host, such as a virtual machine or a container, whose traffic
/// the host forwards. `number` is its own.
pub fn guest(host: &Namespace, name: &'static str, number: u8) -> Result<Guest> {
    behind(host, Namespace::new(name)?, number)
}

/// As [`guest`], a container as a user without privileges may make one.
pub fn container(host: &Namespace, name: &'static str, number: u8) -> Result<Guest> {
    behind(host, Namespace::unprivileged(name)?, number)
}

fn behind(host: &Namespace, place: Namespace, number: u8) -> Result<Guest> {
    place.enter(quieten)?;
    forward(host)?;
    let guest = Guest {
        v4: [192, 0, 2, 100 + number].into(),
        v6: format!("2001:db8:1::1:{number}").parse()?,
        place,
    };
    let link = link_name(&guest.place);
    let (near, far) = (
        format!("02:00:00:00:03:{number:02x}"),
        format!("02:00:00:00:04:{number:02x}"),
    );
    let Guest { v4, v6, place } = &guest;
    host.ip(&format!(
        "link add {link} address {near} type veth peer name to-host address {far} netns {}\n\
         link set {link} addrgenmode none\n\
         link set {link} up\n\
         neighbour add {v4} lladdr {far} dev {link} nud permanent\n\
         neighbour add {v6} lladdr {far} dev {link} nud permanent\n\
         route add {v4} dev {link} src {HOST}\n\
         route add {v6} dev {link} src {HOST6}\n",
        place.path()
    ))?;
    place.ip(&format!(
        "link set lo up\n\
         link set to-host addrgenmode none\n\
         link set to-host up\n\
         address add {v4}/32 dev lo\n\
         address add {v6}/128 dev lo nodad\n\
         neighbour add {HOST} lladdr {near} dev to-host nud permanent\n\
         neighbour add {HOST6} lladdr {near} dev to-host nud permanent\n\
         route add default via {HOST} dev to-host src {v4} onlink\n\
         route add default via {HOST6} dev to-host src {v6} onlink\n"
    ))?;
    Ok(guest)
}

/// A place behind the host.
#[derive(Debug)]
pub struct Guest {
    /// Where it is.
    pub place: Namespace,
    /// Its address.
    pub v4: IpAddr,
    /// Its address.
    pub v6: IpAddr,
}

/// The link address of the far end of the host's link to the places of a lab, in the
/// order gateway, peer, foreign, from 1 on.
pub fn far_link_address(number: u8) -> String {
    format!("02:00:00:00:02:{number:02x}")
}

/// The host's interface towards a place.
pub fn link_name(place: &Namespace) -> String {
    format!("to-{}", place.name)
}

/// A veth pair between the host and a far place.
struct Cable<'lab> {
    place: &'lab Namespace,
    number: u8,
    /// An address of the place and the prefix that it holds, per family.
    far: [(IpAddr, &'static str); 2],
}

impl Cable<'_> {
    fn near_mac(&self) -> String {
        format!("02:00:00:00:01:{:02x}", self.number)
    }

    fn far_mac(&self) -> String {
        far_link_address(self.number)
    }

    /// Commands for the host's end; they make both ends.
    fn near(&self) -> String {
        let link = link_name(self.place);
        let mut commands = format!(
            "link add {link} address {} type veth peer name to-host address {} netns {}\n\
             link set {link} addrgenmode none\n\
             link set {link} up\n",
            self.near_mac(),
            self.far_mac(),
            self.place.path()
        );
        for ((far, prefix), source) in self.far.iter().zip([HOST, HOST6]) {
            commands.push_str(&format!(
                "neighbour add {far} lladdr {} dev {link} nud permanent\n\
                 route add {prefix} via {far} dev {link} src {source} onlink\n",
                self.far_mac()
            ));
        }
        commands
    }

    /// Commands for the far end.
    fn far(&self) -> String {
        let mut commands = "link set lo up\n\
                            link set to-host addrgenmode none\n\
                            link set to-host up\n"
            .to_owned();
        for ((far, prefix), host) in self.far.iter().zip([HOST, HOST6]) {
            let bits = if host.is_ipv4() { "32" } else { "128 nodad" };
            commands.push_str(&format!(
                "address add {far}/{bits} dev lo\n\
                 route replace local {prefix} dev lo\n\
                 neighbour add {host} lladdr {} dev to-host nud permanent\n\
                 route add {host} via {host} dev to-host src {far} onlink\n",
                self.near_mac()
            ));
        }
        commands
    }
}

/// Settings of the namespace that this thread is in.
pub(crate) fn quieten() -> Result<()> {
    for (name, value) in [
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        // Multicast groups are reported at once, and not while a test counts.
        ("ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
        // So that ping sockets can be tried by anyone.
        ("ipv4/ping_group_range", "0 2147483647"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value)
            .with_context(|| format!("set net/{name}"))?;
    }
    Ok(())
}
