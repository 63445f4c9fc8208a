//! `trefoil-lab`: a shell on the lab's host, with an agent that watches it.
//!
//! Anyone can try a policy here without harm: enforcement reaches only what is
//! started from this shell, and nothing leaves the lab.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use trefoil_lab::agent::{self, trefoil};
use trefoil_lab::program::pass_on;
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Agent, Lab, places};

/// TCP ports that the far places answer on.
const TCP_PORTS: [u16; 4] = [22, 80, 443, 5432];
/// UDP ports that the far places take datagrams on.
const UDP_PORTS: [u16; 2] = [9, 53];

/// A small world of network namespaces with a shell in it
#[derive(Parser)]
#[command(name = "trefoil-lab")]
struct Arguments {
    /// Policy that the agent starts with, instead of the example
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Settings file of the agent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Do not print reports
    #[arg(long)]
    quiet: bool,

    /// Run this command instead of a shell, and end with its exit code
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    run: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let signals = take_over_signals()?;
    let lab = Lab::new()?;
    let code = visit(&lab, &arguments, &signals)?;
    lab.close()?;
    Ok(code)
}

fn visit(lab: &Lab, arguments: &Arguments, visitor: &AtomicI32) -> Result<ExitCode> {
    let mut sinks = (Vec::new(), Vec::new());
    for place in [&lab.gateway, &lab.peer, &lab.foreign] {
        for port in TCP_PORTS {
            sinks.0.push(TcpSink::new(place, port)?);
        }
        for port in UDP_PORTS {
            sinks.1.push(UdpSink::new(place, port)?);
        }
    }
    let mut builder = lab.agent().policy(places::EXAMPLE_POLICY);
    if let Some(path) = &arguments.policy {
        builder = builder.policy(&read(path)?);
    }
    if let Some(path) = &arguments.config {
        builder = builder.settings(&read(path)?);
    }
    let agent = builder.start()?;
    let mut follower = None;
    if arguments.run.is_empty() {
        banner(lab, &agent);
        if !arguments.quiet {
            follower = Some(follow_reports(lab)?);
        }
    }

    let code = run(lab, &agent, &arguments.run, visitor)?;

    agent.stop(Signal::SIGINT)?;
    if !lab.pinned().is_empty() {
        agent::detach(lab)?;
    }
    if let Some(mut follower) = follower {
        follower.kill().context("stop journalctl")?;
        follower.wait()?;
    } else if !arguments.quiet {
        // The agent has handed over everything, and its end was waited for.
        reports(lab)?.status().context("run journalctl")?;
    }
    Ok(code)
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Runs the visitor's shell or command on the host under test.
fn run(lab: &Lab, agent: &Agent<'_>, words: &[String], visitor: &AtomicI32) -> Result<ExitCode> {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let mut command = match words.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => Command::new(shell),
    };
    let own = std::env::current_exe().context("find the running program")?;
    let programs = [
        own.parent().map(PathBuf::from),
        trefoil()?.parent().map(PathBuf::from),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        programs
            .into_iter()
            .flatten()
            .chain(std::env::split_paths(&path)),
    )?;
    command
        .env("PATH", path)
        .env("POLICY", lab.file("policy.toml"))
        .env("SETTINGS", lab.settings()?)
        .env("AGENT", agent.pid().to_string())
        .env("LAB", lab.journal()?.name());
    pass_on(
        &mut command,
        Some(&lab.host),
        Some(&lab.unit("lab.service")?),
        None,
    )?;
    let mut child = command
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    visitor.store(child.id() as i32, Ordering::SeqCst);
    let status = child.wait()?;
    visitor.store(0, Ordering::SeqCst);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Kinds of records that are worth a line here: heartbeats are not.
const SHOWN: [&str; 6] = ["flow", "violation", "policy", "coverage", "loss", "tamper"];

/// `journalctl` for the agent's reports, a line each.
fn reports(lab: &Lab) -> Result<Command> {
    let mut command = lab.journal()?.command();
    command.args(["-q", "-o", "cat", "-t", "trefoil"]);
    command
        .args(SHOWN.map(|kind| format!("TREFOIL_EVENT={kind}")))
        .stdin(Stdio::null());
    Ok(command)
}

/// The reports on this terminal as they come.
fn follow_reports(lab: &Lab) -> Result<Child> {
    let mut command = reports(lab)?;
    // Ctrl-C in the terminal is for the visitor's program alone.
    command.args(["-f", "-n", "all"]).process_group(0);
    pass_on(&mut command, None, None, None)?;
    command.spawn().context("run journalctl")
}

/// Signals must not end this program before it has taken the lab away. Those of
/// the terminal are for the visitor's program; the others end that program,
/// whose id is in the number returned, and with it the visit.
fn take_over_signals() -> Result<Arc<AtomicI32>> {
    let mut taken = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        taken.add(signal);
    }
    taken.thread_block().context("block signals")?;
    let visitor = Arc::new(AtomicI32::new(0));
    let end = visitor.clone();
    std::thread::spawn(move || {
        while let Ok(signal) = taken.wait() {
            let pid = end.load(Ordering::SeqCst);
            if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) && pid > 0 {
                // It may have ended in this moment.
                let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
            }
        }
    });
    Ok(visitor)
}

fn banner(lab: &Lab, agent: &Agent<'_>) {
    println!(
        "\
Welcome to the lab. This shell runs on a host of its own (192.0.2.1), whose
egress is watched by trefoil, process {agent}. Nothing leaves the lab.

  gateway   192.0.2.10        2001:db8:1::10     IE
  peer      198.51.100.0/24   2001:db8:2::/48    DE
  foreign   203.0.113.0/24    2001:db8:3::/48    CN; .192-.255 and 3:ffff::/64 in no country
  TCP ports 22 80 443 5432 and UDP ports 9 53 answer everywhere.

Try
  traffic tcp 192.0.2.10:443 --bytes 1000000      through the approved gateway
  traffic udp 203.0.113.10:9                      a violation
  traffic udp [2001:db8:3:ffff::1]:9              country unknown: undetermined
  trefoil flows --config $SETTINGS
  trefoil explain --config $SETTINGS --to 203.0.113.10:443
  $EDITOR $POLICY; trefoil check --config $SETTINGS && kill -HUP $AGENT
      with mode = \"enforce\" the same traffic is refused
  journalctl --namespace=$LAB -o verbose

The far places, from another terminal:
  nsenter --net={foreign}    foreign
  nsenter --net={peer}    peer
  nsenter --net={gateway}    gateway

Leave with exit or Ctrl-D; everything is taken away.
",
        agent = agent.pid(),
        foreign = lab.foreign.path(),
        peer = lab.peer.path(),
        gateway = lab.gateway.path(),
    );
}
