//! Login sessions have an origin: the connection that somebody logged in by is in the records of
//! all that he does, also when it is over, and in nobody else's.

mod world;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::{Agent, Lab, Record, places};
use world::{TRAFFIC, at, is_final, told, traffic_in};

const SSH: u16 = 22;
const USER: u64 = 4242;

const POLICY: &str = r#"
mode = "report"

[[gateways]]
name    = "dublin"
clients = ["192.0.2.0/24", "2001:db8:1::/48"]

[[gateways]]
name    = "dublin-1"
clients = ["192.0.2.10", "2001:db8:1::10"]

[[rules]]
name    = "all"
to      = { networks = ["0.0.0.0/0", "::/0"] }
verdict = "approve"
"#;

fn client(place: &Namespace, from: IpAddr, host: IpAddr) -> Result<Program> {
    let client = Program::new(TRAFFIC, place, None, None)?;
    Ok(client.args(["tcp", &at(host, SSH), "--source", &from.to_string()]))
}

fn service(lab: &Lab, to: IpAddr, arguments: &[&str]) -> Result<Running> {
    let (port, user, to) = (SSH.to_string(), USER.to_string(), at(to, 9));
    let words = [&["login", &port, &user, &to], arguments].concat();
    let mut service = traffic_in(lab, "ssh.service")?.args(words).start()?;
    service.line()?;
    Ok(service)
}

/// Records of datagrams that people who logged in have sent, once there are so many.
fn datagrams(agent: &mut Agent<'_>, count: usize) -> Result<Vec<Record>> {
    agent.wait_for("records of what people have sent", |records| {
        let sent = |record: &&Record| {
            is_final(record) && record.is("protocol", "udp") && record.is("loginuid", USER)
        };
        let sent: Vec<Record> = records.iter().filter(sent).cloned().collect();
        (sent.len() >= count).then_some(sent)
    })
}

fn has_origin(record: &Record, from: IpAddr, gateway: &str, attribution: &str) -> Result<()> {
    for (name, expected) in [
        ("session_addr", from.to_string()),
        ("session_port", record.text("src_port")),
        ("session_gateway", gateway.to_owned()),
        ("session_attribution", attribution.to_owned()),
        ("uid", USER.to_string()),
    ] {
        ensure!(
            record.is(name, &*expected),
            "{name} is not {expected}: {record}"
        );
    }
    ensure!(has(record, "session"), "{record}");
    let words = format!("from {from} by gateway {gateway}");
    ensure!(record.text("message").contains(&words), "{record}");
    Ok(())
}

fn has(record: &Record, name: &str) -> bool {
    record.facts().any(|(fact, _)| fact == name)
}

fn has_none(record: &Record) -> Result<()> {
    for name in [
        "session_addr",
        "session_port",
        "session_gateway",
        "session_community_id",
        "session_attribution",
    ] {
        ensure!(!has(record, name), "{name}: {record}");
    }
    Ok(())
}

fn is_told_where_it_came_from(arguments: &[&str]) -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    for (host, gateway, peer) in [
        (places::HOST, places::GATEWAY, places::PEER),
        (places::HOST6, places::GATEWAY6, places::PEER6),
    ] {
        let service = service(&lab, peer, arguments)?;
        client(&lab.gateway, gateway, host)?.run()?.success()?;
        service.finish()?.success()?;
    }
    let records = datagrams(&mut agent, 2)?;
    for (record, gateway) in records.iter().zip([places::GATEWAY, places::GATEWAY6]) {
        has_origin(record, gateway, "dublin-1", "direct")?;
        // The connection's own record has the same name for it.
        let of_connection = record.text("session_community_id");
        agent.wait_for("the record of the connection", |records| {
            let mut all = records.iter();
            all.any(|one| {
                is_final(one)
                    && one.is("protocol", "tcp")
                    && one.is("direction", "accepted")
                    && one.is("community_id", &*of_connection)
            })
            .then_some(())
        })?;
    }
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn who_logs_in_by_a_gateway_is_told_so_in_all_that_he_sends() -> Result<()> {
    is_told_where_it_came_from(&[])
}

#[test]
fn what_somebody_sends_after_he_has_logged_out_has_his_origin() -> Result<()> {
    is_told_where_it_came_from(&["--after-logout"])
}

#[test]
fn a_service_that_answers_by_itself_is_one_to_log_in_by_too() -> Result<()> {
    is_told_where_it_came_from(&["--answers", "same"])
}

