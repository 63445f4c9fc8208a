//! Interfaces and routes: netlink's rtnetlink, by which the kernel lists them and tells
//! of changes.
//!
//! Sees the network namespace it was opened in. Needs no capability. Which of the
//! interfaces matter is not for this file to say.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, send,
        setsockopt, socket, sockopt,
    },
    time::TimeVal,
};

use super::{
    KernelError,
    netlink::{
        HEADER, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, PATIENCE_S, attributes,
        error_in, messages, receive, u32_at, u64_at,
    },
};
use crate::uplinks::{Link, Route};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const RTM_GETNSID: u16 = 90;

/// Bytes of `struct ifinfomsg`.
const LINK_BODY: usize = 16;
/// Bytes of `struct rtgenmsg`, padded.
const NAMESPACE_BODY: usize = 4;
/// Bytes of `struct rtmsg`.
const ROUTE_BODY: usize = 12;

/// Counters of an interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxCounters {
    /// Bytes that it sent.
    pub bytes: u64,
    /// Packets that it was to send and did not.
    pub dropped: u64,
}

/// Asks about interfaces and routes.
#[derive(Debug)]
pub struct RouteSocket {
    socket: OwnedFd,
    sequence: u32,
}

impl RouteSocket {
    /// Opens it for the network namespace of the calling thread.
    pub fn open() -> Result<Self, KernelError> {
        let failed = |error: nix::Error| KernelError::failed("open rtnetlink", error);
        let socket = route_socket().map_err(failed)?;
        let patience = TimeVal::new(PATIENCE_S, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(failed)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let mut found = Vec::new();
        self.ask(RTM_GETLINK, NLM_F_DUMP, &[0; LINK_BODY], |kind, body| {
            if kind == RTM_NEWLINK {
                found.extend(link(body));
            }
        })
        .map_err(|error| KernelError::failed("list interfaces by rtnetlink", error))?;
        Ok(found)
    }

    /// The interfaces of other network namespaces, with the number that the namespace has here.
    /// It has one if an interface was moved there from here, or has its other end there. Needs
    /// CAP_NET_ADMIN.
    pub fn links_elsewhere(&mut self) -> Result<Vec<(u32, Link)>, KernelError> {
        const NETNSA_NSID: u16 = 1;
        const IFLA_TARGET_NETNSID: u16 = 46;
        let failed = |error| KernelError::failed("list network namespaces by rtnetlink", error);
        let mut namespaces = Vec::new();
        let body = [0; NAMESPACE_BODY];
        self.ask(RTM_GETNSID, NLM_F_DUMP, &body, |kind, body| {
            let attributes = attributes(body.get(NAMESPACE_BODY..).unwrap_or_default());
            if kind == RTM_NEWNSID {
                let ids = attributes.filter(|(kind, _)| *kind == NETNSA_NSID);
                namespaces.extend(ids.filter_map(|(_, id)| u32_at(id, 0)));
            }
        })
        .map_err(failed)?;
        // The kernel gives one to this namespace, too, when it lists an interface there whose other
        // end is here.
        let own = self.own_number().map_err(failed)?;
        namespaces.retain(|namespace| Some(*namespace) != own);
        let mut found = Vec::new();
        for namespace in namespaces {
            let mut body = vec![0; LINK_BODY];
            body.extend(8_u16.to_ne_bytes());
            body.extend(IFLA_TARGET_NETNSID.to_ne_bytes());
            body.extend(namespace.to_ne_bytes());
            let asked = self.ask(RTM_GETLINK, NLM_F_DUMP, &body, |kind, body| {
                if kind == RTM_NEWLINK {
                    found.extend(link(body).map(|link| (namespace, link)));
                }
            });
            match asked {
                // It has gone meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                asked => asked.map_err(failed)?,
            }
        }
        Ok(found)
    }

    /// Number of the calling thread's network namespace, as others have them here; `None` if it has
    /// none.
    fn own_number(&mut self) -> io::Result<Option<u32>> {
        const NETNSA_NSID: u16 = 1;
        const NETNSA_PID: u16 = 2;
        const NOT_ASSIGNED: u32 = u32::MAX;
        let mut body = vec![0; NAMESPACE_BODY];
        body.extend(8_u16.to_ne_bytes());
        body.extend(NETNSA_PID.to_ne_bytes());
        body.extend(nix::unistd::gettid().as_raw().to_ne_bytes());
        let mut own = None;
        self.ask(RTM_GETNSID, 0, &body, |_, body| {
            let mut attributes = attributes(body.get(NAMESPACE_BODY..).unwrap_or_default());
            let found = attributes.find(|(kind, _)| *kind == NETNSA_NSID);
            own = found.and_then(|(_, id)| u32_at(id, 0));
        })?;
        Ok(own.filter(|own| *own != NOT_ASSIGNED))
    }

    /// All routes, of all tables and both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, KernelError> {
        let mut found = Vec::new();
        self.ask(RTM_GETROUTE, NLM_F_DUMP, &[0; ROUTE_BODY], |kind, body| {
            if kind == RTM_NEWROUTE {
                found.extend(route(body));
            }
        })
        .map_err(|error| KernelError::failed("list routes by rtnetlink", error))?;
        Ok(found)
    }

