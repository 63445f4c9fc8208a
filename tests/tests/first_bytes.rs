//! Sender of the first bytes: an approved program connects a socket, and another one sends on it; and
//! bytes that a socket was handed before they could leave, which leave with another's.

mod world;

use std::io::Read;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use trefoil_lab::agent::detach;
use trefoil_lab::program::Program;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::{Lab, places, wait_for};
use world::{TRAFFIC, all_finals, at, reporting};

/// In one call.
const BYTES: u64 = 50 << 20;

#[test]
fn another_program_does_not_send_what_the_one_that_connected_may() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    let approved = lab.copy_program(TRAFFIC, "good/connects")?;
    let policy = format!(
        "mode = \"enforce\"\n[[rules]]\nname = \"one program\"\nfrom = {{ exe = {approved:?} }}\n\
         to = {{ networks = [\"203.0.113.0/24\"] }}\nverdict = \"approve\"\n"
    );
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    // Not a child: the same process turns into the other program, which sends all at once.
    let outcome = lab
        .program_in("first.service", &approved)?
        .args(["replace", TRAFFIC, &at(places::FOREIGN, 443)])
        .args(["--bytes", &BYTES.to_string()])
        .run()?;
    ensure!(outcome.code != 2, "{outcome:?}");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    ensure!(
        sink.bytes() == 0,
        "{} bytes of {BYTES} arrived",
        sink.bytes()
    );
    lab.close()
}

/// Tells who sent what the far end received on one connection.
fn ascribed(sender: impl Fn(&Lab) -> Result<Program>, bytes: u64) -> Result<String> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.peer, 443)?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    sender(&lab)?.run()?.success()?;
    let finals = agent.wait_for("the last record", |records| all_finals(records, 443, 1))?;
    let record = finals.last().context("no record")?.clone();
    wait_for("all bytes arrive", || {
        Ok((sink.bytes() == bytes).then_some(()))
    })?;
    agent.stop(Signal::SIGINT)?;
    lab.close()?;
    Ok(record.text("attribution").to_owned())
}

/// The first has sent before its connection was there; what both have sent is in one flow.
#[test]
fn what_came_with_a_connection_request_is_not_ascribed_to_whoever_sends_next() -> Result<()> {
    let told = |more: &'static [&str], bytes| {
        let sender = |lab: &Lab| {
            let other = lab.copy_program(TRAFFIC, "other")?;
            let other = other.to_str().context("a path that is not UTF-8")?;
            let words = ["replace", other, &at(places::PEER, 443)];
            Ok(lab.program(TRAFFIC)?.args(words).args(more))
        };
        ascribed(sender, bytes)
    };
    for how in [&["--fast-open"][..], &["--fast-open", "--child"]] {
        assert_eq!(told(how, 64 + 64)?, "inferred", "{how:?}");
    }
    assert_eq!(told(&["--child"], 64)?, "direct");
    Ok(())
}

/// Bytes that a process handed to a connection before it was moved leave after that.
#[test]
fn what_waits_in_a_connection_is_not_ascribed_to_what_its_sender_is_now() -> Result<()> {
    let told = |more: &'static [&str]| {
        let sender = |lab: &Lab| {
            let other = lab.unit("other.service")?;
            let other = other
                .to_str()
                .context("a path that is not UTF-8")?
                .to_owned();
            let words = ["become", &at(places::PEER, 443), "--cgroup", &other];
            Ok(lab.program(TRAFFIC)?.args(words).args(more))
        };
        ascribed(sender, 5 + 5)
    };
    assert_eq!(told(&["--more"])?, "inferred");
    Ok(())
}

/// The same of a connection that the agent first hears of when it sends.
#[test]
fn two_senders_on_a_connection_older_than_the_agent_are_not_one() -> Result<()> {
    for (script, attribution) in [
        ("echo hello >&3; /bin/echo hello >&3; :", "inferred"),
        ("/bin/echo hello >&3; :", "direct"),
    ] {
        let lab = Lab::new()?;
        let _sink = TcpSink::new(&lab.peer, 443)?;
        let script = format!(
            "exec 3<>/dev/tcp/{}/443; echo; read; {script}",
            places::PEER
        );
        let mut older = lab.program("/bin/bash")?.args(["-c", &script]).start()?;
        older.line()?;
        let mut agent = lab.agent().policy(&reporting()).start()?;
        older.proceed()?;
        let finals = agent.wait_for("the last record", |records| all_finals(records, 443, 1))?;
        let record = finals.last().context("no record")?;
        ensure!(record.is("attribution", attribution), "{script}: {record}");
        agent.stop(Signal::SIGINT)?;
        lab.close()?;
    }
    Ok(())
}

/// A process that is gone has left bytes in the queue, and the one that is there says one word.
#[test]
fn what_was_queued_before_the_agent_was_there_is_not_ascribed_to_who_sends_next() -> Result<()> {
    const PORT: u16 = 443;
    const QUEUED: usize = 12_000;
    let lab = Lab::new()?;
    let listener = lab
        .peer
        .enter(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
    // The far end takes little before somebody reads.
    setsockopt(&listener, sockopt::RcvBuf, &2048)?;
    let script = format!(
        "exec 3<>/dev/tcp/{}/{PORT}; head -c {QUEUED} /dev/zero >&3; echo; read; echo hello >&3; \
         echo; read",
        places::PEER
    );
    let mut older = lab.program("/bin/bash")?.args(["-c", &script]).start()?;
    older.line()?;
    let (mut far, _) = listener.accept()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    older.proceed()?;
    older.line()?;
    older.proceed()?;
    let mut read = Vec::new();
    far.read_to_end(&mut read)?;
    assert_eq!(read.len(), QUEUED + 6);
    let finals = agent.wait_for("the last record", |records| all_finals(records, PORT, 1))?;
    let record = finals.last().context("no record")?;
    ensure!(record.is("attribution", "inferred"), "{record}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
