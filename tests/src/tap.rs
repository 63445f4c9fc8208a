//! What packets look like when they arrive at a far place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use crate::frames;
use crate::namespace::Namespace;
use crate::sink::Arrived;

const ETHERNET_HEADER: usize = 14;
const LOOK_ROUND_MS: u16 = 50;
const RECEIVE_BUFFER: usize = 64 << 20;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// How the link addresses begin that frames come from.
const HOSTS_OWN: [u8; 5] = [0x02, 0, 0, 0, 0x01];

/// What an IP header says that does not depend on timing: no identification, no
/// flow label, no checksum, and no length either, since a stream may be cut into
/// packets at any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header {
    /// 4 or 6.
    pub version: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// Time to live or hop limit.
    pub hops: u8,
    /// Protocol or next header.
    pub protocol: u8,
}

#[derive(Debug, Default)]
struct Seen {
    frames: u64,
    packets: u64,
    headers: BTreeSet<Header>,
    by_destination: BTreeMap<IpAddr, Arrived>,
    as_sent: BTreeMap<IpAddr, Arrived>,
    acknowledgements: BTreeMap<IpAddr, Arrived>,
}

/// Looks at every packet that arrives at a place from the host.
#[derive(Debug)]
pub struct Tap {
    socket: Arc<OwnedFd>,
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Begins to look.
    pub fn new(place: &Namespace) -> Result<Self> {
        let socket = place.enter(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .context("open a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(Arc::new(socket))
        })?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, seen, end) = (socket.clone(), seen.clone(), end.clone());
            move || look(&socket, &seen, &end)
        });
        Ok(Self {
            socket,
            seen,
            end,
            thread: Some(thread),
        })
    }

    /// Number of packets so far.
    pub fn packets(&self) -> u64 {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .packets
    }

    /// Number of frames from the host so far, whatever is in them.
    pub fn frames(&self) -> u64 {
        self.read(|seen| seen.frames)
    }

    /// Number of frames that there was no room for, since this was last asked.
    pub fn lost(&self) -> Result<u32> {
        frames::lost(&self.socket).context("ask a packet socket")
    }

    /// Packets so far by where they go, as [`to`](Self::to).
    pub fn destinations(&self) -> BTreeMap<IpAddr, Arrived> {
        self.read(|seen| seen.by_destination.clone())
    }

    /// As [`destinations`](Self::destinations), resets and all, and without the headers that
    /// each fragment has of its own: in bytes as sockets sent them.
    pub fn as_sent(&self) -> BTreeMap<IpAddr, Arrived> {
        self.read(|seen| seen.as_sent.clone())
    }

    /// Of these, what acknowledges or ends a connection of TCP and carries nothing.
    pub fn acknowledgements(&self) -> BTreeMap<IpAddr, Arrived> {
        self.read(|seen| seen.acknowledgements.clone())
    }

    fn read<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Packets to an address so far, in bytes headers included. Resets of TCP that
    /// carry nothing are left out: that is how a connection is cut.
    pub fn to(&self, address: IpAddr) -> Arrived {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.by_destination
            .get(&address)
            .copied()
            .unwrap_or_default()
    }

    /// Headers seen so far, each once.
    pub fn headers(&self) -> BTreeSet<Header> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .headers
            .clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(socket: &OwnedFd, seen: &Mutex<Seen>, end: &AtomicBool) {
    let mut frame = [0; 128];
    while !end.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK_ROUND_MS)).is_err() {
            continue;
        }
        while let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
            let start = frame.get(..length.min(frame.len())).unwrap_or_default();
            if start.get(6..11) == Some(&HOSTS_OWN) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).frames += 1;
            }
            let Some(header) = header_from_host(start) else {
                continue;
            };
            let packet = start.get(ETHERNET_HEADER..).unwrap_or_default();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.packets += 1;
            seen.headers.insert(header);
            let Some(to) = destination(packet) else {
                continue;
            };
            let bytes = length - ETHERNET_HEADER;
            let whole = bytes.saturating_sub(cut_overhead(packet));
            seen.as_sent.entry(to).or_default().add(whole);
            if is_acknowledgement(packet) {
                seen.acknowledgements.entry(to).or_default().add(whole);
            }
            if !is_bare_reset(packet) {
                seen.by_destination.entry(to).or_default().add(bytes);
            }
        }
    }
}

/// The IP header of a frame that came from the host. What this place sends is
/// seen as well, and passed over.
fn header_from_host(frame: &[u8]) -> Option<Header> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    if ethernet.get(6..11)? != HOSTS_OWN {
        return None;
    }
    let byte = |index: usize| packet.get(index).copied();
    if ethernet.get(12..)? == ETHERTYPE_IPV4 {
        return Some(Header {
            version: 4,
            traffic_class: byte(1)?,
            fragment: u16::from_be_bytes([byte(6)?, byte(7)?]),
            hops: byte(8)?,
            protocol: byte(9)?,
        });
    }
    (ethernet.get(12..)? == ETHERTYPE_IPV6).then_some(Header {
        version: 6,
        traffic_class: byte(0)? << 4 | byte(1)? >> 4,
        fragment: 0,
        hops: byte(7)?,
        protocol: byte(6)?,
    })
}

/// The destination address of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    if packet.first()? >> 4 == 4 {
        let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        return Some(octets.into());
    }
    let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    Some(octets.into())
}

/// Bytes that are in a packet because it is a fragment.
fn cut_overhead(packet: &[u8]) -> usize {
    const FRAGMENT: u8 = 44;
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    if byte(0) >> 4 == 4 {
        let is_later = u16::from_be_bytes([byte(6) & 0x1f, byte(7)]) > 0;
        return if is_later {
            usize::from(byte(0) & 15) * 4
        } else {
            0
        };
    }
    match (byte(6), u16::from_be_bytes([byte(42), byte(43)]) >> 3) {
        (FRAGMENT, 0) => 8,
        (FRAGMENT, _) => 48,
        _ => 0,
    }
}

/// True for a reset of TCP that carries nothing.
fn is_bare_reset(packet: &[u8]) -> bool {
    bare_flags(packet).is_some_and(|flags| flags & RESET != 0)
}

/// True for what a socket of TCP has to say when nothing is to be sent and nothing begins.
fn is_acknowledgement(packet: &[u8]) -> bool {
    bare_flags(packet).is_some_and(|flags| flags & (RESET | SYN) == 0)
}

const SYN: u8 = 2;
const RESET: u8 = 4;

/// The flags of a segment of TCP that carries nothing.
fn bare_flags(packet: &[u8]) -> Option<u8> {
    let (protocol, offset, len) = if packet.first()? >> 4 == 4 {
        let len = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
        (packet.get(9)?, usize::from(packet.first()? & 15) * 4, len)
    } else {
        let len = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
        (packet.get(6)?, 40, len + 40)
    };
    let tcp = packet.get(offset..)?;
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let is_bare = *protocol == 6 && offset + header == usize::from(len);
    is_bare.then_some(*tcp.get(13)?)
}
