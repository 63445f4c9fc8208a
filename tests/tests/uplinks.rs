//! Nothing leaves by an uplink unseen: what passes is in its books, by whom and with
//! which verdict, and the books are what the interface itself has counted.

mod world;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::Agent;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::program::Program;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::wiring::{Guest, far_link_address, guest};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{TRAFFIC, at, enforcing, reporting, traffic};

/// Books are read with each heartbeat.
const OFTEN: &str = "heartbeat_interval = \"1s\"\n";
/// Number of the link to the foreign host.
const FOREIGN_LINK: u8 = 3;
/// Number of the link to the peer.
const PEER_LINK: u8 = 2;

/// The fields whose sum is what was judged.
const VERDICTS: [&str; 8] = [
    "bytes_local",
    "bytes_gateway",
    "bytes_approved",
    "bytes_exception",
    "bytes_over_budget",
    "bytes_denied",
    "bytes_unapproved",
    "bytes_undetermined",
];
/// The fields whose sum is that as well.
const SENDERS: [&str; 4] = [
    "bytes_socket",
    "bytes_kernel",
    "bytes_forwarded",
    "bytes_packet_socket",
];
/// The fields whose sum is what could not be judged.
const REASONS: [&str; 3] = ["bytes_arp", "bytes_lldp", "bytes_not_ip"];

fn sum(record: &Record, names: &[&str]) -> Result<u64> {
    names.iter().map(|name| record.number(name)).sum()
}

/// The books of an uplink once they are about all that its interface has sent by now,
/// since it is watched. Fails unless they balance.
fn books(agent: &mut Agent<'_>, lab: &Lab, uplink: &str) -> Result<Record> {
    let sent = LinkCounters::read(&lab.host, uplink)?;
    let book = agent.wait_for(&format!("books of {uplink} up to {sent:?}"), |records| {
        let book = records
            .iter()
            .rev()
            .find(|record| record.is("subject", format!("books of uplink {uplink}")))?;
        let before = book.number("bytes_before").ok()?;
        (book.number("bytes_sent").ok()? + before >= sent.tx_bytes).then(|| book.clone())
    })?;
    let judged = sum(&book, &VERDICTS)?;
    let not_judged = sum(&book, &REASONS)?;
    ensure!(judged == sum(&book, &SENDERS)?, "{book}");
    ensure!(judged + not_judged == book.number("bytes_sent")?, "{book}");
    ensure!(
        book.is("bytes_unaccounted", 0) && book.is("bytes_unsent", 0),
        "{book}"
    );
    ensure!(
        book.number("bytes_before")? + judged + not_judged == sent.tx_bytes,
        "{book} {sent:?}"
    );
    Ok(book)
}

/// Fails unless the far end of a link got what this end has sent.
fn agrees(lab: &Lab, near: &str, far: &trefoil_lab::namespace::Namespace) -> Result<()> {
    let near = LinkCounters::read(&lab.host, near)?;
    let far = LinkCounters::read(far, "to-host")?;
    ensure!(
        near.tx_bytes == far.rx_bytes && near.tx_packets == far.rx_packets,
        "{near:?} {far:?}"
    );
    Ok(())
}

/// Frames of a packet socket to a place, by the link with this number.
fn frames(lab: &Lab, link: &str, number: u8, to: std::net::IpAddr) -> Result<Program> {
    let from = if to.is_ipv4() {
        places::HOST
    } else {
        places::HOST6
    };
    Ok(traffic(lab)?.args([
        "packet",
        link,
        &far_link_address(number),
        &at(to, 9),
        "--from",
        &from.to_string(),
    ]))
}

/// Datagrams from a place behind the host, in no control group that is watched.
fn from_machine(guest: &Guest, to: std::net::IpAddr) -> Result<()> {
    let machine = Program::new(TRAFFIC, &guest.place, None, None)?;
    machine
        .args(["udp", &at(to, 9), "--count", "5"])
        .run()?
        .success()
        .map(drop)
}

