//! Connections: opened here, or accepted.

use std::fs::File;
use std::io::{ErrorKind, Read, Write, stdin};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown as How, SockFlag, SockType, SockaddrStorage, bind,
    connect as call, send as call_send, sendto, setsockopt, shutdown, socket, sockopt,
};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::raw;
use crate::udp::{allow_any_source, bind_port, family, own_port};
use crate::{Answer, Failure, Named, Sent, told_to_proceed};

const CHUNK: usize = 1 << 16;

/// Transport that carries a connection instead of TCP.
#[derive(Clone, Copy, Debug)]
struct Transport {
    /// Another than that of the address.
    family: Option<i32>,
    kind: i32,
    protocol: i32,
}

impl FromStr for Transport {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (family, kind, protocol) = match name {
            "mptcp" => (None, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            "sctp" => (None, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            "dccp" => (None, Self::SOCK_DCCP, libc::IPPROTO_DCCP),
            "smc" => (Some(Self::AF_SMC), libc::SOCK_STREAM, 0),
            _ => return Err(()),
        };
        Ok(Self {
            family,
            kind,
            protocol,
        })
    }
}

impl Transport {
    const SOCK_DCCP: i32 = 6;
    const AF_SMC: i32 = 43;

    fn open(self, address: IpAddr) -> Result<OwnedFd, Failure> {
        let family = self.family.unwrap_or(family(address) as i32);
        raw::open_of(family, self.kind, self.protocol)
    }

    fn listen(self, port: u16) -> Result<TcpListener, Failure> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let socket = self.open(any.ip())?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(any)).named("bind")?;
        nix::sys::socket::listen(&socket, Backlog::MAXCONN).named("listen")?;
        Ok(socket.into())
    }

    /// Says that there is no more to come.
    fn end(self, socket: &impl AsRawFd) -> Answer {
        // DCCP has packets and no halves that could be closed: an empty one is read as the end.
        match self.kind {
            Self::SOCK_DCCP => call_send(socket.as_raw_fd(), &[], MsgFlags::empty())
                .named("send")
                .map(drop),
            _ => shutdown(socket.as_raw_fd(), How::Write).named("shutdown"),
        }
    }
}

/// A TCP socket that may be bound to a port.
pub fn open(family: AddressFamily, from: Option<u16>) -> Result<OwnedFd, Failure> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).named("socket")?;
    if let Some(port) = from {
        bind_port(&socket, family, port)?;
    }
    Ok(socket)
}

/// `traffic tcp`
pub fn connect(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let from = arguments.option("--from")?;
    let bytes: u64 = arguments.option("--bytes")?.unwrap_or(0);
    let hold: Option<String> = arguments.option("--hold")?;
    let fast_open = arguments.flag("--fast-open");
    let fast_open_connect = arguments.flag("--fast-open-connect");
    let transport: Option<Transport> = arguments.option("--transport")?;
    let abandon = arguments.flag("--abandon");
    let source: Option<IpAddr> = arguments.option("--source")?;
    let wait = arguments.flag("--wait");
    let reset = arguments.flag("--reset");
    let listened = arguments.flag("--listened");
    let freebind = arguments.flag("--freebind");
    arguments.done()?;
    let hold = hold.as_deref();

    let socket = match transport {
        Some(transport) => transport.open(peer.ip())?,
        None => open(family(peer.ip()), from)?,
    };
    if freebind {
        allow_any_source(&socket)?;
    }
    if let Some(source) = source {
        let source = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(socket.as_raw_fd(), &source).named("bind")?;
    }
    if fast_open_connect {
        let on = 1i32.to_ne_bytes();
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &on)?;
    }
    if reset {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &at_once).named("setsockopt")?;
    }
    if abandon {
        setsockopt(&socket, sockopt::SndBuf, &(4 * bytes as usize)).named("setsockopt")?;
    }
    if listened {
        nix::sys::socket::listen(&socket, Backlog::MAXCONN).named("listen")?;
        shutdown(socket.as_raw_fd(), How::Read).named("shutdown")?;
    }
    let mut sent = Sent::default();
    if hold == Some("socket") {
        sent.tell();
        if !told_to_proceed() {
            return Ok(());
        }
    }
    let address = SockaddrStorage::from(peer);
    if fast_open {
        // Connects and sends in one call, past the hooks of connect(2).
        let first = [b'x'; 8];
        sent.bytes += sendto(
            socket.as_raw_fd(),
            &first,
            &address,
            MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
        )
        .named("sendto")? as u64;
    } else {
        call(socket.as_raw_fd(), &address).named("connect")?;
    }
    sent.port = own_port(&socket);
    let mut stream = File::from(socket);
    if hold == Some("peer") {
        sent.tell();
        while told_to_proceed() {
            send(&mut stream, bytes, &mut sent)?;
            sent.tell();
        }
    } else {
        send(&mut stream, bytes, &mut sent)?;
    }
    if wait {
        wait_for_end(&mut stream, &sent)?;
    }
    if abandon {
        sent.tell();
        return Ok(());
    }
    // The far end closes when it has read everything, so all of it has arrived
    // when this returns.
    match transport {
        Some(transport) => transport.end(&stream)?,
        None => shutdown(stream.as_raw_fd(), How::Write).named("shutdown")?,
    }
    match stream.read_to_end(&mut Vec::new()) {
        // SCTP has no half that stays open: it is over.
        Err(error) if transport.is_some() && error.kind() == ErrorKind::NotConnected => 0,
        read => read.named("read")?,
    };
    sent.tell();
    Ok(())
}

/// `traffic serve`
pub fn serve(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let bytes: u64 = arguments.option("--bytes")?.unwrap_or(0);
    let wait = arguments.flag("--wait");
    let transport: Option<Transport> = arguments.option("--transport")?;
    let listener = match transport {
        _ if arguments.flag("--activated") => {
            TcpListener::from(stdin().as_fd().try_clone_to_owned().named("dup")?)
        }
        Some(transport) => transport.listen(port)?,
        None => listen(port)?,
    };
    let again = arguments.flag("--again");
    arguments.done()?;
    let mut sent = Sent {
        port,
        ..Sent::default()
    };
    sent.tell();
    loop {
        let (mut stream, _) = listener.accept().named("accept")?;
        send(&mut stream, bytes, &mut sent)?;
        if wait {
            wait_for_end(&mut stream, &sent)?;
        }
        if again {
            // Nobody reads so many lines.
            end(stream.into())?;
            continue;
        }
        stream.shutdown(Shutdown::Write).named("shutdown")?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).named("read")?;
        sent.tell();
        return Ok(());
    }
}

/// Listens on every address, IPv4 and IPv6.
pub fn listen(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).named("bind")
}

/// Says that there is no more to come, and waits until the far end has read everything
/// and closes.
pub fn end(socket: OwnedFd) -> Answer {
    shutdown(socket.as_raw_fd(), How::Write).named("shutdown")?;
    let mut rest = Vec::new();
    File::from(socket)
        .read_to_end(&mut rest)
        .named("read")
        .map(drop)
}

/// Tells that the connection is there, and reads until it is not any more.
fn wait_for_end(stream: &mut impl Read, sent: &Sent) -> Answer {
    sent.tell();
    stream.read_to_end(&mut Vec::new()).named("read").map(drop)
}

pub fn send(stream: &mut impl Write, bytes: u64, sent: &mut Sent) -> Answer {
    let chunk = [b'x'; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let written = stream
            .write(chunk.get(..length).unwrap_or(&chunk))
            .named("write")?;
        left -= written as u64;
        sent.bytes += written as u64;
    }
    Ok(())
}