#[test]
fn a_connection_that_was_passed_on_is_nobodys_login() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    let service = service(&lab, places::PEER, &["--answers", "stranger"])?;
    client(&lab.gateway, places::GATEWAY, places::HOST)?
        .run()?
        .success()?;
    service.finish()?.success()?;
    has_none(&datagrams(&mut agent, 1)?[0])?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn what_a_service_sends_has_no_origin() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    let to = at(places::PEER, 9);
    traffic_in(&lab, "timer.service")?
        .args(["udp", &to])
        .run()?
        .success()?;
    let record = agent.wait_for("the record of the datagram", |records| {
        let mut all = records.iter().filter(|one| is_final(one));
        all.find(|one| one.is("unit", "timer.service")).cloned()
    })?;
    has_none(&record)?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn a_session_that_is_older_than_the_agent_has_an_inferred_origin() -> Result<()> {
    let lab = Lab::new()?;
    let mut service = service(&lab, places::PEER, &["--hold"])?;
    let client = client(&lab.gateway, places::GATEWAY, places::HOST)?.start()?;
    service.line()?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    service.proceed()?;
    client.finish()?.success()?;
    service.finish()?.success()?;
    let record = &datagrams(&mut agent, 1)?[0];
    has_origin(record, places::GATEWAY, "dublin-1", "inferred")?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn an_origin_outlives_the_agent() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(POLICY).start()?;
    let mut service = service(&lab, places::PEER, &["--hold", "--after-logout"])?;
    let client = client(&lab.gateway, places::GATEWAY, places::HOST)?.start()?;
    service.line()?;
    agent.stop(Signal::SIGKILL)?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    service.proceed()?;
    client.finish()?.success()?;
    service.finish()?.success()?;
    let record = &datagrams(&mut agent, 1)?[0];
    has_origin(record, places::GATEWAY, "dublin-1", "direct")?;
    agent.stop(Signal::SIGINT)?;
    detach(&lab)?;
    lab.close()
}

