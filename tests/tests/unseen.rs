//! Ways out that no hook judges: whoever opens one is named in a record.

mod world;

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use trefoil_lab::agent::detach;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::program::{Outcome, Program, Running};
use trefoil_lab::{Agent, Lab, Record, places};
use world::books::{FOREIGN_LINK, OFTEN, frames_of};
use world::{DIRECT_FRAMES, REFUSED, TRAFFIC, enforcing, lacks_hook, reporting, told, traffic_in};

/// A frame to the foreign host, in the way that `more` asks for.
fn send_frame(lab: &Lab, more: Option<&str>) -> Result<Outcome> {
    frame(lab)?.args(more).run()
}

/// As [`send_frame`], from a socket that is open when this returns, and a frame that is
/// sent later. Also says which process that is.
fn will_send_frame(lab: &Lab, more: &[&str]) -> Result<(Running, String)> {
    let mut sender = frame(lab)?.args(["--wait"]).args(more).start()?;
    let said: Value = serde_json::from_str(&sender.line()?)?;
    Ok((sender, said["pid"].to_string()))
}

fn frame(lab: &Lab) -> Result<Program> {
    let traffic = traffic_in(lab, "fast.service")?;
    Ok(frames_of(
        traffic,
        "to-foreign",
        FOREIGN_LINK,
        places::FOREIGN,
    ))
}

/// The record about such a way.
fn opened(agent: &mut Agent<'_>, subject: &str) -> Result<Record> {
    agent.wait_for(subject, |records| {
        let is_it = |record: &&Record| record.text("subject").contains(subject);
        records.iter().find(is_it).cloned()
    })
}

/// Fails unless the frame of this process is told of, and has left in report mode alone.
fn is_judged(
    lab: &Lab,
    agent: &mut Agent<'_>,
    pid: &str,
    before: LinkCounters,
    enforced: bool,
) -> Result<()> {
    let violation = agent.wait_for("the frame is judged", |records| {
        let is_it = |record: &&Record| record.is("event", "violation") && record.is("pid", pid);
        records.iter().find(is_it).cloned()
    })?;
    ensure!(violation.is("dst_addr", places::FOREIGN), "{violation}");
    let sent = lab.link_to(&lab.foreign)?.since(before).tx_packets;
    ensure!(sent == u64::from(!enforced), "{sent} frames: {violation}");
    Ok(())
}