    /// Returns the counters of the interface with this index; `None` if there is no such
    /// interface.
    pub fn counters(&mut self, index: u32) -> Result<Option<TxCounters>, KernelError> {
        let mut body = [0; LINK_BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut found = None;
        let asked = self.ask(RTM_GETLINK, 0, &body, |kind, body| {
            if kind == RTM_NEWLINK {
                found = counters(body);
            }
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => {
                let operation = format!("ask for the counters of interface {index}");
                Err(KernelError::failed(operation, error))
            }
            Ok(()) => Ok(found),
        }
    }

    /// Sends a request, and hands on the messages that answer it.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        loop {
            let received = receive(&self.socket)?;
            // An answer that somebody gave up waiting for may still come.
            if u32_at(&received, 8) != Some(self.sequence) {
                continue;
            }
            for (kind, body) in messages(&received) {
                match kind {
                    NLMSG_ERROR => return error_in(body),
                    NLMSG_DONE => return Ok(()),
                    _ => each(kind, body),
                }
            }
            if flags & NLM_F_DUMP == 0 {
                return Ok(());
            }
        }
    }
}

/// Change that the kernel reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface came, or is not as it was.
    Link(Link),
    /// The interface with this index is gone.
    LinkGone(u32),
    /// The interface with this index is in another network namespace now: `to` is the number
    /// that this has here, and the index that the interface has there.
    LinkMoved {
        /// Its index before.
        index: u32,
        /// See above.
        to: (u32, u32),
    },
    /// A network namespace is gone.
    NamespaceGone,
    /// A route came, or is not as it was.
    Route(Route),
    /// Something about traffic control.
    Traffic,
    /// Changes got lost: everything has to be asked for again.
    Lost,
}

/// Tells of changes.
#[derive(Debug)]
pub struct Changes {
    socket: OwnedFd,
}

impl Changes {
    /// Opens it for the network namespace of the calling thread. Changes from now on are told.
    pub fn open() -> Result<Self, KernelError> {
        const RTMGRP_LINK: u32 = 1;
        const RTMGRP_TC: u32 = 8;
        const RTMGRP_IPV4_ROUTE: u32 = 0x40;
        const RTMGRP_IPV6_ROUTE: u32 = 0x400;
        /// RTNLGRP_NSID
        const GROUP_OF_NAMESPACES: u32 = 1 << 27;
        let failed = |error: nix::Error| KernelError::failed("subscribe to rtnetlink", error);
        let socket = route_socket().map_err(failed)?;
        let groups = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
        let groups = groups | GROUP_OF_NAMESPACES;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Waits for changes, for a second at most.
    pub fn wait(&self) -> Result<Vec<Change>, KernelError> {
        match receive(&self.socket) {
            Ok(received) => Ok(messages(&received).filter_map(change).collect()),
            // There were more than fit, while nobody asked.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Change::Lost]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(KernelError::failed("wait for changes by rtnetlink", error)),
        }
    }
}

fn route_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
}

