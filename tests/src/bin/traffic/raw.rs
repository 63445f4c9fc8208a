//! Packets without a transport: raw sockets and pings.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, sendto,
    setsockopt, sockopt::Ipv6Ttl,
};
use trefoil_lab::packets::checksum;

use crate::arguments::Arguments;
use crate::udp::{family, own_port};
use crate::{Answer, Failure, Named, Sent, told_to_proceed};

/// A protocol number that is reserved for experiments (RFC 3692).
const EXPERIMENT: i32 = 253;
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;

/// `traffic raw`
pub fn raw(arguments: &mut Arguments) -> Answer {
    let peer: IpAddr = arguments.value("ADDR")?;
    let protocol = arguments.option("--protocol")?.unwrap_or(EXPERIMENT);
    let size: usize = arguments.option("--size")?.unwrap_or(64);
    let own_header = arguments.flag("--own-header");
    let fragment: u16 = arguments.option("--fragment")?.unwrap_or(0);
    let extensions: Option<u8> = arguments.option("--extensions")?;
    let sockets: usize = arguments.option("--sockets")?.unwrap_or(0);
    let hops: Option<i32> = arguments.option("--hops")?;
    let kind: Option<u8> = arguments.option("--type")?;
    arguments.done()?;
    let mut payload = vec![b'x'; size];
    if let (Some(kind), Some(first)) = (kind, payload.first_mut()) {
        *first = kind;
    }
    if sockets > 0 {
        return in_flight(peer, protocol, sockets, &payload);
    }
    if let Some(count) = extensions {
        return extended(peer, protocol as u8, count, &payload);
    }
    if !own_header {
        let socket = open(peer, libc::SOCK_RAW, protocol)?;
        if let Some(hops) = hops {
            setsockopt(&socket, Ipv6Ttl, &hops).named("setsockopt")?;
        }
        return send(&socket, peer, &payload);
    }
    let IpAddr::V4(address) = peer else {
        return Err(Failure::Usage("--own-header is for IPv4".into()));
    };
    let socket = open(peer, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    // The kernel fills in source, identification, length and checksum.
    let [high, low] = fragment.to_be_bytes();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, high, low];
    packet.extend([64, protocol as u8, 0, 0, 0, 0, 0, 0]);
    packet.extend(address.octets());
    packet.extend(payload);
    send(&socket, peer, &packet)
}

/// Sends from sockets that no process had open for a while: they were on their way.
fn in_flight(peer: IpAddr, protocol: i32, count: usize, payload: &[u8]) -> Answer {
    let (near, far) = UnixDatagram::pair().named("socketpair")?;
    for _ in 0..count {
        let socket = open(peer, libc::SOCK_RAW, protocol)?;
        let message = [ControlMessage::ScmRights(&[socket.as_raw_fd()])];
        let content = [IoSlice::new(b"x")];
        sendmsg::<()>(
            near.as_raw_fd(),
            &content,
            &message,
            MsgFlags::empty(),
            None,
        )
        .named("sendmsg")?;
    }
    println!("{{}}");
    told_to_proceed();
    let mut room = cmsg_space!(RawFd);
    for _ in 0..count {
        let mut content = [0];
        let mut content = [IoSliceMut::new(&mut content)];
        let message = recvmsg::<()>(
            far.as_raw_fd(),
            &mut content,
            Some(&mut room),
            MsgFlags::empty(),
        )
        .named("recvmsg")?;
        for part in message.cmsgs().named("recvmsg")? {
            let ControlMessageOwned::ScmRights(sockets) = part else {
                continue;
            };
            for socket in sockets {
                // SAFETY: nobody else has this descriptor, which the kernel just made.
                send(&unsafe { OwnedFd::from_raw_fd(socket) }, peer, payload)?;
            }
        }
    }
    Ok(())
}

