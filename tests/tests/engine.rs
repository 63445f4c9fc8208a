//! Sockets that the kernel makes for itself in a container's network namespace have the control group
//! of the engine that made the namespace, and are not the engine's.
//!
//! The only test of its program, since it moves its own process into a control group.

mod world;

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Lab;
use trefoil_lab::cgroup::version2_root;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{Guest, container, far_link_address};
use world::all_of;
use world::books::FOREIGN_LINK;
use world::discovery::{ask_as_a_neighbour, on_link_abroad};

const POLICY: &str = r#"mode = "enforce"
[[rules]]
name    = "the engine fetches images"
from    = { unit = "runtime.service" }
to      = { networks = ["2001:db8:3::/48"] }
verdict = "approve"
"#;

/// Makes a container, as a process of `runtime.service`.
fn container_of_engine(lab: &Lab) -> Result<Guest> {
    let root = version2_root()?.context("no hierarchy of version 2")?;
    fs::write(lab.unit("runtime.service")?.join("cgroup.procs"), "0")?;
    let guest = container(&lab.host, "container", 21)?;
    fs::write(root.join("cgroup.procs"), "0")?;
    Ok(guest)
}

#[test]
fn answers_of_a_containers_kernel_are_not_its_engines() -> Result<()> {
    const N_ANSWERS: u16 = 5;
    let far: IpAddr = "2001:db8:3::77".parse()?;
    let router = far_link_address(FOREIGN_LINK);
    let lab = Lab::new()?;
    let guest = container_of_engine(&lab)?;
    on_link_abroad(&lab, &guest.place)?;
    let tap = Tap::new(&lab.foreign)?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    ask_as_a_neighbour(&guest.place, far, &router, N_ANSWERS)?;
    let records = all_of(agent, &lab)?;
    let mut dropped = records
        .iter()
        .filter(|record| record.is("dst_addr", far) && record.is("outcome", "dropped"))
        .peekable();
    ensure!(dropped.peek().is_some(), "{records:?}");
    for record in dropped {
        ensure!(record.text("unit").is_empty(), "{record}");
    }
    ensure!(tap.to(far).packets == 0, "{:?}", tap.to(far));
    lab.close()
}
