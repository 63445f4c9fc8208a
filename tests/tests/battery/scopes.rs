//! Addresses that are called local, and leave the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use trefoil_lab::Lab;
use trefoil_lab::places::{FOREIGN, HOST, HOST6};
use trefoil_lab::router::{self, ROUTER_MAC};

use crate::lists::{a_router_and_a_container, by_router};
use crate::round::go;
use crate::stage::{Furniture, LINK, Stage, TCP_PORT, UDP_PORT, USER, nothing, way};
use crate::world::{TRAFFIC, at};

fn metadata(stage: &mut Stage<'_>) -> IpAddr {
    let IpAddr::V4(own) = stage.v4 else {
        unreachable!("is of IPv4")
    };
    let to = IpAddr::V4(Ipv4Addr::new(169, 254, 169, own.octets()[3]));
    stage.to = vec![to];
    to
}

/// A link-scope address of IPv6 on the link to the router.
fn neighbour(stage: &mut Stage<'_>, port: u16) -> Result<String> {
    let IpAddr::V6(own) = stage.v6 else {
        unreachable!("is of IPv6")
    };
    let to = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, own.segments()[7]);
    stage.to = vec![to.into()];
    let index = stage.lab.host.enter(|| Ok(if_nametoindex(router::LINK)?))?;
    Ok(format!("[{to}%{index}]:{port}"))
}

#[test]
fn row_32_link_scope_that_a_router_forwards() -> Result<()> {
    let ways = [
        by_router("32a", |stage| {
            let to = at(metadata(stage), UDP_PORT);
            stage.run_as_user(&["udp", &to])
        }),
        by_router("32b", |stage| {
            let to = at(metadata(stage), UDP_PORT);
            stage.run_as_user(&["udp", &to, "--connected"])
        }),
        by_router("32c", |stage| {
            let to = at(metadata(stage), TCP_PORT);
            stage.run_as_user(&["begin", &to])
        }),
        by_router("32d", |stage| {
            let to = neighbour(stage, UDP_PORT)?;
            stage.run_as_user(&["udp", &to])
        }),
        by_router("32e", |stage| {
            let to = neighbour(stage, UDP_PORT)?;
            stage.run_as_user(&["udp", &to, "--connected"])
        }),
        by_router("32f", |stage| {
            let to = at(metadata(stage), UDP_PORT);
            stage.run_in_container(&["udp", &to])
        }),
        by_router("32g", |stage| {
            let (to, from) = (at(metadata(stage), UDP_PORT), at(HOST, 4000));
            stage.run(&["packet", router::LINK, ROUTER_MAC, &to, "--from", &from])
        }),
    ];
    go(&ways, "", a_router_and_a_container)
}

#[test]
fn row_32_own_addresses_that_leave() -> Result<()> {
    let ways = [
        way("32h", |stage| {
            stage.to = vec![HOST];
            to_itself(stage, HOST)
        }),
        way("32i", |stage| {
            stage.to = vec![HOST6];
            to_itself(stage, HOST6)
        }),
        way("32j", removed),
    ];
    go(&ways, "", own_addresses)
}

/// Before the agent starts, which hears of a later one a moment after it is there.
fn own_addresses(lab: &Lab) -> Result<Furniture> {
    lab.host
        .ip("address add 192.0.2.77/32 dev lo\naddress add 192.0.2.78/32 dev lo\n")?;
    nothing(lab)
}

/// A frame to an address of the host, with the link address of somebody else.
fn to_itself(stage: &mut Stage<'_>, own: IpAddr) -> Result<()> {
    let (to, from) = (at(own, UDP_PORT), at(own, 4000));
    stage.run(&["packet", LINK, "02:00:00:00:02:03", &to, "--from", &from])
}

/// A socket is connected to an own address, which then is somebody else's.
fn removed(stage: &mut Stage<'_>) -> Result<()> {
    let own = if stage.enforced {
        "192.0.2.78"
    } else {
        "192.0.2.77"
    };
    stage.to = vec![own.parse()?];
    let host = &stage.lab.host;
    stage
        .lab
        .foreign
        .ip(&format!("route replace local {own}/32 dev lo\n"))?;
    // Somebody listens, or the socket would be told that nobody does.
    let _listener = trefoil_lab::sink::UdpSink::new(host, UDP_PORT)?;
    let to = format!("{own}:{UDP_PORT}");
    let program = stage.lab.program_as(USER, TRAFFIC)?;
    stage.privilege = program.privilege();
    let mut sender = program
        .args(["udp", &to, "--source", "192.0.2.1"])
        .args(["--connected", "--hold"])
        .start()?;
    sender.line()?;
    // To itself: it never leaves.
    sender.proceed()?;
    sender.line()?;
    stage.senders.insert(sender.pid());
    host.ip(&format!(
        "address delete {own}/32 dev lo\n\
         route add {own}/32 via {FOREIGN} dev {LINK} onlink src {HOST}\n"
    ))?;
    sender.proceed()?;
    stage.bytes = 64;
    // In enforce mode it may be refused, and end.
    let outcome = sender.finish()?;
    if !stage.enforced {
        outcome.success()?;
    } else if outcome.code != 0 {
        stage.is_refused();
    }
    Ok(())
}

