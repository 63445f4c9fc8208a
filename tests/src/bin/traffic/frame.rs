//! Packets that no socket of the IP protocols sends: written to a link, or to a tun
//! device.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::raw::checksum;
use crate::{Answer, Failure, Named, Sent, told_to_proceed, xdp};

const ETHERTYPE_IPV4: u16 = 0x0800;

/// An IPv4 packet with a datagram in it, without checksum of the latter.
pub fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = (20 + 8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&packet).to_be_bytes();
    if let Some(field) = packet.get_mut(10..12) {
        field.copy_from_slice(&sum);
    }
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn mac(text: &str) -> Result<[u8; 6], Failure> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::Usage(format!("{text:?} is no link address")))
}

/// `traffic frame`
pub fn frame(arguments: &mut Arguments) -> Answer {
    let link = arguments.word("a link")?;
    let [from_mac, to_mac] = [
        mac(&arguments.word("a MAC")?)?,
        mac(&arguments.word("a MAC")?)?,
    ];
    let from: SocketAddrV4 = arguments.value("ADDR:PORT")?;
    let to: SocketAddrV4 = arguments.value("ADDR:PORT")?;
    let payload = vec![b'x'; arguments.option("--size")?.unwrap_or(64)];
    let bypass = arguments.flag("--bypass-qdisc");
    let by_xdp = arguments.flag("--xdp");
    arguments.done()?;
    let mut frame = [to_mac, from_mac].concat();
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend(datagram(from, to, &payload));
    if by_xdp {
        xdp::send(&link, &frame)?;
    } else {
        let socket = packet_socket()?;
        if bypass {
            let on = 1i32.to_ne_bytes();
            set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on)?;
        }
        send_frame(&socket, &link, &frame)?;
    }
    Sent {
        port: from.port(),
        packets: 1,
        bytes: payload.len() as u64,
    }
    .tell();
    Ok(())
}

fn packet_socket() -> Result<OwnedFd, Failure> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) with numbers reads no memory.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    let descriptor = Errno::result(descriptor).named("socket")?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn send_frame(socket: &OwnedFd, link: &str, frame: &[u8]) -> Answer {
    let index = nix::net::if_::if_nametoindex(link).named("if_nametoindex")?;
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the kernel reads the frame and the address, of these lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    Errno::result(sent).named("sendto").map(drop)
}

/// `traffic tun`
pub fn tun(arguments: &mut Arguments) -> Answer {
    let what = arguments.word("what to do")?;
    let name = arguments.word("a name")?;
    let mut device = open_tun(&name)?;
    // Whoever started this brings the device up.
    Sent::default().tell();
    let sent = match what.as_str() {
        "inject" => {
            let from: SocketAddrV4 = arguments.value("ADDR:PORT")?;
            let to: SocketAddrV4 = arguments.value("ADDR:PORT")?;
            let payload = vec![b'x'; arguments.option("--size")?.unwrap_or(64)];
            arguments.done()?;
            if !told_to_proceed() {
                return Ok(());
            }
            device
                .write_all(&datagram(from, to, &payload))
                .named("write")?;
            payload.len()
        }
        "carry" => {
            let to: SocketAddr = arguments.value("ADDR:PORT")?;
            arguments.done()?;
            let mut packet = [0; 2048];
            let length = device.read(&mut packet).named("read")?;
            let packet = packet.get(..length).unwrap_or_default();
            let socket = UdpSocket::bind("0.0.0.0:0").named("bind")?;
            socket.send_to(packet, to).named("sendto")?
        }
        other => return Err(Failure::Usage(format!("no {other:?} with a tun device"))),
    };
    Sent {
        port: 0,
        packets: 1,
        bytes: sent as u64,
    }
    .tell();
    Ok(())
}

fn open_tun(name: &str) -> Result<File, Failure> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .named("open /dev/net/tun")?;
    let name = CString::new(name).map_err(|_| Failure::Usage("a zero in a name".into()))?;
    // SAFETY: all zeros is a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the kernel reads and writes the request.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).named("TUNSETIFF")?;
    Ok(file)
}
