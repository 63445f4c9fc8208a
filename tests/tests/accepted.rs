//! A server here that answers a client outside is egress, too: it is the answer that is
//! counted, ascribed and judged.

mod world;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::{TRAFFIC, all_of, at, enforcing, is_final, reporting, told, traffic_in};

const PORT: u16 = 8080;
const TEN_MEGABYTES: u64 = 10_000_000;

/// A client at the foreign host that takes all that the server sends.
fn client(lab: &Lab) -> Result<Program> {
    let client = Program::new(TRAFFIC, &lab.foreign, None, None)?;
    let (server, source) = (at(places::HOST, PORT), places::FOREIGN.to_string());
    Ok(client.args(["tcp", &server, "--source", &source]))
}

fn server(lab: &Lab, arguments: &[&str]) -> Result<Running> {
    let port = PORT.to_string();
    let words = [&arguments[..1], &[port.as_str()], &arguments[1..]].concat();
    let mut server = traffic_in(lab, "shop.service")?.args(words).start()?;
    server.line()?;
    Ok(server)
}

/// Bytes that the link to the foreign host has taken, without the resets with which the
/// kernel answers what comes late for a socket that is gone: a segment that was sent twice
/// has two acknowledgements. They are of no socket that is watched, and have no options.
fn sent_by_sockets(lab: &Lab) -> Result<u64> {
    const BARE_RESET: u64 = 40;
    let told = lab
        .host
        .enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut of_tcp = told.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = of_tcp.next().zip(of_tcp.next()).context("no TCP")?;
    let resets: u64 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(name, _)| *name == "OutRsts")
        .context("no resets")?
        .1
        .parse()?;
    Ok(lab.link_to(&lab.foreign)?.ip_bytes_out() - resets * BARE_RESET)
}

/// Final records of `count` accepted sessions, by the client's port.
fn sessions(agent: &mut Agent<'_>, count: usize) -> Result<BTreeMap<u64, Record>> {
    agent.wait_for("final records of the sessions", |records| {
        let finals: BTreeMap<u64, Record> = records
            .iter()
            .filter(|record| is_final(record) && record.is("direction", "accepted"))
            .filter_map(|record| Some((record.number("dst_port").ok()?, record.clone())))
            .collect();
        (finals.len() >= count).then_some(finals)
    })
}

fn is_answer_of(record: &Record, pid: &str, bytes: u64) -> Result<()> {
    for (name, expected) in [
        ("pid", pid),
        ("attribution", "direct"),
        ("unit", "shop.service"),
        ("exe", TRAFFIC),
        ("src_port", "8080"),
        ("dst_addr", "203.0.113.10"),
        ("verdict", "denied"),
        ("outcome", "would-drop"),
    ] {
        ensure!(
            record.is(name, expected),
            "{name} is not {expected}: {record}"
        );
    }
    ensure!(record.number("bytes_out")? > bytes, "{record}");
    Ok(())
}

