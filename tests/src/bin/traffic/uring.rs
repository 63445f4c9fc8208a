//! Sending by io_uring: no system call of the process names what is sent, and who runs
//! may be a thread of the kernel's on its behalf.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockType, SockaddrLike, SockaddrStorage, socket};

use crate::arguments::Arguments;
use crate::udp::{family, own_port};
use crate::{Answer, Failure, Named, Sent, tcp};

const ENTRIES: u32 = 8;
/// How long the kernel's thread looks for work before it sleeps.
const POLL_IDLE_MS: u32 = 100;

/// `traffic uring`
pub fn uring(arguments: &mut Arguments) -> Answer {
    let operation = arguments.word("an operation")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let payload = vec![b'x'; arguments.option("--size")?.unwrap_or(64)];
    let polled = arguments.flag("--poll");
    arguments.done()?;
    let mut builder = IoUring::builder();
    if polled {
        builder.setup_sqpoll(POLL_IDLE_MS);
    }
    let mut ring = builder.build(ENTRIES).named("io_uring_setup")?;
    let stream = operation == "connect";
    let socket = if stream {
        tcp::open(family(peer.ip()), None)?
    } else {
        datagrams(peer)?
    };
    let descriptor = Fd(socket.as_raw_fd());
    let address = SockaddrStorage::from(peer);
    let length = payload.len() as u32;
    if operation != "sendmsg" {
        let connect = opcode::Connect::new(descriptor, address.as_ptr(), address.len());
        submit(&mut ring, &connect.build(), "io_uring connect")?;
    }
    let bytes = match operation.as_str() {
        "connect" | "send" => {
            let send = opcode::Send::new(descriptor, payload.as_ptr(), length);
            submit(&mut ring, &send.build(), "io_uring send")?
        }
        "zero-copy" => {
            let send = opcode::SendZc::new(descriptor, payload.as_ptr(), length);
            submit(&mut ring, &send.build(), "io_uring send_zc")?
        }
        "sendmsg" => {
            let mut part = libc::iovec {
                iov_base: payload.as_ptr().cast_mut().cast(),
                iov_len: payload.len(),
            };
            // SAFETY: all zeros is a message without anything.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.len();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            let send = opcode::SendMsg::new(descriptor, &raw const message);
            submit(&mut ring, &send.build(), "io_uring sendmsg")?
        }
        other => return Err(Failure::Usage(format!("no operation {other:?}"))),
    };
    let sent = Sent {
        port: own_port(&socket),
        packets: 1,
        bytes,
    };
    if stream {
        tcp::end(socket)?;
    }
    sent.tell();
    Ok(())
}

fn datagrams(peer: SocketAddr) -> Result<OwnedFd, Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(family(peer.ip()), SockType::Datagram, flags, None).named("socket")
}

/// Submits one operation and waits until the kernel is done with it and its memory.
fn submit(ring: &mut IoUring, entry: &squeue::Entry, call: &'static str) -> Result<u64, Failure> {
    // SAFETY: what the entry points to outlives this function, which waits for the end
    // of the operation.
    unsafe { ring.submission().push(entry) }.map_err(|_| Failure::Call(call, Errno::ENOBUFS))?;
    let mut result = None;
    loop {
        ring.submit_and_wait(1).named("io_uring_enter")?;
        for done in ring.completion() {
            // The second answer of a zero-copy send says that the memory is free again.
            result.get_or_insert(done.result());
            if !io_uring::cqueue::more(done.flags()) {
                let result = result.unwrap_or_default();
                return u64::try_from(result)
                    .map_err(|_| Failure::Call(call, Errno::from_raw(-result)));
            }
        }
    }
}
