//! Connections that a policy would cut are named before it cuts them, first of
//! all to the operator whose own session is one of them.

mod world;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::{detach, trefoil, verb};
use trefoil_lab::program::{Outcome, Running};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::terminal::Terminal;
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{
    REFUSED, TRAFFIC, at, enforcing, finds_only_the_kernel, mapped_at, reporting, traffic,
    traffic_in,
};

/// Exit code for findings.
const FINDINGS: i32 = 1;

/// A connection of `shop.service` to a place, and its near port.
fn held(lab: &Lab, peer: &str) -> Result<(Running, u64)> {
    let mut held = traffic_in(lab, "shop.service")?
        .args(["tcp", peer, "--hold", "peer", "--bytes", "1"])
        .start()?;
    let port = Record::parse(&held.line()?)?.number("port")?;
    Ok((held, port))
}

/// Settings of the lab, with this policy.
fn settings(lab: &Lab, policy: &str) -> Result<String> {
    std::fs::write(lab.file("policy.toml"), policy)?;
    let settings = lab.settings()?;
    Ok(settings
        .to_str()
        .context("path of the settings")?
        .to_owned())
}

fn check(lab: &Lab, policy: &str) -> Result<Outcome> {
    verb(lab, &["check", "--config", &settings(lab, policy)?])
}

/// Returns the connections that `check --json` says would be cut.
fn would_cut(lab: &Lab, policy: &str) -> Result<Vec<Record>> {
    let outcome = verb(
        lab,
        &["check", "--json", "--config", &settings(lab, policy)?],
    )?;
    cuts_in(&outcome.stdout)
}

/// The same, asked for in another network namespace than the connections are in.
fn would_cut_seen_from_outside(lab: &Lab, policy: &str) -> Result<Vec<Record>> {
    let settings = settings(lab, policy)?;
    let output = Command::new(trefoil()?)
        .args(["check", "--json", "--config", &settings])
        .output()?;
    cuts_in(&String::from_utf8(output.stdout)?)
}

fn cuts_in(json: &str) -> Result<Vec<Record>> {
    let said: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let list = said["would_cut"].as_array().context("no would_cut")?;
    list.iter()
        .map(|cut| Record::parse(&cut.to_string()))
        .collect()
}

fn of_port(cuts: &[Record], port: u64) -> Option<&Record> {
    cuts.iter().find(|cut| cut.is("src_port", port))
}

#[test]
fn check_lists_open_connections_that_are_not_approved() -> Result<()> {
    let lab = Lab::new()?;
    let _sinks = [
        TcpSink::new(&lab.foreign, 443)?,
        TcpSink::new(&lab.peer, 443)?,
    ];
    let _datagrams = UdpSink::new(&lab.foreign, 9)?;
    let nothing = check(&lab, &enforcing())?;
    let is_nothing = nothing.stdout.contains("would cut nothing");
    ensure!(finds_only_the_kernel(&nothing) && is_nothing, "{nothing:?}");

    let (foreign, port) = held(&lab, &at(places::FOREIGN, 443))?;
    let (_foreign6, port6) = held(&lab, &at(places::FOREIGN6, 443))?;
    let (_mapped, mapped_port) = held(&lab, &mapped_at(places::FOREIGN, 443))?;
    let (_approved, approved_port) = held(&lab, &at(places::PEER, 443))?;
    let mut datagrams = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9), "--connected", "--hold"])
        .start()?;
    let udp_port = Record::parse(&datagrams.line()?)?.number("port")?;
    // Never leaves the host.
    let _own_sink = TcpSink::new(&lab.host, 443)?;
    let (_own, _) = held(&lab, &at(places::HOST, 443))?;

    let outside = would_cut_seen_from_outside(&lab, &reporting())?;
    ensure!(outside.len() == 4, "{outside:?}");
    ensure!(of_port(&outside, port).is_some(), "{outside:?}");
    let cuts = would_cut(&lab, &reporting())?;
    let cut = of_port(&cuts, port).context("nothing about the connection")?;
    for (name, expected) in [
        ("whose", "other"),
        ("protocol", "tcp"),
        ("src_addr", "192.0.2.1"),
        ("dst_addr", "203.0.113.10"),
        ("dst_port", "443"),
        ("dst_country", "CN"),
        ("verdict", "denied"),
        ("rule", "never there"),
        ("pid", &foreign.pid().to_string()),
        ("exe", TRAFFIC),
        ("comm", "traffic"),
        ("uid", "0"),
        ("unit", "shop.service"),
    ] {
        ensure!(cut.is(name, expected), "{name} is not {expected}: {cut}");
    }
    let six = of_port(&cuts, port6).context("nothing about IPv6")?;
    ensure!(six.is("dst_addr", "2001:db8:3::10"), "{six}");
    let mapped = of_port(&cuts, mapped_port).context("nothing about a mapped address")?;
    ensure!(mapped.is("dst_addr", "203.0.113.10"), "{mapped}");
    let udp = of_port(&cuts, udp_port).context("nothing about UDP")?;
    ensure!(udp.is("protocol", "udp") && udp.is("dst_port", 9), "{udp}");
    ensure!(of_port(&cuts, approved_port).is_none(), "{cuts:?}");
    ensure!(cuts.len() == 4, "{cuts:?}");

    // In report mode it is good to know; in enforce mode it is a finding.
    let outcome = check(&lab, &reporting())?;
    ensure!(
        finds_only_the_kernel(&outcome)
            && outcome
                .stdout
                .contains("it would cut 4 of 5 open connections"),
        "{outcome:?}"
    );
    let outcome = check(&lab, &enforcing())?;
    ensure!(
        outcome.code == FINDINGS && outcome.stdout.contains("203.0.113.10:443/tcp (CN)"),
        "{outcome:?}"
    );
    lab.close()
}

