//! Packets that a process writes to a tun device, or reads from one.

use std::ffi::CString;
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
    // So that several can have one device.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the kernel reads and writes the request.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).named("TUNSETIFF")?;
    Ok(file)
}
