//! A gateway's own log and the records of a host say the same; what is on one side alone is found.

mod world;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use trefoil_lab::agent::{detach, verb};
use trefoil_lab::conn_log::ConnLog;
use trefoil_lab::program::{Outcome, Program};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::wiring::{far_link_address, link_name};
use trefoil_lab::{Agent, Lab, Record, places};
use world::{TRAFFIC, at, is_final, traffic};

const PORT: u16 = 9000;
const FLOWS: usize = 10_000;

const POLICY: &str = r#"
mode = "report"

[[gateways]]
name      = "dublin-1"
endpoints = ["192.0.2.10:9000/udp", "192.0.2.10:9001/udp", "192.0.2.10:9002/udp",
             "192.0.2.10:9003/udp", "192.0.2.10:443/tcp", "[2001:db8:1::10]:9000/udp"]
clients   = ["192.0.2.10"]

[[rules]]
name    = "exports go through the gateway"
to      = { gateway = "dublin-1" }
verdict = "approve"

[[rules]]
name      = "by the gateway"
direction = "accepted"
from      = { ports = ["22/tcp"] }
to        = { gateway = "dublin-1" }
verdict   = "approve"
"#;

/// The clocks are one, and the log is written when it is asked for.
const SETTINGS: &str = "[gateway_log]\nclock_skew = \"20ms\"\ndelay = \"0s\"\n";

fn query(lab: &Lab, records: &Path, log: &Path, more: &[&str]) -> Result<Outcome> {
    let settings = lab.file("query.toml");
    fs::write(&settings, SETTINGS)?;
    let policy = lab.file("query-policy.toml");
    fs::write(&policy, POLICY)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let own = [
        "query".to_owned(),
        text(records),
        "--gateway-log".to_owned(),
        text(log),
        "--config".to_owned(),
        text(&settings),
        "--gateway".to_owned(),
        "dublin-1".to_owned(),
        "--policy".to_owned(),
        text(&policy),
    ];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    verb(lab, &[&own, more].concat())
}

fn answer(outcome: &Outcome) -> Result<serde_json::Value> {
    serde_json::from_str(&outcome.stdout).with_context(|| format!("{outcome:?}"))
}

fn ports(answer: &serde_json::Value, list: &str) -> Vec<u64> {
    let all = answer[list].as_array().into_iter().flatten();
    all.filter_map(|one| one["src_port"].as_u64()).collect()
}

fn sends(lab: &Lab, port: u16, from: u16) -> Result<()> {
    let from = from.to_string();
    let sender = traffic(lab)?.args(["udp", &at(places::GATEWAY, port), "--from", &from]);
    sender.run()?.success().map(drop)
}

fn about_the_gateway(record: &&Record) -> bool {
    is_final(record) && record.is("verdict", "gateway")
}

/// Waits for the final record of a datagram from this port.
fn told(agent: &mut Agent<'_>, from: u16) -> Result<()> {
    agent.wait_for("the record of a datagram", |records| {
        let mut over = records.iter().filter(about_the_gateway);
        over.any(|record| record.is("src_port", from)).then_some(())
    })
}

/// So many datagrams from sockets of their own, and connections both ways.
fn exchange(lab: &Lab, datagrams: usize, connections: usize) -> Result<()> {
    let count = datagrams.to_string();
    traffic(lab)?
        .args([
            "storm",
            "sockets",
            &at(places::GATEWAY, PORT),
            "--count",
            &count,
        ])
        .run()?
        .success()?;
    for _ in 0..connections {
        let outbound = traffic(lab)?.args(["tcp", &at(places::GATEWAY, 443), "--bytes", "100000"]);
        outbound.run()?.success()?;
        let mut ssh = traffic(lab)?
            .args(["serve", "22", "--bytes", "5000"])
            .start()?;
        ssh.line()?;
        let client = Program::new(TRAFFIC, &lab.gateway, None, None)?;
        let from = places::GATEWAY.to_string();
        let client = client.args(["tcp", &at(places::HOST, 22), "--source", &from]);
        client.run()?.success()?;
        ssh.finish()?.success()?;
    }
    Ok(())
}