#[test]
fn what_is_sent_without_connecting_is_known_where_an_agent_ran() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = |lab: &Lab, more: &[&str]| -> Result<(Running, u64)> {
        let mut held = traffic_in(lab, "shop.service")?
            .args(["udp", &at(places::FOREIGN, 9), "--hold"])
            .args(more)
            .start()?;
        held.line()?;
        held.proceed()?;
        let port = Record::parse(&held.line()?)?.number("port")?;
        Ok((held, port))
    };
    // Connected before there was an agent: in its tables, and in /proc.
    let (mut older, older_port) = start(&lab, &["--connected"])?;
    let agent = lab.agent().policy(&reporting()).start()?;
    older.proceed()?;
    older.line()?;
    let (held, port) = start(&lab, &[])?;
    sink.wait_for_packets(3)?;
    for agent_is in ["alive", "gone"] {
        let cuts = would_cut(&lab, &reporting())?;
        ensure!(cuts.len() == 2, "agent {agent_is}: {cuts:?}");
        ensure!(of_port(&cuts, older_port).is_some(), "{cuts:?}");
        let cut = of_port(&cuts, port).context("nothing about it")?;
        for (name, expected) in [
            ("protocol", "udp"),
            ("dst_addr", "203.0.113.10"),
            ("verdict", "denied"),
            ("pid", &held.pid().to_string()),
            ("exe", TRAFFIC),
            ("unit", "shop.service"),
        ] {
            ensure!(cut.is(name, expected), "{name} is not {expected}: {cut}");
        }
        if agent_is == "alive" {
            agent.signal(Signal::SIGKILL)?;
        }
    }
    held.finish()?.success()?;
    let cuts = would_cut(&lab, &reporting())?;
    ensure!(cuts.len() == 1, "its socket is closed: {cuts:?}");
    drop(agent);
    drop(older);
    lab.close()
}

#[test]
fn what_others_began_is_cut_as_well() -> Result<()> {
    let lab = Lab::new()?;
    // More than fits between them, so that the server goes on sending.
    let mut server = traffic_in(&lab, "web.service")?
        .args(["serve", "8080", "--bytes", "1000000000"])
        .start()?;
    server.line()?;
    let client = lab
        .foreign
        .enter(|| Ok(TcpStream::connect(SocketAddr::new(places::HOST, 8080))?))?;
    let far = client.local_addr()?;
    let cut = wait_for("the accepted connection", || {
        let cuts = would_cut(&lab, &reporting())?;
        Ok(of_port(&cuts, 8080)
            .filter(|cut| cut.is("pid", server.pid()))
            .cloned())
    })?;
    for (name, expected) in [
        ("direction", "accepted".to_owned()),
        ("dst_addr", far.ip().to_string()),
        ("dst_port", far.port().to_string()),
        ("unit", "web.service".to_owned()),
    ] {
        ensure!(cut.is(name, &expected), "{name} is not {expected}: {cut}");
    }
    drop(client);
    drop(server);
    lab.close()
}

/// `check` as a child of a shell that holds a connection, or as one that is told
/// of a session by its environment.
fn check_in(lab: &Lab, policy: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let settings = settings(lab, policy)?;
    let trefoil: PathBuf = trefoil()?;
    let trefoil = trefoil.to_str().context("path of trefoil")?;
    let outcome = lab
        .program(program)?
        .args(arguments)
        .args([trefoil, "check", "--config", &settings])
        .run()?;
    ensure!(outcome.code == FINDINGS, "{outcome:?}");
    Ok(outcome.stdout)
}

#[test]
fn the_session_of_whoever_asks_is_told_first() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.foreign, 443)?;
    let (_other, _) = held(&lab, &at(places::FOREIGN, 443))?;
    let script = "exec 3<>/dev/tcp/203.0.113.10/443; \"$@\" 3>&-";
    let said = check_in(&lab, &enforcing(), "bash", &["-c", script, "bash"])?;
    let second = said
        .lines()
        .skip_while(|line| !line.contains("would cut 2 of 2"))
        .nth(1)
        .unwrap_or_default();
    ensure!(
        second.starts_with("  YOUR SESSION: with 203.0.113.10:443/tcp (CN), bash["),
        "{said}"
    );
    ensure!(said.contains("\n  traffic["), "{said}");
    lab.close()
}

