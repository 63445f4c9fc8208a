//! Packets that name more than one destination, by way of a router that goes along any list.

use std::net::IpAddr;

use anyhow::Result;
use trefoil_lab::Lab;
use trefoil_lab::places::{HOST, HOST6, PEER, PEER6};
use trefoil_lab::router::{self, ROUTER, ROUTER_LINK, ROUTER_MAC, ROUTER6, Router};
use trefoil_lab::wiring::{container, forward};

use crate::round::go;
use crate::stage::{Furniture, Stage, UDP_PORT, Way, way};
use crate::world::at;

/// Address of the host's end of the container's link.
pub const CONTAINERS: &str = "02:00:00:00:03:15";

/// A way by the router.
pub const fn by_router(id: &'static str, send: fn(&mut Stage<'_>) -> Result<()>) -> Way {
    Way {
        link: router::LINK,
        ..way(id, send)
    }
}

/// A router, and a container of an ordinary user's that is routed through the host.
pub fn a_router_and_a_container(lab: &Lab) -> Result<Furniture> {
    forward(&lab.host)?;
    let container = container(&lab.host, "container", 21)?;
    Ok(Furniture {
        place: Some(container.place),
        router: Some(Router::new(lab)?),
        ..Furniture::default()
    })
}

/// Owner of the program that sends.
#[derive(Clone, Copy)]
enum By {
    User,
    Container,
    Root,
}

/// Words of `traffic route`: by way of `first` and the way's own address to an approved one.
fn route(stage: &mut Stage<'_>, by: By, how: &str, first: IpAddr, more: &[&str]) -> Result<()> {
    let (own, last, from) = match first {
        IpAddr::V4(_) => (stage.v4, PEER, HOST),
        IpAddr::V6(_) => (stage.v6, PEER6, HOST6),
    };
    let (own, first, last) = (own.to_string(), first.to_string(), at(last, UDP_PORT));
    let from = match by {
        By::Container if from.is_ipv4() => "192.0.2.121:4000".to_owned(),
        By::Container => "[2001:db8:1::1:21]:4000".to_owned(),
        _ => at(from, 4000),
    };
    let mut arguments = vec!["route", how, &last, "--via", &first, "--via", &own];
    if how == "header" {
        arguments.extend(["--from", &from]);
    }
    arguments.extend(more);
    match by {
        By::User => stage.run_as_user(&arguments),
        By::Container => stage.run_in_container(&arguments),
        By::Root => stage.run(&arguments),
    }
}

const DEVICE: [&str; 2] = ["--device", router::LINK];

#[test]
fn row_31_routing_headers_of_a_user() -> Result<()> {
    let ways = [
        by_router("31a", |stage| {
            route(stage, By::User, "option", ROUTER_LINK, &DEVICE)
        }),
        by_router("31b", |stage| {
            route(stage, By::User, "option", ROUTER6, &[])
        }),
        by_router("31c", |stage| {
            let more = ["--connected", "--device", router::LINK];
            route(stage, By::User, "option", ROUTER_LINK, &more)
        }),
        by_router("31d", |stage| {
            let more = ["--tcp", "--device", router::LINK];
            route(stage, By::User, "option", ROUTER_LINK, &more)
        }),
        by_router("31e", |stage| {
            route(stage, By::User, "option", ROUTER6, &["--tcp"])
        }),
        by_router("31f", |stage| {
            route(stage, By::User, "option", ROUTER6, &["--connected"])
        }),
    ];
    go(&ways, "", a_router_and_a_container)
}

