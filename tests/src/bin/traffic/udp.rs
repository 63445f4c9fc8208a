//! Datagrams: one or many, by each of the calls that send them.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, bind, connect,
    getsockname, send, sendmmsg, sendmsg, sendto, setsockopt, socket, sockopt,
};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::raw;
use crate::{Answer, Calls, Failure, Named, Sent, told_to_proceed};

/// After how many datagrams a sender with many pauses, so that it does not
/// outrun the queue of the link (1,000 packets): what is dropped there has been
/// handed over but never arrives.
const BATCH: u64 = 100;
const PAUSE: std::time::Duration = std::time::Duration::from_micros(200);

/// The call that sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    Sendto,
    Sendmsg,
    Sendmmsg,
}

impl FromStr for Call {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "sendto" => Ok(Self::Sendto),
            "sendmsg" => Ok(Self::Sendmsg),
            "sendmmsg" => Ok(Self::Sendmmsg),
            _ => Err(()),
        }
    }
}

/// The family of a socket that can send to `address`.
pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// Binds to a port of any address of the family.
pub fn bind_port(socket: &OwnedFd, family: AddressFamily, port: u16) -> Result<(), Failure> {
    setsockopt(socket, sockopt::ReuseAddr, &true).named("setsockopt")?;
    let any = match family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let any = SockaddrStorage::from(SocketAddr::new(any, port));
    bind(socket.as_raw_fd(), &any).named("bind")
}

/// The port that the socket is bound to.
pub fn own_port(socket: &OwnedFd) -> u16 {
    let Ok(name) = getsockname::<SockaddrStorage>(socket.as_raw_fd()) else {
        return 0;
    };
    let v4 = name.as_sockaddr_in().map(|name| name.port());
    v4.or(name.as_sockaddr_in6().map(|name| name.port()))
        .unwrap_or(0)
}

/// A UDP socket that may be bound to a port.
pub fn open(peer: SocketAddr, from: Option<u16>) -> Result<OwnedFd, Failure> {
    let family = family(peer.ip());
    let socket =
        socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).named("socket")?;
    if let Some(port) = from {
        bind_port(&socket, family, port)?;
    }
    Ok(socket)
}

/// Lets a socket have an address that this host has not.
pub fn allow_any_source(socket: &OwnedFd) -> Answer {
    let on = 1_i32.to_ne_bytes();
    set_option(socket, libc::SOL_IPV6, libc::IPV6_FREEBIND, &on)
}

/// `traffic udp`
pub fn one(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let from = arguments.option("--from")?;
    let payload = vec![b'x'; arguments.option("--size")?.unwrap_or(64)];
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let call: Call = arguments.option("--call")?.unwrap_or_default();
    let connected = arguments.flag("--connected");
    let hold = arguments.flag("--hold");
    let then: Option<SocketAddr> = arguments.option("--then")?;
    let lite = arguments.flag("--lite");
    let options = arguments.flag("--options");
    let source: Option<IpAddr> = arguments.option("--source")?;
    let device: Option<String> = arguments.option("--device")?;
    let freebind = arguments.flag("--freebind");
    arguments.done()?;

    let socket = if lite {
        raw::open(peer.ip(), libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?
    } else {
        open(peer, from)?
    };
    if freebind {
        allow_any_source(&socket)?;
    }
    if let Some(source) = source {
        let source = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(socket.as_raw_fd(), &source).named("bind")?;
    }
    if let Some(device) = device {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        set_option(&socket, level, name, device.as_bytes())?;
    }
    if options {
        add_options(&socket, peer.ip())?;
    }
    let address = SockaddrStorage::from(peer);
    if connected {
        connect(socket.as_raw_fd(), &address).named("connect")?;
    }
    let then = then.map(SockaddrStorage::from);
    let mut to = (!connected).then_some(&address);
    let mut sent = Sent {
        port: own_port(&socket),
        ..Sent::default()
    };
    if hold {
        sent.tell();
    }
    while !hold || told_to_proceed() {
        for number in 1..=count {
            match send_one(&socket, call, &payload, to) {
                Ok(bytes) => {
                    sent.bytes += bytes as u64;
                    sent.packets += 1;
                }
                Err(Failure::Call(_, Errno::EPERM)) if then.is_some() => {}
                Err(failure) => return Err(failure),
            }
            pause_after(number);
        }
        sent.port = own_port(&socket);
        sent.tell();
        if !hold {
            break;
        }
        to = then.as_ref().or(to);
    }
    Ok(())
}

/// Options that mean nothing: four of IPv4, or an extension header with padding.
fn add_options(socket: &OwnedFd, peer: IpAddr) -> Answer {
    if peer.is_ipv4() {
        set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 1, 1])
    } else {
        let header = [0, 0, 1, 4, 0, 0, 0, 0];
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &header)
    }
}

