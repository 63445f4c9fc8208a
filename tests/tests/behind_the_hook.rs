//! Packets that are another behind their socket's hook, and those that only look as if the kernel
//! had sent them: the uplink takes neither for what it was or seems to be.

mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use trefoil_lab::frames::{PacketSocket, ethernet};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::packets::{self, ipv4, ipv6};
use trefoil_lab::places::{FOREIGN, HOST, PEER, PEER6};
use trefoil_lab::program::Program;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{container, far_link_address};
use trefoil_lab::{Lab, Record, wait_for};
use world::books::FOREIGN_LINK;
use world::{TRAFFIC, all_of, at, enforcing, is_final};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A container's rules make its packet go by way of another address, whose socket's hook has seen
/// it with a list that was finished.
#[test]
fn a_list_that_is_turned_on_behind_the_hook_is_judged() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    let guest = container(&lab.host, "container", 21)?;
    let abroad: IpAddr = "2001:db8:3::77".parse()?;
    let agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    guest.place.nft(&format!(
        "table netdev t {{ chain c {{ type filter hook egress device \"to-host\" priority 0; \
         ip6 daddr {PEER6} ip6 nexthdr 43 @nh,344,8 set 1 ip6 daddr set {abroad};\n}}\n}}\n"
    ))?;
    let unit = lab.unit("container.service")?;
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)?
        .args([
            "route",
            "header",
            &at(PEER6, 9),
            "--via",
            &PEER6.to_string(),
        ])
        .args(["--kind", "4", "--finished", "--from", &at(guest.v6, 4000)])
        .run()?
        .success()?;
    let records = all_of(agent, &lab)?;
    let told = records
        .iter()
        .any(|record| record.is("dst_addr", abroad) && record.is("outcome", "dropped"));
    ensure!(told, "{records:?}");
    ensure!(tap.to(abroad).packets == 0, "{:?}", tap.to(abroad));
    lab.close()
}

/// A device of the container's on the link abroad, in a bridge with others: what is sent to all
/// of them are copies, without a socket.
fn bridge_of_copies(lab: &Lab, place: &Namespace) -> Result<()> {
    lab.host.ip(&format!(
        "link add link to-foreign name own address {OWN} netns {} type macvlan mode bridge\n",
        place.path()
    ))?;
    place.ip("link add br0 type bridge\n\
         link add one type veth peer name one2\n\
         link add two type veth peer name two2\n\
         link set one master br0\nlink set own master br0\nlink set two master br0\n\
         link set one up\nlink set one2 up\nlink set two up\nlink set two2 up\n\
         link set own up\nlink set br0 up\n")
}

const OWN: &str = "02:00:00:00:01:64";

#[test]
fn copies_of_a_containers_frames_are_not_the_kernels_own() -> Result<()> {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const ICMPV6: u8 = 58;
    /// For experiments on a link.
    const EXPERIMENT: u16 = 0x88b5;
    let (lab, tap) = Lab::with_tap()?;
    let guest = container(&lab.host, "container", 21)?;
    bridge_of_copies(&lab, &guest.place)?;
    let abroad: Ipv6Addr = "2001:db8:3::77".parse()?;
    let mut agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let far = far_link_address(FOREIGN_LINK);
    let neighbour = |kind: u8| {
        let content = [&[kind, 0, 0, 0][..], &[b'x'; 60]].concat();
        let mut packet = ipv6(guest.v6, abroad.into(), ICMPV6, &content);
        // As neighbours have it.
        packet[7] = 255;
        ethernet(&far, OWN, IPV6, &packet)
    };
    let frames = [
        (IPV6, neighbour(ROUTER_ADVERTISEMENT)?),
        (IPV6, neighbour(NEIGHBOUR_SOLICITATION)?),
        (EXPERIMENT, ethernet(&far, OWN, EXPERIMENT, &[b'x'; 1000])?),
    ];
    guest.place.enter(|| {
        for (ethertype, frame) in &frames {
            PacketSocket::open("br0", *ethertype)?.send(frame)?;
        }
        Ok(())
    })?;
    agent.wait_for("each kind is told of", |records| {
        let dropped = |record: &&Record| record.is("outcome", "dropped");
        let packets = records.iter().filter(dropped);
        let abroad = packets
            .clone()
            .filter(|it| it.is("dst_addr", abroad))
            .count();
        let no_ip = packets.filter(|it| it.text("dst_addr").is_empty()).count();
        (abroad > 0 && no_ip > 0).then_some(())
    })?;
    drop(all_of(agent, &lab)?);
    let arrived = tap.to(abroad.into()).packets;
    ensure!(arrived == 0, "{arrived} packets have arrived abroad");
    lab.close()
}

