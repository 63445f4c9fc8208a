//! Sockets that change hands, outlive their process, or are older than the agent; and
//! processes that change who or where they are.

use std::io::Read;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use trefoil_lab::Record;

use crate::round::go;
use crate::stage::{APPROVED, LINK, Meanwhile, Stage, UDP_PORT, Way, nothing, policy, way};
use crate::world::{TRAFFIC, at, told, traffic};

const BYTES: &str = "20000";

#[test]
fn row_15_sockets_that_are_handed_on() -> Result<()> {
    let ways = [
        way("15a", |stage| {
            let to = stage.udp();
            stage.run(&["hand-on", "passed", &to])
        }),
        way("15b", |stage| {
            let to = stage.udp();
            stage.run(&["hand-on", "inherited", &to])
        }),
        way("15c", |stage| {
            serve(stage, 8151, &["--accept", "activated"])
        }),
        way("15d", |stage| serve(stage, 8152, &["--accept", "worker"])),
        way("15e", |stage| serve(stage, 8153, &["--accept", "parent"])),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_16_an_accepted_session() -> Result<()> {
    let send = |stage: &mut Stage<'_>| {
        stage.start(&["serve", "8160", "--bytes", BYTES])?;
        be_pulled(stage, 8160)
    };
    go(&[way("16a", send)], "", nothing)
}

/// A server of which one process listens and another one answers.
fn serve(stage: &mut Stage<'_>, port: u16, how: &[&str]) -> Result<()> {
    let port_word = port.to_string();
    let mut arguments = vec!["workers", &port_word, "--bytes", BYTES];
    arguments.extend(how);
    stage.start(&arguments)?;
    be_pulled(stage, port)
}

fn be_pulled(stage: &mut Stage<'_>, port: u16) -> Result<()> {
    stage.pull(port)?;
    // Where it is blocked, both ends would wait.
    if stage.enforced {
        return Ok(());
    }
    stage.finish_first()
}

#[test]
fn row_17_older_than_the_agent() -> Result<()> {
    let ways = [
        Way {
            id: "17a",
            agent: Meanwhile::Runs,
            uplink: "auto",
            link: LINK,
            prepare: |stage| {
                let to = stage.udp();
                stage.start(&["udp", &to, "--hold"]).map(drop)
            },
            send: send_once_more,
        },
        Way {
            id: "17b",
            agent: Meanwhile::Runs,
            uplink: "auto",
            link: LINK,
            prepare: |stage| {
                let to = stage.tcp();
                stage
                    .start(&["tcp", &to, "--hold", "peer", "--bytes", BYTES])
                    .map(drop)
            },
            send: send_once_more,
        },
        Way {
            id: "17c",
            agent: Meanwhile::Runs,
            uplink: "auto",
            link: LINK,
            prepare: |stage| {
                // Known to the agent before, in whose mode it may open.
                let before = stage.lab.agent().policy(&policy(false)).start()?;
                let to = stage.tcp();
                stage.start(&["tcp", &to, "--hold", "peer", "--bytes", BYTES])?;
                before.stop(Signal::SIGTERM).map(drop)
            },
            send: send_once_more,
        },
    ];
    go(&ways, "", nothing)
}

/// Lets the program that was started before the agent send.
fn send_once_more(stage: &mut Stage<'_>) -> Result<()> {
    let sender = stage.running.last_mut().context("no program")?;
    let pid = sender.pid();
    sender.proceed()?;
    stage.senders.insert(pid);
    if !stage.enforced {
        let line = stage.running.last_mut().context("no program")?.line()?;
        stage.bytes = Record::parse(&line)?.number("bytes")?;
    }
    Ok(())
}

#[test]
fn row_18_data_after_the_end_of_the_process() -> Result<()> {
    let abandoned = Way {
        id: "18a",
        agent: Meanwhile::Runs,
        uplink: "auto",
        link: LINK,
        prepare: |stage| {
            if stage.enforced {
                abandon(stage)?;
            }
            Ok(())
        },
        send: |stage| {
            if !stage.enforced {
                abandon(stage)?;
            }
            // Only now the far end takes what the kernel here has kept.
            let listener = stage.listener.take().context("no listener")?;
            std::thread::spawn(move || -> std::io::Result<usize> {
                let (mut stream, _) = listener.accept()?;
                stream.read_to_end(&mut Vec::new())
            });
            Ok(())
        },
    };
    go(&[abandoned], "", nothing)
}

const ABANDONED_PORT: u16 = 8180;

/// Connects to a far end that takes next to nothing, hands 200 kB to the kernel, and
/// ends.
fn abandon(stage: &mut Stage<'_>) -> Result<()> {
    let address = std::net::SocketAddr::new(stage.v4, ABANDONED_PORT);
    let listener = stage.lab.foreign.enter(|| {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::RcvBuf, &4096)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(socket)
    })?;
    stage.listener = Some(listener.into());
    let to = at(stage.v4, ABANDONED_PORT);
    let outcome = traffic(stage.lab)?
        .args(["tcp", &to, "--bytes", "200000", "--abandon"])
        .run()?
        .success()?;
    let told = told(&outcome)?.pop().context("it said nothing")?;
    stage.senders.insert(outcome.pid);
    stage.bytes = told.number("bytes")?;
    Ok(())
}

#[test]
fn row_28_processes_that_change() -> Result<()> {
    let ways = [
        way("28a", |stage| {
            let program = stage.lab.program("/usr/bin/unshare")?;
            let to = stage.udp();
            stage.run_program(program, &["--user", "--map-root-user", TRAFFIC, "udp", &to])
        }),
        way("28b", |stage| {
            let to = stage.udp();
            let arguments = ["udp", &to, "--hold", "--connected"];
            if stage.enforced {
                return stage.run(&arguments);
            }
            let mut sender = traffic(stage.lab)?.args(arguments).start()?;
            stage.senders.insert(sender.pid());
            sender.line()?;
            sender.proceed()?;
            sender.line()?;
            let other = stage.lab.unit("other.service")?.join("cgroup.procs");
            std::fs::write(other, sender.pid().to_string())?;
            sender.proceed()?;
            // The number that it tells is the sum.
            stage.bytes = Record::parse(&sender.line()?)?.number("bytes")?;
            sender.finish()?.success().map(drop)
        }),
    ];
    go(&ways, "", nothing)
}

#[test]
fn row_29_sockets_that_change() -> Result<()> {
    let ways = [
        way("29a", |stage| turn(stage, "reconnect")),
        way("29b", |stage| turn(stage, "replace")),
        way("29c", |stage| {
            let to = stage.udp();
            stage.run(&["udp", &to, "--from", "443"])
        }),
    ];
    go(&ways, "", nothing)
}

fn turn(stage: &mut Stage<'_>, how: &str) -> Result<()> {
    let (approved, to) = (at(APPROVED, UDP_PORT), stage.udp());
    stage.run(&["turn", how, &approved, &to])?;
    ensure!(!stage.senders.is_empty(), "nobody sent");
    Ok(())
}
