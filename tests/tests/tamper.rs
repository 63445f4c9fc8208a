//! Somebody with all rights changes what only the agent should change. It is noticed,
//! told, and put right where that is possible.

mod world;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{Agent, detach, kernel_verb};
use trefoil_lab::{Lab, Record, kernel, places, wait_for};
use world::{REFUSED, approving, enforcing, reporting, traffic};

fn is_tamper(record: &Record) -> bool {
    record.is("event", "tamper")
}

/// Waits for a record of tampering with this.
fn told(agent: &mut Agent<'_>, subject: &str) -> Result<Record> {
    let what = format!("tampering with {subject} is told");
    let record = agent.wait_for(&what, |records| {
        let mut records = records.iter();
        records
            .find(|record| is_tamper(record) && record.is("subject", subject))
            .cloned()
    })?;
    ensure!(record.text("started") <= record.text("ended"), "{record}");
    Ok(record)
}

/// The one pin whose name ends so.
fn pin(lab: &Lab, name: &str) -> Result<PathBuf> {
    let pins = lab.pinned();
    let mut found = pins.iter().filter(|pin| {
        let pin = pin.file_name().unwrap_or_default().to_string_lossy();
        pin == name || pin.ends_with(&format!("-{name}"))
    });
    let pin = found.next().with_context(|| format!("no pin {name}"))?;
    ensure!(found.next().is_none(), "several pins {name}");
    Ok(pin.clone())
}

/// Sends a packet that only the hook at every packet can block. Returns the exit code.
fn raw(lab: &Lab) -> Result<i32> {
    let foreign = places::FOREIGN.to_string();
    Ok(traffic(lab)?.args(["raw", &foreign]).run()?.code)
}

fn end(lab: &Lab, agent: Agent<'_>) -> Result<()> {
    agent.stop(Signal::SIGTERM)?;
    detach(lab)
}

#[test]
fn a_link_that_is_detached_is_told_and_the_next_agent_attaches_it_again() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    assert_eq!(raw(&lab)?, REFUSED);
    kernel::detach_link(&pin(&lab, "egress")?)?;
    assert_eq!(raw(&lab)?, 0, "nothing is in its place");
    let record = told(&mut agent, "hook egress")?;
    ensure!(!record.text("reason").is_empty(), "{record}");
    // With a failure, so that a service manager starts it again.
    assert_eq!(agent.ended_and_left()?, Some(1));

    let mut agent = lab.agent().policy(&enforcing()).start()?;
    assert_eq!(raw(&lab)?, REFUSED);
    told(&mut agent, "hook egress")?;
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn what_was_unpinned_goes_on_and_is_pinned_again() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let egress = pin(&lab, "egress")?;
    fs::remove_file(&egress)?;
    assert_eq!(raw(&lab)?, REFUSED, "the agent holds it");
    told(&mut agent, "hook egress")?;
    ensure!(egress.exists(), "it is not pinned again");

    // Another object under the same name.
    let flows = pin(&lab, "FLOWS")?;
    let other = kernel::pinned(&pin(&lab, "ENDED")?)?;
    fs::remove_file(&flows)?;
    kernel::pin(&other, &flows)?;
    told(&mut agent, "map FLOWS")?;

    let mut before = lab.pinned();
    lab.remove_pins()?;
    assert_eq!(raw(&lab)?, REFUSED, "the agent holds it");
    before.sort();
    wait_for("all is pinned again", || {
        let mut now = lab.pinned();
        now.sort();
        Ok((now == before).then_some(()))
    })?;

    // Whoever comes next takes over, and nobody else beside it.
    let second = lab.agent().policy(&enforcing()).run_to_end()?;
    ensure!(second.code != 0, "{second:?}");
    agent.stop(Signal::SIGKILL)?;
    assert_eq!(raw(&lab)?, REFUSED, "what is pinned outlives the agent");
    let agent = lab.agent().policy(&enforcing()).start()?;
    assert_eq!(raw(&lab)?, REFUSED);
    end(&lab, agent)?;
    lab.close()
}

/// Where `struct ControlPage` has what.
const INSTANCE: usize = 4;
const ENFORCE_UNTIL: usize = 8;