/// The kernel answers in the name of a connection that is over with numbers that whoever asks has
/// chosen.
#[test]
fn resets_of_a_connection_that_is_over_are_not_its_own() -> Result<()> {
    const POLICY: &str = r#"mode = "enforce"
[[rules]]
name    = "a service"
from    = { unit = "lab.service" }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;
    const PORT: u16 = 45_678;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    world::traffic(&lab)?
        .args(["tcp", &at(FOREIGN, 443), "--from", &PORT.to_string()])
        .args(["--bytes", "5", "--reset"])
        .run()?
        .success()?;
    let (IpAddr::V4(foreign), IpAddr::V4(host)) = (FOREIGN, HOST) else {
        anyhow::bail!("addresses of IPv4");
    };
    wait_for("the connection is reset", || {
        Ok((sink.ended() == 1).then_some(()))
    })?;
    const ASKED: u32 = 5;
    let asks = (0..ASKED).map(|number| tcp_ack(foreign, host, PORT, number));
    let asks: Vec<Vec<u8>> = asks
        .map(|packet| ethernet("02:00:00:00:03:15", "02:00:00:00:04:15", IPV4, &packet))
        .collect::<Result<_>>()?;
    guest.place.enter(|| {
        let socket = PacketSocket::open("to-host", IPV4)?;
        Ok(asks.iter().try_for_each(|ask| socket.send(ask))?)
    })?;
    let records = all_of(agent, &lab)?;
    let answers = records.iter().filter(|record| {
        record.is("dst_addr", FOREIGN)
            && record.is("attribution", "kernel")
            && record.is("state", "closed")
    });
    let mut blocked = 0;
    for record in answers {
        ensure!(record.is("packets_out", 0), "{record}");
        blocked += record.number("blocked_packets")?;
    }
    ensure!(blocked > 0, "no answer is told of: {records:?}");
    lab.close()
}

/// An acknowledgement of a number in the name of another, of a connection that there is not.
fn tcp_ack(from: Ipv4Addr, to: Ipv4Addr, port: u16, number: u32) -> Vec<u8> {
    const TCP: u8 = 6;
    const ACK: u8 = 16;
    let mut header = [&443_u16.to_be_bytes()[..], &port.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1]);
    header.extend(number.to_be_bytes());
    header.extend([0x50, ACK, 4, 0, 0, 0, 0, 0]);
    let pseudo = [
        &from.octets()[..],
        &to.octets(),
        &[0, TCP, 0, header.len() as u8],
        &header,
    ]
    .concat();
    let sum = packets::checksum(&pseudo).to_be_bytes();
    header[16..18].copy_from_slice(&sum);
    ipv4(from.into(), to.into(), TCP, &[], &header)
}

/// Headers in memory that their sender still writes are copied before they are judged: what was
/// judged is what leaves.
#[test]
fn headers_in_a_ring_are_held_before_they_are_judged() -> Result<()> {
    const N_FRAMES: u64 = 20_000;
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    lab.host.ip(&format!(
        "link add link to-foreign name own address {OWN} netns {} type macvlan mode bridge\n",
        guest.place.path()
    ))?;
    guest
        .place
        .ip("link set own addrgenmode none\nlink set own up\n")?;
    let tap = Tap::new(&lab.foreign)?;
    let agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let unit = lab.unit("container.service")?;
    let far = far_link_address(FOREIGN_LINK);
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)?
        .args(["ring", "own", &far, &at(PEER, 9), &FOREIGN.to_string()])
        .args(["--from", &at(guest.v4, 4000)])
        .args(["--count", &N_FRAMES.to_string()])
        .run()?
        .success()?;
    let records = all_of(agent, &lab)?;
    // Also of frames that were written to in the middle of an address.
    let dropped: u64 = records
        .iter()
        .filter(|record| is_final(record))
        .filter_map(|record| record.number("blocked_packets").ok())
        .sum();
    let (good, abroad) = (tap.to(PEER).packets, tap.to(FOREIGN).packets);
    ensure!(
        abroad == 0,
        "{abroad} frames have arrived abroad, {dropped} were dropped"
    );
    ensure!(
        good > 0 && dropped > 0,
        "{good} frames have arrived, {dropped} were dropped"
    );
    ensure!(good + dropped == N_FRAMES, "{good} and {dropped} frames");
    lab.close()
}
