//! A sender that goes round several destinations in every way, and counts for each what
//! went and what was refused: for tests that change the policy meanwhile.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, sendto, socket,
};

use crate::arguments::Arguments;
use crate::udp::family;
use crate::{Answer, Failure, Named, told_to_proceed};

/// Between two rounds, so that each gets its turn with the agent and the far ends.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two connections to one destination, so that ports do not run out.
const PAUSE_TCP: Duration = Duration::from_millis(10);
/// How long a connection may take. Its first packet may be dropped, and be sent again
/// when the policy has changed once more.
const PATIENCE_TCP: Duration = Duration::from_secs(60);

/// Outcomes of all that was sent in one way to one address.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    went: u64,
    refused: u64,
    failed: u64,
}

impl Tally {
    fn note(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.went += 1,
            Err(Errno::EPERM) => self.refused += 1,
            Err(_) => self.failed += 1,
        }
    }

    fn tell(&self, to: IpAddr, way: &str) {
        let Self {
            went,
            refused,
            failed,
        } = self;
        println!(
            "{{\"to\":\"{to}\",\"way\":\"{way}\",\"went\":{went},\"refused\":{refused},\
             \"failed\":{failed}}}"
        );
    }
}

/// `traffic rounds`
pub fn rounds(arguments: &mut Arguments) -> Answer {
    let [udp, tcp]: [u16; 2] = [
        arguments.value("a port for datagrams")?,
        arguments.value("a port for connections")?,
    ];
    let to: Vec<IpAddr> = arguments
        .options("--to")?
        .iter()
        .map(|address| address.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::Usage("--to needs an address".into()))?;
    arguments.done()?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let datagrams: Vec<_> = ["one socket", "connected", "new sockets"]
            .map(|way| {
                let (to, ended) = (&to, &ended);
                scope.spawn(move || datagrams(way, to, udp, ended))
            })
            .into();
        let connections: Vec<_> = to
            .iter()
            .map(|address| {
                let (address, ended) = (*address, &ended);
                scope.spawn(move || connections(SocketAddr::new(address, tcp), ended))
            })
            .collect();
        println!("{{}}");
        while told_to_proceed() {}
        ended.store(true, Ordering::Relaxed);
        let lost = || Failure::Usage("a thread panicked".into());
        for thread in datagrams {
            thread.join().map_err(|_| lost())??;
        }
        for thread in connections {
            thread.join().map_err(|_| lost())?;
        }
        Ok(())
    })
}

fn datagrams(way: &'static str, to: &[IpAddr], port: u16, ended: &AtomicBool) -> Answer {
    let open = |address: IpAddr| -> Result<OwnedFd, Failure> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(family(address), SockType::Datagram, flags, None).named("socket")
    };
    let mut tallies = vec![Tally::default(); to.len()];
    let mut sockets: Vec<Option<OwnedFd>> = to.iter().map(|_| None).collect();
    let first = to.first().ok_or(Failure::Usage("--to is missing".into()))?;
    let one = open(*first)?;
    while !ended.load(Ordering::Relaxed) {
        for ((address, tally), kept) in to.iter().zip(&mut tallies).zip(&mut sockets) {
            let peer = SockaddrStorage::from(SocketAddr::new(*address, port));
            let result = match way {
                "one socket" => send_to(&one, &peer),
                "new sockets" => send_to(&open(*address)?, &peer),
                _ => {
                    // Refused until a policy approves it, and then kept.
                    let socket = match kept.take() {
                        Some(socket) => Ok(socket),
                        None => {
                            let socket = open(*address)?;
                            connect(socket.as_raw_fd(), &peer).map(|()| socket)
                        }
                    };
                    socket.and_then(|socket| {
                        let sent = send(socket.as_raw_fd(), b"x", MsgFlags::empty());
                        *kept = Some(socket);
                        sent.map(drop)
                    })
                }
            };
            tally.note(result);
        }
        std::thread::sleep(PAUSE);
    }
    for (address, tally) in to.iter().zip(tallies) {
        tally.tell(*address, way);
    }
    Ok(())
}

fn send_to(socket: &OwnedFd, peer: &SockaddrStorage) -> nix::Result<()> {
    sendto(socket.as_raw_fd(), b"x", peer, MsgFlags::empty()).map(drop)
}

fn connections(peer: SocketAddr, ended: &AtomicBool) {
    let mut tally = Tally::default();
    while !ended.load(Ordering::Relaxed) {
        tally.note(connection(peer).map_err(|error| {
            let code = error.raw_os_error();
            code.map_or(Errno::UnknownErrno, Errno::from_raw)
        }));
        std::thread::sleep(PAUSE_TCP);
    }
    tally.tell(peer.ip(), "tcp");
}

/// A connection that both ends close: it is over once the far end has closed as well.
fn connection(peer: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&peer, PATIENCE_TCP)?;
    stream.set_read_timeout(Some(PATIENCE_TCP))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read_to_end(&mut Vec::new())? {
        0 => Ok(()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}
