//! Packets that look as if somebody else sent them: the kernel, a guest, nobody.

use anyhow::Result;
use trefoil_lab::Lab;
use trefoil_lab::places::{HOST, HOST6};
use trefoil_lab::wiring::far_link_address;

use crate::lists::{CONTAINERS, a_router_and_a_container};
use crate::round::go;
use crate::stage::{Furniture, LINK, Stage, nothing, way};
use crate::world::books::FOREIGN_LINK;
use crate::world::{TRAFFIC, at};

/// Port of the host's at which nobody listens.
const CLOSED: u16 = 7;
/// Address of a guest that is not there.
const NOBODYS: &str = "192.0.2.150:4000";

/// A device through which a process writes frames to the link abroad.
fn macvtap(lab: &Lab) -> Result<Furniture> {
    let furniture = a_router_and_a_container(lab)?;
    lab.host.ip(&format!(
        "link add link {LINK} name tap0 address 02:00:00:00:01:70 type macvtap mode bridge\n\
         link set tap0 addrgenmode none\n\
         link set tap0 up\n"
    ))?;
    Ok(furniture)
}

/// A packet to the host, as if the far end had sent it: what the host answers goes there.
fn from_abroad(stage: &Stage<'_>, interface: &str, mac: &str, more: &[&str]) -> Vec<String> {
    let (to, from) = (at(HOST, CLOSED), at(stage.v4, 4000));
    let all = ["packet", interface, mac, &to, "--from", &from];
    all.iter().chain(more).map(ToString::to_string).collect()
}

fn reflected_by_container(stage: &mut Stage<'_>, more: &[&str]) -> Result<()> {
    let arguments = from_abroad(stage, "to-host", CONTAINERS, more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    stage.run_in_container(&arguments)
}

fn reflected_on_the_host(stage: &mut Stage<'_>, more: &[&str]) -> Result<()> {
    let arguments = from_abroad(stage, "lo", "00:00:00:00:00:00", more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    stage.run(&arguments)
}

#[test]
fn row_41_other_senders_than_said() -> Result<()> {
    let ways = [
        way("41a", |stage| reflected_by_container(stage, &["--echo"])),
        way("41b", |stage| reflected_by_container(stage, &[])),
        way("41c", |stage| reflected_on_the_host(stage, &["--echo"])),
        way("41d", |stage| reflected_on_the_host(stage, &[])),
        way("41e", |stage| {
            let to = stage.udp();
            let arguments = ["packet", "lo", "00:00:00:00:00:00", &to];
            stage.run(&[&arguments[..], &["--from", NOBODYS]].concat())
        }),
        way("41f", |stage| {
            let (to, from, far) = (stage.udp(), at(HOST, 4000), far_link_address(FOREIGN_LINK));
            let arguments = ["packet", "tap0", &far, &to, "--from", &from, "--macvtap"];
            stage.run(&arguments)
        }),
        way("41g", |stage| {
            let (to, far) = (stage.udp(), far_link_address(FOREIGN_LINK));
            let arguments = ["packet", "tap0", &far, &to, "--from", NOBODYS, "--macvtap"];
            stage.run(&arguments)
        }),
    ];
    go(&ways, "", macvtap)
}

/// A service answers whoever asks: a user asks in the name of an address abroad.
fn answered(stage: &mut Stage<'_>) -> Result<()> {
    const PORT: u16 = 8410;
    let port = if stage.enforced { PORT + 1 } else { PORT };
    let service = at(HOST6, port);
    let mut answering = stage
        .lab
        .program_in("first.service", TRAFFIC)?
        .args(["answer", &service])
        .start()?;
    answering.line()?;
    // In its own name, beside the record of the question.
    stage.answering.insert(answering.pid());
    stage.running.push(answering);
    let abroad = stage.v6.to_string();
    stage.run_as_user(&["udp", &service, "--source", &abroad, "--freebind"])
}

#[test]
fn row_41_a_user_has_a_service_answer_abroad() -> Result<()> {
    go(&[way("41h", answered)], "", nothing)
}
