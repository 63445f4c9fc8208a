//! Sockets of other families than IP.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, sendto};

use crate::arguments::Arguments;
use crate::{Answer, Named, Sent, raw};

/// `traffic family`
pub fn open(arguments: &mut Arguments) -> Answer {
    let family: i32 = arguments.value("the number of a family")?;
    let waits = arguments.flag("--wait");
    arguments.done()?;
    let _socket = raw::open_of(family, libc::SOCK_STREAM, 0)?;
    Sent::default().tell();
    if waits {
        let _ = std::io::stdin().read_line(&mut String::new());
    }
    Ok(())
}

/// `traffic rds`: a message, for which the kernel makes a connection of TCP. The process is
/// called `sent` once it has given the message to the kernel.
pub fn rds(arguments: &mut Arguments) -> Answer {
    const AF_RDS: i32 = 21;
    let from: SocketAddr = arguments.value("ADDR:PORT")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let socket = raw::open_of(AF_RDS, libc::SOCK_SEQPACKET, 0)?;
    let (near, far) = (SockaddrStorage::from(from), SockaddrStorage::from(to));
    bind(socket.as_raw_fd(), &near).named("bind")?;
    let payload = [b'x'; 64];
    let bytes = sendto(socket.as_raw_fd(), &payload, &far, MsgFlags::empty()).named("sendto")?;
    Sent {
        port: from.port(),
        packets: 1,
        bytes: bytes as u64,
    }
    .tell();
    std::fs::write("/proc/self/comm", "sent").named("comm")?;
    // The kernel still has to send it, and would not for a socket that is closed.
    std::thread::sleep(std::time::Duration::from_secs(3));
    Ok(())
}