/// `traffic raw-flood`
pub fn flood(arguments: &mut Arguments) -> Answer {
    let peer: IpAddr = arguments.value("ADDR")?;
    arguments.done()?;
    let socket = open(peer, libc::SOCK_RAW, EXPERIMENT)?;
    let address = SockaddrStorage::from(SocketAddr::new(peer, 0));
    let ended = AtomicBool::new(false);
    println!("{{}}");
    let (went, refused) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while told_to_proceed() {}
            ended.store(true, Ordering::Relaxed);
        });
        let (mut went, mut refused) = (0_u64, 0_u64);
        while !ended.load(Ordering::Relaxed) {
            match sendto(socket.as_raw_fd(), &[b'x'; 64], &address, MsgFlags::empty()) {
                Err(Errno::EPERM) => refused += 1,
                // Also what the far end answered with an error.
                _ => went += 1,
            }
        }
        (went, refused)
    });
    println!("{{\"went\":{went},\"refused\":{refused}}}");
    Ok(())
}

/// A packet with headers between that of IPv6 and the last.
fn extended(peer: IpAddr, protocol: u8, count: u8, payload: &[u8]) -> Answer {
    let IpAddr::V6(address) = peer else {
        return Err(Failure::Usage("--extensions is for IPv6".into()));
    };
    let socket = open(peer, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let length = usize::from(count) * 8 + payload.len();
    let [high, low] = (length as u16).to_be_bytes();
    let next = |left: u8| match left {
        0 => protocol,
        _ => libc::IPPROTO_DSTOPTS as u8,
    };
    let mut packet = vec![0x60, 0, 0, 0, high, low, next(count), 64];
    // The kernel fills in no source here.
    let to = SocketAddr::new(peer, 9);
    let probe = std::net::UdpSocket::bind("[::]:0").named("bind")?;
    probe.connect(to).named("connect")?;
    let IpAddr::V6(source) = probe.local_addr().named("getsockname")?.ip() else {
        return Err(Failure::Usage("no source".into()));
    };
    packet.extend(source.octets());
    packet.extend(address.octets());
    for left in (0..count).rev() {
        packet.extend([next(left), 0, 1, 4, 0, 0, 0, 0]);
    }
    packet.extend(payload);
    send(&socket, peer, &packet)
}

/// `traffic ping`
pub fn ping(arguments: &mut Arguments) -> Answer {
    let peer: IpAddr = arguments.value("ADDR")?;
    let size: usize = arguments.option("--size")?.unwrap_or(64);
    let kind = if arguments.flag("--raw") {
        libc::SOCK_RAW
    } else {
        libc::SOCK_DGRAM
    };
    arguments.done()?;
    let (protocol, echo) = match peer {
        IpAddr::V4(_) => (libc::IPPROTO_ICMP, ICMP_ECHO),
        IpAddr::V6(_) => (libc::IPPROTO_ICMPV6, ICMPV6_ECHO),
    };
    let mut packet = vec![echo, 0, 0, 0, 0, 1, 0, 1];
    packet.resize(packet.len() + size, 0);
    if kind == libc::SOCK_RAW && peer.is_ipv4() {
        // Everywhere else the kernel computes it.
        let sum = checksum(&packet).to_be_bytes();
        if let Some(field) = packet.get_mut(2..4) {
            field.copy_from_slice(&sum);
        }
    }
    send(&open(peer, kind, protocol)?, peer, &packet)
}

/// A socket for a protocol that nix does not know.
pub fn open(peer: IpAddr, kind: i32, protocol: i32) -> Result<OwnedFd, Failure> {
    open_of(family(peer) as i32, kind, protocol)
}

/// As [`open`], of a family that nix does not know.
pub fn open_of(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: socket(2) with numbers reads no memory.
    let descriptor = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    let descriptor = Errno::result(descriptor).named("socket")?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn send(socket: &OwnedFd, peer: IpAddr, packet: &[u8]) -> Answer {
    let address = SockaddrStorage::from(SocketAddr::new(peer, 0));
    let bytes =
        sendto(socket.as_raw_fd(), packet, &address, MsgFlags::empty()).named("sendto")? as u64;
    Sent {
        port: own_port(socket),
        packets: 1,
        bytes,
    }
    .tell();
    Ok(())
}