#[test]
fn row_31_routing_headers_of_raw_sockets() -> Result<()> {
    let ways = [
        by_router("31g", |stage| {
            let kind = ["--kind", "0"];
            route(stage, By::Root, "header", ROUTER6, &kind)
        }),
        by_router("31h", |stage| {
            let kind = ["--kind", "2"];
            route(stage, By::Root, "header", ROUTER6, &kind)
        }),
        by_router("31i", |stage| {
            let kind = ["--kind", "3"];
            route(stage, By::Root, "header", ROUTER6, &kind)
        }),
        by_router("31j", |stage| {
            let kind = ["--kind", "4", "--device", router::LINK];
            route(stage, By::Root, "header", ROUTER_LINK, &kind)
        }),
        by_router("31k", |stage| {
            let kind = ["--kind", "253"];
            route(stage, By::Root, "header", ROUTER6, &kind)
        }),
    ];
    go(&ways, "", a_router_and_a_container)
}

#[test]
fn row_31_routing_headers_of_a_container() -> Result<()> {
    let ways = [
        by_router("31l", |stage| {
            route(stage, By::Container, "option", ROUTER6, &[])
        }),
        by_router("31m", |stage| {
            let kind = ["--kind", "0"];
            route(stage, By::Container, "header", ROUTER6, &kind)
        }),
        by_router("31n", |stage| {
            let kind = ["--kind", "253"];
            route(stage, By::Container, "header", ROUTER6, &kind)
        }),
        by_router("31o", |stage| frame(stage, "[2001:db8:1::1:21]:4000", "0")),
        by_router("31p", |stage| frame(stage, "[2001:db8:1::1:21]:4000", "4")),
    ];
    go(&ways, "", a_router_and_a_container)
}

/// A container's own frame with a list in it, which the host forwards.
fn frame(stage: &mut Stage<'_>, from: &str, kind: &str) -> Result<()> {
    let (via, to) = (stage.v6.to_string(), at(PEER6, UDP_PORT));
    let router = ROUTER6.to_string();
    let mut arguments = vec!["packet", "to-host", CONTAINERS, &to];
    arguments.extend(["--from", from, "--kind", kind, "--via", &router]);
    arguments.extend(["--via", &via]);
    stage.run_in_container(&arguments)
}

#[test]
fn row_31_source_routes_of_ipv4() -> Result<()> {
    let ways = [
        by_router("31q", |stage| {
            route(stage, By::Root, "option", ROUTER, &["--kind", "loose"])
        }),
        by_router("31r", |stage| {
            let kind = ["--kind", "strict", "--connected"];
            route(stage, By::Root, "option", ROUTER, &kind)
        }),
        by_router("31s", |stage| {
            route(stage, By::Root, "message", ROUTER, &["--kind", "loose"])
        }),
        by_router("31t", |stage| {
            route(stage, By::Root, "header", ROUTER, &["--kind", "strict"])
        }),
        by_router("31u", |stage| {
            route(stage, By::Root, "option", ROUTER, &["--tcp"])
        }),
    ];
    go(&ways, "", a_router_and_a_container)
}

#[test]
fn row_31_lists_in_frames() -> Result<()> {
    let ways = [
        by_router("31v", |stage| framed(stage, "0")),
        by_router("31w", |stage| framed(stage, "4")),
        by_router("31x", |stage| framed(stage, "77")),
        by_router("31y", |stage| {
            let (via, to) = (stage.v4.to_string(), at(PEER, UDP_PORT));
            let (router, from) = (ROUTER.to_string(), at(HOST, 4000));
            let mut arguments = vec!["packet", router::LINK, ROUTER_MAC, &to, "--from", &from];
            arguments.extend(["--via", &router, "--via", &via, "--kind", "loose"]);
            stage.run(&arguments)
        }),
    ];
    go(&ways, "", a_router_and_a_container)
}

/// A packet socket's frame to the router, whose first destination is approved.
fn framed(stage: &mut Stage<'_>, kind: &str) -> Result<()> {
    let (via, to, from) = (stage.v6.to_string(), at(PEER6, UDP_PORT), at(HOST6, 4000));
    let router = ROUTER6.to_string();
    let mut arguments = vec!["packet", router::LINK, ROUTER_MAC, &to, "--from", &from];
    arguments.extend(["--via", &router, "--via", &via, "--kind", kind]);
    stage.run(&arguments)
}