fn send_one(
    socket: &OwnedFd,
    call: Call,
    payload: &[u8],
    to: Option<&SockaddrStorage>,
) -> Result<usize, Failure> {
    let descriptor = socket.as_raw_fd();
    let parts = [IoSlice::new(payload)];
    match (call, to) {
        (Call::Sendto, Some(to)) => {
            sendto(descriptor, payload, to, MsgFlags::empty()).named("sendto")
        }
        (Call::Sendto, None) => send(descriptor, payload, MsgFlags::empty()).named("send"),
        (Call::Sendmsg, to) => {
            sendmsg(descriptor, &parts, &[], MsgFlags::empty(), to).named("sendmsg")
        }
        (Call::Sendmmsg, to) => {
            let mut headers = MultiHeaders::preallocate(1, None);
            let results = sendmmsg(
                descriptor,
                &mut headers,
                [&parts],
                [to.copied()],
                [],
                MsgFlags::empty(),
            )
            .named("sendmmsg")?;
            Ok(results.map(|result| result.bytes).sum())
        }
    }
}

/// `traffic rebind`: connected at one port, and sends from another.
pub fn rebind(arguments: &mut Arguments) -> Answer {
    let near: SocketAddr = arguments.value("ADDR:PORT")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let socket = open(peer, None)?;
    let (any, peer) = (SocketAddr::new(near.ip(), 0), SockaddrStorage::from(peer));
    bind(socket.as_raw_fd(), &SockaddrStorage::from(any)).named("bind")?;
    connect(socket.as_raw_fd(), &peer).named("connect")?;
    // AF_UNSPEC takes the peer away, and with it a port that nobody asked for.
    // SAFETY: an address of zeros is valid.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the address is as large as is said.
    let outcome = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, size) };
    Errno::result(outcome).named("connect")?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(near)).named("bind")?;
    connect(socket.as_raw_fd(), &peer).named("connect")?;
    let bytes = send_one(&socket, Call::Sendto, &[b'x'; 64], None)? as u64;
    Sent {
        port: own_port(&socket),
        packets: 1,
        bytes,
    }
    .tell();
    Ok(())
}

/// `traffic answer`: answers each datagram with the same, until it is killed.
pub fn answer(arguments: &mut Arguments) -> Answer {
    let at: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let socket = UdpSocket::bind(at).named("bind")?;
    Sent {
        port: at.port(),
        ..Sent::default()
    }
    .tell();
    let mut room = [0; 2048];
    loop {
        let (bytes, peer) = socket.recv_from(&mut room).named("recvfrom")?;
        // Whether it may is for the agent to say.
        let _ = socket.send_to(&room[..bytes], peer);
    }
}

/// `traffic receive`
pub fn receive(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    arguments.done()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).named("bind")?;
    let mut received = Sent {
        port,
        ..Sent::default()
    };
    received.tell();
    received.bytes = socket.recv(&mut [0; 2048]).named("recv")? as u64;
    received.packets = 1;
    received.tell();
    Ok(())
}

/// `traffic udp-many`
pub fn many(arguments: &mut Arguments) -> Answer {
    let first: SocketAddr = arguments.value("ADDR:PORT")?;
    let destinations: u32 = arguments.option("--destinations")?.unwrap_or(1);
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let payload = vec![b'x'; arguments.option("--size")?.unwrap_or(64)];
    let from = arguments.option("--from")?;
    let hold = arguments.flag("--hold");
    let fresh = arguments.flag("--fresh");
    let goes_on = arguments.flag("--go-on");
    arguments.done()?;

    let socket = open(first, from)?;
    let peers_from = |first_offset| -> Vec<SockaddrStorage> {
        (first_offset..first_offset + destinations)
            .map(|offset| SocketAddr::new(plus(first.ip(), offset), first.port()).into())
            .collect()
    };
    let mut next_offset = 0;
    let mut peers = peers_from(next_offset);
    let mut calls = Calls::default();
    let mut sent = Sent {
        port: own_port(&socket),
        ..Sent::default()
    };
    if hold {
        sent.tell();
    }
    while !hold || told_to_proceed() {
        for (peer, number) in peers.iter().cycle().zip(1..=count) {
            let answer = send_one(&socket, Call::Sendto, &payload, Some(peer));
            sent.bytes += calls.note(goes_on, answer.map(|bytes| bytes as u64))?;
            sent.packets += 1;
            pause_after(number);
        }
        sent.port = own_port(&socket);
        if goes_on {
            return calls.tell(&sent);
        }
        sent.tell();
        if !hold {
            break;
        }
        if fresh {
            next_offset += destinations;
            peers = peers_from(next_offset);
        }
    }
    Ok(())
}

/// Of many, so that they do not outrun the queue of the link.
pub fn pause_after(number: u64) {
    if number.is_multiple_of(BATCH) {
        std::thread::sleep(PAUSE);
    }
}

/// The address so many behind this one.
pub fn plus(address: IpAddr, offset: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + offset).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + u128::from(offset)).into(),
    }
}
