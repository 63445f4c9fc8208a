//! Sender of the first bytes: an approved program connects a socket, and another one sends on it.

mod world;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::{Lab, places};
use world::{TRAFFIC, at};

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
