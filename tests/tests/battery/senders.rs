//! Permission of one sender is none for another: decisions do not pass on.

use anyhow::{Context, Result};
use trefoil_lab::Lab;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::places::HOST;
use trefoil_lab::program::Program;
use trefoil_lab::wiring::{container, far_link_address};

use crate::round::go;
use crate::stage::{Furniture, LINK, Stage, UDP_PORT, nothing, way};
use crate::world::books::FOREIGN_LINK;
use crate::world::{TRAFFIC, at, told};

/// The source that the first container has, and the port that it sends from.
const FIRST: &str = "192.0.2.122:4000";
const SECOND: &str = "192.0.2.123:4000";
/// The host's end of the second container's link.
const NEAR: &str = "02:00:00:00:03:17";

fn two_containers(lab: &Lab) -> Result<Furniture> {
    let first = container(&lab.host, "first", 22)?;
    let second = container(&lab.host, "second", 23)?;
    Ok(Furniture {
        place: Some(first.place),
        other: Some(second.place),
        ..Furniture::default()
    })
}

/// The one that may sends, and it arrives.
fn first_sends(stage: &mut Stage<'_>, place: &Namespace) -> Result<()> {
    let unit = stage.lab.unit("first.service")?;
    let program = Program::new(TRAFFIC, place, Some(&unit), None)?;
    let to = at(stage.v4, UDP_PORT);
    let sent = program.args(["udp", &to, "--from", "4000"]).run()?;
    let sent = told(&sent.success()?)?.pop().context("it said nothing")?;
    stage.bystanders.insert(sent.number("pid")? as u32);
    stage.let_by(sent.number("bytes")?)
}

fn second_sends(stage: &mut Stage<'_>, arguments: &[&str]) -> Result<()> {
    let place = stage.place.context("no container")?;
    first_sends(stage, place)?;
    let unit = stage.lab.unit("second.service")?;
    let other = stage.other.context("no other container")?;
    let program = Program::new(TRAFFIC, other, Some(&unit), None)?;
    stage.run_program(program, arguments)
}

#[test]
fn row_33_what_another_container_may() -> Result<()> {
    let ways = [
        way("33a", |stage| {
            let to = stage.udp();
            second_sends(stage, &["packet", "to-host", NEAR, &to, "--from", SECOND])
        }),
        way("33b", |stage| {
            let to = stage.udp();
            second_sends(stage, &["packet", "to-host", NEAR, &to, "--from", FIRST])
        }),
        way("33c", |stage| {
            let to = stage.v4.to_string();
            let more = ["--own-header", "--protocol", "17"];
            second_sends(stage, &[&["raw", &to], &more[..]].concat())
        }),
        way("33d", |stage| {
            stage.has_ports = false;
            let to = stage.v4.to_string();
            let more = ["--own-header", "--fragment", "100", "--protocol", "17"];
            second_sends(stage, &[&["raw", &to], &more[..]].concat())
        }),
        way("33e", |stage| {
            let to = stage.udp();
            second_sends(stage, &["udp", &to, "--from", "4000"])
        }),
    ];
    go(&ways, "", two_containers)
}

#[test]
fn row_33_what_another_service_may() -> Result<()> {
    let ways = [
        way("33f", |stage| frame_after(stage, 4000)),
        way("33g", |stage| frame_after(stage, 4001)),
        way("33h", |stage| {
            let host = stage.lab.host.clone();
            first_sends(stage, &host)?;
            let to = stage.udp();
            stage.run_as_user(&["udp", &to, "--from", "4000"])
        }),
    ];
    go(&ways, "", nothing)
}

/// A packet socket's frame, after a service of the host has sent there, from its port or
/// from another one.
fn frame_after(stage: &mut Stage<'_>, port: u16) -> Result<()> {
    let host = stage.lab.host.clone();
    first_sends(stage, &host)?;
    let (from, to) = (at(HOST, port), stage.udp());
    let far = far_link_address(FOREIGN_LINK);
    stage.run(&["packet", LINK, &far, &to, "--from", &from])
}
