//! Everything at once: calls, lists, frames, containers and translations. The books of every
//! uplink balance, and final records have what the far ends have counted, to the byte.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::router::{LINK, ROUTER, ROUTER_MAC, ROUTER6, Router};
use trefoil_lab::sink::{Arrived, TcpSink, UdpSink};
use trefoil_lab::wiring::{container, far_link_address, forward};
use trefoil_lab::{Lab, link::LinkCounters, places, wait_for};
use world::books::{OFTEN, books};
use world::{TRAFFIC, all_of, is_final, reporting};

const USER: u32 = 65534;
/// Addresses that the host translates.
const SERVICES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 101)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x101)),
];

/// True for what leads to the foreign place, where all is counted.
fn is_abroad(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [203, 0, 113],
        IpAddr::V6(address) => {
            let segments = address.segments();
            segments[..3] == [0x2001, 0xdb8, 3] || segments[..2] == [0x64, 0xff9b]
        }
    }
}

/// How often each sends.
const TURNS: usize = 3;

/// Sent by a user of the host.
const OF_A_USER: [&str; 18] = [
    "udp 203.0.113.20:9 --count 20",
    "udp [2001:db8:3::21]:9 --count 20 --connected",
    "udp 203.0.113.22:9 --size 4000",
    "udp-many 203.0.113.30:9 --destinations 8 --count 64",
    "tcp 203.0.113.23:443 --bytes 200000",
    "tcp [2001:db8:3::24]:443 --bytes 200000",
    "uring sendmsg 203.0.113.25:9",
    "copy splice 203.0.113.26:443",
    "udp 169.254.169.27:9 --count 5",
    "udp 203.0.113.101:9 --count 5",
    "ping 203.0.113.28",
    "route option [2001:db8:2::10]:9 --via 2001:db8:1::20 --via 2001:db8:3::29",
    "udp 198.51.100.40:9 --count 20",
    "udp [64:ff9b::cb00:711f]:9 --count 5",
    "udp 203.0.113.32:9 --lite --count 5",
    "udp [2001:db8:3::33]:9 --size 4000",
    "tcp 203.0.113.34:443 --transport mptcp --bytes 50000",
    "udp [2001:db8:3::101]:9 --count 5",
];

/// Sent by root of a container that is routed through the host.
const OF_A_CONTAINER: [&str; 9] = [
    "udp 203.0.113.50:9 --count 20",
    "tcp 203.0.113.51:443 --bytes 100000",
    "udp 203.0.113.101:9 --count 5",
    "packet to-host 02:00:00:00:03:15 203.0.113.52:9 --from 192.0.2.121:4000 --count 20",
    "raw 203.0.113.53 --own-header --protocol 17",
    "udp [2001:db8:3::101]:9 --count 5",
    "ping 203.0.113.55",
    "udp 203.0.113.56:9 --size 4000 --connected --count 3",
    "udp [2001:db8:3::57]:9 --size 4000 --count 3",
];

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(' ')
}

