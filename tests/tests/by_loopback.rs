//! Any user of the host can bind a socket of IPv6 to an address elsewhere, and send from there to the host
//! itself, by loopback or as one of a group: whoever gets it answers abroad, with what was sent.

mod world;

use std::fs;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::tap::Tap;
use trefoil_lab::wiring::forward;
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{REFUSED, TRAFFIC, all_of, at, is_final};

const USER: u32 = 65534;
/// Foreign, and nobody's.
const ABROAD: &str = "2001:db8:3::77";
const COUNT: &str = "5";

/// The service may send abroad, and nobody else.
const POLICY: &str = "mode = \"enforce\"\n[[rules]]\nname = \"answers\"\nverdict = \"approve\"\n\
                      from = { unit = \"web.service\" }\n\
                      to = { networks = [\"2001:db8:3::/48\"] }\n";

/// The user sends to a port of the host.
fn sends(lab: &Lab, port: u16) -> Result<Program> {
    let (to, size) = (at(places::HOST6, port), "800");
    let words = [
        "udp",
        &to,
        "--source",
        ABROAD,
        "--freebind",
        "--size",
        size,
        "--count",
        COUNT,
    ];
    Ok(lab.program_as(USER, TRAFFIC)?.args(words))
}

#[test]
fn errors_that_a_user_has_sent_abroad_are_told_as_his() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    let to: IpAddr = ABROAD.parse()?;
    let agent = lab
        .agent()
        .policy("mode = \"report\"\n")
        .uplink("auto")
        .start()?;
    let user = sends(&lab, 9)?.run()?.success()?;
    wait_for("the kernel answers abroad", || {
        Ok((tap.to(to).packets > 0).then_some(()))
    })?;
    let records = all_of(agent, &lab)?;
    let his = records
        .iter()
        .find(|record| is_final(record) && record.is("dst_addr", to) && record.is("pid", user.pid));
    ensure!(
        his.is_some_and(|it| it.is("attribution", "direct")),
        "{records:#?}"
    );
    lab.close()
}

#[test]
fn a_service_answers_no_user_abroad() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    let mut service = lab
        .program_in("web.service", TRAFFIC)?
        .args(["answer", &at(places::HOST6, 7)])
        .start()?;
    service.line()?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    let outcome = sends(&lab, 7)?.run()?;
    ensure!(outcome.code == REFUSED, "{outcome:?}");
    // The service may still answer whoever asks from his own address.
    let near = ["udp", &at(places::HOST6, 7), "--count", COUNT];
    lab.program_as(USER, TRAFFIC)?.args(near).run()?.success()?;
    let records = all_of(agent, &lab)?;
    let arrived = tap.to(ABROAD.parse()?).packets;
    ensure!(arrived == 0, "{arrived} packets have left: {records:#?}");
    lab.close()
}

/// Nor him who comes by a connection whose socket the kernel makes, as that of MPTCP.
#[test]
fn a_service_answers_no_user_abroad_who_connects() -> Result<()> {
    const PORT: u16 = 8099;
    let (lab, tap) = Lab::with_tap()?;
    let mut service = lab
        .program_in("web.service", TRAFFIC)?
        .args(["serve", &PORT.to_string(), "--again"])
        .start()?;
    service.line()?;
    let mut agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    for (number, transport) in [&[][..], &["--transport", "mptcp"]].into_iter().enumerate() {
        let to = at(places::HOST6, PORT);
        let words = ["tcp", &to, "--source", ABROAD, "--freebind"];
        let user = lab.program_as(USER, TRAFFIC)?.args(words).args(transport);
        // It asks again and again.
        let _user = user.start()?;
        agent.wait_for("what he asks is judged as going abroad", |records| {
            let abroad = records
                .iter()
                .filter(|record| record.is("event", "violation") && record.is("dst_addr", ABROAD));
            (abroad.count() > number).then_some(())
        })?;
    }
    let records = all_of(agent, &lab)?;
    let arrived = tap.to(ABROAD.parse()?).packets;
    ensure!(arrived == 0, "{arrived} packets have left: {records:#?}");
    lab.close()
}

/// All hosts of a link, so the host itself.
const GROUP: &str = "[ff02::1]:7";
/// A group beyond the link, where anybody may send.
const FAR_GROUP: &str = "[ff05::1234]:7";

fn to_group(lab: &Lab, to: &str, source: &str) -> Result<Program> {
    let program = lab.program_as(USER, TRAFFIC)?;
    let program = program.args(["udp", to, "--device", "to-foreign", "--count", COUNT]);
    Ok(program.args(["--size", "800", "--source", source, "--freebind"]))
}

