//! Packets that a process writes into a tun device, and the host forwards, are its own, packet by
//! packet: a process that writes beside it, or numbers an interface as that device, is another.

mod world;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::net::if_::if_nametoindex;
use trefoil_lab::frames::{PacketSocket, ethernet};
use trefoil_lab::packets;
use trefoil_lab::program::Running;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{Guest, container, far_link_address, forward};
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::books::FOREIGN_LINK;
use world::{all_of, at, is_final, traffic_in};

/// Where packets say that they come from.
const FROM: &str = "192.0.2.150:4001";

fn of_the_tunnel(mode: &str) -> String {
    format!(
        r#"mode = "{mode}"
[[rules]]
name    = "of the tunnel"
from    = {{ unit = "tunnel.service" }}
to      = {{ networks = ["203.0.113.0/24"] }}
verdict = "approve"
"#
    )
}

/// A service that writes datagrams from this end to the foreign host into a tun device, which is up
/// then: one each time that it is told to proceed.
fn tun_writer(lab: &Lab, unit: &str, device: &str, from: &str, count: u8) -> Result<Running> {
    let (to, count) = (at(places::FOREIGN, 9), count.to_string());
    let arguments = ["tun", "inject", device, from, &to, "--count", &count];
    let mut writer = traffic_in(lab, unit)?.args(arguments).start()?;
    writer.line()?;
    lab.host.ip(&format!(
        "link set {device} addrgenmode none\nlink set {device} up\n"
    ))?;
    Ok(writer)
}

/// Unit, packets that left, and packets that were dropped, of each final record.
type Told = (String, u64, u64);

fn told((unit, sent, blocked): (&str, u64, u64)) -> Told {
    (unit.to_owned(), sent, blocked)
}

/// Returns what final records say of the foreign host. Records that name a unit are certain of it.
fn by_writer(agent: Agent<'_>, lab: &Lab) -> Result<Vec<Told>> {
    let mut all = Vec::new();
    for record in all_of(agent, lab)? {
        if !is_final(&record) || !record.is("dst_addr", places::FOREIGN) {
            continue;
        }
        let unit = record.text("unit");
        let certainty = if unit.is_empty() {
            "forwarded"
        } else {
            "direct"
        };
        ensure!(record.is("attribution", certainty), "{record}");
        let number = |name| record.number(name).unwrap_or(0);
        all.push((unit, number("packets_out"), number("blocked_packets")));
    }
    all.sort();
    Ok(all)
}

#[test]
fn what_comes_out_of_a_tun_device_is_of_who_writes_into_it() -> Result<()> {
    let lab = Lab::new()?;
    forward(&lab.host)?;
    let policy = of_the_tunnel("report");
    let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let mut first = tun_writer(&lab, "tunnel.service", "tun0", "192.0.2.150:4001", 2)?;
    let mut second = tun_writer(&lab, "other.service", "tun0", "192.0.2.150:4002", 1)?;
    first.proceed()?;
    agent.wait_for("the first packet is told", |records| {
        let told = |record: &Record| record.is("src_port", 4001);
        records.iter().any(told).then_some(())
    })?;
    second.proceed()?;
    second.finish()?.success()?;
    first.proceed()?;
    first.finish()?.success()?;

    ensure!(
        by_writer(agent, &lab)? == [("other.service", 1, 0), ("tunnel.service", 2, 0)].map(told)
    );
    lab.close()
}

/// A process that writes as another, from the other's address and port, is judged by itself.
#[test]
fn two_tun_devices_with_one_address_share_no_decision() -> Result<()> {
    let lab = Lab::new()?;
    forward(&lab.host)?;
    let policy = of_the_tunnel("enforce");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let tap = Tap::new(&lab.foreign)?;
    let mut approved = tun_writer(&lab, "tunnel.service", "tun0", FROM, 2)?;
    let mut other = tun_writer(&lab, "other.service", "tun1", FROM, 2)?;
    approved.proceed()?;
    wait_for("the first packet arrives", || {
        Ok((tap.to(places::FOREIGN).packets == 1).then_some(()))
    })?;
    for _ in 0..2 {
        other.proceed()?;
    }
    other.finish()?.success()?;
    approved.proceed()?;
    approved.finish()?.success()?;
    wait_for("the second packet arrives", || {
        Ok((tap.to(places::FOREIGN).packets >= 2).then_some(()))
    })?;

    ensure!(
        by_writer(agent, &lab)? == [("other.service", 0, 2), ("tunnel.service", 2, 0)].map(told)
    );
    let arrived = tap.to(places::FOREIGN).packets;
    ensure!(arrived == 2, "{arrived} packets have arrived");
    lab.close()
}

