//! The books of uplinks, held against what their interfaces and the far ends have counted,
//! and what passes by no socket of the host.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use trefoil_lab::agent::Agent;
use trefoil_lab::books::balanced;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::Program;
use trefoil_lab::wiring::{Guest, far_link_address};
use trefoil_lab::{Lab, Record, places};

use super::{TRAFFIC, at, traffic};

/// Books are read with each heartbeat.
pub const OFTEN: &str = "heartbeat_interval = \"1s\"\n";
/// Number of the link to the foreign host.
pub const FOREIGN_LINK: u8 = 3;
/// Number of the link to the peer.
pub const PEER_LINK: u8 = 2;

/// The books of an uplink once they are about all that its interface has sent by now,
/// since it is watched. Fails unless they balance.
pub fn books(agent: &mut Agent<'_>, lab: &Lab, uplink: &str) -> Result<Record> {
    let sent = LinkCounters::read(&lab.host, uplink)?;
    let book = agent.wait_for(&format!("books of {uplink} up to {sent:?}"), |records| {
        let book = records
            .iter()
            .rev()
            .find(|record| record.is("subject", format!("books of uplink {uplink}")))?;
        let before = book.number("bytes_before").ok()?;
        (book.number("bytes_sent").ok()? + before >= sent.tx_bytes).then(|| book.clone())
    })?;
    let counted = book.number("bytes_before")? + balanced(&book)?;
    // The kernel may have sent something by itself since.
    let now = LinkCounters::read(&lab.host, uplink)?;
    let possible = sent.tx_bytes..=now.tx_bytes;
    ensure!(possible.contains(&counted), "{book} {possible:?}");
    Ok(book)
}

/// Fails unless the far end of a link got what this end has sent.
pub fn agrees(lab: &Lab, near: &str, far: &Namespace) -> Result<()> {
    let near = LinkCounters::read(&lab.host, near)?;
    let far = LinkCounters::read(far, "to-host")?;
    ensure!(
        near.tx_bytes == far.rx_bytes && near.tx_packets == far.rx_packets,
        "{near:?} {far:?}"
    );
    Ok(())
}

/// Frames of a packet socket to a place, by the link with this number.
pub fn frames(lab: &Lab, link: &str, number: u8, to: IpAddr) -> Result<Program> {
    Ok(frames_of(traffic(lab)?, link, number, to))
}

/// As [`frames`], of `traffic` wherever it runs.
pub fn frames_of(traffic: Program, link: &str, number: u8, to: IpAddr) -> Program {
    let from = if to.is_ipv4() {
        places::HOST
    } else {
        places::HOST6
    };
    traffic.args([
        "packet",
        link,
        &far_link_address(number),
        &at(to, 9),
        "--from",
        &at(from, 9),
    ])
}

/// Datagrams from a place behind the host, in no control group that is watched.
pub fn from_machine(guest: &Guest, to: IpAddr) -> Result<()> {
    let machine = Program::new(TRAFFIC, &guest.place, None, None)?;
    machine
        .args(["udp", &at(to, 9), "--count", "5"])
        .run()?
        .success()
        .map(drop)
}
