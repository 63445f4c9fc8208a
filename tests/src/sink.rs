//! Receivers at the far end that count what arrives.
//!
//! They are threads of the test with sockets of another namespace, outside of
//! the lab's control group: nothing that the agent does can reach them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn6, bind, recvmsg,
    setsockopt, socket, sockopt,
};

use crate::namespace::Namespace;
use crate::wait::wait_for;

/// Far more than a test sends before the sink's thread gets a turn.
const RECEIVE_BUFFER: usize = 256 << 20;
/// How often a sink looks whether it is to end.
const LOOK_ROUND_MS: u16 = 50;

/// Binds to a port. A sink that was dropped may still be there for a moment: a
/// child of another test, between fork and exec, has copies of all descriptors.
fn when_free<T>(port: &str, mut bind: impl FnMut() -> std::io::Result<T>) -> Result<T> {
    wait_for(&format!("{port} is free"), || match bind() {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).with_context(|| format!("bind a sink to {port}")),
    })
}

/// Datagrams that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Number of datagrams.
    pub packets: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

impl Arrived {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

#[derive(Debug, Default)]
struct UdpCounts {
    all: Arrived,
    by_source_port: BTreeMap<u16, Arrived>,
    by_destination: BTreeMap<IpAddr, Arrived>,
}

/// Receives datagrams on one port of every address of a place, IPv4 and IPv6.
#[derive(Debug)]
pub struct UdpSink {
    counts: Arc<Mutex<UdpCounts>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpSink {
    /// Begins to receive.
    pub fn new(place: &Namespace, port: u16) -> Result<Self> {
        let socket = place.enter(|| {
            let socket = socket(
                AddressFamily::Inet6,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
            when_free(&format!("UDP port {port}"), || {
                Ok(bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?)
            })?;
            Ok(socket)
        })?;
        let counts = Arc::new(Mutex::new(UdpCounts::default()));
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (counts, end) = (counts.clone(), end.clone());
            move || receive(&socket, &counts, &end)
        });
        Ok(Self {
            counts,
            end,
            thread: Some(thread),
        })
    }

    fn read<T>(&self, look: impl FnOnce(&UdpCounts) -> T) -> T {
        look(&self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything that has arrived so far.
    pub fn arrived(&self) -> Arrived {
        self.read(|counts| counts.all)
    }

    /// Returns the datagrams that have arrived from each source port.
    pub fn by_source_port(&self) -> BTreeMap<u16, Arrived> {
        self.read(|counts| counts.by_source_port.clone())
    }

    /// Returns the datagrams that have arrived at each address of this place.
    pub fn by_destination(&self) -> BTreeMap<IpAddr, Arrived> {
        self.read(|counts| counts.by_destination.clone())
    }

    /// Waits until `packets` datagrams have arrived.
    pub fn wait_for_packets(&self, packets: u64) -> Result<Arrived> {
        wait_for(&format!("{packets} datagrams arrive"), || {
            Ok(Some(self.arrived()).filter(|arrived| arrived.packets >= packets))
        })
        .with_context(|| format!("so far: {:?}", self.arrived()))
    }
}

impl Drop for UdpSink {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &OwnedFd, counts: &Mutex<UdpCounts>, end: &AtomicBool) {
    let mut payload = vec![0; 1 << 16];
    let mut control = cmsg_space!(libc::in6_pktinfo);
    while !end.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK_ROUND_MS)).is_err() {
            continue;
        }
        loop {
            let mut parts = [IoSliceMut::new(&mut payload)];
            let message = match recvmsg::<SockaddrIn6>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            ) {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let destination = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|one| match one {
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical())
                    }
                    _ => None,
                })
            });
            let bytes = message.bytes;
            let source = message.address.map(|address| address.port());
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.all.add(bytes);
            if let Some(port) = source {
                counts.by_source_port.entry(port).or_default().add(bytes);
            }
            if let Some(address) = destination {
                counts.by_destination.entry(address).or_default().add(bytes);
            }
        }
    }
}

#[derive(Debug, Default)]
struct TcpCounts {
    connections: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
}

/// Accepts connections on one port of every address of a place, reads them to
/// their end and closes them.
#[derive(Debug)]
pub struct TcpSink {
    counts: Arc<TcpCounts>,
    end: Arc<AtomicBool>,
    address: SocketAddr,
    place: Namespace,
    thread: Option<JoinHandle<()>>,
}

impl TcpSink {
    /// Begins to accept.
    pub fn new(place: &Namespace, port: u16) -> Result<Self> {
        Self::of(place, port, true)
    }

    /// The same for many short connections: it reads each to its end before it accepts the next.
    pub fn one_by_one(place: &Namespace, port: u16) -> Result<Self> {
        Self::of(place, port, false)
    }

    fn of(place: &Namespace, port: u16, at_once: bool) -> Result<Self> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        // The standard library leaves IPV6_V6ONLY at the kernel's default: off.
        let listener = place
            .enter(|| when_free(&format!("TCP port {port}"), || TcpListener::bind(address)))?;
        let counts = Arc::new(TcpCounts::default());
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (counts, end) = (counts.clone(), end.clone());
            move || accept(&listener, &counts, &end, at_once)
        });
        let place = place.clone();
        Ok(Self {
            counts,
            end,
            address,
            place,
            thread: Some(thread),
        })
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Connections that have come to their end.
    pub fn ended(&self) -> u64 {
        self.counts.ended.load(Ordering::Relaxed)
    }

    /// Bytes of payload received.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for TcpSink {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // A connection of our own wakes the thread that accepts.
        let mut address = self.address;
        address.set_ip(Ipv6Addr::LOCALHOST.into());
        let woken = self
            .place
            .enter(|| Ok(TcpStream::connect(address).map(|_| ())?))
            .is_ok();
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(10);

fn accept(listener: &TcpListener, counts: &Arc<TcpCounts>, end: &AtomicBool, at_once: bool) {
    loop {
        let accepted = listener.accept();
        if end.load(Ordering::Relaxed) {
            return;
        }
        // One that was reset meanwhile, or no room for a descriptor: others will come.
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(PAUSE);
            continue;
        };
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let counts = counts.clone();
        match at_once {
            true => drop(std::thread::spawn(move || read_to_end(stream, &counts))),
            false => read_to_end(stream, &counts),
        }
    }
}

fn read_to_end(mut stream: TcpStream, counts: &TcpCounts) {
    let mut buffer = vec![0; 1 << 18];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
    let _ = stream.shutdown(Shutdown::Both);
    drop(stream);
    counts.ended.fetch_add(1, Ordering::Relaxed);
}
