//! Packets that root of a container sends past the hook of their socket, or has changed behind it:
//! the uplink judges each of them by itself, and by its sender.

mod world;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use trefoil_lab::link::leave_checksums_to_the_kernel;
use trefoil_lab::places::{FOREIGN, FOREIGN6, PEER6};
use trefoil_lab::program::Program;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{Guest, container, far_link_address};
use trefoil_lab::{Lab, Record};
use world::books::FOREIGN_LINK;
use world::{REFUSED, TRAFFIC, all_of, at, is_final, traffic};

/// An address abroad to which the container has a route by a device of its own.
const ABROAD: &str = "203.0.113.200";
const OWN_ADDRESS: &str = "192.0.2.160";
const OWN_LINK: &str = "02:00:00:00:01:64";
const PORT: u16 = 53;

fn of_container(lab: &Lab, guest: &Guest) -> Result<Program> {
    let unit = lab.unit("container.service")?;
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)
}

fn finals_to(records: &[Record], to: IpAddr) -> Vec<&Record> {
    let finals = records.iter().filter(|record| is_final(record));
    finals.filter(|record| record.is("dst_addr", to)).collect()
}

fn sum_of(records: &[&Record], field: &str) -> u64 {
    let numbers = records
        .iter()
        .filter_map(|record| record.number(field).ok());
    numbers.sum()
}

/// Sends `before` datagrams by a container's own device on the link abroad, and then `by_loopback`
/// by its loopback interface, from where its rules hand them on to that device. Returns what has
/// arrived and the records of it.
fn send_by_loopback(policy: &str, before: u32, by_loopback: u32) -> Result<(u64, Vec<Record>)> {
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let tap = Tap::new(&lab.foreign)?;
    let router = far_link_address(FOREIGN_LINK);
    lab.host.ip(&format!(
        "link add link to-foreign name own address {OWN_LINK} netns {} type macvlan mode bridge\n",
        guest.place.path()
    ))?;
    guest.place.ip(&format!(
        "link set own addrgenmode none\nlink set own up\n\
         address add {OWN_ADDRESS}/32 dev own\n\
         neighbour add {ABROAD} lladdr {router} dev own nud permanent\n\
         route add {ABROAD}/32 dev own scope link src {OWN_ADDRESS}\n"
    ))?;
    let agent = lab.agent().policy(policy).uplink("auto").start()?;
    let to: IpAddr = ABROAD.parse()?;
    let mut sends = of_container(&lab, &guest)?
        .args(["udp", &at(to, PORT), "--source", OWN_ADDRESS])
        .args(["--size", "400", "--hold"])
        .start()?;
    sends.line()?;
    for _ in 0..before {
        sends.proceed()?;
        sends.line()?;
    }
    guest.place.ip(&format!(
        "route replace {ABROAD}/32 dev lo scope link src {OWN_ADDRESS}\n"
    ))?;
    let hexadecimal = |link: &str| link.replace(':', "");
    guest.place.nft(&format!(
        "table netdev t {{ chain c {{ type filter hook egress device \"lo\" priority 0; \
         ip daddr {ABROAD} @ll,0,48 set 0x{} @ll,48,48 set 0x{} fwd to \"own\"\n}}\n}}\n",
        hexadecimal(&router),
        hexadecimal(OWN_LINK)
    ))?;
    // A call that is refused ends the program.
    for _ in 0..by_loopback {
        if sends.proceed().is_err() || sends.line().is_err() {
            break;
        }
    }
    let records = all_of(agent, &lab)?;
    let arrived = tap.to(to).packets;
    lab.close()?;
    Ok((arrived, records))
}

#[test]
fn packets_by_a_containers_loopback_are_charged() -> Result<()> {
    const BYTES: u64 = 428;
    let policy = format!(
        r#"mode = "enforce"
[[rules]]
name    = "a little"
from    = {{ unit = "container.service" }}
to      = {{ networks = ["{ABROAD}"], ports = ["{PORT}/udp"] }}
budget  = {{ bytes = "2000 B", per = "1h" }}
verdict = "approve"
"#
    );
    let (arrived, records) = send_by_loopback(&policy, 3, 20)?;
    ensure!(arrived * BYTES <= 2000, "{arrived} packets: {records:?}");
    Ok(())
}

#[test]
fn packets_by_a_containers_loopback_are_told() -> Result<()> {
    const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;
    const N: u64 = 20;
    let (arrived, records) = send_by_loopback(POLICY, 0, N as u32)?;
    ensure!(arrived == N, "{arrived} packets");
    let finals = finals_to(&records, ABROAD.parse()?);
    ensure!(sum_of(&finals, "packets_out") == N, "{finals:?}");
    let is_named = |record: &&&Record| record.is("unit", "container.service");
    ensure!(finals.iter().all(|record| is_named(&record)), "{finals:?}");
    Ok(())
}

