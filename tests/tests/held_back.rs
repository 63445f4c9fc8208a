//! Packets that wait on their way from their socket to the uplink: in a queue, or for a neighbour. Each is told
//! once, and none leaves by a decision that is over.

mod world;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use trefoil_lab::program::Program;
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::{container, far_link_address};
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::{TRAFFIC, all_of, at, is_final, reporting};

const USER: u32 = 65534;
/// A neighbour of the host's that does not answer before it is told where it is.
const NEAR: &str = "192.0.2.77";
const COUNT: u64 = 3;

/// Has the neighbour answer.
fn answers(lab: &Lab) -> Result<()> {
    let link = far_link_address(2);
    lab.host.ip(&format!(
        "neighbour replace {NEAR} lladdr {link} dev to-peer nud permanent\n"
    ))
}

fn with_neighbour() -> Result<(Lab, Tap)> {
    let lab = Lab::new()?;
    let tap = Tap::new(&lab.peer)?;
    lab.host.ip(&format!(
        "route add {NEAR} dev to-peer src {} scope link\n",
        places::HOST
    ))?;
    Ok((lab, tap))
}

/// All packets that have arrived there are told once.
fn is_told_once(agent: Agent<'_>, lab: &Lab, tap: &Tap, to: IpAddr) -> Result<()> {
    let is_about = |it: &Record| is_final(it) && it.is("dst_addr", to);
    let records: Vec<Record> = all_of(agent, lab)?.into_iter().filter(is_about).collect();
    let told: u64 = records
        .iter()
        .filter_map(|record| record.number("packets_out").ok())
        .sum();
    let arrived = tap.to(to).packets;
    ensure!(
        arrived == told,
        "{arrived} arrived, {told} told: {records:#?}"
    );
    Ok(())
}

#[test]
fn what_waits_in_a_containers_queue_is_told_once() -> Result<()> {
    const COUNT: u64 = 8;
    let (lab, tap) = Lab::with_tap()?;
    let guest = container(&lab.host, "container", 21)?;
    // Two seconds and more for all of them.
    guest
        .place
        .tc("qdisc add dev to-host root tbf rate 4kbit burst 1100 limit 100000\n")?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    let unit = lab.unit("container.service")?;
    let count = COUNT.to_string();
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)?
        .args(["udp", &at(places::FOREIGN, 9), "--connected"])
        .args(["--size", "400", "--count", &count])
        .run()?
        .success()?;
    wait_for("all arrive", || {
        Ok((tap.to(places::FOREIGN).packets >= COUNT).then_some(()))
    })?;
    is_told_once(agent, &lab, &tap, places::FOREIGN)?;
    lab.close()
}

#[test]
fn what_waits_for_the_hosts_neighbour_is_told_once() -> Result<()> {
    let (lab, tap) = with_neighbour()?;
    let guest = container(&lab.host, "container", 21)?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    let unit = lab.unit("container.service")?;
    let count = COUNT.to_string();
    Program::new(TRAFFIC, &guest.place, Some(&unit), None)?
        .args(["udp", &format!("{NEAR}:9"), "--connected"])
        .args(["--size", "400", "--count", &count])
        .run()?
        .success()?;
    std::thread::sleep(Duration::from_millis(1700));
    answers(&lab)?;
    let to = NEAR.parse()?;
    wait_for("all arrive", || {
        Ok((tap.to(to).packets >= COUNT).then_some(()))
    })?;
    is_told_once(agent, &lab, &tap, to)?;
    lab.close()
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

#[test]
fn what_waits_for_a_neighbour_does_not_leave_by_an_exception_that_is_over() -> Result<()> {
    let (lab, tap) = with_neighbour()?;
    let end = now()?.as_secs() + 8;
    let date = std::process::Command::new("date")
        .args(["--utc", "--date", &format!("@{end}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()?;
    let date = String::from_utf8(date.stdout)?;
    let policy = format!(
        "mode = \"enforce\"\n[[rules]]\nname = \"a while\"\nverdict = \"approve\"\n\
         to = {{ networks = [\"{NEAR}/32\"] }}\n\
         exception = {{ id = \"EX-12\", basis = \"Art. 49(1)(e)\", reason = \"disk array failure\", \
         approved_by = [\"dpo\", \"auditor\"], expires = {} }}\n",
        date.trim()
    );
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let end = Duration::from_secs(end);
    std::thread::sleep((end - Duration::from_millis(400)).saturating_sub(now()?));
    // Over already, if the machine is that busy: then nothing is sent, and nothing leaves.
    lab.program_as(USER, TRAFFIC)?
        .args(["udp", &format!("{NEAR}:9"), "--size", "400"])
        .args(["--count", &COUNT.to_string()])
        .run()?;
    std::thread::sleep((end + Duration::from_millis(1900)).saturating_sub(now()?));
    let to: IpAddr = NEAR.parse()?;
    let before = tap.to(to).packets;
    answers(&lab)?;
    // Behind them in the queue, or nothing was there.
    std::thread::sleep(Duration::from_millis(300));
    let records = all_of(agent, &lab)?;
    let late = tap.to(to).packets - before;
    ensure!(late == 0, "{late} have left since: {records:#?}");
    lab.close()
}
