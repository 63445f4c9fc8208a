//! The same thing, many times: calls that are refused, sockets that wait, connections that are short.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, sendto, socket,
};

use crate::arguments::Arguments;
use crate::udp::{family, pause_after, plus};
use crate::{Answer, Failure, Named, Sent, told_to_proceed};

/// `traffic often`
pub fn often(arguments: &mut Arguments) -> Answer {
    let what = arguments.word("what")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let count: u32 = arguments.option("--count")?.unwrap_or(1);
    match what.as_str() {
        "calls" => {
            let vary = arguments.options("--vary")?;
            arguments.done()?;
            calls(peer, count, &vary)
        }
        "sockets" => {
            arguments.done()?;
            sockets(peer, count)
        }
        "connections" => {
            let hold = arguments.flag("--hold");
            arguments.done()?;
            connections(peer, count, hold)
        }
        other => Err(Failure::Usage(format!("nothing is called {other:?}"))),
    }
}

fn open(peer: SocketAddr) -> Result<OwnedFd, Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(family(peer.ip()), SockType::Datagram, flags, None).named("socket")
}

/// Datagrams that are all refused.
fn calls(peer: SocketAddr, count: u32, vary: &[String]) -> Answer {
    let varies = |what: &str| vary.iter().any(|it| it == what);
    let mut own = open(peer)?;
    let mut sent = Sent::default();
    for number in 0..count {
        if varies("sockets") {
            own = open(peer)?;
        }
        let mut to = peer;
        if varies("ports") {
            to.set_port(peer.port().wrapping_add(number as u16).max(1));
        }
        if varies("addresses") {
            to.set_ip(plus(peer.ip(), number % 250));
        }
        let to = SockaddrStorage::from(to);
        match sendto(own.as_raw_fd(), b"x", &to, MsgFlags::empty()) {
            Err(Errno::EPERM) => sent.packets += 1,
            other => return other.map(drop).named("sendto"),
        }
    }
    sent.tell();
    Ok(())
}

/// Connected sockets that send once and wait until a line on standard input.
fn sockets(peer: SocketAddr, count: u32) -> Answer {
    let most = u64::from(count) + 64;
    let most = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: two numbers, which the call reads.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) })
        .named("setrlimit")?;
    let mut all = Vec::new();
    for number in 0..count {
        let own = open(peer)?;
        let to = SockaddrStorage::from(SocketAddr::new(plus(peer.ip(), number), peer.port()));
        connect(own.as_raw_fd(), &to).named("connect")?;
        send(own.as_raw_fd(), b"x", MsgFlags::empty()).named("send")?;
        all.push(own);
        pause_after(u64::from(number));
    }
    Sent {
        packets: u64::from(count),
        ..Sent::default()
    }
    .tell();
    told_to_proceed();
    Ok(())
}

/// Connections, one after the other, to 200 addresses in turn so that ports do not run out; with `hold`
/// so many for each line on standard input.
fn connections(peer: SocketAddr, count: u32, hold: bool) -> Answer {
    let mut number = 0_u32;
    if hold {
        Sent::default().tell();
    }
    while !hold || told_to_proceed() {
        for _ in 0..count {
            let to = SocketAddr::new(plus(peer.ip(), number % 200), peer.port());
            number = number.wrapping_add(1);
            TcpStream::connect(to).named("connect").map(drop)?;
        }
        Sent {
            packets: u64::from(number),
            ..Sent::default()
        }
        .tell();
        if !hold {
            break;
        }
    }
    Ok(())
}
