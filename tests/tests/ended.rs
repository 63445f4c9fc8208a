//! Packets that the kernel sends in the name of a TCP connection whose socket is gone go the way of
//! the connection.

mod world;

use std::io::Read;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::{TRAFFIC, all_of, approving, at, is_final, traffic_in};

/// A user without privileges.
const USER: u32 = 12_345;

/// States of TCP as /proc/net/tcp has them.
const FIN_WAIT_2: &str = "05";
const LAST_ACK: &str = "09";

/// True if a connection of a namespace is in this state.
fn has(place: &Namespace, state: &str) -> Result<bool> {
    place.enter(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
        let states = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3));
        Ok(states.into_iter().any(|other| other == state))
    })
}

#[test]
fn the_kernel_may_end_a_connection_whose_socket_is_gone() -> Result<()> {
    ends_without_its_socket(|_| Ok(()))
}

#[test]
fn the_kernel_may_end_it_under_another_policy_that_says_the_same() -> Result<()> {
    ends_without_its_socket(|agent| {
        let n_policies = |records: &[Record]| {
            let policies = records.iter().filter(|record| record.is("event", "policy"));
            policies.count()
        };
        let before = n_policies(agent.records()?);
        agent.reload(&format!("{SHOPS}# Once more.\n"))?;
        agent.wait_for("the policy is in force once more", |records| {
            (n_policies(records) > before).then_some(())
        })
    })
}

const SHOPS: &str = r#"mode = "enforce"
[[rules]]
name    = "the service's peer"
from    = { unit = "shop.service" }
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;

/// Fails unless a connection ends as others do after its socket is gone and `meanwhile` has
/// happened.
fn ends_without_its_socket(meanwhile: impl FnOnce(&mut Agent<'_>) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let settings = "heartbeat_interval = \"1s\"\n";
    let mut agent = lab
        .agent()
        .policy(SHOPS)
        .settings(settings)
        .uplink("auto")
        .start()?;
    let address = SocketAddr::new(places::PEER, 443);
    let listener = lab.peer.enter(|| Ok(TcpListener::bind(address)?))?;
    let client = traffic_in(&lab, "shop.service")?.args([
        "tcp",
        &at(places::PEER, 443),
        "--bytes",
        "1000",
        "--abandon",
    ]);
    client.run()?.success()?;
    let (mut session, _) = listener.accept()?;
    session.read_to_end(&mut Vec::new())?;
    // The client has ended, and its end is acknowledged: what comes now finds no socket.
    wait_for("the client's end is acknowledged", || {
        Ok(has(&lab.host, FIN_WAIT_2)?.then_some(()))
    })?;
    meanwhile(&mut agent)?;
    drop(session);
    agent.wait_for("the other end is acknowledged", |_| {
        (!has(&lab.peer, LAST_ACK).ok()?).then_some(())
    })?;
    let sent = lab.link_to(&lab.peer)?.tx_bytes;
    let book = agent.wait_for("books about all of it", |records| {
        let mut books = records.iter().rev();
        let book = books.find(|record| record.is("subject", "books of uplink to-peer"))?;
        let counted = book.number("bytes_sent").ok()? + book.number("bytes_before").ok()?;
        (counted >= sent).then(|| book.clone())
    })?;
    for name in ["bytes_dropped", "bytes_unapproved", "bytes_undetermined"] {
        ensure!(book.is(name, 0), "{book}");
    }
    let records = agent.records()?;
    ensure!(
        !records.iter().any(|record| record.is("event", "violation")),
        "{records:?}"
    );
    agent.stop(Signal::SIGTERM)?;
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}

/// A timer ends many connections at once, on a processor where the program that ends flows is mostly running
/// already: the kernel runs none within itself.
#[test]
fn what_a_timer_ends_is_told_whoever_listens_meanwhile() -> Result<()> {
    const PORT: u16 = 9;
    /// Acknowledgements for connections that are over are in the books alone.
    const ACKNOWLEDGEMENTS: u64 = 5_000;
    const ETHERNET: u64 = 14;
    for how in [&[][..], &["--quiet"]] {
        let lab = Lab::new()?;
        let listener = lab
            .peer
            .enter(|| Ok(TcpListener::bind((places::PEER, PORT))?))?;
        setsockopt(&listener, sockopt::RcvBuf, &8192)?;
        // Nobody reads.
        std::thread::spawn(move || {
            let mut all = Vec::new();
            while let Ok((connection, _)) = listener.accept() {
                all.push(connection);
            }
        });
        let agent = lab.agent().policy(&approving()).uplink("auto").start()?;
        let before = lab.link_to(&lab.peer)?;
        let peer = at(places::PEER, PORT);
        lab.program_as(USER, TRAFFIC)?
            .args(["expire", &peer, "--count", "60", "--rounds", "20"])
            .args(how)
            .run()?
            .success()?;
        let records = all_of(agent, &lab)?;
        let sent = lab.link_to(&lab.peer)?.since(before);
        let mut told = 0;
        for record in records.iter().filter(|record| is_final(record)) {
            told += record.number("bytes_out")?;
        }
        let left = sent.tx_bytes - ETHERNET * sent.tx_packets;
        ensure!(left > 1_000_000, "{left} bytes left");
        ensure!(
            told + ACKNOWLEDGEMENTS >= left,
            "{how:?}: of {left} bytes {told} are told"
        );
        lab.close()?;
    }
    Ok(())
}