/// A datagram to the gateway's address that goes by another way.
fn goes_round_the_gateway(lab: &Lab, from: u16) -> Result<()> {
    let (near, other) = (link_name(&lab.gateway), link_name(&lab.foreign));
    let (gateway, host) = (places::GATEWAY, places::HOST);
    lab.host.ip(&format!(
        "neighbour add {gateway} lladdr {} dev {other} nud permanent\n\
         route replace {gateway} via {gateway} dev {other} src {host} onlink\n",
        far_link_address(3)
    ))?;
    sends(lab, PORT, from)?;
    lab.host.ip(&format!(
        "route replace {gateway} via {gateway} dev {near} src {host} onlink\n"
    ))
}

/// Nothing is on one side alone of so many flows.
fn ensure_whole(lab: &Lab, records: &Path, log: &Path, flows: usize) -> Result<()> {
    let found = answer(&query(lab, records, log, &["--json"])?.success()?)?;
    for list in ["not_seen", "not_recorded", "fewer_bytes"] {
        ensure!(
            found[list].as_array().is_some_and(Vec::is_empty),
            "{list}: {found}"
        );
    }
    let number = |name: &str| found[name].as_u64().context(name.to_owned());
    ensure!(number("joined")? >= flows as u64, "{found}");
    ensure!(number("lines")? > flows as u64 / 2, "{found}");
    let text = query(lab, records, log, &[])?.success()?;
    ensure!(
        text.stdout.contains("nothing is on one side alone"),
        "{text:?}"
    );
    Ok(())
}

#[test]
fn ten_thousand_flows_are_joined_and_what_is_on_one_side_alone_is_found() -> Result<()> {
    const CONNECTIONS: usize = 20;
    let lab = Lab::new()?;
    let log = ConnLog::new(&lab.gateway)?;
    let _udp: Vec<UdpSink> = (PORT..PORT + 4)
        .map(|port| UdpSink::new(&lab.gateway, port))
        .collect::<Result<_>>()?;
    let _tcp = TcpSink::new(&lab.gateway, 443)?;
    let mut agent = lab.agent().policy(POLICY).flows("each").start()?;

    exchange(&lab, FLOWS, CONNECTIONS)?;
    let flows = FLOWS + 2 * CONNECTIONS;
    agent.wait_for("final records of all flows", |records| {
        let n_over = records.iter().filter(about_the_gateway).count();
        (n_over >= flows).then_some(())
    })?;
    let (records, conn_log) = (lab.file("copy.json"), lab.file("conn.log"));
    fs::copy(agent.records_file(), &records)?;
    log.write(&conn_log, &[])?;
    ensure_whole(&lab, &records, &conn_log, flows)?;

    goes_round_the_gateway(&lab, 1003)?;
    // One that no agent watches, and one that is removed from the log.
    let unwatched = Program::new(TRAFFIC, &lab.host, None, None)?;
    let unwatched = unwatched.args(["udp", &at(places::GATEWAY, PORT + 1), "--from", "1004"]);
    unwatched.run()?.success()?;
    sends(&lab, PORT + 2, 1005)?;
    // Log and records go on after these.
    for from in [1006, 1007] {
        sends(&lab, PORT, from)?;
        told(&mut agent, from)?;
    }
    fs::copy(agent.records_file(), &records)?;
    log.write(&conn_log, &[1005])?;
    let outcome = query(&lab, &records, &conn_log, &["--json"])?;
    ensure!(outcome.code == 1, "{outcome:?}");
    let found = answer(&outcome)?;
    ensure!(ports(&found, "not_seen") == [1003, 1005], "{found}");
    ensure!(ports(&found, "not_recorded") == [1004], "{found}");
    let text = query(&lab, &records, &conn_log, &[])?;
    for words in [
        "approved as gateway, and not seen by the gateway: 2 flows",
        "seen by the gateway, and not recorded by the host: 1 flow",
        "192.0.2.1:1003 -> 192.0.2.10:9000",
    ] {
        ensure!(text.stdout.contains(words), "{words}: {text:?}");
    }
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn a_log_that_is_none_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let records = lab.file("no-records.json");
    fs::write(&records, "{\"a\":1}\n")?;
    let log = lab.file("conn.log");
    fs::write(&log, "time,from,to\n")?;
    let outcome = query(&lab, &records, &log, &[])?;
    ensure!(outcome.code == 78, "{outcome:?}");
    let none = verb(&lab, &["query", "x.json"])?;
    ensure!(
        none.code == 2 && none.stderr.contains("--gateway-log"),
        "{none:?}"
    );
    let gone = query(&lab, &lab.file("gone.json"), &log, &[])?;
    ensure!(
        gone.code == 78 && gone.stderr.contains("gone.json"),
        "{gone:?}"
    );
    lab.close()
}
