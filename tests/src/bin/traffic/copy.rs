//! Sending what the process never holds in its memory, or does not copy.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, send};
use nix::unistd::pipe;

use crate::arguments::Arguments;
use crate::udp::{family, own_port};
use crate::{Answer, Failure, Named, Sent, tcp};

/// `traffic copy`
pub fn copy(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way to copy")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let bytes: usize = arguments.option("--bytes")?.unwrap_or(4096);
    arguments.done()?;
    let socket = tcp::open(family(peer.ip()), None)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    // A file that is there and long enough.
    let file = File::open("/proc/self/exe").named("open")?;
    let sent = match how.as_str() {
        "sendfile" => sendfile(&socket, &file, None, bytes).named("sendfile")?,
        "splice" => {
            let (reader, writer) = pipe().named("pipe")?;
            let flags = SpliceFFlags::empty();
            let length = splice(&file, None, &writer, None, bytes, flags).named("splice")?;
            splice(&reader, None, &socket, None, length, flags).named("splice")?
        }
        "zero-copy" => zero_copy(&socket, &vec![b'x'; bytes])?,
        other => return Err(Failure::Usage(format!("no way to copy {other:?}"))),
    };
    let sent = Sent {
        port: own_port(&socket),
        packets: 1,
        bytes: sent as u64,
    };
    tcp::end(socket)?;
    sent.tell();
    Ok(())
}

fn zero_copy(socket: &OwnedFd, payload: &[u8]) -> Result<usize, Failure> {
    set_option(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ZEROCOPY,
        &1i32.to_ne_bytes(),
    )?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    // The far end has read all of it before this process gives the memory back.
    send(socket.as_raw_fd(), payload, flags).named("send")
}

/// An option that nix does not have.
pub fn set_option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Answer {
    // SAFETY: the kernel reads `value`, of this length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    };
    Errno::result(result).named("setsockopt").map(drop)
}
