//! Sockets that one process opens and another one uses, and sockets that turn into
//! others.

use std::io::{IoSlice, IoSliceMut, stdin};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, connect,
    recvmsg, send, sendmsg, sendto, socket,
};
use nix::unistd::dup2;

use crate::arguments::Arguments;
use crate::udp::{family, own_port};
use crate::{Answer, Failure, Named, Sent, tcp};

const PAYLOAD: [u8; 64] = [b'x'; 64];
/// Datagrams that `traffic go-on` sends.
const GOES_ON: usize = 10;

fn connected(peer: SocketAddr) -> Result<OwnedFd, Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family(peer.ip()), SockType::Datagram, flags, None).named("socket")?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    Ok(socket)
}

fn send_and_tell(socket: &impl AsRawFd, port: u16) -> Answer {
    let bytes = send(socket.as_raw_fd(), &PAYLOAD, MsgFlags::empty()).named("send")?;
    Sent {
        port,
        packets: 1,
        bytes: bytes as u64,
    }
    .tell();
    Ok(())
}

/// `traffic hand-on`
pub fn hand_on(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let socket = connected(peer)?;
    let own = std::env::current_exe().named("readlink")?;
    let mut child = Command::new(own);
    match how.as_str() {
        "inherited" => {
            child.args(["use", "inherited"]).stdin(Stdio::from(socket));
        }
        "passed" => {
            let (near, far) = UnixStream::pair().named("socketpair")?;
            let descriptors = [socket.as_raw_fd()];
            sendmsg::<()>(
                near.as_raw_fd(),
                &[IoSlice::new(b"x")],
                &[ControlMessage::ScmRights(&descriptors)],
                MsgFlags::empty(),
                None,
            )
            .named("sendmsg")?;
            child.args(["use", "passed"]).stdin(OwnedFd::from(far));
        }
        other => return Err(Failure::Usage(format!("no way {other:?}"))),
    }
    // It is the child that sends, and that tells.
    let status = child.status().named("spawn")?;
    match status.code() {
        Some(0) => Ok(()),
        code => std::process::exit(code.unwrap_or(1)),
    }
}

/// `traffic hand-over`: one process connects and sends, and another program goes on.
pub fn hand_over(arguments: &mut Arguments) -> Answer {
    let program = arguments.word("a program")?;
    let peers: [SocketAddr; 2] = [arguments.value("ADDR:PORT")?, arguments.value("ADDR:PORT")?];
    let again = arguments.flag("--again");
    arguments.done()?;
    let socket = connected(peers[0])?;
    for peer in &peers {
        connect(socket.as_raw_fd(), &SockaddrStorage::from(*peer)).named("connect")?;
        send(socket.as_raw_fd(), &PAYLOAD, MsgFlags::empty()).named("send")?;
    }
    let mut child = Command::new(program);
    child.args(["go-on"]).stdin(Stdio::from(socket));
    if again {
        child.args(["--again", &peers[1].to_string()]);
    }
    let status = child.status().named("spawn")?;
    std::process::exit(status.code().unwrap_or(1));
}

/// `traffic go-on`: standard input is a socket, and something is sent on it, several times.
pub fn go_on(arguments: &mut Arguments) -> Answer {
    let again: Option<SocketAddr> = arguments.option("--again")?;
    arguments.done()?;
    let socket = stdin().as_fd().try_clone_to_owned().named("dup")?;
    if let Some(peer) = again {
        connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    }
    for _ in 0..GOES_ON {
        // Though one is refused, the next is tried.
        let _ = send(socket.as_raw_fd(), &PAYLOAD, MsgFlags::empty());
    }
    Ok(())
}