/// Two gateways, and many who log in by them at the same time.
#[test]
fn of_many_short_logins_none_is_taken_for_another() -> Result<()> {
    const LOGINS: usize = 200;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(POLICY).start()?;
    let count = LOGINS.to_string();
    let service = service(&lab, places::PEER, &["--count", &count])?;
    let ways = [
        (&lab.gateway, places::GATEWAY, places::HOST),
        (&lab.foreign, places::FOREIGN, places::HOST),
    ];
    // A client may have the port of one before it.
    let mut expected = Vec::new();
    for _ in 0..LOGINS / ways.len() {
        let clients = ways.iter().map(|(place, from, host)| {
            let client = client(place, *from, *host)?.start()?;
            anyhow::Ok((client, *from))
        });
        let clients: Vec<_> = clients.collect::<Result<_>>()?;
        for (client, from) in clients {
            for line in told(&client.finish()?.success()?)? {
                expected.push((from, line.number("port")?));
            }
        }
    }
    service.finish()?.success()?;
    let records = datagrams(&mut agent, LOGINS)?;
    ensure!(records.len() == LOGINS, "{} records", records.len());
    for record in &records {
        let from: IpAddr = record.text("session_addr").parse().context("no origin")?;
        let login = (from, record.number("session_port")?);
        let index = expected.iter().position(|it| *it == login);
        expected.swap_remove(index.with_context(|| record.to_string())?);
        ensure!(
            record.is("session_port", record.number("src_port")?),
            "{record}"
        );
        let is_gateway = record.is("session_gateway", "dublin-1");
        ensure!(is_gateway == (from == places::GATEWAY), "{record}");
    }
    ensure!(expected.is_empty(), "no record: {expected:?}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// Rules that ask where somebody came from, in enforce mode. Anybody may log in.
fn enforcing(rules: &str) -> String {
    format!(
        r#"mode = "enforce"

[[gateways]]
name    = "dublin"
clients = ["192.0.2.10", "2001:db8:1::10"]

[[rules]]
name      = "who logs in"
direction = "accepted"
from      = {{ ports = ["22/tcp"] }}
to        = {{ networks = ["0.0.0.0/0", "::/0"] }}
verdict   = "approve"
{rules}"#
    )
}

/// Outcome of a datagram that somebody sends to this port of the peer after he has logged in
/// from there: verdict and rule.
fn sent_after_login(
    lab: &Lab,
    agent: &mut Agent<'_>,
    (place, from, host): (&Namespace, IpAddr, IpAddr),
    (port, arguments): (u16, &[&str]),
) -> Result<(String, String)> {
    let peer = match host {
        IpAddr::V4(_) => places::PEER,
        IpAddr::V6(_) => places::PEER6,
    };
    let (ssh, user, to) = (SSH.to_string(), USER.to_string(), at(peer, port));
    let words = [&["login", &ssh, &user, &to], arguments].concat();
    let mut service = traffic_in(lab, "ssh.service")?.args(words).start()?;
    service.line()?;
    client(place, from, host)?.run()?.success()?;
    service.finish()?.success()?;
    judged(agent, port)
}

/// Verdict and rule about datagrams to this port.
fn judged(agent: &mut Agent<'_>, port: u16) -> Result<(String, String)> {
    agent.wait_for("the datagram is told", |records| {
        let is_it = |one: &&Record| {
            one.is("protocol", "udp") && one.is("dst_port", port) && has(one, "verdict")
        };
        let record = records.iter().find(is_it)?;
        Some((record.text("verdict"), record.text("rule")))
    })
}

const BY_DUBLIN: &str = r#"
[[rules]]
name    = "who came by dublin"
from    = { session = { gateway = "dublin" } }
to      = { networks = ["198.51.100.0/24", "2001:db8:2::/48"] }
verdict = "approve"
"#;

#[test]
fn what_somebody_may_send_depends_on_where_he_logged_in_from() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing(BY_DUBLIN)).start()?;
    let approved = ("approved".to_owned(), "who came by dublin".to_owned());
    let refused = ("unapproved".to_owned(), String::new());
    for (port, way, arguments, expected) in [
        (
            9001,
            (&lab.gateway, places::GATEWAY, places::HOST),
            &[][..],
            &approved,
        ),
        (
            9002,
            (&lab.gateway, places::GATEWAY6, places::HOST6),
            &["--after-logout"],
            &approved,
        ),
        (
            9003,
            (&lab.foreign, places::FOREIGN, places::HOST),
            &[],
            &refused,
        ),
        (
            9004,
            (&lab.foreign, places::FOREIGN6, places::HOST6),
            &[],
            &refused,
        ),
        // Nobody knows where this session came from.
        (
            9005,
            (&lab.gateway, places::GATEWAY, places::HOST),
            &["--answers", "stranger"],
            &refused,
        ),
    ] {
        let told = sent_after_login(&lab, &mut agent, way, (port, arguments))?;
        ensure!(told == *expected, "{port}: {told:?}");
    }
    // A service, without a session, came from nowhere.
    traffic_in(&lab, "timer.service")?
        .args(["udp", &at(places::PEER, 9006)])
        .run()?;
    ensure!(judged(&mut agent, 9006)? == refused);
    agent.stop(Signal::SIGINT)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn who_logs_in_from_the_host_itself_came_from_nowhere_that_is_known() -> Result<()> {
    const NEAR: &str = r#"
[[rules]]
name    = "who came from a neighbour"
from    = { session = { networks = ["192.0.2.0/24"] } }
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing(NEAR)).start()?;
    let way = (&lab.gateway, places::GATEWAY, places::HOST);
    let told = sent_after_login(&lab, &mut agent, way, (9001, &[]))?;
    ensure!(told.0 == "approved", "{told:?}");
    let way = (&lab.host, places::HOST, places::HOST);
    let told = sent_after_login(&lab, &mut agent, way, (9002, &[]))?;
    ensure!(told.0 == "unapproved", "{told:?}");
    agent.stop(Signal::SIGINT)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_deny_by_origin_holds_for_whoever_may_have_come_from_there() -> Result<()> {
    const RULES: &str = r#"
[[rules]]
name    = "never for who came from there"
from    = { session = { countries = ["CN"] } }
verdict = "deny"

[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing(RULES)).start()?;
    for (port, place, from, arguments, verdict) in [
        (9001, &lab.gateway, places::GATEWAY, &[][..], "approved"),
        (9002, &lab.foreign, places::FOREIGN, &[], "denied"),
        // In no country that is known.
        (9003, &lab.foreign, places::UNPLACED, &[], "denied"),
        (
            9004,
            &lab.gateway,
            places::GATEWAY,
            &["--answers", "stranger"],
            "denied",
        ),
    ] {
        let way = (place, from, places::HOST);
        let told = sent_after_login(&lab, &mut agent, way, (port, arguments))?;
        ensure!(told.0 == verdict, "{port}: {told:?}");
    }
    traffic_in(&lab, "timer.service")?
        .args(["udp", &at(places::PEER, 9005)])
        .run()?
        .success()?;
    ensure!(judged(&mut agent, 9005)?.0 == "approved");
    agent.stop(Signal::SIGINT)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_session_that_is_older_than_the_agent_is_approved_by_no_origin() -> Result<()> {
    let lab = Lab::new()?;
    let mut service = service(&lab, places::PEER, &["--hold"])?;
    let client = client(&lab.gateway, places::GATEWAY, places::HOST)?.start()?;
    service.line()?;
    let mut agent = lab.agent().policy(&enforcing(BY_DUBLIN)).start()?;
    service.proceed()?;
    service.finish()?;
    let told = judged(&mut agent, 9)?;
    ensure!(told.0 == "unapproved", "{told:?}");
    drop(client);
    agent.stop(Signal::SIGINT)?;
    detach(&lab)?;
    lab.close()
}