#[test]
fn an_edited_control_word_is_told_and_put_right() -> Result<()> {
    let lab = Lab::new()?;
    // The check whether a trial was confirmed comes first nearly always.
    let agent = lab.agent().policy(&enforcing());
    let mut agent = agent.settings("sweep_interval = \"100ms\"\n").start()?;
    assert_eq!(raw(&lab)?, REFUSED);
    let control = kernel::pinned(&pin(&lab, "CONTROL")?)?;
    let page = kernel::element(&control, 0)?;
    for edited in [INSTANCE..INSTANCE + 4, ENFORCE_UNTIL..ENFORCE_UNTIL + 16] {
        let n_before = agent.records()?.iter().filter(|r| is_tamper(r)).count();
        let mut other = page.clone();
        for byte in other.get_mut(edited).context("a field of the page")? {
            *byte = if *byte == 0xff { 0 } else { 0x5a };
        }
        kernel::set_element(&control, 0, &mut other)?;
        agent.wait_for("tampering is told", |records| {
            let told = records
                .iter()
                .filter(|record| is_tamper(record) && record.is("subject", "the control word"));
            (told.count() > n_before).then_some(())
        })?;
        assert_eq!(raw(&lab)?, REFUSED);
    }
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn nobody_can_edit_the_tables_of_a_policy_and_others_in_their_place_are_told() -> Result<()> {
    const CHUNK_BYTES: usize = 2 << 20;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let control = kernel::pinned(&pin(&lab, "CONTROL")?)?;
    let slot = u32::from(kernel::element(&control, 0)?[0] & 1);
    let tables = kernel::pinned(&pin(&lab, "TABLES")?)?;
    let chunks = kernel::inner_map(&tables, slot)?;
    let mut nothing = vec![0; CHUNK_BYTES];
    let edited = kernel::set_element(&chunks, 0, &mut nothing);
    let refused = edited.err().and_then(|error| error.raw_os_error());
    assert_eq!(refused, Some(libc::EPERM));

    let other = kernel::map_like(&chunks)?;
    let mut descriptor = std::os::fd::AsRawFd::as_raw_fd(&other).to_ne_bytes();
    kernel::set_element(&tables, slot, &mut descriptor)?;
    told(&mut agent, "the policy in the kernel")?;
    let in_force = |records: &[Record]| {
        let policies = records.iter().filter(|record| record.is("event", "policy"));
        policies
            .filter(|record| record.is("state", "in-force"))
            .count()
    };
    agent.wait_for("it is in force once more", |records| {
        (in_force(records) == 2).then_some(())
    })?;
    assert_eq!(raw(&lab)?, REFUSED);

    // So does the other one of the two things that a policy is made of.
    let policies = kernel::pinned(&pin(&lab, "POLICIES")?)?;
    let slot = slot ^ 1;
    let mut header = kernel::element(&policies, slot)?;
    header[4] ^= 1;
    kernel::set_element(&policies, slot, &mut header)?;
    agent.wait_for("it is in force for the third time", |records| {
        (in_force(records) == 3).then_some(())
    })?;
    assert_eq!(raw(&lab)?, REFUSED);
    end(&lab, agent)?;
    lab.close()
}

/// The agent looks at least once in this time.
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

#[test]
fn counters_that_are_set_back_are_told() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    assert_eq!(raw(&lab)?, 0);
    agent.wait_for("the flow", |records| {
        records.iter().any(world::is_about_a_flow).then_some(())
    })?;
    let totals = kernel::pinned(&pin(&lab, "TOTALS")?)?;
    // A sum that is set back before it was looked at leaves no trace, nor does one that has grown
    // again.
    wait_for("it is told", || {
        raw(&lab)?;
        std::thread::sleep(BETWEEN_LOOKS);
        for verdict in 0..8 {
            let mut zeros = vec![0; 1 << 16];
            kernel::set_element(&totals, verdict, &mut zeros)?;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        let is_told =
            |record: &Record| is_tamper(record) && record.is("subject", "the sums by verdict");
        Ok(agent.records()?.iter().any(is_told).then_some(()))
    })?;
    end(&lab, agent)?;
    lab.close()
}

/// Sends a signal as a person would.
fn kill(signal: &str, pid: u32) -> Result<u32> {
    let mut kill = Command::new("/bin/kill")
        .args([signal, &pid.to_string()])
        .spawn()
        .context("start kill")?;
    let sender = kill.id();
    ensure!(kill.wait()?.success(), "kill {signal} {pid}");
    Ok(sender)
}

fn is_stopped(pid: u32) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    Ok(rest.trim_start().starts_with('T'))
}

fn ensure_named(record: &Record, sender: u32) -> Result<()> {
    ensure!(
        record.is("pid", sender)
            && record.is("comm", "kill")
            && record.is("uid", 0)
            && record.is("user", "root")
            && record.text("exe").ends_with("/kill"),
        "not told who it was: {record}"
    );
    Ok(())
}

