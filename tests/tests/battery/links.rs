//! Past the sockets of IP: straight to a link, from other namespaces, through the host,
//! through tunnels.

use anyhow::Result;

use crate::stage::{Stage, go, nothing, way};
use crate::world::at;

/// The host's end of the cable to the foreign host, and the other.
const NEAR: &str = "02:00:00:00:01:03";
const FAR: &str = "02:00:00:00:02:03";
const LINK: &str = "to-foreign";

fn frame(stage: &mut Stage<'_>, more: &[&str]) -> Result<()> {
    let (from, to) = (at(trefoil_lab::places::HOST, 4000), stage.udp());
    let mut arguments = vec!["frame", LINK, NEAR, FAR, &from, &to];
    arguments.extend(more);
    stage.run(&arguments)
}

#[test]
fn row_8_packet_socket() -> Result<()> {
    go(&[way("8a", |stage| frame(stage, &[]))], "", nothing)
}

#[test]
fn row_9_packet_socket_past_the_queue() -> Result<()> {
    let send = |stage: &mut Stage<'_>| frame(stage, &["--bypass-qdisc"]);
    go(&[way("9a", send)], "", nothing)
}
