//! Sockets that a user has made, by which another sends.

use std::fs::write;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockaddrStorage, accept, bind, connect, listen, send, sendto,
    setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Uid, setresuid};

use crate::arguments::Arguments;
use crate::became::send_once;
use crate::route::Route;
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

/// A socket of UDP-Lite.
fn lite(peer: SocketAddr) -> Result<OwnedFd, Failure> {
    let family = family(peer.ip()) as i32;
    raw::open_of(family, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)
}

/// The same, connected.
fn connected(peer: SocketAddr) -> Result<OwnedFd, Failure> {
    let socket = lite(peer)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    Ok(socket)
}

/// `traffic lend`: whom a socket is connected to is a user's choice, and root sends on it.
pub fn lend(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    let more = arguments.flag("--more");
    let by: Option<String> = arguments.option("--by")?;
    let hold = arguments.flag("--hold");
    let by_name = arguments.flag("--by-name");
    let route = Route::of(arguments)?;
    let unit: Option<PathBuf> = arguments.option("--cgroup")?;
    arguments.done()?;
    as_user(user)?;
    let family = family(peer.ip()) as i32;
    let stream = |protocol| raw::open_of(family, libc::SOCK_STREAM, protocol);
    let socket = match by.as_deref() {
        None => lite(peer)?,
        Some("udp") => udp::open(peer, None)?,
        Some("tcp") => stream(libc::IPPROTO_TCP)?,
        Some("mptcp") => stream(libc::IPPROTO_MPTCP)?,
        Some(other) => return Err(Failure::Usage(format!("{other} is no protocol"))),
    };
    route.set_on(&socket)?;
    let address = SockaddrStorage::from(peer);
    if by_name {
        as_root()?;
        let _ = sendto(socket.as_raw_fd(), b"x", &address, MsgFlags::empty());
        return sendto(socket.as_raw_fd(), b"x", &address, MsgFlags::empty())
            .named("sendto")
            .map(drop);
    }
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(200)).named("setsockopt")?;
    match connect(socket.as_raw_fd(), &address) {
        // Nobody has answered yet.
        Err(Errno::EINPROGRESS) => {
            setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(3)).named("setsockopt")?;
        }
        other => other.named("connect")?,
    }
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
    send_twice(&socket)
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
    listen(&socket, Backlog::MAXCONN).named("listen")?;
    Sent::default().tell();
    told_to_proceed();
    Ok(())
}

/// `traffic accept-lent`: root answers on a connection that a user has accepted.
pub fn accept_lent(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let user: u32 = arguments.value("a user id")?;
    arguments.done()?;
    as_user(user)?;
    let listener = tcp::open(AddressFamily::Inet, Some(port))?;
    listen(&listener, Backlog::MAXCONN).named("listen")?;
    Sent::default().tell();
    let accepted = accept(listener.as_raw_fd()).named("accept")?;
    // SAFETY: the descriptor is new and nobody else's.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    as_root()?;
    send_twice(&accepted)
}

/// `traffic own`: sends by a socket of its own as a program does that is set to a user.
pub fn own(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    let effective: u32 = arguments.value("a user id")?;
    arguments.done()?;
    setresuid(user.into(), effective.into(), effective.into()).named("setresuid")?;
    send_twice(&connected(peer)?)
}

/// `traffic lend-inside`: root of a user namespace makes a socket, and user 1 of it sends by that.
pub fn lend_inside(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let map = arguments.options("--map")?;
    arguments.done()?;
    if map.is_empty() {
        unshare(CloneFlags::CLONE_NEWUSER).named("unshare")?;
        Sent::default().tell();
        told_to_proceed();
        as_root()?;
        let socket = connected(peer)?;
        as_user(1)?;
        return send_twice(&socket);
    }
    let mut inside = Command::new("/proc/self/exe")
        .args(["lend-inside", &peer.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .named("spawn")?;
    let mut said = inside.stdout.take().map(BufReader::new);
    let mut line = String::new();
    if let Some(said) = &mut said {
        said.read_line(&mut line).named("read")?;
    }
    write(format!("/proc/{}/uid_map", inside.id()), map.join("\n")).named("write")?;
    drop(inside.stdin.take());
    let ended = inside.wait().named("wait")?;
    std::process::exit(ended.code().unwrap_or(1));
}

/// Where only what was sent tells who did, the first of two is judged as of who connected the socket.
fn send_twice(socket: &OwnedFd) -> Answer {
    let _ = send(socket.as_raw_fd(), b"x", MsgFlags::empty());
    // A far end that is not there is told of by the next.
    send_once(socket, 5).or_else(|_| send_once(socket, 5))
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

/// `traffic claim-lent`: a user who rules a network namespace has the peer's address as one of his own for a moment,
/// connects from there to his own listener, gives the address up, and has root, or with --alone himself, write to
/// the session that he has accepted. With --first he has sent before.
pub fn claim_lent(arguments: &mut Arguments) -> Answer {
    let near: SocketAddr = arguments.value("ADDR:PORT")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    let alone = arguments.flag("--alone");
    let first = arguments.flag("--first");
    arguments.done()?;
    // As root of the container may.
    write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").named("write")?;
    as_user(user)?;
    let listener = tcp::open(AddressFamily::Inet, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true).named("setsockopt")?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(near)).named("bind")?;
    listen(&listener, Backlog::MAXCONN).named("listen")?;
    let client = tcp::open(AddressFamily::Inet, None)?;
    setsockopt(&client, sockopt::ReuseAddr, &true).named("setsockopt")?;
    bind(client.as_raw_fd(), &SockaddrStorage::from(peer)).named("bind")?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(near)).named("connect")?;
    let accepted = accept(listener.as_raw_fd()).named("accept")?;
    // SAFETY: the descriptor is new and nobody else's.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    Sent::default().tell();
    told_to_proceed();
    if first {
        let _ = send(accepted.as_raw_fd(), &[7; 1000], MsgFlags::MSG_NOSIGNAL);
    }
    if !alone {
        as_root()?;
    }
    let _ = send(
        accepted.as_raw_fd(),
        b"a secret of the user's",
        MsgFlags::MSG_NOSIGNAL,
    );
    std::thread::sleep(Duration::from_millis(50));
    let _ = send(accepted.as_raw_fd(), b"another one", MsgFlags::MSG_NOSIGNAL);
    std::thread::sleep(Duration::from_millis(500));
    Sent::default().tell();
    Ok(())
}

/// `traffic tun-lent`: a user opens a tun device of his, and root, or with --alone he himself, writes a packet into it.
pub fn tun_lent(arguments: &mut Arguments) -> Answer {
    let name = arguments.word("a name")?;
    let from: SocketAddr = arguments.value("ADDR:PORT")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    let user: u32 = arguments.value("a user id")?;
    let node = arguments.word("a node")?;
    let alone = arguments.flag("--alone");
    arguments.done()?;
    as_user(user)?;
    let mut device = crate::tun::open_by(&node, &name, false)?;
    Sent::default().tell();
    told_to_proceed();
    if !alone {
        as_root()?;
    }
    let packet = trefoil_lab::packets::udp(from, to, 64);
    device.write_all(&packet).named("write")?;
    std::thread::sleep(Duration::from_millis(100));
    Sent::default().tell();
    Ok(())
}
