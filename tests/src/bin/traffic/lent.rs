//! Sockets that a user has made, by which another sends.

use std::fs::write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, Backlog, MsgFlags, SockaddrStorage, connect, send, sendto};
use nix::unistd::{Uid, setresuid};

use crate::arguments::Arguments;
use crate::became::send_once;
use crate::udp::family;
use crate::{Answer, Failure, Named, Sent, raw, tcp, told_to_proceed, udp};

/// Of a call that sends: the bytes wait in the socket for those of the next.
const MORE: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// Sends as root, that may become others.
fn as_user(user: u32) -> Answer {
    setresuid(user.into(), user.into(), Uid::from_raw(0)).named("setresuid")
}

/// As a program that is set to root does, whoever executes it.
fn as_root() -> Answer {
    let root = Uid::from_raw(0);
    setresuid(root, root, root).named("setresuid")
}

/// `traffic lend`: whom a socket is connected to is a user's choice, and root sends on it.
pub fn lend(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    let more = arguments.flag("--more");
    let is_udp = arguments.flag("--udp");
    let hold = arguments.flag("--hold");
    let unit: Option<PathBuf> = arguments.option("--cgroup")?;
    arguments.done()?;
    as_user(user)?;
    let socket = match is_udp {
        true => udp::open(peer, None)?,
        false => raw::open_of(
            family(peer.ip()) as i32,
            libc::SOCK_DGRAM,
            libc::IPPROTO_UDPLITE,
        )?,
    };
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    if more {
        send(socket.as_raw_fd(), b"hello", MORE).named("send")?;
    }
    as_root()?;
    if hold {
        Sent::default().tell();
        told_to_proceed();
    }
    if let Some(unit) = unit {
        // "0" stands for whoever writes it.
        write(unit.join("cgroup.procs"), "0").named("write")?;
    }
    // One may be refused as the user's, and a far end that is not there is told of by the next.
    let _ = send(socket.as_raw_fd(), b"x", MsgFlags::empty());
    send_once(&socket, 5).or_else(|_| send_once(&socket, 5))
}

/// `traffic listen-lent`: a user has a socket listen on which root has tried to send.
pub fn listen_lent(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let user: u32 = arguments.value("a user id")?;
    arguments.done()?;
    as_user(user)?;
    let socket = tcp::open(AddressFamily::Inet, Some(port))?;
    as_root()?;
    let refused = send(socket.as_raw_fd(), b"hello", MsgFlags::MSG_NOSIGNAL);
    if refused.is_ok() {
        return Err(Failure::Usage("it is connected".into()));
    }
    as_user(user)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN).named("listen")?;
    Sent::default().tell();
    told_to_proceed();
    Ok(())
}

/// `traffic append`: root begins a datagram, and a user goes on with it.
pub fn append(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    arguments.done()?;
    let socket = udp::open(peer, None)?;
    let address = SockaddrStorage::from(peer);
    sendto(socket.as_raw_fd(), b"hello", &address, MORE).named("sendto")?;
    as_user(user)?;
    send_once(&socket, 5)
}