#[test]
fn whoever_asks_to_skip_the_queue_is_named_and_does_not() -> Result<()> {
    for enforced in [false, true] {
        let lab = Lab::new()?;
        let policy = if enforced { enforcing() } else { reporting() };
        let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let before = lab.link_to(&lab.foreign)?;
        let sent = send_frame(&lab, Some("--bypass-qdisc"))?;
        let pid = told(&sent)?.pop().context("it said nothing")?.text("pid");
        let record = opened(&mut agent, "skip the queue")?;
        for (name, expected) in [
            ("event", "coverage"),
            ("state", "covered"),
            ("pid", &pid),
            ("unit", "fast.service"),
            ("exe", TRAFFIC),
            ("attribution", "direct"),
        ] {
            ensure!(record.is(name, expected), "{name}: {record}");
        }
        is_judged(&lab, &mut agent, &pid, before, enforced)?;
        agent.stop(Signal::SIGTERM)?;
        detach(&lab)?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn the_queue_can_be_skipped_where_nobody_watches() -> Result<()> {
    for enforced in [false, true] {
        let lab = Lab::new()?;
        let policy = if enforced { enforcing() } else { reporting() };
        let mut agent = lab.agent().policy(&policy).start()?;
        // Frames that do not skip the queue get no farther than there.
        Program::new("tc", &lab.host, None, None)?
            .args(["qdisc", "add", "dev", "to-foreign", "root", "blackhole"])
            .run()?
            .success()?;
        let before = lab.link_to(&lab.foreign)?;
        for (more, expected) in [(None, 0), (Some("--bypass-qdisc"), 1)] {
            send_frame(&lab, more)?.success()?;
            let sent = lab.link_to(&lab.foreign)?.since(before).tx_packets;
            ensure!(sent == expected, "{sent} frames with {more:?}");
        }
        let record = opened(&mut agent, "skips the queue")?;
        ensure!(
            record.is("state", "uncovered")
                && record.is("exe", TRAFFIC)
                && record.is("unit", "fast.service"),
            "{record}"
        );
        // A socket that skipped the queue before somebody watches does not any more.
        let (skips, pid) = will_send_frame(&lab, &["--bypass-qdisc"])?;
        agent.stop(Signal::SIGTERM)?;
        let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let record = opened(&mut agent, "skipped the queue")?;
        ensure!(
            record.is("state", "covered") && record.is("pid", &pid),
            "{record}"
        );
        drop(skips);
        agent.stop(Signal::SIGTERM)?;
        detach(&lab)?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn whoever_sends_by_af_xdp_is_named_and_refused_in_enforce_mode() -> Result<()> {
    for enforced in [false, true] {
        let lab = Lab::new()?;
        let policy = if enforced { enforcing() } else { reporting() };
        let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let sent = send_frame(&lab, Some("--xdp"))?;
        let code = if enforced { REFUSED } else { 0 };
        ensure!(sent.code == code, "{sent:?}");
        let record = opened(&mut agent, "AF_XDP")?;
        let state = match (enforced, lacks_hook(&mut agent, DIRECT_FRAMES)?) {
            (true, _) => "covered",
            (false, true) => "uncovered",
            (false, false) => "partly",
        };
        ensure!(
            record.is("state", state)
                && record.is("exe", TRAFFIC)
                && record.is("unit", "fast.service"),
            "{record}"
        );
        agent.stop(Signal::SIGTERM)?;
        detach(&lab)?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn whoever_skipped_the_queue_before_the_agent_is_named_and_does_not_any_more() -> Result<()> {
    for enforced in [false, true] {
        let lab = Lab::new()?;
        let policy = if enforced { enforcing() } else { reporting() };
        let (mut skips, pid) = will_send_frame(&lab, &["--bypass-qdisc"])?;
        let (other, pid_of_other) = will_send_frame(&lab, &[])?;
        let mut agent = lab.agent().policy(&policy).uplink("auto").start()?;
        let record = opened(&mut agent, "a packet socket that skipped the queue")?;
        for (name, expected) in [
            ("event", "coverage"),
            ("state", "covered"),
            ("pid", &pid),
            ("unit", "fast.service"),
            ("exe", TRAFFIC),
            ("attribution", "inferred"),
        ] {
            ensure!(record.is(name, expected), "{name}: {record}");
        }
        let before = lab.link_to(&lab.foreign)?;
        skips.proceed()?;
        skips.finish()?;
        is_judged(&lab, &mut agent, &pid, before, enforced)?;
        // One that does not skip it has not opened anything.
        let (_, records) = agent.stop(Signal::SIGTERM)?;
        let told = records
            .iter()
            .find(|record| record.is("pid", &pid_of_other));
        ensure!(told.is_none(), "{told:?}");
        drop(other);
        detach(&lab)?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn whoever_has_af_xdp_open_before_the_agent_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let (sender, pid) = will_send_frame(&lab, &["--xdp"])?;
    let mut agent = lab.agent().policy(&enforcing()).uplink("auto").start()?;
    let record = opened(&mut agent, "AF_XDP")?;
    let state = match lacks_hook(&mut agent, DIRECT_FRAMES)? {
        true => "uncovered",
        false => "partly",
    };
    ensure!(
        record.is("state", state) && record.is("pid", &pid) && record.is("unit", "fast.service"),
        "{record}"
    );
    drop(sender);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn whoever_opens_a_device_that_sends_past_the_kernel_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    // There is none: to ask for it is enough.
    for (name, major, minor, subject) in [
        ("uverbs", 231, 192, "remote direct memory access"),
        ("vfio", 10, 196, "driven past the kernel"),
    ] {
        let device = lab.file(name);
        mknod(
            &device,
            SFlag::S_IFCHR,
            Mode::S_IRUSR | Mode::S_IWUSR,
            makedev(major, minor),
        )?;
        let path = device.to_str().context("a path that is no text")?;
        lab.program_in("guest.service", "/bin/cat")?
            .args([path])
            .run()?;
        let record = opened(&mut agent, subject)?;
        ensure!(
            record.is("state", "uncovered")
                && record.is("comm", "cat")
                && record.is("unit", "guest.service"),
            "{record}"
        );
        fs::remove_file(&device)?;
    }
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// A process that talks to the hypervisor, for one.
#[test]
fn a_socket_of_a_family_that_no_hook_judges_is_told_with_its_process() -> Result<()> {
    const AF_VSOCK: &str = "40";
    let lab = Lab::new()?;
    let vsock = |unit| {
        traffic_in(&lab, unit)?
            .args(["family", AF_VSOCK, "--wait"])
            .start()
    };
    let mut before = vsock("before.service")?;
    before.line()?;
    let agent = lab.agent().policy(&reporting()).settings(OFTEN);
    let mut agent = agent.start()?;
    let mut since = vsock("since.service")?;
    since.line()?;
    for unit in ["before.service", "since.service"] {
        let record = agent.wait_for(&format!("{unit} is told"), |records| {
            let is_it = |record: &&Record| {
                record.is("subject", "a socket of AF_VSOCK") && record.is("unit", unit)
            };
            records.iter().find(is_it).cloned()
        })?;
        ensure!(
            record.is("event", "coverage")
                && record.is("state", "uncovered")
                && record.text("exe").ends_with("/traffic"),
            "{record}"
        );
    }
    // With each heartbeat it is looked for, and told of once.
    let beats = |records: &[Record]| {
        let is_beat = |record: &&Record| record.is("event", "heartbeat");
        (records.iter().filter(is_beat).count() > 3).then_some(())
    };
    agent.wait_for("heartbeats", beats)?;
    let is_it = |record: &&Record| record.is("subject", "a socket of AF_VSOCK");
    let told = agent.records()?.iter().filter(is_it).count();
    ensure!(told == 2, "{told} records");
    drop((before, since));
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}