/// `traffic replace`: one process connects, perhaps with a word, and is another program when it sends,
/// or has one as a child.
pub fn replace(arguments: &mut Arguments) -> Answer {
    let program = arguments.word("a program")?;
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let bytes: usize = arguments.option("--bytes")?.unwrap_or(64);
    let fast_open = arguments.flag("--fast-open");
    let is_child = arguments.flag("--child");
    arguments.done()?;
    let socket = tcp::open(family(peer.ip()), None)?;
    let address = SockaddrStorage::from(peer);
    if fast_open {
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        sendto(socket.as_raw_fd(), &PAYLOAD, &address, flags).named("sendto")?;
    } else {
        connect(socket.as_raw_fd(), &address).named("connect")?;
    }
    let mut command = Command::new(program);
    command.args(["give", &bytes.to_string()]);
    command.stdin(Stdio::from(socket));
    if is_child {
        let status = command.status().named("spawn")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    Err(command.exec()).named("exec")
}

/// `traffic give`: standard input is a connection, and gets all of it in one call.
pub fn give(arguments: &mut Arguments) -> Answer {
    let bytes: usize = arguments.value("a number of bytes")?;
    arguments.done()?;
    let socket = stdin().as_fd().try_clone_to_owned().named("dup")?;
    let payload = vec![b'x'; bytes];
    let sent = send(socket.as_raw_fd(), &payload, MsgFlags::empty()).named("send")?;
    Sent {
        port: own_port(&socket),
        packets: 1,
        bytes: sent as u64,
    }
    .tell();
    Ok(())
}

/// `traffic share`: one process and another send in turn on a socket without a peer.
pub fn share(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let is_child = arguments.flag("--on-input");
    arguments.done()?;
    let input = stdin().as_fd().try_clone_to_owned().named("dup")?;
    let socket = match is_child {
        true => UdpSocket::from(input),
        false => UdpSocket::bind("0.0.0.0:0").named("bind")?,
    };
    let send = || {
        let bytes = socket.send_to(&PAYLOAD, peer).named("sendto")? as u64;
        Sent {
            port: own_port(&socket.as_fd().try_clone_to_owned().named("dup")?),
            packets: 1,
            bytes,
        }
        .tell();
        Ok(())
    };
    send()?;
    if is_child {
        return Ok(());
    }
    let own = std::env::current_exe().named("readlink")?;
    let status = Command::new(own)
        .args(["share", &peer.to_string(), "--on-input"])
        .stdin(OwnedFd::from(socket.try_clone().named("dup")?))
        .status()
        .named("spawn")?;
    match status.code() {
        Some(0) => send(),
        code => std::process::exit(code.unwrap_or(1)),
    }
}

/// `traffic use`: standard input is a socket, or what a socket comes through.
pub fn use_handed(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    arguments.done()?;
    let input = stdin().as_fd().try_clone_to_owned().named("dup")?;
    let socket = if how == "passed" {
        received(&input)?
    } else {
        input
    };
    let port = own_port(&socket);
    send_and_tell(&socket, port)
}

/// The descriptor that comes through a socket.
pub fn received(from: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut control), flags).named("recvmsg")?;
    let descriptor = message.cmsgs().named("recvmsg")?.find_map(|one| match one {
        ControlMessageOwned::ScmRights(all) => all.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or(Failure::Usage("no descriptor came".into()))?;
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `traffic turn`: an approved peer first, and then another.
pub fn turn(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    let first: SocketAddr = arguments.value("ADDR:PORT")?;
    let second: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    if how == "race" {
        return race(first, second);
    }
    let mut socket = connected(first)?;
    send(socket.as_raw_fd(), &PAYLOAD, MsgFlags::empty()).named("send")?;
    match how.as_str() {
        "reconnect" => {
            disconnect(&socket)?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(second)).named("connect")?;
        }
        "replace" => {
            let other = connected(second)?;
            dup2(&other, &mut socket).named("dup2")?;
        }
        other => return Err(Failure::Usage(format!("no way {other:?}"))),
    }
    let port = own_port(&socket);
    send_and_tell(&socket, port)
}

/// Sends on sockets that two threads connect to one peer and the other all the while.
fn race(first: SocketAddr, second: SocketAddr) -> Answer {
    const SOCKETS: usize = 200;
    const TURNS: usize = 200;
    let mut sent = Sent::default();
    for _ in 0..SOCKETS {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(family(first.ip()), SockType::Datagram, flags, None).named("socket")?;
        std::thread::scope(|scope| {
            let connectors = [[first, second], [second, first]].map(|peers| {
                let socket = socket.as_raw_fd();
                scope.spawn(move || {
                    for peer in peers.iter().cycle().take(TURNS) {
                        let _ = connect(socket, &SockaddrStorage::from(*peer));
                    }
                })
            });
            while connectors.iter().any(|connector| !connector.is_finished()) {
                // Before it is connected there is no destination, and that does not matter.
                if let Ok(bytes) = send(socket.as_raw_fd(), &PAYLOAD, MsgFlags::empty()) {
                    sent.packets += 1;
                    sent.bytes += bytes as u64;
                }
            }
        });
    }
    sent.tell();
    Ok(())
}

/// Connects to nobody, which is what the kernel calls AF_UNSPEC.
fn disconnect(socket: &OwnedFd) -> Answer {
    // SAFETY: all zeros is an address of that family.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of_val(&nobody) as u32;
    // SAFETY: the kernel reads the address, of this length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    nix::errno::Errno::result(result).named("connect").map(drop)
}

/// `traffic relay`: what is sent to a port of this host goes on to another address, as a
/// resolver does with questions.
pub fn relay(arguments: &mut Arguments) -> Answer {
    let port: u16 = arguments.value("a port")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    let near = UdpSocket::bind(("127.0.0.1", port)).named("bind")?;
    let far = UdpSocket::bind("0.0.0.0:0").named("bind")?;
    Sent::default().tell();
    let mut packet = [0; 2048];
    let length = near.recv(&mut packet).named("recv")?;
    let bytes = far
        .send_to(packet.get(..length).unwrap_or_default(), to)
        .named("sendto")?;
    Sent {
        port,
        packets: 1,
        bytes: bytes as u64,
    }
    .tell();
    Ok(())
}