#[test]
fn who_stops_the_agent_is_told_when_it_goes_on_and_enforcement_does_not_stop() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let sender = kill("-STOP", agent.pid())?;
    wait_for("the agent stands still", || {
        Ok(is_stopped(agent.pid())?.then_some(()))
    })?;
    assert_eq!(raw(&lab)?, REFUSED);
    kill("-CONT", agent.pid())?;
    let record = told(&mut agent, "the agent")?;
    ensure_named(&record, sender)?;
    agent.wait_for("what happened meanwhile", |records| {
        let mut records = records.iter();
        records
            .any(|record| record.is("event", "violation") && record.is("outcome", "dropped"))
            .then_some(())
    })?;
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn who_killed_the_agent_is_told_by_the_next_one() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let sender = kill("-KILL", agent.pid())?;
    ensure!(agent.ended_and_left()?.is_none(), "it ended by itself");
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let record = told(&mut agent, "the agent")?;
    ensure_named(&record, sender)?;
    end(&lab, agent)?;

    // It is told once.
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    ensure!(!agent.records()?.iter().any(is_tamper));
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn an_agent_that_stood_still_unasked_says_for_how_long() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let group = lab.unit("frozen.service")?;
    fs::write(group.join("cgroup.procs"), agent.pid().to_string())?;
    fs::write(group.join("cgroup.freeze"), "1")?;
    wait_for("the agent stands still", || {
        let events = fs::read_to_string(group.join("cgroup.events"))?;
        Ok(events.contains("frozen 1").then_some(()))
    })?;
    // How long it has to be to be told.
    std::thread::sleep(Duration::from_secs(4));
    fs::write(group.join("cgroup.freeze"), "0")?;
    agent.wait_for("a gap", |records| {
        let is_gap = |record: &Record| {
            record.is("event", "coverage")
                && record
                    .text("reason")
                    .starts_with("the agent stood still for ")
                && record.text("started") < record.text("ended")
        };
        records.iter().any(is_gap).then_some(())
    })?;
    ensure!(!agent.records()?.iter().any(is_tamper));
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn an_uplinks_link_and_books_are_looked_at_and_one_that_goes_is_no_tampering() -> Result<()> {
    let lab = Lab::new()?;
    lab.host.ip(
        "link add early0 type veth peer name early1\nlink set early0 up\nlink set early1 up\n",
    )?;
    let start = || {
        let agent = lab.agent().policy(&reporting());
        agent.uplink("to-foreign").uplink("early0").start()
    };
    let mut agent = start()?;
    lab.host.ip("link del early0")?;
    agent.wait_for("it is gone", |records| {
        let mut records = records.iter();
        records
            .any(|record| record.is("subject", "uplink early0") && record.is("state", "uncovered"))
            .then_some(())
    })?;
    ensure!(!agent.records()?.iter().any(is_tamper));

    let links = lab.pinned();
    let is_uplink = |pin: &&PathBuf| pin.to_string_lossy().contains("-uplink_egress-");
    let link = links.iter().find(is_uplink).context("no such pin")?;
    let index = link.to_string_lossy();
    let (_, index) = index.rsplit_once('-').context("no index")?;
    let books = kernel::pinned(&pin(&lab, "UPLINK_BOOKS")?)?;
    kernel::remove_element(&books, index.parse()?)?;
    told(&mut agent, "the books of uplink to-foreign")?;

    kernel::detach_link(link)?;
    told(&mut agent, "uplink to-foreign")?;
    assert_eq!(agent.ended_and_left()?, Some(1));
    let agent = start()?;
    end(&lab, agent)?;
    lab.close()
}

#[test]
fn what_operators_do_is_no_tampering() -> Result<()> {
    let lab = Lab::new()?;
    let start = || {
        let agent = lab.agent().policy(&enforcing());
        agent.settings("confirm_within = \"1h\"\n").start()
    };
    let is_in = |records: &[Record], state: &str| {
        let mut records = records.iter();
        records
            .any(|record| record.is("event", "policy") && record.is("state", state))
            .then_some(())
    };
    let mut all = Vec::new();
    let mut agent = start()?;
    kernel_verb(&lab, "confirm", &[])?.success()?;
    agent.wait_for("it is confirmed", |records| is_in(records, "confirmed"))?;
    agent.reload(&approving())?;
    agent.wait_for("another policy", |records| {
        let policies = records.iter().filter(|record| record.is("event", "policy"));
        let in_force = policies.filter(|record| record.is("state", "in-force"));
        (in_force.count() == 2).then_some(())
    })?;
    all.extend(agent.stop(Signal::SIGTERM)?.1);
    let mut agent = start()?;
    detach(&lab)?;
    agent.wait_for("the agent says what happened", |records| {
        let mut records = records.iter();
        records
            .any(|record| record.is("state", "uncovered"))
            .then_some(())
    })?;
    all.extend(agent.records()?.iter().cloned());
    assert_eq!(agent.ended()?, Some(0));
    let tampering: Vec<&Record> = all.iter().filter(|record| is_tamper(record)).collect();
    ensure!(tampering.is_empty(), "{tampering:?}");
    lab.close()
}