#[test]
fn an_ssh_session_is_known_by_its_program_and_its_environment() -> Result<()> {
    let lab = Lab::new()?;
    let sshd = lab.copy_program(TRAFFIC, "sbin/sshd")?;
    let mut server = lab
        .program_in("session-7.scope", &sshd)?
        .args(["serve", "22", "--bytes", "1000000000"])
        .start()?;
    server.line()?;
    let client = lab
        .foreign
        .enter(|| Ok(TcpStream::connect(SocketAddr::new(places::HOST, 22))?))?;
    wait_for("the session", || {
        Ok(of_port(&would_cut(&lab, &reporting())?, 22)
            .is_some_and(|cut| cut.is("whose", "login") && cut.is("pid", server.pid()))
            .then_some(()))
    })?;
    let (address, port) = (client.local_addr()?.ip(), client.local_addr()?.port());
    let session = format!("ssh from {address}:{port}/tcp (CN), sshd[{}]", server.pid());
    let other = check_in(&lab, &enforcing(), "env", &["SSH_CONNECTION="])?;
    ensure!(
        other.contains(&format!("login session: {session}")),
        "{other}"
    );
    let told = format!("SSH_CONNECTION={address} {port} 192.0.2.1 22");
    let own = check_in(&lab, &enforcing(), "env", &[&told])?;
    ensure!(own.contains(&format!("YOUR SESSION: {session}")), "{own}");
    // The advice keeps the session as it says.
    ensure!(
        own.contains(&format!(
            "from = {{ exe = \"{}\" }}, to = {{ networks = [\"{address}/32\"] }}",
            sshd.display()
        )),
        "{own}"
    );
    let rule = own.lines().find(|line| line.contains("from = {"));
    let rule = rule.unwrap_or_default().replace(", to", "\nto");
    let rules = enforcing();
    let policy = rules.replacen(
        "[[rules]]",
        &format!("[[rules]]\nname = \"kept\"\n{rule}\nverdict = \"approve\"\n\n[[rules]]"),
        1,
    );
    let kept = check(&lab, &policy)?;
    let is_kept = kept.stdout.contains("would cut none of 1");
    ensure!(finds_only_the_kernel(&kept) && is_kept, "{kept:?}");
    drop(client);
    lab.close()
}

#[test]
fn on_a_terminal_enforcement_begins_with_yes_and_not_without() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    let (mut cut, port) = held(&lab, &at(places::FOREIGN, 443))?;
    let terminal = Terminal::new()?;
    let agent = || lab.agent().policy(&enforcing()).on_terminal(&terminal);

    let refused = agent().run_to_end()?;
    ensure!(refused.code == FINDINGS, "{refused:?}");
    for said in [
        "would cut 1 of 1 open connection",
        "203.0.113.10:443/tcp",
        "Run again with --yes",
    ] {
        ensure!(
            refused.stdout.contains(said),
            "nothing of {said:?}: {refused:?}"
        );
    }
    ensure!(lab.pinned().is_empty(), "{:?}", lab.pinned());
    cut.proceed()?;
    wait_for("what passes", || Ok((sink.bytes() == 1).then_some(())))?;

    let mut running = agent().argument("--yes").start()?;
    cut.proceed()?;
    running.wait_for("what was announced is cut", |records| {
        let mut records = records.iter();
        records
            .any(|record| record.is("src_port", port) && record.is("outcome", "dropped"))
            .then_some(())
    })?;
    assert_eq!(sink.bytes(), 1);
    let code = || -> Result<i32> {
        Ok(traffic(&lab)?
            .args(["udp", &at(places::FOREIGN, 9)])
            .run()?
            .code)
    };
    ensure!(code()? == REFUSED);
    running.stop(Signal::SIGTERM)?;

    // It is in force, so going on with it takes nobody by surprise.
    let running = agent().start()?;
    ensure!(code()? == REFUSED);
    running.stop(Signal::SIGTERM)?;
    detach(&lab)?;

    // A policy in report mode cuts nothing.
    let running = lab
        .agent()
        .policy(&reporting())
        .on_terminal(&terminal)
        .start()?;
    running.stop(Signal::SIGINT)?;
    drop(cut);
    lab.close()
}

#[test]
fn a_daemon_enforces_unasked_and_says_what_it_cuts() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = TcpSink::new(&lab.foreign, 443)?;
    let (_cut, _) = held(&lab, &at(places::FOREIGN, 443))?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let said = agent.errors();
    ensure!(
        said.contains("cuts 1 of 1 open connection") && said.contains("203.0.113.10:443/tcp"),
        "{said}"
    );
    agent.stop(Signal::SIGTERM)?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    let said = agent.errors();
    ensure!(!said.contains("open connection"), "{said}");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}
