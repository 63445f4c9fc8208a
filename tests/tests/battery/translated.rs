//! Destinations that the host rewrites on the way: the named one is approved, and what is
//! behind it is not.

use std::net::IpAddr;

use anyhow::Result;
use trefoil_lab::Lab;

use crate::lists::{CONTAINERS, a_router_and_a_container};
use crate::round::go;
use crate::stage::{Furniture, TCP_PORT, UDP_PORT, way};
use crate::world::at;

/// Rewrites as service proxies do, for the host's own packets and for forwarded ones: each
/// address of the peer is a service, and its backend is the foreign host's with the same
/// last part.
fn services(lab: &Lab) -> Result<Furniture> {
    let furniture = a_router_and_a_container(lab)?;
    let v4 = |host: u8| format!("198.51.100.{host} : 203.0.113.{host}");
    let v6 = |host: u8| format!("2001:db8:2::{host:x} : 2001:db8:3::{host:x}");
    let all = |pair: &dyn Fn(u8) -> String| (8..64).map(pair).collect::<Vec<_>>().join(", ");
    for (family, map) in [("ip", all(&v4)), ("ip6", all(&v6))] {
        let rewrite = format!("dnat to {family} daddr map {{ {map} }}");
        lab.host.nft(&format!(
            "table {family} services {{\n\
             chain output {{\ntype nat hook output priority -100; policy accept;\n{rewrite}\n}}\n\
             chain prerouting {{\ntype nat hook prerouting priority -100; policy accept;\n\
             {rewrite}\n}}\n}}\n"
        ))?;
    }
    Ok(furniture)
}

/// The service whose backend is the way's own address.
fn service(backend: IpAddr, port: u16) -> String {
    let named = match backend {
        IpAddr::V4(backend) => IpAddr::from([198, 51, 100, backend.octets()[3]]),
        IpAddr::V6(backend) => {
            let mut named = backend.segments();
            named[2] = 2;
            named.into()
        }
    };
    at(named, port)
}

#[test]
fn row_42_services_with_a_backend_abroad() -> Result<()> {
    let ways = [
        way("42a", |stage| {
            let to = service(stage.v4, UDP_PORT);
            stage.run_as_user(&["udp", &to])
        }),
        way("42b", |stage| {
            let to = service(stage.v4, UDP_PORT);
            stage.run_as_user(&["udp", &to, "--connected"])
        }),
        way("42c", |stage| {
            let to = service(stage.v4, TCP_PORT);
            stage.run_as_user(&["begin", &to])
        }),
        way("42d", |stage| {
            let to = service(stage.v6, UDP_PORT);
            stage.run_as_user(&["udp", &to])
        }),
        way("42e", |stage| {
            let to = service(stage.v4, UDP_PORT);
            let address = to.split(':').next().unwrap_or_default();
            stage.run(&["ping", address, "--raw"])
        }),
        way("42f", |stage| {
            let to = service(stage.v4, UDP_PORT);
            stage.run_in_container(&["udp", &to])
        }),
        way("42g", |stage| {
            let to = service(stage.v4, TCP_PORT);
            stage.run_in_container(&["begin", &to])
        }),
        way("42h", |stage| {
            let to = service(stage.v4, UDP_PORT);
            let from = "192.0.2.121:4000";
            stage.run_in_container(&["packet", "to-host", CONTAINERS, &to, "--from", from])
        }),
    ];
    go(&ways, "", services)
}
