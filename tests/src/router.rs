//! A router that forwards more than it should: what is meant for the link alone, along
//! routing headers and source routes of every kind, and what frames of other kinds carry.
//!
//! It is a thread that reads frames and sends them on, since no kernel forwards all of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::frames::{self, PacketSocket};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::packets::{LOOSE, ROUTING, STRICT, ethertype_of, set_checksum, unwrapped};
use crate::places::{HOST, HOST6};
use crate::wiring;

/// The host's link to it.
pub const LINK: &str = "to-router";
/// Its address, which policies may approve.
pub const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 20));
/// Its address, which policies may approve.
pub const ROUTER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20));
/// Its address on the link.
pub const ROUTER_LINK: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x20));
/// Its address in frames.
pub const ROUTER_MAC: &str = "02:00:00:00:02:50";

const NEAR_MAC: &str = "02:00:00:00:01:50";
const FOREIGN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0x51];
/// Begins as those of the host's own links do.
const OUT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x51];
const LOOK_ROUND_MS: u16 = 20;
const RECEIVE_BUFFER: usize = 64 << 20;

/// The router, between the host and the foreign place of a lab.
#[derive(Debug)]
pub struct Router {
    /// Where it is.
    pub place: Namespace,
    near: Arc<OwnedFd>,
    received: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Puts one into a lab. Link-scope addresses of both families are behind it.
    pub fn new(lab: &Lab) -> Result<Self> {
        let place = Namespace::new("router")?;
        for end in [&place, &lab.host, &lab.foreign] {
            end.enter(wiring::quieten)?;
        }
        lab.host.ip(&format!(
            "link add {LINK} address {NEAR_MAC} type veth \
                 peer name to-host address {ROUTER_MAC} netns {}\n\
             link set {LINK} addrgenmode none\n",
            place.path()
        ))?;
        // Before the first frame, so that none is missed.
        let near = place.enter(|| {
            let near = listen("to-host").context("open a packet socket")?;
            setsockopt(&near, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(Arc::new(near))
        })?;
        lab.host.ip(&format!(
            "link set {LINK} up\n\
             address add fe80::1/64 dev {LINK} nodad\n\
             neighbour add {ROUTER} lladdr {ROUTER_MAC} dev {LINK} nud permanent\n\
             neighbour add {ROUTER6} lladdr {ROUTER_MAC} dev {LINK} nud permanent\n\
             neighbour add {ROUTER_LINK} lladdr {ROUTER_MAC} dev {LINK} nud permanent\n\
             route add {ROUTER} dev {LINK} src {HOST}\n\
             route add 192.0.2.64/28 via {ROUTER} dev {LINK} onlink src {HOST}\n\
             route add {ROUTER6} via {ROUTER6} dev {LINK} onlink src {HOST6}\n\
             route add 169.254.0.0/16 via {ROUTER} dev {LINK} onlink src {HOST}\n"
        ))?;
        let neighbours: String = (2..0x20)
            .chain(0x21..0x60)
            .map(|host| {
                format!(
                    "neighbour add fe80::{host:x} lladdr {ROUTER_MAC} dev {LINK} nud permanent\n"
                )
            })
            .collect();
        lab.host.ip(&neighbours)?;
        // Neither of its ends has an address: nothing but this thread answers or sends.
        let out = place
            .enter(|| {
                std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
                std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
                Ok(())
            })
            .and_then(|()| {
                place.ip(&format!(
                    "link set to-host up\n\
                 link add to-foreign type veth peer name to-router netns {}\n\
                 link set to-foreign up\n",
                    lab.foreign.path()
                ))?;
                lab.foreign.ip("link set to-router addrgenmode none\n\
                 link set to-router address 02:00:00:00:02:51\n\
                 link set to-router up\n\
                 route replace local 169.254.0.0/16 dev lo\n")?;
                place.enter(|| {
                    let out = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), ROUTER6]
                        .map(|address| PacketSocket::open("to-foreign", ethertype_of(address)));
                    let [v4, v6] = out;
                    Ok((v4?, v6?))
                })
            })?;
        let received = Arc::new(AtomicU64::new(0));
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (near, received, end) = (near.clone(), received.clone(), end.clone());
            move || forward(&near, &out, &received, &end)
        });
        Ok(Self {
            place,
            near,
            received,
            end,
            thread: Some(thread),
        })
    }

    /// Number of frames that it has read and, where it could, sent on.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Number of frames that there was no room for, since this was last asked.
    pub fn lost(&self) -> Result<u32> {
        frames::lost(&self.near).context("ask a packet socket")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet socket that sees what arrives at an interface, and not what leaves.
fn listen(interface: &str) -> nix::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) with numbers reads no memory. Protocol 0: nothing before it is bound.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(socket)?) };
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an integer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    // SAFETY: a struct of integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = if_nametoindex(interface)? as i32;
    // SAFETY: the kernel reads the address, of this length.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(socket)
}