#[test]
fn books_balance_and_records_have_what_arrived() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    forward(&lab.host)?;
    let place = container(&lab.host, "container", 21)?.place;
    let router = Router::new(&lab)?;
    let host = places::HOST;
    lab.host.nft(
        "table ip services {\n\
         chain output {\ntype nat hook output priority -100; policy accept;\n\
         ip daddr 203.0.113.101 dnat to 203.0.113.102\n}\n\
         chain prerouting {\ntype nat hook prerouting priority -100; policy accept;\n\
         ip daddr 203.0.113.101 dnat to 203.0.113.102\n}\n\
         chain postrouting {\ntype nat hook postrouting priority 100; policy accept;\n\
         ip saddr 192.0.2.121 masquerade\n}\n}\n\
         table ip6 services {\n\
         chain output {\ntype nat hook output priority -100; policy accept;\n\
         ip6 daddr 2001:db8:3::101 dnat to 2001:db8:3::102\n}\n\
         chain prerouting {\ntype nat hook prerouting priority -100; policy accept;\n\
         ip6 daddr 2001:db8:3::101 dnat to 2001:db8:3::102\n}\n}\n",
    )?;
    lab.host.ip(&format!(
        "route add 64:ff9b::/96 via {} dev to-foreign onlink\n",
        places::FOREIGN6
    ))?;
    // Masquerading takes an address of the interface, and the lab's have none.
    lab.host.ip(&format!(
        "address add {host}/32 dev to-foreign\naddress add {host}/32 dev {LINK}\n"
    ))?;
    let _sinks = [&lab.peer, &lab.foreign].map(|place| {
        let datagrams = UdpSink::new(place, 9);
        datagrams.and_then(|datagrams| Ok((datagrams, TcpSink::new(place, 443)?)))
    });
    let sent = || -> Result<u64> {
        let routed = LinkCounters::read(&router.place, "to-foreign")?;
        Ok(lab.link_to(&lab.foreign)?.tx_packets + routed.tx_packets)
    };
    let mut agent = lab
        .agent()
        .policy(&reporting())
        .settings(OFTEN)
        .uplink("auto")
        .start()?;
    // Packets that were sent before were not seen by the agent, nor told.
    let before = tap.as_sent();
    let frame = format!(
        "packet to-foreign {} 203.0.113.60:9 --from {host}:4000 --count 20",
        far_link_address(3)
    );
    let tagged = format!(
        "packet {LINK} {ROUTER_MAC} 203.0.113.61:9 --from {host}:4000 --wrap qinq --count 20"
    );
    let labelled = format!(
        "packet {LINK} {ROUTER_MAC} 203.0.113.62:9 --from {host}:4000 --wrap mpls --count 20"
    );
    let of_root = [frame.as_str(), tagged.as_str(), labelled.as_str()];
    for _ in 0..TURNS {
        let mut running: Vec<Running> = Vec::new();
        let unit = lab.unit("container.service")?;
        for line in OF_A_USER {
            running.push(lab.program_as(USER, TRAFFIC)?.args(words(line)).start()?);
        }
        for line in OF_A_CONTAINER {
            let program = Program::new(TRAFFIC, &place, Some(&unit), None)?;
            running.push(program.args(words(line)).start()?);
        }
        for line in of_root {
            running.push(lab.program(TRAFFIC)?.args(words(line)).start()?);
        }
        for program in running {
            program.finish()?.success()?;
        }
    }
    for uplink in ["to-foreign", LINK, "to-peer", "to-gateway"] {
        books(&mut agent, &lab, uplink)?;
    }
    wait_for("the router has read all", || {
        let sent = LinkCounters::read(&lab.host, LINK)?.tx_packets;
        Ok((router.received() >= sent).then_some(()))
    })?;
    let mut told: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for record in all_of(agent, &lab)?
        .iter()
        .filter(|record| is_final(record))
    {
        let to = record.address("dst_addr")?.to_canonical();
        *told.entry(to).or_default() += record.number("bytes_out")?;
    }
    wait_for("all that was sent arrives", || {
        Ok((tap.frames() >= sent()?).then_some(()))
    })?;
    let arrived = tap.as_sent();
    let mut wrong = Vec::new();
    for to in arrived.keys().chain(told.keys()).collect::<BTreeSet<_>>() {
        // Listeners of multicast are told of by the kernel.
        let is_own = to.is_multicast() || [ROUTER, ROUTER6].contains(to);
        let bytes = |all: &BTreeMap<IpAddr, Arrived>| all.get(to).map_or(0, |it| it.bytes);
        let arrived = bytes(&arrived) - bytes(&before);
        let told = told.get(to).copied().unwrap_or(0);
        // A container's service is told beside the address behind it.
        let is_named = SERVICES.contains(to) && arrived == 0 && told > 0;
        if (arrived > 0 || is_abroad(*to)) && !is_own && !is_named && arrived != told {
            wrong.push(format!("{to}: {arrived} arrived, {told} told"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.close()
}