/// A service that answers whoever asks.
fn answering(lab: &Lab) -> Result<Running> {
    let service = lab.program_in("web.service", TRAFFIC)?;
    let mut service = service.args(["answer", "[::]:7"]).start()?;
    service.line()?;
    Ok(service)
}

#[test]
fn a_service_answers_no_user_abroad_who_sends_to_a_group() -> Result<()> {
    const POLICY: &str = "mode = \"enforce\"\n[[rules]]\nname = \"answers\"\nverdict = \"approve\"\n\
                          from = { unit = \"web.service\" }\n\
                          to = { networks = [\"2001:db8:3::/48\"] }\n\
                          [[rules]]\nname = \"a group\"\nverdict = \"approve\"\n\
                          to = { networks = [\"ff05::/16\"] }\n";
    let (lab, tap) = Lab::with_tap()?;
    let service = answering(&lab)?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    let own = places::HOST6.to_string();
    for to in [GROUP, FAR_GROUP] {
        let outcome = to_group(&lab, to, ABROAD)?.run()?;
        ensure!(outcome.code == REFUSED, "{to}: {outcome:?}");
        to_group(&lab, to, &own)?.run()?.success()?;
    }
    let records = all_of(agent, &lab)?;
    let arrived = tap.to(ABROAD.parse()?).packets;
    ensure!(arrived == 0, "{arrived} packets have left: {records:#?}");
    drop(service);
    lab.close()
}

#[test]
fn what_a_user_has_answered_by_a_group_is_told_as_his() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    let service = answering(&lab)?;
    let agent = lab
        .agent()
        .policy("mode = \"report\"\n")
        .uplink("auto")
        .start()?;
    let pid = to_group(&lab, GROUP, ABROAD)?.run()?.success()?.pid;
    let to: IpAddr = ABROAD.parse()?;
    wait_for("the service answers abroad", || {
        Ok((tap.to(to).packets > 0).then_some(()))
    })?;
    let records = all_of(agent, &lab)?;
    let is_his = |it: &Record| is_final(it) && it.is("dst_addr", to) && it.is("pid", pid);
    ensure!(records.iter().any(is_his), "{records:#?}");
    drop(service);
    lab.close()
}

/// A list of addresses whose first is the host's own: the host itself sends it on.
#[test]
fn what_a_user_has_the_host_send_on_is_told_as_his() -> Result<()> {
    let (lab, tap) = Lab::with_tap()?;
    forward(&lab.host)?;
    lab.host.enter(|| {
        for name in ["all", "lo", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{name}/seg6_enabled"), "1")?;
        }
        Ok(())
    })?;
    let agent = lab
        .agent()
        .policy("mode = \"report\"\n")
        .uplink("auto")
        .start()?;
    let to = "2001:db8:3::29";
    let words = [
        "route",
        "option",
        &at(to.parse()?, 9),
        "--via",
        "2001:db8:1::1",
    ];
    let sent = lab.program_as(USER, TRAFFIC)?.args(words).run()?;
    wait_for("the host sends it on", || {
        Ok((tap.to(to.parse()?).packets > 0).then_some(()))
    })?;
    let records = all_of(agent, &lab)?;
    let is_his =
        |it: &Record| is_final(it) && it.is("verdict", "unapproved") && it.is("pid", sent.pid);
    let told: Vec<_> = records.iter().map(|it| it.text("message")).collect();
    ensure!(records.iter().any(is_his), "{told:#?}");
    lab.close()
}

/// A socket was judged for a port that it has not any more when it sends.
#[test]
fn a_decision_is_about_the_port_that_it_was_made_for() -> Result<()> {
    const POLICY: &str = "mode = \"enforce\"\n[[rules]]\nname = \"not from there\"\n\
                          verdict = \"deny\"\nfrom = { ports = [\"5353/udp\"] }\n[[rules]]\n\
                          name = \"the peer\"\nverdict = \"approve\"\n\
                          to = { networks = [\"198.51.100.0/24\"] }\n";
    let lab = Lab::new()?;
    let tap = Tap::new(&lab.peer)?;
    let agent = lab.agent().policy(POLICY).uplink("auto").start()?;
    let from = |port| -> Result<i32> {
        let (near, far) = (at(places::HOST, port), at(places::PEER, 9));
        let user = lab.program_as(USER, TRAFFIC)?;
        Ok(user.args(["rebind", &near, &far]).run()?.code)
    };
    ensure!(from(5353)? == REFUSED && from(5354)? == 0);
    wait_for("the approved one arrives", || {
        Ok((tap.to(places::PEER).packets > 0).then_some(()))
    })?;
    let arrived = tap.to(places::PEER).packets;
    ensure!(arrived == 1, "{arrived} datagrams have left");
    drop(agent);
    lab.close()
}
