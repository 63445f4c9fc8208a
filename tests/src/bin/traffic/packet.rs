//! Whole frames by a packet socket or by AF_XDP, past the kernel's own network layer.

use std::net::{IpAddr, SocketAddr};

use trefoil_lab::frames::PacketSocket;

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::raw::checksum;
use crate::udp::{pause_after, plus};
use crate::{Answer, Failure, Named, Sent, told_to_proceed, xdp};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

type SendFrame = dyn Fn(&[u8]) -> Answer;

/// `traffic packet`
pub fn packet(arguments: &mut Arguments) -> Answer {
    let interface = arguments.word("INTERFACE")?;
    let mac = arguments.word("MAC")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    let from: SocketAddr = arguments
        .option("--from")?
        .ok_or_else(|| Failure::Usage("--from is missing".to_owned()))?;
    let size: usize = arguments.option("--size")?.unwrap_or(64);
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let destinations: u32 = arguments.option("--destinations")?.unwrap_or(1);
    let ethertype: Option<u16> = arguments.option("--ethertype")?;
    let vlan: Option<u16> = arguments.option("--vlan")?;
    let pretended: Option<u16> = arguments.option("--pretend")?;
    let bypass = arguments.flag("--bypass-qdisc");
    let by_xdp = arguments.flag("--xdp");
    let waits = arguments.flag("--wait");
    arguments.done()?;

    let mut header = Vec::new();
    for byte in mac.split(':') {
        let byte = u8::from_str_radix(byte, 16);
        header.push(byte.map_err(|_| Failure::Usage(format!("{mac} is no address of a link")))?);
    }
    // Begins as those of the host's own links do.
    header.extend([2, 0, 0, 0, 1, 99]);
    if let Some(vlan) = vlan {
        header.extend(ETHERTYPE_VLAN.to_be_bytes());
        header.extend(vlan.to_be_bytes());
    }
    let own_type = if to.is_ipv4() {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    };
    header.extend(ethertype.unwrap_or(own_type).to_be_bytes());
    let frame = |offset| {
        let to = SocketAddr::new(plus(to.ip(), offset), to.port());
        Ok([header.clone(), datagram(from, to, size)?].concat())
    };
    let frames: Vec<Vec<u8>> = (0..destinations).map(frame).collect::<Result<_, _>>()?;

    let opened = move || {
        if waits {
            let nothing = Sent {
                port: from.port(),
                packets: 0,
                bytes: 0,
            };
            nothing.tell();
            told_to_proceed();
        }
    };
    let send: Box<SendFrame> = if by_xdp {
        Box::new(move |frame| xdp::send(&interface, frame, opened))
    } else {
        let ethertype = pretended.unwrap_or(own_type);
        let socket = PacketSocket::open(&interface, ethertype).named("open a packet socket")?;
        if bypass {
            let (level, name) = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
            set_option(socket.descriptor(), level, name, &1_i32.to_ne_bytes())?;
        }
        opened();
        Box::new(move |frame| socket.send(frame).named("sendto"))
    };
    for (frame, number) in frames.iter().cycle().zip(1..=count) {
        send(frame)?;
        pause_after(number);
    }
    Sent {
        port: from.port(),
        packets: count,
        bytes: count * size as u64,
    }
    .tell();
    Ok(())
}

/// An IP packet with a UDP datagram of `size` bytes in it.
pub fn datagram(from: SocketAddr, to: SocketAddr, size: usize) -> Result<Vec<u8>, Failure> {
    let len = (UDP_HEADER + size) as u16;
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            const HEADER: u16 = 20;
            let mut header = vec![0x45, 0];
            header.extend((HEADER + len).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header).to_be_bytes();
            if let Some(field) = header.get_mut(10..12) {
                field.copy_from_slice(&sum);
            }
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(len.to_be_bytes());
            header.extend([UDP, 64]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => return Err(Failure::Usage("--from is of another family".to_owned())),
    };
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(len.to_be_bytes());
    // Without a checksum: IPv4 takes it, and IPv6 is only to be counted.
    packet.extend([0, 0]);
    packet.resize(packet.len() + size, b'x');
    Ok(packet)
}
