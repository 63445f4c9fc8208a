//! All kinds of traffic at once, and for long: the books of every interval balance, and the
//! far ends have what the books say.
//!
//! As a test of every day it takes 15 seconds; `TREFOIL_MIXED_SECONDS` asks for more.

mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::books::balanced;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::wiring::{Guest, guest};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::books::{FOREIGN_LINK, agrees, books, frames, from_machine};
use world::{TRAFFIC, at, reporting, told, traffic, traffic_in};

const SECONDS: &str = "TREFOIL_MIXED_SECONDS";
/// Connections that are opened in ten minutes at least.
const CONNECTIONS_OF_TEN_MINUTES: u64 = 20_000;
const UDP_PORT: u16 = 9;
const TCP_PORT: u16 = 443;
const MPTCP_PORT: u16 = 444;

/// A record for each of half a million flows would test the disk.
const SETTINGS: &str = "heartbeat_interval = \"1s\"\nviolations_rate = 5\n";

/// Goes round without a pause: datagrams by one socket, by connected and by new ones, and
/// short connections.
fn rounds(program: Program, to: [std::net::IpAddr; 2]) -> Result<Running> {
    let ports = [UDP_PORT.to_string(), TCP_PORT.to_string()];
    let mut running = program
        .args(["rounds", &ports[0], &ports[1]])
        .args(["--to", &to[0].to_string(), "--to", &to[1].to_string()])
        .start()?;
    running.line()?;
    Ok(running)
}

/// Everything else, once.
fn once(lab: &Lab, machine: &Guest) -> Result<()> {
    for to in [places::FOREIGN, places::FOREIGN6] {
        let (udp, tcp, address) = (at(to, UDP_PORT), at(to, TCP_PORT), to.to_string());
        for words in [
            &["tcp", &tcp, "--bytes", "300000"][..],
            &["udp-many", &udp, "--destinations", "10", "--count", "50"],
            &["udp", &udp, "--size", "5000"],
            &["raw", &address],
            &["ping", &address],
            &["ping", &address, "--raw"],
        ] {
            let sent = traffic(lab)?.args(words).run()?;
            sent.success().with_context(|| format!("{words:?}"))?;
        }
        frames(lab, "to-foreign", FOREIGN_LINK, to)?
            .args(["--count", "7", "--size", "100"])
            .run()?
            .success()?;
        from_machine(machine, to)?;
        // A container: its sockets are this host's to see.
        let cgroup = lab.unit("contained.service")?;
        Program::new(TRAFFIC, &machine.place, Some(&cgroup), None)?
            .args(["udp", &udp, "--count", "20"])
            .run()?
            .success()?;
        traffic(lab)?
            .args(["tcp", &at(to, MPTCP_PORT), "--bytes", "100000"])
            .args(["--transport", "mptcp"])
            .run()?
            .success()
            .context("mptcp")?;
    }
    // In a tunnel.
    traffic(lab)?
        .args(["udp", "198.51.100.77:9", "--count", "20"])
        .run()?
        .success()?;
    Ok(())
}

#[test]
fn mixed_traffic_balances_in_every_interval() -> Result<()> {
    let seconds: u64 = match std::env::var(SECONDS) {
        Ok(text) => text.parse().context(SECONDS)?,
        Err(_) => 15,
    };
    let lab = Lab::new()?;
    let sinks = [&lab.foreign, &lab.peer].map(|place| {
        anyhow::Ok((
            UdpSink::new(place, UDP_PORT)?,
            TcpSink::new(place, TCP_PORT)?,
        ))
    });
    let [foreign, peer] = sinks;
    let (foreign, peer) = (foreign?, peer?);
    let machine = guest(&lab.host, "machine", 1)?;
    lab.host.ip(&format!(
        "link add vx type vxlan id 7 remote {} local {} dstport 4789 dev to-foreign\n\
         link set vx up\n\
         route add 198.51.100.77 dev vx src {}\n\
         neighbour add 198.51.100.77 lladdr 02:00:00:00:09:09 dev vx nud permanent\n",
        places::FOREIGN,
        places::HOST,
        places::HOST
    ))?;
    let mut agent = lab
        .agent()
        .policy(&reporting())
        .settings(SETTINGS)
        .flows("rollup")
        .uplink("to-foreign")
        .uplink("to-peer")
        .start()?;
    let v4 = [places::FOREIGN, places::PEER];
    let v6 = [places::FOREIGN6, places::PEER6];
    let mut server = Program::new(TRAFFIC, &lab.foreign, None, None)?
        .args(["serve", &MPTCP_PORT.to_string(), "--again"])
        .args(["--transport", "mptcp"])
        .start()?;
    server.line()?;
    let senders = [
        rounds(traffic_in(&lab, "four.service")?, v4)?,
        rounds(traffic_in(&lab, "six.service")?, v6)?,
    ];
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        once(&lab, &machine)?;
    }
    for sender in senders {
        for tally in told(&sender.finish()?.success()?)? {
            ensure!(
                tally.text("went").is_empty() || tally.number("went")? > 0,
                "{tally}"
            );
        }
    }
    wait_for("connections end", || {
        let all_ended = |sink: &TcpSink| sink.ended() == sink.connections();
        Ok((all_ended(&foreign.1) && all_ended(&peer.1)).then_some(()))
    })?;
    for link in ["to-foreign", "to-peer"] {
        books(&mut agent, &lab, link)?;
    }
    agrees(&lab, "to-foreign", &lab.foreign)?;
    agrees(&lab, "to-peer", &lab.peer)?;
    let of_intervals: Vec<&Record> = agent
        .records()?
        .iter()
        .filter(|record| record.text("subject").starts_with("books of uplink"))
        .collect();
    let mut sent = 0;
    for book in &of_intervals {
        // A packet that the kernel may have had to cut up behind the hook has more headers on
        // the wire, and no more than the hook knows of. At the end nothing may be missing.
        let remainder = book.number("bytes_unaccounted")?;
        let seen = book.number("bytes_sent")? - remainder;
        ensure!(
            book.is("bytes_unsent", 0) && seen + remainder <= book.number("bytes_wire")?.max(seen),
            "{book}"
        );
        if remainder == 0 {
            balanced(book)?;
        }
        sent = sent.max(seen);
    }
    let connections = foreign.1.connections() + peer.1.connections();
    println!(
        "{seconds} s: {} books, up to {sent} bytes of one uplink, {connections} connections",
        of_intervals.len()
    );
    // However seldom the agent gets its turn, there is more than one interval.
    ensure!(of_intervals.len() >= 4, "too few books");
    ensure!(
        connections >= CONNECTIONS_OF_TEN_MINUTES * seconds / 600,
        "{connections} connections"
    );
    drop(server);
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