/// Five clients, one after the other, and what the server told about its answers.
fn five_answers(how: &str) -> Result<()> {
    const BYTES: u64 = 30_000;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let bytes = BYTES.to_string();
    let arguments = ["workers", "--count", "5", "--bytes", &bytes];
    let server = server(&lab, &[&arguments[..], &["--accept", how]].concat())?;
    for _ in 0..5 {
        client(&lab)?.run()?.success()?;
    }
    let listener = server.pid();
    let answers = told(&server.finish()?.success()?)?;
    assert_eq!(answers.len(), 5);
    let records = sessions(&mut agent, 5)?;
    for answer in &answers {
        ensure!(!answer.is("pid", listener), "the listener answered");
        let record = records
            .get(&answer.number("port")?)
            .context("a session without a record")?;
        is_answer_of(record, &answer.text("pid"), BYTES)?;
    }
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn each_of_five_workers_that_accept_is_named() -> Result<()> {
    five_answers("worker")
}

#[test]
fn each_of_five_workers_that_get_a_session_is_named() -> Result<()> {
    five_answers("parent")
}

#[test]
fn a_service_that_was_activated_by_its_socket_is_named() -> Result<()> {
    const BYTES: u64 = 30_000;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let bytes = BYTES.to_string();
    let arguments = ["workers", "--bytes", &bytes, "--accept", "activated"];
    let server = server(&lab, &arguments)?;
    let port = told(&client(&lab)?.run()?.success()?)?
        .pop()
        .context("the client said nothing")?
        .number("port")?;
    let manager = server.pid();
    let service = told(&server.finish()?.success()?)?
        .pop()
        .context("the service said nothing")?;
    ensure!(!service.is("pid", manager), "the listener answered");
    let records = sessions(&mut agent, 1)?;
    let record = records.get(&port).context("no record of the session")?;
    is_answer_of(record, &service.text("pid"), BYTES)?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn ten_megabytes_that_a_client_outside_pulls_are_judged() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let server = server(&lab, &["serve", "--bytes", &TEN_MEGABYTES.to_string()])?;
    let pid = server.pid().to_string();
    client(&lab)?.run()?.success()?;
    server.finish()?.success()?;
    let records = sessions(&mut agent, 1)?;
    let record = records.values().next().context("no record")?;
    is_answer_of(record, &pid, TEN_MEGABYTES)?;
    let sent = sent_by_sockets(&lab)?;
    assert_eq!(record.number("bytes_out")?, sent, "{record}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn a_pull_of_ten_megabytes_is_cut_when_its_client_is_not_approved_any_more() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let server = server(&lab, &["serve", "--bytes", &TEN_MEGABYTES.to_string()])?;
    // A client that stops to read soon, so that most is not under way yet.
    let (mut stream, first) = lab.foreign.enter(|| {
        let mut stream = TcpStream::connect((places::HOST, PORT))?;
        let mut first = vec![0; 100_000];
        stream.read_exact(&mut first)?;
        Ok((stream, first.len()))
    })?;
    agent.reload(&enforcing())?;
    let record = agent.wait_for("the session is cut", |records| {
        records
            .iter()
            .find(|record| is_final(record) && record.is("outcome", "cut"))
            .cloned()
    })?;
    for (name, expected) in [("direction", "accepted"), ("unit", "shop.service")] {
        ensure!(
            record.is(name, expected),
            "{name} is not {expected}: {record}"
        );
    }
    // Both ends have noticed: neither waits for the other any more.
    let failed = server.finish()?;
    ensure!(failed.code == 14, "{failed:?}");
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest);
    ensure!(error.is_err(), "the client saw a proper end");
    let pulled = (first + rest.len()) as u64;
    ensure!(pulled < TEN_MEGABYTES, "{pulled} bytes arrived");
    agent.stop(Signal::SIGTERM)?;
    trefoil_lab::agent::detach(&lab)?;
    lab.close()
}

#[test]
fn a_client_that_is_not_approved_gets_no_session_and_that_is_told_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let server = server(&lab, &["serve", "--bytes", "50000"])?;
    let client = client(&lab)?.start()?;
    let record = agent.wait_for("the answer is dropped", |records| {
        records
            .iter()
            .find(|record| record.is("event", "violation"))
            .cloned()
    })?;
    for (name, expected) in [
        ("direction", "accepted"),
        ("outcome", "dropped"),
        ("unit", "shop.service"),
        ("dst_addr", "203.0.113.10"),
        ("src_port", "8080"),
        ("attribution", "inferred"),
    ] {
        ensure!(
            record.is(name, expected),
            "{name} is not {expected}: {record}"
        );
    }
    assert_eq!(lab.link_to(&lab.foreign)?.tx_packets, 0);

    // Once the policy approves it, the client's next attempt succeeds, and the session
    // has the numbers of its own packets alone.
    agent.reload(&world::approving())?;
    ensure!(client.finish()?.code == 0, "the client gave up");
    server.finish()?.success()?;
    wait_for("all packets have left", || {
        Ok((lab.link_to(&lab.foreign)?.tx_bytes > 50_000).then_some(()))
    })?;
    let (_, records) = agent.stop(Signal::SIGINT)?;
    let finals: Vec<&Record> = records
        .iter()
        .filter(|record| is_final(record) && record.is("direction", "accepted"))
        .collect();
    let bytes: u64 = finals
        .iter()
        .map(|record| record.number("bytes_out").unwrap_or_default())
        .sum();
    assert_eq!(bytes, sent_by_sockets(&lab)?, "{finals:?}");
    let blocked = finals.iter().any(|record| record.is("outcome", "dropped"));
    ensure!(blocked, "{finals:?}");
    if lab.pins().exists() {
        trefoil_lab::agent::detach(&lab)?;
    }
    lab.close()
}

/// Nobody takes up what it answers, so that no session comes of it; the listener is open when the
/// programs are taken out.
#[test]
fn answers_of_the_last_minute_are_told() -> Result<()> {
    let lab = Lab::new()?;
    lab.foreign.nft(
        "table ip deaf {\nchain input {\ntype filter hook input priority 0;\n\
         tcp sport 8080 drop\n}\n}\n",
    )?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    let before = lab.link_to(&lab.foreign)?;
    let server = server(&lab, &["serve"])?;
    for _ in 0..3 {
        let client = Program::new(TRAFFIC, &lab.foreign, None, None)?;
        client
            .args(["begin", &at(places::HOST, PORT)])
            .run()?
            .success()?;
    }
    let answered = wait_for("each is answered", || {
        let sent = lab.link_to(&lab.foreign)?.since(before).tx_packets;
        Ok((sent >= 3).then_some(sent))
    })?;
    let records = all_of(agent, &lab)?;
    let answers = records
        .iter()
        .filter(|record| is_final(record) && record.is("src_port", PORT));
    let told: u64 = answers
        .map(|record| record.number("packets_out"))
        .sum::<Result<_>>()?;
    ensure!(
        told >= answered,
        "{answered} have left, and {told} are told: {records:#?}"
    );
    drop(server);
    lab.close()
}