#[test]
fn row_32_wider_than_the_link() -> Result<()> {
    let ways = [
        way("32k", |stage| {
            let IpAddr::V4(own) = stage.v4 else {
                unreachable!("is of IPv4")
            };
            let to = IpAddr::V4(Ipv4Addr::new(127, 9, 0, own.octets()[3]));
            stage.to = vec![to];
            let on = |name: &str| format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
            stage.lab.host.enter(|| {
                std::fs::write(on("all"), "1").context("route_localnet")?;
                Ok(())
            })?;
            stage.lab.host.ip(&format!(
                "route replace table local unicast {to} via {FOREIGN} dev {LINK} onlink src {HOST}\n"
            ))?;
            stage.run_as_user(&["udp", &at(to, UDP_PORT)])
        }),
        way("32l", |stage| {
            let IpAddr::V4(own) = stage.v4 else {
                unreachable!("is of IPv4")
            };
            let to = IpAddr::V4(Ipv4Addr::new(239, 1, 1, own.octets()[3]));
            stage.to = vec![to];
            stage.lab.host.ip(&format!(
                "route replace multicast {to} dev {LINK} src {HOST}\n"
            ))?;
            stage.run_as_user(&["udp", &at(to, UDP_PORT)])
        }),
        way("32m", |stage| {
            let IpAddr::V6(own) = stage.v6 else {
                unreachable!("is of IPv6")
            };
            let to = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 8, own.segments()[7]);
            stage.to = vec![to.into()];
            stage.lab.host.ip(&format!(
                "route replace multicast {to} dev {LINK} table local metric 1 src {HOST6}\n"
            ))?;
            stage.run_as_user(&["udp", &at(to.into(), UDP_PORT)])
        }),
        way("32n", |stage| {
            let IpAddr::V4(own) = stage.v4 else {
                unreachable!("is of IPv4")
            };
            let to = IpAddr::V4(Ipv4Addr::new(224, 0, 2, own.octets()[3]));
            stage.to = vec![to];
            let from = at(HOST, 4000);
            let to = at(to, UDP_PORT);
            stage.run(&["packet", LINK, "01:00:5e:00:02:08", &to, "--from", &from])
        }),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_38_packets_that_frames_do_not_name() -> Result<()> {
    let ways = [
        by_router("38a", |stage| wrapped(stage, "vlan-9")),
        by_router("38b", |stage| wrapped(stage, "qinq")),
        by_router("38c", |stage| wrapped(stage, "qinq-9")),
        by_router("38d", |stage| wrapped(stage, "mpls")),
        by_router("38e", |stage| wrapped(stage, "pppoe")),
        by_router("38f", |stage| wrapped(stage, "snap")),
        by_router("38g", |stage| wrapped(stage, "lie")),
        by_router("38h", |stage| wrapped(stage, "experiment")),
        by_router("38i", |stage| wrapped(stage, "arp")),
        by_router("38j", |stage| wrapped(stage, "lldp")),
    ];
    go(&ways, "", a_router_and_a_container)
}

/// A container with a device of its own on the link to the router.
fn a_router_and_a_device(lab: &Lab) -> Result<Furniture> {
    let furniture = a_router_and_a_container(lab)?;
    let container = furniture.place.as_ref().context("no container")?;
    lab.host.ip(&format!(
        "link add link {} name own address 02:00:00:00:01:65 netns {} \
             type macvlan mode bridge\n",
        router::LINK,
        container.path()
    ))?;
    container.ip("link set own addrgenmode none\nlink set own up\n")?;
    Ok(furniture)
}

#[test]
fn row_38_frames_of_a_container_with_a_device_of_its_own() -> Result<()> {
    let ways = [
        by_router("38k", |stage| wrapped_in_container(stage, "vlan-9")),
        by_router("38l", |stage| wrapped_in_container(stage, "snap")),
        by_router("38m", |stage| wrapped_in_container(stage, "experiment")),
    ];
    go(&ways, "", a_router_and_a_device)
}

fn wrapped_in_container(stage: &mut Stage<'_>, how: &str) -> Result<()> {
    let to = stage.udp();
    let mut arguments = vec![
        "packet",
        "own",
        ROUTER_MAC,
        &to,
        "--from",
        "192.0.2.160:4000",
    ];
    arguments.extend(["--wrap", how]);
    stage.run_in_container(&arguments)
}

fn wrapped(stage: &mut Stage<'_>, how: &str) -> Result<()> {
    let (to, from) = (stage.udp(), at(HOST, 4000));
    let mut arguments = vec!["packet", router::LINK, ROUTER_MAC, &to, "--from", &from];
    arguments.extend(["--wrap", how]);
    stage.run(&arguments)
}