fn forward(
    near: &OwnedFd,
    out: &(PacketSocket, PacketSocket),
    received: &AtomicU64,
    end: &AtomicBool,
) {
    let mut frame = vec![0; 1 << 16];
    while !end.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(near.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK_ROUND_MS)).is_err() {
            continue;
        }
        while let Ok(length) = recv(near.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            let rest = frame.get(12..length).unwrap_or_default();
            if let Some(packet) = unwrapped(rest) {
                let packet = onward(packet);
                let v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
                let ethertype: u16 = if v4 { 0x0800 } else { 0x86dd };
                let mut frame = [FOREIGN_MAC, OUT_MAC].concat();
                frame.extend(ethertype.to_be_bytes());
                frame.extend(packet);
                // A queue that is full is a router that drops.
                let _ = if v4 { &out.0 } else { &out.1 }.send(&frame);
            }
            received.fetch_add(1, Ordering::Release);
        }
    }
}

/// The packet as it leaves: to the next destination of its list if it has come to an
/// address of the router, else as it is.
#[must_use]
pub fn onward(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let step = match packet.first().map(|byte| byte >> 4) {
        Some(4) => next_of_options,
        _ => next_of_headers,
    };
    // As many as a list may have.
    for _ in 0..128 {
        if !is_own(&packet) || step(&mut packet).is_none() {
            break;
        }
    }
    if packet.first().is_some_and(|byte| byte >> 4 == 4) {
        set_checksum(&mut packet);
    }
    packet
}

fn is_own(packet: &[u8]) -> bool {
    let own = |address: IpAddr| match address {
        IpAddr::V4(address) => packet.get(16..20) == Some(&address.octets()),
        IpAddr::V6(address) => packet.get(24..40) == Some(&address.octets()),
    };
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => own(ROUTER),
        _ => own(ROUTER6) || own(ROUTER_LINK),
    }
}

/// Goes on along a source route.
fn next_of_options(packet: &mut [u8]) -> Option<()> {
    let end = usize::from(packet.first()? & 15) * 4;
    let mut at = 20;
    while at < end {
        match *packet.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*packet.get(at + 1)?);
                let pointer = usize::from(*packet.get(at + 2)?);
                if [LOOSE, STRICT].contains(&kind) && pointer + 3 <= len {
                    let from = at + pointer - 1;
                    let hop: [u8; 4] = packet.get(from..from + 4)?.try_into().ok()?;
                    packet.get_mut(16..20)?.copy_from_slice(&hop);
                    *packet.get_mut(at + 2)? = pointer as u8 + 4;
                    return Some(());
                }
                at += len.max(2);
            }
        }
    }
    None
}

/// Goes on along a routing header, of whatever type.
fn next_of_headers(packet: &mut [u8]) -> Option<()> {
    let (mut next, mut at) = (*packet.get(6)?, 40);
    while [0, ROUTING, 60].contains(&next) {
        let len = 8 + 8 * usize::from(*packet.get(at + 1)?);
        let left = usize::from(*packet.get(at + 3)?);
        if next == ROUTING && left > 0 {
            let hops = len.saturating_sub(8) / 16;
            let index = match *packet.get(at + 2)? {
                4 => left - 1,
                _ => hops.checked_sub(left)?,
            };
            let from = at + 8 + 16 * index;
            let hop: [u8; 16] = packet.get(from..from + 16)?.try_into().ok()?;
            packet.get_mut(24..40)?.copy_from_slice(&hop);
            *packet.get_mut(at + 3)? = left as u8 - 1;
            return Some(());
        }
        next = *packet.get(at)?;
        at += len;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{ipv4, ipv6, routing_header, source_route};

    #[test]
    fn lists_are_followed() {
        let (a, b): (IpAddr, IpAddr) = ("203.0.113.7".parse().unwrap(), HOST);
        for kind in [LOOSE, STRICT] {
            let packet = ipv4(b, ROUTER, 17, &source_route(kind, &[a, b]), b"x");
            let octets = onward(&packet)[16..20].to_vec();
            assert_eq!(octets, [203, 0, 113, 7]);
        }
        let (a, b): (IpAddr, IpAddr) = ("2001:db8:3::7".parse().unwrap(), HOST6);
        for kind in [0, 2, 3, 4, 253] {
            for first in [ROUTER6, ROUTER_LINK] {
                let header = routing_header(kind, 17, &[ROUTER6, a, b]);
                let packet = onward(&ipv6(b, first, ROUTING, &header));
                let IpAddr::V6(expected) = a else { panic!() };
                assert_eq!(packet[24..40], expected.octets(), "type {kind}");
                assert_eq!(packet[43], 1);
            }
        }
    }
}
