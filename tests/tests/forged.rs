//! Packets that root of a container makes by hand to seem something else: more of a datagram that
//! was sent, a question to which the kernel answers abroad, a checksum that is an address.

mod world;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use trefoil_lab::frames::{PacketSocket, ethernet};
use trefoil_lab::link::leave_checksums_to_the_kernel;
use trefoil_lab::packets;
use trefoil_lab::places::{FOREIGN, PEER};
use trefoil_lab::program::Program;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{Guest, container, far_link_address};
use trefoil_lab::{Lab, Record, wait_for};
use world::books::FOREIGN_LINK;
use world::discovery::{ask_as_a_neighbour, on_link_abroad};
use world::{TRAFFIC, all_of, at, enforcing, is_final, reporting};

const IPV4: u16 = 0x0800;
/// Link addresses of the first container of a lab: the host's end, and its own.
const HOSTS_END: &str = "02:00:00:00:03:15";
const OWN_END: &str = "02:00:00:00:04:15";

/// Bytes that final records tell to have left for an address.
fn told_of(records: &[Record], to: IpAddr) -> u64 {
    let finals = records
        .iter()
        .filter(|record| is_final(record) && record.is("dst_addr", to));
    finals
        .filter_map(|record| record.number("bytes_out").ok())
        .sum()
}

/// Has a container send a datagram in fragments, and then `count` more later fragments of it.
fn more_of_a_datagram(lab: &Lab, guest: &Guest, tap: &Tap, count: usize) -> Result<()> {
    let unit = lab.unit("container.service")?;
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)?
        .args(["udp", &at(FOREIGN, 9), "--size", "2000"])
        .run()?
        .success()?;
    wait_for("both fragments arrive", || {
        Ok((tap.to(FOREIGN).packets == 2).then_some(()))
    })?;
    let all = tap.datagrams(FOREIGN);
    let identification = *all.first().context("no datagram in fragments")?;
    let more = packets::later_fragment(guest.v4, FOREIGN, identification, &[b'x'; 1400]);
    let frame = ethernet(HOSTS_END, OWN_END, IPV4, &more)?;
    guest.place.enter(|| {
        let socket = PacketSocket::open("to-host", IPV4)?;
        for _ in 0..count {
            socket.send(&frame)?;
        }
        Ok(())
    })
}

/// Each of them has the flow's addresses and the datagram's number, and the datagram was counted at
/// its socket.
#[test]
fn more_of_a_datagram_than_was_sent_is_told() -> Result<()> {
    const MORE: usize = 50;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let tap = Tap::new(&lab.foreign)?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    more_of_a_datagram(&lab, &guest, &tap, MORE)?;
    wait_for("all have arrived", || {
        Ok((tap.to(FOREIGN).packets == 2 + MORE as u64).then_some(()))
    })?;
    let told = told_of(&all_of(agent, &lab)?, FOREIGN);
    // A datagram is told as its socket sent it.
    const SECOND_HEADER: u64 = 20;
    let arrived = tap.to(FOREIGN).bytes - SECOND_HEADER;
    ensure!(
        told == arrived,
        "{told} bytes are told, {arrived} have arrived"
    );
    lab.close()
}

#[test]
fn more_of_a_datagram_than_was_sent_is_judged() -> Result<()> {
    const POLICY: &str = r#"mode = "enforce"
[[rules]]
name    = "a little"
from    = { unit = "container.service" }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
budget  = { bytes = "4000 B", per = "1h" }
"#;
    const MORE: u64 = 50;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let tap = Tap::new(&lab.foreign)?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    more_of_a_datagram(&lab, &guest, &tap, MORE as usize)?;
    let records = all_of(agent, &lab)?;
    let blocked: u64 = records
        .iter()
        .filter(|record| is_final(record) && record.is("dst_addr", FOREIGN))
        .filter_map(|record| record.number("blocked_packets").ok())
        .sum();
    ensure!(blocked == MORE, "{blocked} were dropped: {records:?}");
    ensure!(tap.to(FOREIGN).packets == 2, "{:?}", tap.to(FOREIGN));
    lab.close()
}

/// The kernel of a container answers who seems to ask, wherever that is; and which address it says to
/// have is the container's to choose.
#[test]
fn neighbours_that_are_far_away_are_not_answered() -> Result<()> {
    const N_ANSWERS: u16 = 5;
    let far: IpAddr = "2001:db8:3::77".parse()?;
    let router = far_link_address(FOREIGN_LINK);
    for mode in ["report", "enforce"] {
        let lab = Lab::new()?;
        let guest = container(&lab.host, "container", 21)?;
        on_link_abroad(&lab, &guest.place)?;
        let tap = Tap::new(&lab.foreign)?;
        let policy = if mode == "report" {
            reporting()
        } else {
            enforcing()
        };
        let agent = lab.agent().policy(&policy).uplink("auto").start()?;
        ask_as_a_neighbour(&guest.place, far, &router, N_ANSWERS)?;
        let records = all_of(agent, &lab)?;
        let arrived = tap.to(far);
        let told = told_of(&records, far);
        ensure!(
            told == arrived.bytes,
            "{mode}: {told} bytes are told, {arrived:?} have arrived"
        );
        let dropped = records
            .iter()
            .any(|record| record.is("dst_addr", far) && record.is("outcome", "dropped"));
        match mode {
            "report" => ensure!(arrived.packets == u64::from(N_ANSWERS), "{arrived:?}"),
            _ => ensure!(arrived.packets == 0 && dropped, "{arrived:?}: {records:?}"),
        }
        lab.close()?;
    }
    Ok(())
}

/// The kernel writes the checksum behind the hook.
#[test]
fn a_checksum_over_the_port_is_not_written_behind_the_hook() -> Result<()> {
    const PORTS: &str = r#"mode = "enforce"
[[rules]]
name    = "names"
to      = { networks = ["198.51.100.0/24"], ports = ["53/udp"] }
verdict = "approve"
"#;
    /// From the source address of IPv4 on, over the port.
    const START: usize = 14 + 12;
    const PORT_AT: usize = 14 + 20 + 2;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    // As where a card cannot do so at any place.
    leave_checksums_to_the_kernel(&lab.host, "to-peer")?;
    let (names, other) = (UdpSink::new(&lab.peer, 53)?, UdpSink::new(&lab.peer, 22)?);
    let agent = lab.agent().policy(PORTS).uplink("auto").start()?;
    let (from, to) = ((guest.v4, 4000).into(), (PEER, 53).into());
    let mut packet = packets::udp(from, to, 64);
    // None, as IPv4 allows.
    if let Some(checksum) = packet.get_mut(26..28) {
        checksum.fill(0);
    }
    guest.place.enter(|| {
        let socket = PacketSocket::open("to-host", IPV4)?;
        socket.describe_frames()?;
        let plain = ethernet(HOSTS_END, OWN_END, IPV4, &packet)?;
        socket.send(&[&[0; 10][..], &plain].concat())?;
        socket.send(&packets::with_checksum(plain, START, PORT_AT, 22))?;
        Ok(())
    })?;
    wait_for("what is approved arrives", || {
        Ok((names.arrived().packets == 1).then_some(()))
    })?;
    let records = all_of(agent, &lab)?;
    let is_told =
        |record: &Record| record.is("dst_addr", PEER) && record.is("verdict", "undetermined");
    ensure!(records.iter().any(is_told), "{records:?}");
    ensure!(other.arrived().packets == 0, "{:?}", other.arrived());
    lab.close()
}