fn change((kind, body): (u16, &[u8])) -> Option<Change> {
    // A message of another family is about a port of a bridge, and not about whether
    // there is such an interface.
    let is_link = body.first() == Some(&(libc::AF_UNSPEC as u8));
    /// RTM_NEWQDISC and RTM_DELTFILTER.
    const TRAFFIC_FIRST: u16 = 36;
    const TRAFFIC_LAST: u16 = 45;
    match kind {
        RTM_NEWLINK if is_link => link(body).map(Change::Link),
        RTM_DELLINK if is_link => {
            const IFLA_NEW_NETNSID: u16 = 45;
            const IFLA_NEW_IFINDEX: u16 = 49;
            let index = u32_at(body, 4)?;
            let attribute = |kind| {
                let mut attributes = attributes(body.get(LINK_BODY..).unwrap_or_default());
                let found = attributes.find(|(it, _)| *it == kind)?;
                u32_at(found.1, 0)
            };
            Some(match attribute(IFLA_NEW_NETNSID) {
                Some(namespace) => Change::LinkMoved {
                    index,
                    to: (namespace, attribute(IFLA_NEW_IFINDEX).unwrap_or(index)),
                },
                None => Change::LinkGone(index),
            })
        }
        RTM_DELNSID => Some(Change::NamespaceGone),
        RTM_NEWROUTE => route(body).map(Change::Route),
        TRAFFIC_FIRST..=TRAFFIC_LAST => Some(Change::Traffic),
        _ => None,
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_PHYS_PORT_NAME: u16 = 38;
    const IFLA_INFO_KIND: u16 = 1;
    let mut link = Link {
        index: u32_at(body, 4)?,
        hardware: u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?),
        is_up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(LINK_BODY..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.lower = u32_at(value, 0),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_LINK_NETNSID => link.is_lower_elsewhere = true,
            IFLA_PHYS_PORT_NAME => link.is_of_guest = is_port_of_guest(&text(value)),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    if link.is_lower_elsewhere {
        link.lower = None;
    }
    Some(link)
}

/// True for the host's end of a virtual or a sub function, by the kernel's names: `pf0vf3`,
/// `c1pf0sf88`. A port of a device is called `p0`.
fn is_port_of_guest(name: &str) -> bool {
    let functions = ["vf", "sf"].map(|function| name.rsplit_once(function));
    functions
        .into_iter()
        .flatten()
        .any(|(before, number)| before.contains("pf") && number.parse::<u32>().is_ok())
}

fn counters(body: &[u8]) -> Option<TxCounters> {
    const IFLA_STATS64: u16 = 23;
    // In `struct rtnl_link_stats64`.
    const TX_BYTES: usize = 24;
    const TX_DROPPED: usize = 56;
    let (_, stats) = attributes(body.get(LINK_BODY..)?).find(|(kind, _)| *kind == IFLA_STATS64)?;
    Some(TxCounters {
        bytes: u64_at(stats, TX_BYTES)?,
        dropped: u64_at(stats, TX_DROPPED)?,
    })
}

fn route(body: &[u8]) -> Option<Route> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_VIA: u16 = 18;
    const RTN_UNICAST: u8 = 1;
    const RT_TABLE_LOCAL: u8 = 255;
    /// Bytes of `struct rtnexthop`.
    const NEXT_HOP: usize = 8;

    let head = body.get(..ROUTE_BODY)?;
    if head[4] == RT_TABLE_LOCAL || head[7] != RTN_UNICAST {
        return None;
    }
    let mut route = Route {
        is_default: head[1] == 0,
        ..Route::default()
    };
    let mut destination: &[u8] = &[];
    for (kind, value) in attributes(body.get(ROUTE_BODY..)?) {
        match kind {
            RTA_DST => destination = value,
            RTA_OIF => route.interfaces.extend(u32_at(value, 0)),
            RTA_GATEWAY | RTA_VIA => route.has_gateway = true,
            RTA_MULTIPATH => {
                let mut hops = value;
                while let Some(len) = hops.get(..2) {
                    let len = usize::from(u16::from_ne_bytes(len.try_into().ok()?));
                    let Some(hop) = hops.get(..len).filter(|hop| hop.len() >= NEXT_HOP) else {
                        break;
                    };
                    route.interfaces.extend(u32_at(hop, 4));
                    route.has_gateway |= attributes(&hop[NEXT_HOP..])
                        .any(|(kind, _)| matches!(kind, RTA_GATEWAY | RTA_VIA));
                    let next = len.next_multiple_of(align_of::<u32>());
                    hops = hops.get(next..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    let is_of_link_scope = match *destination {
        [169, 254, ..] => destination.len() == 4,
        [0xfe, second, ..] => destination.len() == 16 && second & 0xc0 == 0x80,
        [0xff, ..] => destination.len() == 16,
        _ => false,
    };
    (!is_of_link_scope).then_some(route)
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use trefoil_lab::namespace::Namespace;

    use super::*;

    #[test]
    fn interfaces_and_routes_are_listed_as_they_are() {
        let place = Namespace::new("listed").unwrap();
        place
            .ip("link add name one type veth peer name other\n\
                 link add link one name one.7 type macvlan\n\
                 link set one up\n\
                 link set other up\n\
                 address add 192.0.2.1/24 dev one\n\
                 address add 2001:db8::1/64 dev one nodad\n\
                 route add default via 192.0.2.9 dev one onlink\n\
                 route add 203.0.113.0/24 nexthop via 192.0.2.9 dev one onlink \
                 nexthop via 192.0.2.9 dev other onlink\n\
                 route add 2001:db8:9::/48 via 2001:db8::9 dev one\n")
            .unwrap();
        let mut routes = place.enter(|| Ok(RouteSocket::open()?)).unwrap();
        let links = routes.links().unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        let (one, other, upper) = (named("one"), named("other"), named("one.7"));
        assert_eq!((&*one.kind, &*upper.kind), ("veth", "macvlan"));
        assert_eq!(one.header_bytes(), Some(14));
        assert_eq!(upper.lower, Some(one.index));

        let found = routes.routes().unwrap();
        assert!(found.contains(&Route {
            is_default: true,
            has_gateway: true,
            interfaces: vec![one.index],
        }));
        assert!(found.contains(&Route {
            is_default: false,
            has_gateway: true,
            interfaces: vec![one.index, other.index],
        }));
        let connected = |route: &&Route| !route.has_gateway && route.interfaces == [one.index];
        // By IPv4 and IPv6; what is of link scope is not among them.
        assert_eq!(found.iter().filter(connected).count(), 2, "{found:?}");
        assert_eq!(found.len(), 5, "{found:?}");

        assert!(routes.counters(one.index).unwrap().is_some());
        assert_eq!(routes.counters(9999).unwrap(), None);
    }

    #[test]
    fn interfaces_of_other_namespaces_are_listed_and_one_that_moves_is_told() {
        let (place, other) = (
            Namespace::new("here").unwrap(),
            Namespace::new("elsewhere").unwrap(),
        );
        let (changes, mut routes) = place
            .enter(|| Ok((Changes::open()?, RouteSocket::open()?)))
            .unwrap();
        let elsewhere = |routes: &mut RouteSocket| {
            let links = place.enter(|| Ok(routes.links_elsewhere()?)).unwrap();
            links
                .into_iter()
                .map(|(_, link)| link.name)
                .collect::<Vec<_>>()
        };
        assert!(elsewhere(&mut routes).is_empty());
        place
            .ip(&format!(
                "link add name one type veth peer name two\nlink set two netns {}\n",
                other.path()
            ))
            .unwrap();
        let index = routes.links().unwrap().last().unwrap().index;
        let mut told = changes.wait().unwrap();
        let to = |told: &[Change]| {
            told.iter().find_map(|change| match change {
                Change::LinkMoved { index: it, to } if *it != index => Some(*to),
                _ => None,
            })
        };
        while to(&told).is_none() {
            told = changes.wait().unwrap();
        }
        let listed = place.enter(|| Ok(routes.links_elsewhere()?)).unwrap();
        let is_it = |(namespace, link): &(u32, Link)| {
            link.name == "two" && Some((*namespace, link.index)) == to(&told)
        };
        assert!(listed.iter().any(is_it), "{listed:?}");
        let found = elsewhere(&mut routes);
        assert!(
            found.contains(&"two".to_owned()) && found.len() == 2,
            "{found:?}"
        );
    }

    #[test]
    fn a_function_for_a_guest_is_told_from_a_port() {
        for (name, is_of_guest) in [
            ("pf0vf3", true),
            ("c1pf0sf88", true),
            ("p0", false),
            ("pf0", false),
            ("p0s1", false),
            ("", false),
        ] {
            assert_eq!(is_port_of_guest(name), is_of_guest, "{name}");
        }
    }

    #[test]
    fn changes_are_told_in_order() {
        let place = Namespace::new("changed").unwrap();
        let changes = place.enter(|| Ok(Changes::open()?)).unwrap();
        place
            .ip("link add name one type veth peer name other\n\
                 link set one name two\n\
                 link del two\n")
            .unwrap();
        let mut names = Vec::new();
        loop {
            for change in changes.wait().unwrap() {
                match change {
                    Change::Link(link) => names.push(link.name),
                    Change::LinkGone(_) => {
                        let first = |name| names.iter().position(|known| known == name);
                        assert!(first("one") < first("two") && first("one").is_some());
                        return;
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_message_that_ends_early_says_nothing() {
        for len in 0..LINK_BODY {
            assert_eq!(link(&vec![0; len]), None);
            assert_eq!(counters(&vec![0; len]), None);
        }
        for len in 0..ROUTE_BODY {
            assert_eq!(route(&vec![1; len]), None);
        }
        // A next hop that says it has no length.
        let mut body = vec![0, 24, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        body.extend([12, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(route(&body).is_some_and(|route| route.interfaces.is_empty()));
    }
}
