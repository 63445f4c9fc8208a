//! Sender of the first bytes: an approved program connects a socket, and another one sends on it; and
//! bytes that a socket was handed before they could leave, which leave with another's.

mod world;

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use trefoil_lab::agent::detach;
use trefoil_lab::program::Program;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::{Agent, Lab, places, wait_for};
use world::{TRAFFIC, all_of, at, finals_to_port, reporting};

const PORT: u16 = 443;
/// More than a far end takes that does not read, and less than a socket does.
const QUEUED: usize = 12_000;
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
    let agent = lab.agent().policy(&reporting()).start()?;
    sender(&lab)?.run()?.success()?;
    wait_for("all bytes arrive", || {
        Ok((sink.bytes() == bytes).then_some(()))
    })?;
    let attribution = last_told(agent, &lab)?;
    lab.close()?;
    Ok(attribution)
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

/// Listens at the peer, which takes little before somebody reads.
fn slow_listener(lab: &Lab) -> Result<TcpListener> {
    let listener = lab
        .peer
        .enter(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
    setsockopt(&listener, sockopt::RcvBuf, &2048)?;
    Ok(listener)
}

/// Reads so many bytes at the far end.
fn read_all(far: &mut TcpStream, bytes: usize) -> Result<()> {
    let mut read = Vec::new();
    far.read_to_end(&mut read)?;
    ensure!(read.len() == bytes, "{} bytes arrived", read.len());
    Ok(())
}

/// Tells how the last flow of a connection that is over was ascribed: one ends where its sender changes.
fn last_told(agent: Agent<'_>, lab: &Lab) -> Result<String> {
    let records = all_of(agent, lab)?;
    let finals = finals_to_port(&records, PORT).context("no record")?;
    Ok(finals.last().context("no record")?.text("attribution"))
}

/// Bytes that a process handed to a connection before it was moved leave after that.
#[test]
fn what_waits_in_a_connection_is_not_ascribed_to_what_its_sender_is_now() -> Result<()> {
    let lab = Lab::new()?;
    let listener = slow_listener(&lab)?;
    let other = lab.unit("other.service")?;
    let other = other.to_str().context("a path that is not UTF-8")?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let words = ["become", &at(places::PEER, PORT), "--cgroup", other];
    let first = ["--first", &QUEUED.to_string()];
    let program = lab.program(TRAFFIC)?.args(words).args(first);
    program.run()?.success()?;
    let (mut far, _) = listener.accept()?;
    read_all(&mut far, QUEUED + 5)?;
    assert_eq!(last_told(agent, &lab)?, "inferred");
    lab.close()
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
        let agent = lab.agent().policy(&reporting()).start()?;
        older.proceed()?;
        older.finish()?;
        assert_eq!(last_told(agent, &lab)?, attribution, "{script}");
        lab.close()?;
    }
    Ok(())
}

/// A process that is gone has left bytes in the queue, and the one that is there says one word.
#[test]
fn what_was_queued_before_the_agent_was_there_is_not_ascribed_to_who_sends_next() -> Result<()> {
    let lab = Lab::new()?;
    let listener = slow_listener(&lab)?;
    let script = format!(
        "exec 3<>/dev/tcp/{}/{PORT}; head -c {QUEUED} /dev/zero >&3; echo; read; echo hello >&3; \
         echo; read",
        places::PEER
    );
    let mut older = lab.program("/bin/bash")?.args(["-c", &script]).start()?;
    older.line()?;
    let (mut far, _) = listener.accept()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    older.proceed()?;
    older.line()?;
    older.proceed()?;
    read_all(&mut far, QUEUED + 6)?;
    assert_eq!(last_told(agent, &lab)?, "inferred");
    lab.close()
}
