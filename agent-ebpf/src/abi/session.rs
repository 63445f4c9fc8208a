//! Login sessions: the accepted connection that each came by.

use super::{Address, Peer};

/// Most entries of map `SESSIONS`.
pub const MAX_SESSIONS: usize = 1 << 14;

/// Origin of a login session, keyed by the audit session in map `SESSIONS`.
///
/// It is the TCP connection by which somebody logged in: a process without a session answered on it
/// first, and then one of the new session that descends from the same service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOrigin {
    /// Far end of the connection.
    pub peer: Peer,
    /// Near address.
    pub local: Address,
    /// Near port in host byte order: that of the service.
    pub local_port: u16,
    /// One of [`quality`](super::quality): [`DIRECT`](super::quality::DIRECT) if the kernel
    /// programs saw the login, [`INFERRED`](super::quality::INFERRED) if it is older than they are.
    pub quality: u8,
    /// Zero.
    pub pad: [u8; 5],
}

#[cfg(not(target_arch = "bpf"))]
const _: () = assert!(size_of::<SessionOrigin>() == 48);
