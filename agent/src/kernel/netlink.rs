//! Parts that all netlink messages have in common: a header, and then attributes.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// The kernel answers from within the call; one that does not is broken, and must not
/// hold up whoever waits for more than this.
pub const PATIENCE_S: i64 = 5;

/// Waits for the next messages. A signal, or that the host stood still for a while, ends no wait.
pub fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    // Upper bound on a message from the kernel, in bytes.
    const LONGEST: usize = 1 << 16;
    let mut bytes = vec![0; LONGEST];
    loop {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            received => {
                bytes.truncate(received?);
                return Ok(bytes);
            }
        }
    }
}

/// Kind and body of each message.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..len)?;
        let next = len.next_multiple_of(align_of::<u32>());
        bytes = bytes.get(next..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Reads the result in an error message, by which the kernel also reports success.
pub fn error_in(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|word| word.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Type and value of each attribute. The types come without the bits that say how a
/// value is nested or ordered.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        let next = len.next_multiple_of(align_of::<u32>());
        bytes = bytes.get(next..).unwrap_or_default();
        Some((kind & TYPE, value))
    })
}

/// The number at an offset, in the host's byte order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + size_of::<u32>())?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// As [`u32_at`].
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset + size_of::<u64>())?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use nix::sys::{
        pthread::{pthread_kill, pthread_self},
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt},
        time::{TimeVal, TimeValLike},
    };
    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    #[tokio::test]
    async fn a_signal_ends_no_wait() {
        let mut heard = signal(SignalKind::user_defined1()).unwrap();
        let (tell, told) = mpsc::channel();
        let waits = thread::spawn(move || {
            let route = SockProtocol::NetlinkRoute;
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, route).unwrap();
            let patience = TimeVal::milliseconds(500);
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
            tell.send(pthread_self()).unwrap();
            receive(&socket)
        });
        let thread = told.recv().unwrap();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(20));
            pthread_kill(thread, Signal::SIGUSR1).unwrap();
        }
        heard.recv().await;
        let waited = waits.join().unwrap();
        assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