/// Writes of two processes from one end to one other: each packet has its own, and is judged as its.
#[test]
fn two_that_write_in_turn_are_told_apart() -> Result<()> {
    let lab = Lab::new()?;
    forward(&lab.host)?;
    let policy = of_the_tunnel("enforce");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let tap = Tap::new(&lab.foreign)?;
    let mut approved = tun_writer(&lab, "tunnel.service", "tun0", FROM, 3)?;
    let mut other = tun_writer(&lab, "other.service", "tun0", FROM, 3)?;
    for packet in 1..=3 {
        other.proceed()?;
        approved.proceed()?;
        wait_for("an approved packet arrives", || {
            Ok((tap.to(places::FOREIGN).packets >= packet).then_some(()))
        })?;
    }
    other.finish()?.success()?;
    approved.finish()?.success()?;
    ensure!(
        by_writer(agent, &lab)? == [("other.service", 0, 3), ("tunnel.service", 3, 0)].map(told)
    );
    let arrived = tap.to(places::FOREIGN).packets;
    ensure!(arrived == 3, "{arrived} packets have arrived");
    lab.close()
}

/// A container's device on the link abroad, and another of this number by which it is handed what
/// it then forwards.
fn numbered_as(lab: &Lab, guest: &Guest, number: u32) -> Result<()> {
    lab.host.ip(&format!(
        "link add link to-foreign name own address {OWN} netns {} type macvlan mode bridge\n",
        guest.place.path()
    ))?;
    let far = far_link_address(FOREIGN_LINK);
    guest.place.ip(&format!(
        "link set own addrgenmode none\nlink set own up\n\
         link add in index {number} address {IN} type veth peer name out\n\
         link set in addrgenmode none\nlink set out addrgenmode none\n\
         link set in up\nlink set out up\n\
         neighbour add {to} lladdr {far} dev own nud permanent\n\
         route add {to}/32 dev own scope link src {}\n",
        guest.v4,
        to = places::FOREIGN,
    ))?;
    forward(&guest.place)
}

const OWN: &str = "02:00:00:00:01:64";
const IN: &str = "02:00:00:00:01:65";

#[test]
fn a_containers_interface_of_the_same_number_is_no_tun_device() -> Result<()> {
    const N_PACKETS: u64 = 20;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let policy = of_the_tunnel("enforce");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let tap = Tap::new(&lab.foreign)?;
    let mut service = tun_writer(&lab, "tunnel.service", "tun0", FROM, 2)?;
    let number = lab.host.enter(|| Ok(if_nametoindex("tun0")?))?;
    numbered_as(&lab, &guest, number)?;
    service.proceed()?;
    wait_for("the service's packet arrives", || {
        Ok((tap.to(places::FOREIGN).packets == 1).then_some(()))
    })?;
    let (from, to): (SocketAddr, SocketAddr) = (FROM.parse()?, (places::FOREIGN, 9).into());
    guest.place.enter(|| {
        let socket = PacketSocket::open("out", IPV4)?;
        for _ in 0..N_PACKETS {
            socket.send(&ethernet(IN, OWN, IPV4, &packets::udp(from, to, 64))?)?;
        }
        Ok(())
    })?;
    service.proceed()?;
    service.finish()?.success()?;
    wait_for("the service's second packet arrives", || {
        Ok((tap.to(places::FOREIGN).packets >= 2).then_some(()))
    })?;
    ensure!(by_writer(agent, &lab)? == [("", 0, N_PACKETS), ("tunnel.service", 2, 0)].map(told));
    let arrived = tap.to(places::FOREIGN).packets;
    ensure!(arrived == 2, "{arrived} packets have arrived");
    lab.close()
}

const IPV4: u16 = 0x0800;
