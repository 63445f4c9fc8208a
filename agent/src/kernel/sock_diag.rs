//! Cutting connections: netlink's sock_diag, by which the kernel lists sockets and
//! destroys one.
//!
//! Sees the network namespace it was opened in, and nothing else. It destroys sockets by
//! cookie, never by port or address alone: a socket is named to the kernel exactly as
//! the kernel has just listed it, and it compares address, ports and cookie once more.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};

use super::{
    KernelError,
    netlink::{
        HEADER, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, PATIENCE_S,
        error_in, messages, receive,
    },
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bytes of `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Where the cookie is in it.
const COOKIE: usize = 40;
/// Bytes before it in `struct inet_diag_msg`, of which the first is the family.
const BEFORE_ID: usize = 4;

/// States of a connection that has a peer, as bits: all but LISTEN, those that are no
/// whole sockets (TIME_WAIT, NEW_SYN_RECV), and CLOSE.
const STATES: u32 = {
    const ESTABLISHED: u32 = 1;
    const SYN_SENT: u32 = 2;
    const FIN_WAIT1: u32 = 4;
    const FIN_WAIT2: u32 = 5;
    const CLOSE_WAIT: u32 = 8;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    1 << ESTABLISHED
        | 1 << SYN_SENT
        | 1 << FIN_WAIT1
        | 1 << FIN_WAIT2
        | 1 << CLOSE_WAIT
        | 1 << LAST_ACK
        | 1 << CLOSING
};

/// A TCP socket as the kernel listed it.
struct Listed {
    family: u8,
    /// Identifier of the socket to the kernel, in the kernel's own bytes.
    id: [u8; ID],
}

impl Listed {
    /// From the body of a message.
    fn parse(body: &[u8]) -> Option<Self> {
        Some(Self {
            family: *body.first()?,
            id: body.get(BEFORE_ID..BEFORE_ID + ID)?.try_into().ok()?,
        })
    }

    fn cookie(&self) -> u64 {
        let word = |at: usize| {
            let bytes = self.id[at..at + 4].try_into().unwrap_or_default();
            u64::from(u32::from_ne_bytes(bytes))
        };
        word(COOKIE) | word(COOKIE + 4) << 32
    }
}

/// Access to the TCP sockets of a network namespace.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    /// Opens it for the namespace of the calling thread, which needs CAP_NET_ADMIN to
    /// destroy anything.
    pub fn open() -> Result<Self, KernelError> {
        let failed = |error: nix::Error| KernelError::failed("open netlink sock_diag", error);
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
        .map_err(failed)?;
        let patience = TimeVal::new(PATIENCE_S, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(failed)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Destroys the TCP connections with these cookies, and adds those that it destroyed
    /// to `destroyed`. Others are not there (any more), or in another namespace.
    pub fn destroy(
        &mut self,
        cookies: &HashSet<u64>,
        destroyed: &mut HashSet<u64>,
    ) -> Result<(), KernelError> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let listed = self
                .list(family as u8, cookies)
                .map_err(|error| KernelError::failed("list TCP sockets by sock_diag", error))?;
            for socket in listed {
                match self.destroy_one(&socket) {
                    Ok(()) => {
                        destroyed.insert(socket.cookie());
                    }
                    // It ended by itself; or its place is taken by another socket,
                    // whose cookie is not the same.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
                    Err(error) => {
                        let operation = "destroy a TCP socket by sock_diag";
                        return Err(KernelError::failed(operation, error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Those of the wanted sockets that are there.
    fn list(&mut self, family: u8, wanted: &HashSet<u64>) -> io::Result<Vec<Listed>> {
        self.send(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_DUMP,
            &Listed {
                family,
                id: [0; ID],
            },
        )?;
        let mut found = Vec::new();
        loop {
            for (kind, body) in messages(&self.receive()?) {
                match kind {
                    SOCK_DIAG_BY_FAMILY => found.extend(
                        Listed::parse(body).filter(|listed| wanted.contains(&listed.cookie())),
                    ),
                    NLMSG_ERROR => return error_in(body).map(|()| found),
                    NLMSG_DONE => return Ok(found),
                    _ => {}
                }
            }
        }
    }

    fn destroy_one(&mut self, socket: &Listed) -> io::Result<()> {
        self.send(SOCK_DESTROY, NLM_F_ACK, socket)?;
        loop {
            for (kind, body) in messages(&self.receive()?) {
                if kind == NLMSG_ERROR {
                    return error_in(body);
                }
            }
        }
    }

    /// Sends a request about sockets like this one: `struct inet_diag_req_v2`.
    fn send(&mut self, kind: u16, flags: u16, socket: &Listed) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let tcp = libc::IPPROTO_TCP as u8;
        let mut message = Vec::with_capacity(HEADER + 8 + ID);
        let len = (HEADER + 8 + ID) as u32;
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend([socket.family, tcp, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(socket.id);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// The next messages that answer the last request.
    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let bytes = receive(&self.socket)?;
            let sequence = bytes.get(8..12).and_then(|word| word.try_into().ok());
            // An answer that somebody gave up waiting for may still come.
            if bytes.len() >= HEADER && sequence.map(u32::from_ne_bytes) == Some(self.sequence) {
                return Ok(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use trefoil_lab::namespace::Namespace;

    use super::*;

    const V4: u8 = libc::AF_INET as u8;

    /// A connection within this process.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn cookie(stream: &TcpStream) -> u64 {
        let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
        // SAFETY: an option of eight bytes, and room for as many.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn only_the_socket_with_the_cookie_is_destroyed() {
        let place = Namespace::new("destroyed").unwrap();
        place.ip("link set lo up").unwrap();
        place
            .enter(|| {
                let (mut near, mut far) = connection();
                let (other, mut other_far) = connection();
                let mut diag = SockDiag::open()?;
                let wanted = HashSet::from([cookie(&near), u64::MAX]);
                let found = diag.list(V4, &wanted)?;
                assert_eq!(found.len(), 1);
                assert_eq!(found[0].cookie(), cookie(&near));
                assert_eq!(diag.list(libc::AF_INET6 as u8, &wanted)?.len(), 0);

                let mut destroyed = HashSet::new();
                diag.destroy(&wanted, &mut destroyed)?;
                assert_eq!(destroyed, HashSet::from([cookie(&near)]));
                let error = near.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                let error = far.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                // The end of the other connection is its own.
                drop(other);
                assert_eq!(other_far.read(&mut [0])?, 0);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn sockets_of_another_namespace_are_not_there() {
        let [one, other] = ["one", "other"].map(|name| Namespace::new(name).unwrap());
        one.ip("link set lo up").unwrap();
        let (near, _far) = one.enter(|| Ok(connection())).unwrap();
        let wanted = HashSet::from([cookie(&near)]);
        let mut diag = other.enter(|| Ok(SockDiag::open()?)).unwrap();
        assert_eq!(diag.list(V4, &wanted).unwrap().len(), 0);
    }

    #[test]
    fn a_message_that_ends_early_is_no_message() {
        let mut message = [0; 40];
        message[..4].copy_from_slice(&20_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        message[20..24].copy_from_slice(&36_u32.to_ne_bytes());
        let found: Vec<_> = messages(&message).collect();
        assert_eq!(found, [(NLMSG_ERROR, &[0; 4][..])]);
        assert!(error_in(found[0].1).is_ok());
        assert!(error_in(&[]).is_err());
        assert!(Listed::parse(&[2; BEFORE_ID + ID - 1]).is_none());
    }
}