#[test]
fn mixed_traffic_is_in_the_books_to_the_byte() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    let machine = guest(&lab.host, "machine", 1)?;
    let mut agent = lab
        .agent()
        .policy(&reporting())
        .settings(OFTEN)
        .uplink("to-foreign")
        .uplink("to-peer")
        .start()?;
    let programs = lab.unit("lab.service")?;
    for (to, number) in [(places::FOREIGN, 0_u32), (places::FOREIGN6, 1)] {
        traffic(&lab)?
            .args(["tcp", &at(to, 443), "--bytes", "1000000"])
            .run()?
            .success()?;
        traffic(&lab)?
            .args(["udp", &at(to, 9), "--count", "20"])
            .run()?
            .success()?;
        traffic(&lab)?
            .args([
                "udp-many",
                &at(to, 9),
                "--destinations",
                "10",
                "--count",
                "50",
            ])
            .run()?
            .success()?;
        for words in [
            vec!["raw".to_owned(), to.to_string()],
            vec!["ping".to_owned(), to.to_string()],
        ] {
            traffic(&lab)?.args(&words).run()?.success()?;
        }
        // Larger than the link takes at once: in fragments.
        traffic(&lab)?
            .args(["udp", &at(to, 9), "--size", "5000"])
            .run()?
            .success()?;
        let before = books(&mut agent, &lab, "to-foreign")?;
        ensure!(before.is("bytes_not_ip", 0), "{before}");
        for name in ["bytes_packet_socket", "bytes_forwarded"] {
            ensure!((before.number(name)? == 0) == (number == 0), "{before}");
        }

        frames(&lab, "to-foreign", FOREIGN_LINK, to)?
            .args(["--count", "7", "--size", "100"])
            .run()?
            .success()?;
        let headers = if to.is_ipv4() { 42 } else { 62 };
        let after = books(&mut agent, &lab, "to-foreign")?;
        let of_packet_sockets =
            after.number("bytes_packet_socket")? - before.number("bytes_packet_socket")?;
        ensure!(of_packet_sockets == 7 * (100 + headers), "{after}");

        from_machine(&machine, to)?;
        let last = books(&mut agent, &lab, "to-foreign")?;
        ensure!(
            last.number("bytes_forwarded")? > after.number("bytes_forwarded")?,
            "{last}"
        );
        // What the hooks of sockets had judged is not what it was not.
        let sockets = last.number("bytes_socket")? - after.number("bytes_socket")?;
        ensure!(sockets == 0, "{last}");

        // A container: the socket's own hooks judge it, the host forwards it.
        let container = Program::new(TRAFFIC, &machine.place, Some(&programs), None)?;
        container
            .args(["udp", &at(to, 9), "--count", "5"])
            .run()?
            .success()?;
        let contained = books(&mut agent, &lab, "to-foreign")?;
        ensure!(
            contained.number("bytes_socket")? > last.number("bytes_socket")?
                && contained.number("bytes_forwarded")? == last.number("bytes_forwarded")?,
            "{contained}"
        );
    }
    frames(&lab, "to-foreign", FOREIGN_LINK, places::FOREIGN)?
        .args(["--ethertype", "34984", "--size", "10"])
        .run()?
        .success()?;
    frames(&lab, "to-foreign", FOREIGN_LINK, places::FOREIGN)?
        .args(["--ethertype", "35020"])
        .run()?
        .success()?;
    let book = books(&mut agent, &lab, "to-foreign")?;
    ensure!(book.number("bytes_lldp")? == 106, "{book}");
    ensure!(book.number("bytes_approved")? == 0, "{book}");
    ensure!(book.number("bytes_denied")? > 2_000_000, "{book}");
    agrees(&lab, "to-foreign", &lab.foreign)?;
    let quiet = books(&mut agent, &lab, "to-peer")?;
    ensure!(sum(&quiet, &VERDICTS)? == 0, "{quiet}");
    wait_for("the connections end", || {
        Ok((sink.ended() == 2).then_some(()))
    })?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn what_a_frame_says_counts_and_not_what_its_sender_says_of_it() -> Result<()> {
    const ARP: &str = "2054";
    let lab = Lab::new()?;
    let mut agent = lab
        .agent()
        .policy(&reporting())
        .settings(OFTEN)
        .uplink("to-foreign")
        .start()?;
    frames(&lab, "to-foreign", FOREIGN_LINK, places::FOREIGN)?
        .args(["--pretend", ARP])
        .run()?
        .success()?;
    let book = books(&mut agent, &lab, "to-foreign")?;
    ensure!(
        book.is("bytes_arp", 0) && book.is("bytes_denied", 106),
        "{book}"
    );
    frames(&lab, "to-foreign", FOREIGN_LINK, places::FOREIGN)?
        .args(["--vlan", "7"])
        .run()?
        .success()?;
    let book = books(&mut agent, &lab, "to-foreign")?;
    ensure!(book.is("bytes_denied", 106 + 110), "{book}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
