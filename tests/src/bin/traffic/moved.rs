//! A process that goes to another network namespace, and takes a socket with it.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};

use crate::arguments::Arguments;
use crate::udp::{open, own_port};
use crate::{Answer, Failure, Named, Sent};

/// `traffic move`
pub fn go(arguments: &mut Arguments) -> Answer {
    let namespace = arguments.word("a namespace")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let namespace = File::open(namespace).named("open")?;
    let mut sender = Sender {
        peer: peer.into(),
        sent: Sent::default(),
        was_refused: false,
    };
    let old = open(peer, None)?;
    sender.send(&old)?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).named("setns")?;
    sender.send(&old)?;
    sender.send(&open(peer, None)?)?;
    sender.sent.tell();
    match sender.was_refused {
        true => Err(Failure::Call("sendto", Errno::EPERM)),
        false => Ok(()),
    }
}

/// Goes on where it is refused: each socket is tried.
struct Sender {
    peer: SockaddrStorage,
    sent: Sent,
    was_refused: bool,
}

impl Sender {
    fn send(&mut self, socket: &OwnedFd) -> Answer {
        match sendto(
            socket.as_raw_fd(),
            &[b'x'; 64],
            &self.peer,
            MsgFlags::empty(),
        ) {
            Err(Errno::EPERM) => self.was_refused = true,
            sent => {
                self.sent.bytes += sent.named("sendto")? as u64;
                self.sent.packets += 1;
                self.sent.port = own_port(socket);
            }
        }
        Ok(())
    }
}
