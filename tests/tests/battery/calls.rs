//! Every call that sends.

use anyhow::Result;
use trefoil_lab::Lab;

use crate::round::go;
use crate::stage::{Furniture, Stage, TCP_PORT, UDP_PORT, nothing, way};
use crate::world::{TRAFFIC, at, told, traffic};

#[test]
fn row_1_tcp() -> Result<()> {
    let ways = [
        way("1a", |stage| {
            let to = stage.tcp();
            stage.run(&["tcp", &to, "--bytes", "5000"])
        }),
        way("1b", |stage| {
            let to = at(stage.v6, TCP_PORT);
            stage.run(&["tcp", &to, "--bytes", "5000"])
        }),
    ];
    go(&ways, "", nothing)
}

/// Some datagrams to each of several places, by one socket.
fn send_to_many(stage: &mut Stage<'_>, to: &str) -> Result<()> {
    let how = ["--destinations", "4", "--count", "8", "--go-on"];
    stage.run(&[&["udp-many", to], &how[..]].concat())
}

#[test]
fn row_2_udp() -> Result<()> {
    let ways = [
        way("2a", |stage| {
            let to = stage.udp();
            stage.run(&["udp", &to, "--connected"])
        }),
        way("2b", |stage| {
            let to = stage.udp();
            send_to_many(stage, &to)
        }),
        way("2c", |stage| {
            let to = at(stage.v6, UDP_PORT);
            send_to_many(stage, &to)
        }),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_3_processes_that_live_for_a_moment() -> Result<()> {
    go(&[way("3a", burst)], "", nothing)
}

fn burst(stage: &mut Stage<'_>) -> Result<()> {
    const SIZE: u64 = 64;
    let outcome = traffic(stage.lab)?
        .args(["burst", &stage.udp(), "--count", "20"])
        .args(["--size", &SIZE.to_string(), "--program", TRAFFIC])
        .run()?
        .success()?;
    for child in told(&outcome)? {
        stage.senders.insert(child.number("pid")? as u32);
        stage.bytes += if child.is("code", 0) { SIZE } else { 0 };
    }
    Ok(())
}

/// Both ends send and take data with the first packet, without having met before.
fn fast_open(lab: &Lab) -> Result<Furniture> {
    const CLIENT_AND_SERVER_WITHOUT_COOKIE: &str = "1543";
    for place in [&lab.host, &lab.foreign] {
        place.enter(|| {
            let setting = "/proc/sys/net/ipv4/tcp_fastopen";
            Ok(std::fs::write(setting, CLIENT_AND_SERVER_WITHOUT_COOKIE)?)
        })?;
    }
    Ok(Furniture::default())
}

#[test]
fn row_4_tcp_fast_open() -> Result<()> {
    let ways = [
        way("4a", |stage| {
            let to = stage.tcp();
            stage.run(&["tcp", &to, "--fast-open", "--bytes", "5000"])
        }),
        way("4b", |stage| {
            let to = stage.tcp();
            stage.run(&["tcp", &to, "--fast-open-connect", "--bytes", "5000"])
        }),
        way("4c", |stage| {
            let to = stage.tcp();
            stage.run(&["replace", TRAFFIC, &to, "--fast-open", "--child"])
        }),
    ];
    go(&ways, "", fast_open)
}

#[test]
fn row_5_io_uring() -> Result<()> {
    let ways = [
        way("5a", |stage| {
            let to = stage.tcp();
            stage.run(&["uring", "connect", &to, "--size", "4000"])
        }),
        way("5b", |stage| {
            let to = stage.udp();
            stage.run(&["uring", "send", &to])
        }),
        way("5c", |stage| {
            let to = stage.udp();
            stage.run(&["uring", "sendmsg", &to])
        }),
        way("5d", |stage| {
            let to = stage.udp();
            stage.run(&["uring", "zero-copy", &to])
        }),
        way("5e", |stage| {
            let to = stage.tcp();
            stage.run(&["uring", "connect", &to, "--size", "4000", "--poll"])
        }),
        way("5f", |stage| {
            let to = stage.udp();
            stage.run(&["uring", "sendmsg", &to, "--poll"])
        }),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_6_without_a_copy() -> Result<()> {
    let ways = [
        way("6a", |stage| {
            let to = stage.tcp();
            stage.run(&["copy", "sendfile", &to])
        }),
        way("6b", |stage| {
            let to = stage.tcp();
            stage.run(&["copy", "splice", &to])
        }),
        way("6c", |stage| {
            let to = stage.tcp();
            stage.run(&["copy", "zero-copy", &to])
        }),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_7_raw_sockets_and_icmp() -> Result<()> {
    let ways = [
        way("7a", |stage| {
            let to = stage.v4.to_string();
            stage.run(&["raw", &to])
        }),
        way("7b", |stage| {
            let to = stage.v6.to_string();
            stage.run(&["raw", &to])
        }),
        way("7c", |stage| {
            let to = stage.v4.to_string();
            stage.run(&["raw", &to, "--own-header"])
        }),
        way("7d", |stage| {
            let to = stage.v4.to_string();
            stage.run(&["ping", &to, "--raw"])
        }),
        way("7e", |stage| {
            let to = stage.v6.to_string();
            stage.run(&["ping", &to, "--raw"])
        }),
        way("7f", |stage| {
            let to = stage.v4.to_string();
            stage.run(&["ping", &to])
        }),
        way("7g", |stage| {
            let to = stage.v6.to_string();
            stage.run(&["ping", &to])
        }),
    ];
    go(&ways, "", nothing)
}
