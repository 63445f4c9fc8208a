//! A sender that does not take no for an answer: for tests that want to see
//! whether there is ever a moment in which something gets through.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, sendto, socket,
};

use crate::arguments::Arguments;
use crate::udp::family;
use crate::{Answer, Failure, Named};

/// Each refusal is a record in the journal, which has to keep up, in an emulated machine
/// that does everything else some thirty times slower.
const PAUSE: Duration = Duration::from_millis(25);

/// After how many rounds it tells how it goes.
const ROUNDS: u64 = 10;

/// `traffic insist`
pub fn insist(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let address = SockaddrStorage::from(peer);
    let open =
        |kind| socket(family(peer.ip()), kind, SockFlag::SOCK_NONBLOCK, None).named("socket");

    // Two that live long: made before whatever happens, and used after it.
    let loose = open(SockType::Datagram)?;
    let connected = open(SockType::Datagram)?;
    let has_peer = connect(connected.as_raw_fd(), &address).is_ok();
    let (mut passed, mut refused) = (0u64, 0u64);
    let mut note = |answer: nix::Result<()>| {
        if answer == Err(Errno::EPERM) {
            refused += 1;
        } else {
            // Also what the far end answered with an error.
            passed += 1;
        }
        (passed, refused)
    };
    for round in 1u64.. {
        note(send_to(&loose, &address));
        if has_peer {
            note(send(connected.as_raw_fd(), b"x", MsgFlags::empty()).map(drop));
        }
        note(send_to(&open(SockType::Datagram)?, &address));
        let stream = open(SockType::Stream)?;
        let (passed, refused) = note(connect(stream.as_raw_fd(), &address));
        if round % ROUNDS == 0 {
            println!("{{\"passed\":{passed},\"refused\":{refused}}}");
            std::io::stdout().flush().named("write")?;
        }
        std::thread::sleep(PAUSE);
    }
    Err(Failure::Usage("there are more rounds than numbers".into()))
}

fn send_to(socket: &OwnedFd, address: &SockaddrStorage) -> nix::Result<()> {
    sendto(socket.as_raw_fd(), b"x", address, MsgFlags::empty()).map(drop)
}
