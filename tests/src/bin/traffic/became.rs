//! A process that connects, and is another sender by the time it sends the most of it.

use std::fs::write;
use std::io::{Write, stdin};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::{setgid, setuid};

use crate::arguments::Arguments;
use crate::{Answer, Named, Sent};

/// `traffic become`
pub fn become_another(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let bytes: usize = arguments.option("--bytes")?.unwrap_or(5);
    let program: Option<PathBuf> = arguments.option("--program")?;
    let group: Option<u32> = arguments.option("--gid")?;
    let user: Option<u32> = arguments.option("--uid")?;
    let unit: Option<PathBuf> = arguments.option("--cgroup")?;
    arguments.done()?;
    let mut stream = TcpStream::connect(peer).named("connect")?;
    stream.write_all(b"hello").named("send")?;
    if let Some(unit) = unit {
        // "0" stands for whoever writes it.
        write(unit.join("cgroup.procs"), "0").named("write")?;
    }
    if let Some(group) = group {
        setgid(group.into()).named("setgid")?;
    }
    if let Some(user) = user {
        setuid(user.into()).named("setuid")?;
    }
    match program {
        None => send(stream, bytes),
        Some(program) => Err(Command::new(program)
            .args(["pour", &bytes.to_string()])
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .exec())
        .named("execve"),
    }
}

/// `traffic pour`: standard input is a connection.
pub fn pour(arguments: &mut Arguments) -> Answer {
    let bytes = arguments.value("a number of bytes")?;
    arguments.done()?;
    let connection = stdin().as_fd().try_clone_to_owned().named("dup")?;
    send(connection.into(), bytes)
}

/// Sends in one call.
fn send(mut stream: TcpStream, bytes: usize) -> Answer {
    let port = stream.local_addr().named("getsockname")?.port();
    let bytes = stream.write(&vec![b'x'; bytes]).named("send")? as u64;
    Sent {
        port,
        packets: 1,
        bytes,
    }
    .tell();
    Ok(())
}
