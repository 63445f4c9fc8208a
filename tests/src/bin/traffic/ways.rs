//! Goes ways out that are drawn at random. Each is gone in a process of its own; answers of
//! the kernel do not matter.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use io_uring::opcode;
use io_uring::types::Fd;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrLike, SockaddrStorage, sendmsg};
use nix::sys::wait::{wait, waitpid};
use nix::unistd::{ForkResult, fork};
use trefoil_lab::packets::{LOOSE, routing_option, source_route};
use trefoil_lab::places::{FOREIGN, FOREIGN6, GATEWAY, GATEWAY6, HOST, HOST6, PEER, PEER6};
use trefoil_lab::router::{LINK, ROUTER, ROUTER6};
use trefoil_lab::ways::{Call, Case, Extra, Family, Kind, Place, Race, TRANSLATED, TRANSLATED6};

use crate::arguments::Arguments;
use crate::handed::received;
use crate::{Answer, Failure, Named, Sent};

mod calls;
mod message;
mod whole;

use calls::{disconnect, empty_message, part, sendto, set, submit};

const GATEWAY_PORT: u16 = 443;
/// The peer offers a foreign address there, by MPTCP.
const MPTCP_PORT: u16 = 445;
/// Cases that are gone at once, so that who waits does not keep the others waiting.
const AT_ONCE: usize = 4;
const TURNS: usize = 12;
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// `traffic ways`
pub fn ways(arguments: &mut Arguments) -> Answer {
    let seed: u64 = arguments.value("a seed")?;
    let first: u64 = arguments.option("--from")?.unwrap_or(0);
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let in_container = arguments.flag("--container");
    let tun: String = arguments.option("--tun")?.unwrap_or_default();
    let parse = |word: String| {
        let part = word.parse();
        part.map_err(|_| Failure::Usage(format!("{word} is no part of a case")))
    };
    let without = arguments.options("--without")?.into_iter().map(parse);
    let without: Vec<usize> = without.collect::<Result<_, _>>()?;
    arguments.done()?;
    let mut running = 0;
    for number in first..first + count {
        let case = Case::draw(seed, number, in_container).without_all(&without);
        if running == AT_ONCE {
            wait().named("wait")?;
            running -= 1;
        }
        // SAFETY: this process has one thread.
        match unsafe { fork() }.named("fork")? {
            ForkResult::Parent { .. } => running += 1,
            ForkResult::Child => {
                // A case that hangs ends, too.
                // SAFETY: alarm(2) reads no memory.
                unsafe { libc::alarm(5) };
                Way::new(&case, in_container, &tun).go();
                std::process::exit(0);
            }
        }
    }
    for _ in 0..running {
        wait().named("wait")?;
    }
    Sent {
        packets: count,
        ..Sent::default()
    }
    .tell();
    Ok(())
}

struct Way<'case> {
    case: &'case Case,
    in_container: bool,
    devices: [&'static str; 8],
    /// Path of the device node by which tun devices are opened.
    tun: &'case str,
}

impl<'case> Way<'case> {
    fn new(case: &'case Case, in_container: bool, tun: &'case str) -> Self {
        let devices = match in_container {
            true => [
                "to-host",
                "lo",
                "own-a",
                "own-b",
                "own-bridge",
                "own-macvlan",
                "own-vxlan",
                "to-host",
            ],
            false => [
                "to-foreign",
                LINK,
                "to-gateway",
                "lo",
                "to-foreign",
                LINK,
                "to-peer",
                "own-tun",
            ],
        };
        Self {
            case,
            in_container,
            devices,
            tun,
        }
    }

    fn has(&self, extra: Extra) -> bool {
        self.case.extras.contains(&extra)
    }

    fn is_v6(&self) -> bool {
        self.case.family == Family::V6
    }

    fn link_index(&self) -> u32 {
        let name = if self.in_container { "to-host" } else { LINK };
        nix::net::if_::if_nametoindex(name).unwrap_or(0)
    }