/// A connected socket's packet is known at the uplink by its buffer and its flow's hash. Rules of the
/// container make of it a frame with two tags and a later header, so that the place of its missing
/// checksum is in the destination; the host takes the tags off and forwards it.
#[test]
fn a_known_packet_whose_checksum_is_to_be_written_elsewhere_is_undetermined() -> Result<()> {
    const NEAR: &str = "2001:db8:3::200";
    const BYTES: usize = 60;
    const N: u64 = 3;
    /// The port to which the rewritten packet goes as well: its data begins where that is read.
    const PORT: u16 = u16::from_be_bytes(*b"xx");
    let policy = format!(
        r#"mode = "enforce"
[[rules]]
name    = "names"
from    = {{ unit = "container.service" }}
to      = {{ networks = ["{NEAR}"], ports = ["{PORT}/udp"] }}
verdict = "approve"
"#
    );
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let tap = Tap::new(&lab.foreign)?;
    leave_checksums_to_the_kernel(&lab.host, "to-foreign")?;
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let near: IpAddr = NEAR.parse()?;
    let octets = |address| match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
    };
    let header = [
        &[0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x86, 0xdd][..],
        &[0x60, 0, 0, 0, 0, BYTES as u8, 17, 64],
        &octets(guest.v6),
        &octets(near),
    ]
    .concat();
    /// Of a frame, before the kind of what it carries.
    const AT: usize = 12;
    let statements: Vec<String> = header
        .chunks(16)
        .enumerate()
        .map(|(index, part)| {
            let hexadecimal: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            let (at, bits) = (8 * (AT + 16 * index), 8 * part.len());
            format!("@ll,{at},{bits} set 0x{hexadecimal}")
        })
        .collect();
    guest.place.nft(&format!(
        "table netdev t {{ chain c {{ type filter hook egress device \"to-host\" priority 0; \
         meta protocol ip6 meta l4proto udp {}\n}}\n}}\n",
        statements.join(" ")
    ))?;
    of_container(&lab, &guest)?
        .args(["udp", &at(near, PORT), "--from", "4000", "--connected"])
        .args(["--size", &BYTES.to_string(), "--count", &N.to_string()])
        .run()?
        .success()?;
    let records = all_of(agent, &lab)?;
    let dropped: Vec<&Record> = finals_to(&records, near)
        .into_iter()
        .filter(|record| record.is("verdict", "undetermined"))
        .collect();
    ensure!(sum_of(&dropped, "blocked_packets") == N, "{records:?}");
    let arrived = tap.destinations();
    let is_there = |to: &IpAddr| octets(*to)[..6] == octets(near)[..6];
    ensure!(!arrived.keys().any(is_there), "{arrived:?}");
    lab.close()
}

/// A raw socket for which the kernel had no memory for a tag is not the kernel's, whatever its
/// packets look like.
#[test]
fn a_socket_without_a_tag_does_not_keep_the_link() -> Result<()> {
    const REPORT: &str = "131";
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let agent = lab.agent().policy("mode = \"enforce\"\n").start()?;
    guest.place.enter(|| {
        std::fs::write("/proc/sys/net/core/optmem_max", "0")?;
        Ok(())
    })?;
    for to in [FOREIGN6, PEER6] {
        let outcome = of_container(&lab, &guest)?
            .args(["raw", &to.to_string(), "--protocol", "58"])
            .args(["--type", REPORT, "--hops", "1"])
            .run()?;
        ensure!(outcome.code == REFUSED, "{to}: {outcome:?}");
    }
    let records = all_of(agent, &lab)?;
    let is_full = |record: &Record| record.is("subject", "tags-failed");
    ensure!(records.iter().any(is_full), "the kernel had memory");
    lab.close()
}

/// A process may enter a network namespace in which destinations are translated, with a socket of
/// the host's.
#[test]
fn a_call_is_refused_by_the_rules_of_its_sockets_namespace() -> Result<()> {
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    guest
        .place
        .nft("table ip t { chain c { type nat hook output priority -100;\n}\n}\n")?;
    let agent = lab.agent().policy("mode = \"enforce\"\n").start()?;
    // Before and after on the old socket, and once on a new one.
    let outcome = traffic(&lab)?
        .args(["move", &guest.place.path(), &at(FOREIGN, PORT)])
        .run()?;
    ensure!(outcome.code == REFUSED, "{outcome:?}");
    let records = all_of(agent, &lab)?;
    let finals = finals_to(&records, FOREIGN);
    let dropped = sum_of(&finals, "blocked_packets");
    // Beyond the first, those of one socket are a sum.
    let all: Vec<&Record> = records.iter().collect();
    let refused = sum_of(&all, "refused");
    ensure!(
        (refused, dropped) == (2, 1),
        "{refused}, {dropped}: {finals:?}"
    );
    lab.close()
}
