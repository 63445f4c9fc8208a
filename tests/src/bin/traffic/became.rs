//! A process that connects, and is another sender by the time it sends the most of it.

use std::fs::write;
use std::io::stdin;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, send, sendto};
use nix::unistd::{pipe, setgid, setuid, write as write_to};

use crate::arguments::Arguments;
use crate::udp::{family, own_port};
use crate::{Answer, Named, Sent, raw, tcp, told_to_proceed, udp};
use trefoil_lab::packets::datagram;

/// `traffic become`
pub fn become_another(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let bytes: usize = arguments.option("--bytes")?.unwrap_or(5);
    let program: Option<PathBuf> = arguments.option("--program")?;
    let group: Option<u32> = arguments.option("--gid")?;
    let user: Option<u32> = arguments.option("--uid")?;
    let unit: Option<PathBuf> = arguments.option("--cgroup")?;
    let datagrams = arguments.flag("--datagrams");
    let silent = arguments.flag("--silent");
    let hold = arguments.flag("--hold");
    let spliced = arguments.flag("--spliced");
    let mptcp = arguments.flag("--mptcp");
    let twice = arguments.flag("--twice");
    let unconnected = arguments.flag("--unconnected");
    let first: usize = arguments.option("--first")?.unwrap_or(5);
    let between: Option<SocketAddr> = arguments.option("--between")?;
    let by_raw = arguments.flag("--raw");
    arguments.done()?;
    let unconnected = unconnected || by_raw;
    let socket = match datagrams || unconnected {
        true if by_raw => raw::open(peer.ip(), libc::SOCK_RAW, libc::IPPROTO_UDP)?,
        true => udp::open(peer, None)?,
        false if mptcp => raw::open_of(
            family(peer.ip()) as i32,
            libc::SOCK_STREAM,
            libc::IPPROTO_MPTCP,
        )?,
        false => tcp::open(family(peer.ip()), None)?,
    };
    let address = SockaddrStorage::from(peer);
    if !unconnected {
        connect(socket.as_raw_fd(), &address).named("connect")?;
    }
    let say = |bytes: &[u8]| match unconnected {
        true if by_raw => {
            let datagram = datagram(4000, peer.port(), bytes.len());
            let to = SockaddrStorage::from(SocketAddr::new(peer.ip(), 0));
            sendto(socket.as_raw_fd(), &datagram, &to, MsgFlags::empty()).named("sendto")
        }
        true => sendto(socket.as_raw_fd(), bytes, &address, MsgFlags::empty()).named("sendto"),
        false => send(socket.as_raw_fd(), bytes, MsgFlags::empty()).named("send"),
    };
    if !silent {
        say(&vec![b'h'; first])?;
    }
    if let Some(between) = between {
        let between = SockaddrStorage::from(between);
        // It need not be let through.
        let _ = sendto(socket.as_raw_fd(), b"x", &between, MsgFlags::empty());
    }
    if hold {
        Sent::default().tell();
        told_to_proceed();
    }
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
    if twice {
        say(b"x")?;
    }
    match program {
        None if spliced => splice_once(&socket, bytes),
        None => sent_once(&socket, say(&vec![b'x'; bytes])?),
        Some(program) => Err(Command::new(program)
            .args(["pour", &bytes.to_string()])
            .stdin(Stdio::from(socket))
            .exec())
        .named("execve"),
    }
}

/// `traffic pour`: standard input is a connection.
pub fn pour(arguments: &mut Arguments) -> Answer {
    let bytes = arguments.value("a number of bytes")?;
    arguments.done()?;
    let connection = stdin().as_fd().try_clone_to_owned().named("dup")?;
    send_once(&connection, bytes)
}

/// Sends in one call.
pub fn send_once(socket: &OwnedFd, bytes: usize) -> Answer {
    let payload = vec![b'x'; bytes];
    let sent = send(socket.as_raw_fd(), &payload, MsgFlags::empty()).named("send")?;
    sent_once(socket, sent)
}

/// From a pipe, in one call.
fn splice_once(socket: &OwnedFd, bytes: usize) -> Answer {
    let (reader, writer) = pipe().named("pipe")?;
    let length = write_to(&writer, &vec![b'x'; bytes]).named("write")?;
    let flags = SpliceFFlags::empty();
    let sent = splice(&reader, None, socket, None, length, flags).named("splice")?;
    sent_once(socket, sent)
}

fn sent_once(socket: &OwnedFd, bytes: usize) -> Answer {
    Sent {
        port: own_port(socket),
        packets: 1,
        bytes: bytes as u64,
    }
    .tell();
    Ok(())
}
