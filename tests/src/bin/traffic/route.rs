//! Datagrams that name more than one destination: by an option of the socket, by a message
//! that goes with the datagram, or by a header of their own.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockType, SockaddrLike, SockaddrStorage, connect, socket};
use trefoil_lab::packets::{
    LOOSE, ROUTING, STRICT, UDP, datagram, ipv4, ipv6, routing_header, routing_option, source_route,
};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::udp::{family, own_port};
use crate::{Answer, Failure, Named, Sent, raw, tcp};

const PAYLOAD: [u8; 64] = [b'x'; 64];

/// Addresses on the way, and how they are written.
#[derive(Debug)]
pub struct Route {
    /// The first is where the packet is sent.
    pub via: Vec<IpAddr>,
    /// Type of the routing header, or of the option of IPv4.
    pub kind: u8,
}

impl Route {
    /// The options `--via ADDR`, repeated, and `--kind N|loose|strict`.
    pub fn of(arguments: &mut Arguments) -> Result<Self, Failure> {
        let parse = |word: String| {
            let address = word.parse();
            address.map_err(|_| Failure::Usage(format!("{word} is no address")))
        };
        let via = arguments.options("--via")?.into_iter().map(parse);
        let via: Vec<IpAddr> = via.collect::<Result<_, _>>()?;
        let kind: Option<String> = arguments.option("--kind")?;
        let kind = match kind.as_deref() {
            Some("loose") => LOOSE,
            Some("strict") => STRICT,
            Some(number) => number
                .parse()
                .map_err(|_| Failure::Usage(format!("{number} is no type of a list")))?,
            None if via.iter().all(IpAddr::is_ipv4) => LOOSE,
            None => 4,
        };
        Ok(Self { via, kind })
    }

    /// A whole packet of UDP that goes this way and then to `to`.
    pub fn packet(&self, from: SocketAddr, to: SocketAddr, size: usize) -> Vec<u8> {
        let content = datagram(from.port(), to.port(), size);
        let mut hops = self.via.clone();
        hops.push(to.ip());
        let first = hops.remove(0);
        match to.ip() {
            IpAddr::V4(_) => {
                let options = source_route(self.kind, &hops);
                let options = if hops.is_empty() { &[] } else { &options[..] };
                ipv4(from.ip(), first, UDP, options, &content)
            }
            IpAddr::V6(_) if hops.is_empty() => ipv6(from.ip(), first, UDP, &content),
            IpAddr::V6(_) => {
                let header = routing_header(self.kind, UDP, &hops);
                ipv6(from.ip(), first, ROUTING, &[header, content].concat())
            }
        }
    }

    /// Has all that a socket sends go this way, if it is one.
    pub fn set_on(&self, socket: &OwnedFd) -> Answer {
        if self.via.is_empty() {
            return Ok(());
        }
        let (level, name, value) = self.option(false);
        set_option(socket, level, name, &value)
    }

    /// Level, name and value of the option, or of the message, that asks for this way.
    fn option(&self, in_message: bool) -> (i32, i32, Vec<u8>) {
        if self.via.iter().all(IpAddr::is_ipv4) {
            let name = if in_message {
                libc::IP_RETOPTS
            } else {
                libc::IP_OPTIONS
            };
            return (libc::IPPROTO_IP, name, source_route(self.kind, &self.via));
        }
        let mut value = routing_option(&self.via);
        if let Some(kind) = value.get_mut(2) {
            *kind = self.kind;
        }
        (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, value)
    }
}

/// `traffic route`
pub fn route(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    let route = Route::of(arguments)?;
    let from: Option<SocketAddr> = arguments.option("--from")?;
    let finished = arguments.flag("--finished");
    let device: Option<String> = arguments.option("--device")?;
    let connected = arguments.flag("--connected");
    let stream = arguments.flag("--tcp");
    arguments.done()?;

    let socket = match how.as_str() {
        "header" => raw::open(to.ip(), libc::SOCK_RAW, libc::IPPROTO_RAW)?,
        _ if stream => tcp::open(family(to.ip()), None)?,
        _ => {
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(family(to.ip()), SockType::Datagram, flags, None).named("socket")?
        }
    };
    if let Some(device) = device {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        set_option(&socket, level, name, device.as_bytes())?;
    }
    let address = SockaddrStorage::from(to);
    let bytes = match how.as_str() {
        "option" => {
            let (level, name, value) = route.option(false);
            set_option(&socket, level, name, &value)?;
            if stream {
                return begin(&socket, &address);
            }
            if connected {
                connect(socket.as_raw_fd(), &address).named("connect")?;
            }
            message(&socket, (!connected).then_some(&address), &PAYLOAD, None)?
        }
        "message" => {
            if connected {
                connect(socket.as_raw_fd(), &address).named("connect")?;
            }
            let to = (!connected).then_some(&address);
            message(&socket, to, &PAYLOAD, Some(route.option(true)))?
        }
        "header" => {
            let from = from.ok_or_else(|| Failure::Usage("--from is missing".into()))?;
            let mut packet = route.packet(from, to, PAYLOAD.len());
            // Behind the header of IPv6: how many segments are left.
            if finished && let Some(left) = packet.get_mut(43) {
                *left = 0;
            }
            let first = route.via.first().copied().unwrap_or(to.ip());
            let first = SockaddrStorage::from(SocketAddr::new(first, 0));
            message(&socket, Some(&first), &packet, None)?
        }
        other => return Err(Failure::Usage(format!("no way {other:?}"))),
    };
    let sent = Sent {
        port: own_port(&socket),
        packets: 1,
        bytes: bytes as u64,
    };
    sent.tell();
    Ok(())
}

/// `traffic begin`
pub fn begin_one(arguments: &mut Arguments) -> Answer {
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let socket = tcp::open(family(to.ip()), None)?;
    begin(&socket, &SockaddrStorage::from(to))
}

/// Asks for a connection that nobody on the way will answer: the question is what leaves.
fn begin(socket: &OwnedFd, to: &SockaddrStorage) -> Answer {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(flags)).named("fcntl")?;
    match connect(socket.as_raw_fd(), to) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(Failure::Call("connect", errno)),
    }
    Sent {
        port: own_port(socket),
        packets: 1,
        bytes: 1,
    }
    .tell();
    // The kernel asks at once.
    Ok(())
}

/// sendmsg(2) with a message that nix does not have.
pub fn message(
    socket: &OwnedFd,
    to: Option<&SockaddrStorage>,
    payload: &[u8],
    control: Option<(i32, i32, Vec<u8>)>,
) -> Result<usize, Failure> {
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: all zeros is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(to) = to {
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
    }
    // Longs, so that the header in front is aligned.
    let mut room: Vec<u64> = Vec::new();
    if let Some((level, name, value)) = control {
        let len = size_of::<libc::cmsghdr>() + value.len();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(name.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(len.next_multiple_of(8), 0);
        let longs = bytes.chunks_exact(8);
        room.extend(longs.filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?))));
        message.msg_control = room.as_mut_ptr().cast();
        message.msg_controllen = len;
    }
    // SAFETY: what the message points to outlives the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    Ok(Errno::result(sent).named("sendmsg")? as usize)
}
