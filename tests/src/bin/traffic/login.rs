//! A service to log in by, as sshd is one: it accepts, says who it is, starts a login session, and
//! a process of that session goes on with the connection.

use std::fs::write;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::wait::waitpid;
use nix::unistd::setuid;

use crate::arguments::Arguments;
use crate::workers::in_child;
use crate::{Answer, Failure, Named, Sent, tcp, told_to_proceed};

/// Deeds of somebody who has logged in.
struct Login {
    /// User id.
    user: u32,
    /// Where he sends a datagram to, by a program that he starts.
    to: SocketAddr,
    /// Process that answers in the session.
    answerer: Answerer,
    /// The session waits for a line on standard input before it sends.
    hold: bool,
    /// It sends when the connection is over.
    after_logout: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answerer {
    /// A child of the one that has started the session.
    Child,
    /// The process itself that has started it.
    Same,
    /// A child of a child: another service's, for all that the connection says.
    Stranger,
}

/// `traffic login`
pub fn login(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let login = Login {
        user: arguments.value("a user id")?,
        to: arguments.value("ADDR:PORT")?,
        answerer: match arguments.option::<String>("--answers")?.as_deref() {
            None | Some("child") => Answerer::Child,
            Some("same") => Answerer::Same,
            Some("stranger") => Answerer::Stranger,
            Some(other) => return Err(Failure::Usage(format!("no process {other:?} answers"))),
        },
        hold: arguments.flag("--hold"),
        after_logout: arguments.flag("--after-logout"),
    };
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    arguments.done()?;
    let listener = tcp::listen(port)?;
    let ready = Sent {
        port,
        ..Sent::default()
    };
    ready.tell();
    let mut children = Vec::new();
    for _ in 0..count {
        let (stream, _) = listener.accept().named("accept")?;
        children.extend(in_child(|| start(stream, &login))?);
    }
    for child in children {
        waitpid(child, None).named("wait")?;
    }
    Ok(())
}

/// Greets, starts a session, and has it answer.
fn start(mut stream: TcpStream, login: &Login) -> Answer {
    stream.write_all(b"who are you?").named("write")?;
    // The kernel gives a new audit session with it.
    write("/proc/self/loginuid", login.user.to_string()).named("write")?;
    // As sshd does, the process that has started the session keeps the connection.
    let _kept = stream.try_clone().named("dup")?;
    let answer = || in_session(stream, login);
    let child = match login.answerer {
        Answerer::Same => return answer(),
        Answerer::Child => in_child(answer)?,
        Answerer::Stranger => in_child(|| {
            let grandchild = in_child(answer)?;
            grandchild.map_or(Ok(()), |pid| waitpid(pid, None).named("wait").map(drop))
        })?,
    };
    child.map_or(Ok(()), |pid| waitpid(pid, None).named("wait").map(drop))
}

/// Does what the user's first process does. The datagram leaves from the client's port, so that its
/// record can be told from others.
fn in_session(mut stream: TcpStream, login: &Login) -> Answer {
    setuid(login.user.into()).named("setuid")?;
    let port = stream.peer_addr().named("getpeername")?.port();
    stream.write_all(b"welcome").named("write")?;
    let told = Sent {
        port,
        ..Sent::default()
    };
    told.tell();
    if login.hold {
        told_to_proceed();
    }
    if login.after_logout {
        stream.shutdown(Shutdown::Write).named("shutdown")?;
        stream.read_to_end(&mut Vec::new()).named("read")?;
        drop(stream);
    }
    let own = std::env::current_exe().named("readlink")?;
    let mut sends = Command::new(own);
    sends.args(["udp", &login.to.to_string(), "--from", &port.to_string()]);
    sends.status().named("spawn").map(drop)
}
