//! Packets that a process writes to a tun device, or reads from one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use trefoil_lab::packets;

use crate::arguments::Arguments;
use crate::{Answer, Failure, Named, Sent, told_to_proceed};

/// `traffic tun`
pub fn tun(arguments: &mut Arguments) -> Answer {
    let what = arguments.word("what to do")?;
    let name = arguments.word("a name")?;
    let mut device = open_tun(&name)?;
    // Whoever started this brings the device up.
    Sent::default().tell();
    let sent = match what.as_str() {
        "inject" => {
            let from: SocketAddr = arguments.value("ADDR:PORT")?;
            let to: SocketAddr = arguments.value("ADDR:PORT")?;
            let size = arguments.option("--size")?.unwrap_or(64);
            let count = arguments.option("--count")?.unwrap_or(1);
            arguments.done()?;
            for _ in 0..count {
                if !told_to_proceed() {
                    return Ok(());
                }
                device
                    .write_all(&packets::udp(from, to, size))
                    .named("write")?;
            }
            size
        }
        "carry" => {
            let to: SocketAddr = arguments.value("ADDR:PORT")?;
            arguments.done()?;
            let mut packet = [0; 2048];
            // Not what the kernel sends by itself once the device is up.
            let packet = loop {
                let length = device.read(&mut packet).named("read")?;
                if packet[0] >> 4 == 4 {
                    break packet.get(..length).unwrap_or_default();
                }
            };
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
    open_by("/dev/net/tun", name, false)
}

/// Opens the tun device of this name by a node. If it is `described`, each packet begins with a
/// `struct virtio_net_hdr`.
pub fn open_by(node: &str, name: &str, described: bool) -> Result<File, Failure> {
    let opened = File::options().read(true).write(true).open(node);
    let file = opened.named("open a node of tun devices")?;
    let mut request = request(name);
    // So that several can have one device.
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    if described {
        flags |= libc::IFF_VNET_HDR;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the kernel reads and writes the request.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).named("TUNSETIFF")?;
    Ok(file)
}

/// Brings a tun device of this process's own network up, and keeps it when this process ends.
pub fn keep_up(device: &File, name: &str) {
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    if let Ok(socket) = UdpSocket::bind("0.0.0.0:0") {
        // SAFETY: the kernel reads the request.
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        // SAFETY: the kernel reads a number.
        unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST, 1) };
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request
}