    /// Where a place is, in the family of the packets.
    fn at(&self, place: Place) -> SocketAddr {
        let v6 = self.is_v6();
        let pick = |four: IpAddr, six: IpAddr| if v6 { six } else { four };
        let link4 = Ipv4Addr::new(169, 254, 169, 254);
        let link6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x21);
        let wide6 = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 8, 1);
        let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xcb00, 0x710a);
        let (address, port) = match place {
            Place::Foreign => (pick(FOREIGN, FOREIGN6), 9),
            Place::Gateway => (pick(GATEWAY, GATEWAY6), GATEWAY_PORT),
            Place::OtherPort => (pick(GATEWAY, GATEWAY6), GATEWAY_PORT + 1),
            Place::Peer if self.case.kind == Kind::Mptcp => (pick(PEER, PEER6), MPTCP_PORT),
            Place::Peer => (pick(PEER, PEER6), 9),
            Place::Router => (pick(ROUTER, ROUTER6), GATEWAY_PORT),
            Place::Link => (pick(link4.into(), link6.into()), 9),
            Place::Own => (pick(HOST, HOST6), 9),
            Place::Loopback => (
                pick(Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
                9,
            ),
            Place::Wide => (pick(Ipv4Addr::new(239, 1, 1, 1).into(), wide6.into()), 9),
            Place::Embedded => (pick(FOREIGN, nat64.into()), 9),
            Place::Translated => (pick(TRANSLATED, TRANSLATED6), 9),
        };
        match address {
            IpAddr::V6(address) if matches!(place, Place::Link | Place::Wide) => {
                SocketAddrV6::new(address, port, 0, self.link_index()).into()
            }
            address => SocketAddr::new(address, port),
        }
    }

    /// The same as the socket takes it.
    fn address(&self, place: Place) -> SockaddrStorage {
        let at = self.at(place);
        match (self.case.family, at.ip()) {
            (Family::Mapped, IpAddr::V4(address)) => {
                SocketAddr::new(address.to_ipv6_mapped().into(), at.port()).into()
            }
            _ => at.into(),
        }
    }

    fn go(&self) {
        if self.has(Extra::NetworkNamespace) {
            let _ = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
        } else if self.has(Extra::UserNamespace) {
            let _ = unshare(CloneFlags::CLONE_NEWUSER);
        }
        match self.case.kind {
            Kind::Packet | Kind::TxRing => return self.frames(),
            Kind::Header => return self.headers(),
            Kind::Tun => return self.through_tun(),
            _ => {}
        }
        let Some(socket) = self.open() else {
            return;
        };
        self.set_extras(&socket);
        match self.case.race {
            Race::None => self.send_both(socket.as_raw_fd()),
            Race::Reconnect => std::thread::scope(|scope| {
                scope.spawn(|| {
                    for turn in 0..TURNS {
                        let place = [self.case.then, self.case.first][turn % 2];
                        if turn % 3 == 2 {
                            disconnect(socket.as_raw_fd());
                        }
                        self.connect(socket.as_raw_fd(), place);
                    }
                });
                (0..TURNS).for_each(|_| self.send_both(socket.as_raw_fd()));
            }),
            Race::Replace => std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        if let Some(other) = self.open() {
                            self.connect(other.as_raw_fd(), self.case.then);
                            // SAFETY: dup2(2) reads no memory; both descriptors are open.
                            unsafe { libc::dup2(other.as_raw_fd(), socket.as_raw_fd()) };
                        }
                    }
                });
                (0..TURNS).for_each(|_| self.send_both(socket.as_raw_fd()));
            }),
            Race::Fork => {
                // SAFETY: this process has one thread.
                let forked = unsafe { fork() };
                self.send_both(socket.as_raw_fd());
                match forked {
                    Ok(ForkResult::Child) => std::process::exit(0),
                    Ok(ForkResult::Parent { child }) => drop(waitpid(child, None)),
                    Err(_) => {}
                }
            }
            Race::Pass => self.pass(socket),
            Race::Exec => {
                self.connect(socket.as_raw_fd(), self.case.first);
                let Ok(own) = std::env::current_exe() else {
                    return;
                };
                let _ = Command::new(own)
                    .args(["use", "inherited"])
                    .stdin(Stdio::from(socket))
                    .stdout(Stdio::null())
                    .exec();
            }
        }
    }

    /// A child gets the socket by a message, and sends while this process does, or once it has
    /// closed it.
    fn pass(&self, socket: OwnedFd) {
        let Ok((near, far)) = UnixStream::pair() else {
            return;
        };
        self.connect(socket.as_raw_fd(), self.case.first);
        let descriptors = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(b"x")];
        let _ = sendmsg::<()>(near.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None);
        // SAFETY: this process has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                drop(socket);
                if let Ok(socket) = received(&OwnedFd::from(far)) {
                    self.send_both(socket.as_raw_fd());
                }
                std::process::exit(0);
            }
            Ok(ForkResult::Parent { child }) => {
                if !self.has(Extra::Unspec) {
                    self.send_both(socket.as_raw_fd());
                }
                drop(socket);
                let _ = waitpid(child, None);
            }
            Err(_) => {}
        }
    }

    fn open(&self) -> Option<OwnedFd> {
        let family = match self.case.family {
            Family::V4 => libc::AF_INET,
            _ => libc::AF_INET6,
        };
        let (kind, protocol) = match self.case.kind {
            Kind::Udp => (libc::SOCK_DGRAM, 0),
            Kind::UdpLite => (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            Kind::Tcp => (libc::SOCK_STREAM, 0),
            Kind::Mptcp => (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            Kind::Ping if family == libc::AF_INET => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            Kind::Ping => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
            _ => (libc::SOCK_RAW, 253),
        };
        // SAFETY: socket(2) with numbers reads no memory.
        let socket = unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK, protocol) };
        // SAFETY: the descriptor is new and nobody else's.
        (socket >= 0).then(|| unsafe { OwnedFd::from_raw_fd(socket) })
    }

    fn set_extras(&self, socket: &OwnedFd) {
        let fd = socket.as_raw_fd();
        let number = |level, name, value: i32| set(fd, level, name, &value.to_ne_bytes());
        let (v6, udp) = (self.case.family != Family::V4, self.case.kind == Kind::Udp);
        for extra in &self.case.extras {
            match *extra {
                Extra::Route(by) => {
                    let (level, name, value) = self.route(by, false);
                    set(fd, level, name, &value);
                }
                Extra::Options if v6 => {
                    set(fd, 41, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]);
                }
                Extra::Options => set(fd, 0, libc::IP_OPTIONS, &[1, 1, 1, 1]),
                Extra::Transparent => number(0, libc::IP_TRANSPARENT, 1),
                Extra::FreeBind => {
                    number(0, libc::IP_FREEBIND, 1);
                    number(41, libc::IPV6_FREEBIND, 1);
                    let mut from = self.at(Place::Peer);
                    from.set_port(0);
                    let from = match (self.case.family, from.ip()) {
                        (Family::Mapped, IpAddr::V4(address)) => {
                            SocketAddr::new(address.to_ipv6_mapped().into(), 0)
                        }
                        _ => from,
                    };
                    let _ = nix::sys::socket::bind(fd, &SockaddrStorage::from(from));
                }
                Extra::Device(which) => {
                    let device = self.device(which).as_bytes();
                    set(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device);
                }
                Extra::UnicastDevice(which) => {
                    let index = nix::net::if_::if_nametoindex(self.device(which)).unwrap_or(0);
                    set(fd, 0, libc::IP_UNICAST_IF, &index.to_be_bytes());
                    set(fd, 41, libc::IPV6_UNICAST_IF, &index.to_be_bytes());
                    let index = index.to_ne_bytes();
                    set(fd, 41, libc::IPV6_MULTICAST_IF, &index);
                }
                Extra::Segments if udp => number(libc::SOL_UDP, libc::UDP_SEGMENT, 16),
                Extra::Cork if udp => number(libc::SOL_UDP, libc::UDP_CORK, 1),
                Extra::Cork => number(libc::IPPROTO_TCP, libc::TCP_CORK, 1),
                Extra::Repair => number(libc::IPPROTO_TCP, libc::TCP_REPAIR, 1),
                Extra::V6Only => number(41, libc::IPV6_V6ONLY, 1),
                Extra::FlowLabel => {
                    // IPV6_AUTOFLOWLABEL and IPV6_FLOWINFO_SEND
                    number(41, 70, 1);
                    number(41, 33, 1);
                }
                Extra::SmallPackets => {
                    number(0, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
                    number(41, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT);
                    number(41, libc::IPV6_MTU, 1280);
                }
                Extra::Mark => number(libc::SOL_SOCKET, libc::SO_MARK, 7),
                Extra::Broadcast => number(libc::SOL_SOCKET, libc::SO_BROADCAST, 1),
                Extra::ShortLived => {
                    number(0, libc::IP_TTL, 1);
                    number(41, libc::IPV6_UNICAST_HOPS, 1);
                }
                _ => {}
            }
        }
    }

    fn device(&self, which: u8) -> &'static str {
        self.devices[usize::from(which) % 8]
    }

    /// Level, name and value of a list of destinations: by a place to the foreign one.
    fn route(&self, by: Place, in_message: bool) -> (i32, i32, Vec<u8>) {
        let hops = [self.at(by).ip(), self.at(Place::Foreign).ip()];
        if self.is_v6() {
            return (41, libc::IPV6_RTHDR, routing_option(&hops));
        }
        let name = if in_message {
            libc::IP_RETOPTS
        } else {
            libc::IP_OPTIONS
        };
        (0, name, source_route(LOOSE, &hops))
    }

    fn connect(&self, fd: RawFd, place: Place) {
        let _ = nix::sys::socket::connect(fd, &self.address(place));
        if matches!(self.case.kind, Kind::Tcp | Kind::Mptcp) {
            let mut wanted = libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            };
            // SAFETY: the kernel reads and writes one entry.
            unsafe { libc::poll(&raw mut wanted, 1, 3) };
        }
    }

    fn send_both(&self, fd: RawFd) {
        self.send(fd, self.case.first);
        if self.has(Extra::Unspec) {
            disconnect(fd);
        }
        self.send(fd, self.case.then);
        if self.has(Extra::Cork) {
            let off = 0_i32.to_ne_bytes();
            set(fd, libc::SOL_UDP, libc::UDP_CORK, &off);
            set(fd, libc::IPPROTO_TCP, libc::TCP_CORK, &off);
        }
    }

    fn send(&self, fd: RawFd, place: Place) {
        let is_ping = self.case.kind == Kind::Ping;
        let echo = if self.case.family == Family::V4 {
            8
        } else {
            128
        };
        let mut payload = vec![if is_ping { echo } else { b'x' }, 0, 0, 0, 0, 1, 0, 1];
        payload.resize(if self.has(Extra::Large) { 4000 } else { 64 }, 0);
        // This process ends before long.
        let payload: &[u8] = payload.leak();
        let mut flags = FLAGS;
        if self.has(Extra::More) {
            flags |= libc::MSG_MORE;
        }
        if self.has(Extra::DontRoute) {
            flags |= libc::MSG_DONTROUTE;
        }
        match self.case.call {
            Call::Sendto => sendto(fd, payload, &self.address(place), flags),
            Call::FastOpen => {
                let flags = flags | libc::MSG_FASTOPEN;
                sendto(fd, payload, &self.address(place), flags);
            }
            Call::Sendmsg => self.messages(fd, &[place], payload, flags),
            Call::Sendmmsg => {
                let other = match place == self.case.first {
                    true => self.case.then,
                    false => self.case.first,
                };
                self.messages(fd, &[place, other], payload, flags);
            }
            Call::Send => {
                self.connect(fd, place);
                // SAFETY: the kernel reads the payload, of this length.
                unsafe { libc::send(fd, payload.as_ptr().cast(), payload.len(), flags) };
            }
            Call::Write => {
                self.connect(fd, place);
                // SAFETY: the kernel reads the payload, of this length.
                unsafe { libc::write(fd, payload.as_ptr().cast(), payload.len()) };
            }
            Call::Sendfile => {
                self.connect(fd, place);
                if let Ok(file) = std::fs::File::open("/proc/self/exe") {
                    // SAFETY: sendfile(2) without an offset reads no memory of ours.
                    unsafe { libc::sendfile(fd, file.as_raw_fd(), std::ptr::null_mut(), 64) };
                }
            }
            Call::Splice => {
                self.connect(fd, place);
                if let Ok((reader, writer)) = nix::unistd::pipe() {
                    let _ = nix::unistd::write(&writer, payload);
                    let (none, flags) = (std::ptr::null_mut(), libc::SPLICE_F_NONBLOCK);
                    // SAFETY: splice(2) without offsets reads no memory of ours.
                    unsafe { libc::splice(reader.as_raw_fd(), none, fd, none, 64, flags) };
                }
            }
            Call::Ring => {
                let address = self.address(place);
                let connect = opcode::Connect::new(Fd(fd), address.as_ptr(), address.len());
                let send = opcode::Send::new(Fd(fd), payload.as_ptr(), payload.len() as u32);
                submit(&[connect.build(), send.flags(FLAGS).build()]);
            }
            Call::RingMessage => {
                let address = self.address(place);
                let (mut part, mut message) = (part(payload), empty_message());
                message.msg_name = address.as_ptr().cast_mut().cast();
                message.msg_namelen = address.len();
                message.msg_iov = &raw mut part;
                message.msg_iovlen = 1;
                let send = opcode::SendMsg::new(Fd(fd), &raw const message);
                submit(&[send.flags(FLAGS as u32).build()]);
            }
        }
    }
}
