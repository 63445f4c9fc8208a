//! Against the monitor itself: its tables, its process.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use trefoil_lab::battery::{Grade, Grades, NO_ATTRIBUTION, Privilege, Table};
use trefoil_lab::tap::Tap;
use trefoil_lab::{Agent, Lab, Record, kernel, places, wait_for};

use crate::links::{container, frame, send_as_a_guest};
use crate::round::go;
use crate::stage::{LINK, Meanwhile, Stage, Way, from_first, nothing, policy, way};
use crate::world::traffic;

const DESTINATIONS: u8 = 240;
const TO_MANY: [&str; 5] = ["--destinations", "240", "--count", "480", "--go-on"];
const LITTLE_ROOM: &str = "[tables]\nflows = 64\nuplink_flows = 64\n";

#[test]
fn row_25_more_flows_than_there_is_room_for() -> Result<()> {
    let send = |stage: &mut Stage<'_>| {
        let to = stage.udp();
        stage.to = from_first(DESTINATIONS);
        stage.run(&[&["udp-many", &to], &TO_MANY[..]].concat())
    };
    go(&[way("25a", send)], LITTLE_ROOM, nothing)
}

#[test]
fn row_25_more_flows_of_a_packet_socket_than_there_is_room_for() -> Result<()> {
    let send = |stage: &mut Stage<'_>| {
        stage.to = from_first(DESTINATIONS);
        frame(stage, &TO_MANY)
    };
    go(&[way("25b", send)], LITTLE_ROOM, nothing)
}

#[test]
fn row_25_more_flows_of_a_guest_than_there_is_room_for() -> Result<()> {
    let send = |stage: &mut Stage<'_>| {
        stage.to = from_first(DESTINATIONS);
        let to = stage.udp();
        send_as_a_guest(stage, &[&["udp-many", &to], &TO_MANY[..]].concat())
    };
    go(&[way("25c", send)], LITTLE_ROOM, container)
}

fn send(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp();
    stage.run(&["udp", &to])
}

#[test]
fn row_26_without_the_agent() -> Result<()> {
    let ways = [
        Way {
            id: "26a",
            agent: Meanwhile::Stopped,
            uplink: "auto",
            link: LINK,
            prepare: |_| Ok(()),
            send,
        },
        Way {
            id: "26b",
            agent: Meanwhile::Killed,
            uplink: "auto",
            link: LINK,
            prepare: |_| Ok(()),
            send,
        },
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_27_root_takes_the_programs_out() -> Result<()> {
    let table = Table::of_the_project()?;
    let told = |agent: &mut Agent<'_>| {
        agent.wait_for("it is told", |records| {
            records.iter().any(is_tamper).then_some(())
        })
    };
    let unpinned = tampered(|agent, lab| {
        lab.remove_pins()?;
        told(agent)
    })?;
    let detached = tampered(|agent, lab| {
        let pins = lab.pinned();
        let is_egress = |pin: &&PathBuf| pin.to_string_lossy().ends_with("egress");
        kernel::detach_link(pins.iter().find(is_egress).context("no such pin")?)?;
        told(agent)
    })?;
    table.hold("27a", &unpinned)?;
    table.hold("27b", &detached)
}

fn is_tamper(record: &Record) -> bool {
    record.is("event", "tamper")
}

/// Does this to an agent that enforces. It counts as seen if the act is told, and as
/// blocked if a packet that is sent afterwards is blocked.
fn tampered(act: impl FnOnce(&mut Agent<'_>, &Lab) -> Result<()>) -> Result<Grades> {
    let lab = Lab::new()?;
    let mut agent = lab
        .agent()
        .policy(&policy(true))
        .settings("heartbeat_interval = \"1s\"\n")
        .start()?;
    let tap = Tap::new(&lab.foreign)?;
    act(&mut agent, &lab)?;
    let foreign = places::FOREIGN.to_string();
    let sent = traffic(&lab)?.args(["raw", &foreign]).run()?;
    let arrives = sent.code == 0;
    if arrives {
        wait_for("the packet arrives", || {
            Ok((tap.to(places::FOREIGN).packets > 0).then_some(()))
        })?;
    }
    let is_seen = agent.records()?.iter().any(is_tamper);
    // It may have ended by itself.
    let _ = agent.signal(Signal::SIGINT);
    let _ = agent.ended()?;
    if lab.pins().exists() {
        trefoil_lab::agent::detach(&lab)?;
    }
    lab.close()?;
    let yes_if = |is: bool| if is { Grade::Yes } else { Grade::No };
    Ok(Grades {
        privilege: Privilege::Root,
        seen: yes_if(is_seen),
        owned: Grade::Without,
        attribution: NO_ATTRIBUTION.to_owned(),
        blocked: yes_if(!arrives),
        foretold: Grade::Without,
    })
}
