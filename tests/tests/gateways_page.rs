//! The policy of docs/GATEWAYS.md does what the page says.

mod world;

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use trefoil_lab::agent::{detach, verb};
use trefoil_lab::program::Program;
use trefoil_lab::sink::TcpSink;
use trefoil_lab::{Agent, Lab, namespace::Namespace, places};
use world::{REFUSED, TRAFFIC, at, is_about_a_flow, traffic_in};

const PAGE: &str = include_str!("../../docs/GATEWAYS.md");

/// The first policy of the page.
fn policy() -> Result<&'static str> {
    let (_, behind) = PAGE.split_once("```toml\n").context("no policy")?;
    let (policy, _) = behind.split_once("```").context("no end of it")?;
    Ok(policy)
}

/// The verdict about what ssh answers to this client.
fn login(
    lab: &Lab,
    agent: &mut Agent<'_>,
    place: &Namespace,
    from: IpAddr,
    host: IpAddr,
) -> Result<(String, String)> {
    let mut ssh = traffic_in(lab, "ssh.service")?
        .args(["serve", "22", "--bytes", "3000"])
        .start()?;
    ssh.line()?;
    let client = Program::new(TRAFFIC, place, None, None)?;
    let client = client.args(["tcp", &at(host, 22), "--source", &from.to_string()]);
    let client = client.start()?;
    let told = agent.wait_for("the session is told", |records| {
        let mut all = records.iter().filter(|one| is_about_a_flow(one));
        let record = all.find(|one| one.is("dst_addr", from) && one.is("src_port", 22_u64))?;
        Some((record.text("verdict"), record.text("rule")))
    })?;
    drop((client, ssh));
    Ok(told)
}

#[test]
fn employees_come_in_by_two_gateways_and_exports_leave_by_one() -> Result<()> {
    let policy = policy()?.replace("mode = \"report\"", "mode = \"enforce\"");
    ensure!(policy.contains("enforce"), "{policy}");
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&policy).start()?;
    let let_in = ("gateway", "logins come by the gateways");
    let refused = ("denied", "logins come by nothing else");
    for (place, from, host, (verdict, rule)) in [
        (&lab.gateway, places::GATEWAY, places::HOST, let_in),
        (&lab.gateway, places::GATEWAY6, places::HOST6, let_in),
        (&lab.peer, places::PEER, places::HOST, let_in),
        (&lab.foreign, places::FOREIGN, places::HOST, refused),
        (&lab.foreign, places::FOREIGN6, places::HOST6, refused),
    ] {
        let told = login(&lab, &mut agent, place, from, host)?;
        let expected = (verdict.to_owned(), rule.to_owned());
        ensure!(told == expected, "{from}: {told:?}");
    }

    let _gateway = TcpSink::new(&lab.peer, 443)?;
    let exports: IpAddr = "198.51.100.20".parse()?;
    for (unit, to, code) in [
        ("export@7.service", exports, 0),
        ("export@7.service", places::PEER, REFUSED),
        ("other.service", exports, REFUSED),
    ] {
        let sent = traffic_in(&lab, unit)?.args(["tcp", &at(to, 443)]).run()?;
        ensure!(sent.code == code, "{unit} to {to}: {sent:?}");
    }
    detach(&lab)?;
    agent.ended()?;
    lab.close()
}

#[test]
fn explain_says_what_the_page_promises() -> Result<()> {
    let lab = Lab::new()?;
    let file = lab.file("gateways.toml");
    fs::write(&file, policy()?)?;
    let files = [file, lab.file("geoip"), lab.file("geoip6")];
    let [path, v4, v6] = files
        .each_ref()
        .map(|file| file.to_str().unwrap_or_default());
    let asks = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("# trefoil explain "));
    let said = ["gateway, passed", "denied", "gateway, passed", "unapproved"];
    for (ask, said) in asks.clone().zip(said) {
        let common = ["explain", "--policy", path, "--geo", v4, "--geo", v6];
        let words: Vec<&str> = common.into_iter().chain(ask.split(' ')).collect();
        let outcome = verb(&lab, &words)?.success()?;
        ensure!(outcome.stdout.contains(said), "{ask}: {outcome:?}");
    }
    ensure!(asks.count() == said.len());
    lab.close()
}
