//! Servers in which another process answers than the one that listens.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use crate::arguments::Arguments;
use crate::{Answer, Failure, Named, Sent, tcp};

/// `traffic workers`
pub fn workers(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    let bytes: u64 = arguments.option("--bytes")?.unwrap_or(0);
    let accept: Option<String> = arguments.option("--accept")?;
    arguments.done()?;
    let listener = tcp::listen(port)?;
    match accept.as_deref() {
        Some("activated") => return activated(listener, bytes),
        None | Some("worker" | "parent") => {}
        Some(other) => return Err(Failure::Usage(format!("no acceptor {other:?}"))),
    }
    let in_parent = accept.as_deref() == Some("parent");
    tell_ready(port);
    let mut children = Vec::new();
    for _ in 0..count {
        if in_parent {
            let (stream, _) = listener.accept().named("accept")?;
            children.extend(in_child(|| answer(stream, bytes))?);
        } else {
            let answer_one = || answer(listener.accept().named("accept")?.0, bytes);
            children.extend(in_child(answer_one)?);
        }
    }
    for child in children {
        waitpid(child, None).named("wait")?;
    }
    Ok(())
}

fn tell_ready(port: u16) {
    let ready = Sent {
        port,
        ..Sent::default()
    };
    ready.tell();
}

/// Does it in a child, and returns the child's process id; does not return there.
pub fn in_child(act: impl FnOnce() -> Answer) -> Result<Option<Pid>, Failure> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.named("fork")? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => std::process::exit(i32::from(act().is_err())),
    }
}

/// Sends, waits until the client has read all of it, and tells the client's port.
fn answer(mut stream: TcpStream, bytes: u64) -> Answer {
    let mut sent = Sent {
        port: stream.peer_addr().named("getpeername")?.port(),
        ..Sent::default()
    };
    tcp::send(&mut stream, bytes, &mut sent)?;
    stream.shutdown(Shutdown::Write).named("shutdown")?;
    stream.read_to_end(&mut Vec::new()).named("read")?;
    sent.tell();
    Ok(())
}

/// Hands the listener to another program, which accepts and answers, as a service
/// manager does.
fn activated(listener: TcpListener, bytes: u64) -> Answer {
    let own = std::env::current_exe().named("readlink")?;
    let mut child: Child = Command::new(own)
        .args(["serve", "0", "--activated", "--bytes", &bytes.to_string()])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .named("spawn")?;
    child.wait().named("wait").map(drop)
}
