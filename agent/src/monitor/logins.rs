//! Login sessions that are older than the kernel programs: where they came from, as far as the
//! connections that exist now can say.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use tracing::warn;
use trefoil_ebpf::abi::{Address, Peer, SessionOrigin, quality};

use super::Monitor;
use crate::{
    connections::{Login, logins},
    kernel::KernelError,
};

impl Monitor {
    /// Adds their origins to the kernel's table, where those that the programs saw stay as they are.
    pub(super) fn add_older_logins(&mut self) -> Result<(), KernelError> {
        let logins = logins(Path::new("/proc")).unwrap_or_else(|error| {
            warn!("sessions that are open have no origin in records: read /proc: {error}");
            Vec::new()
        });
        for login in &logins {
            self.reader.add_session(login.session, origin(login))?;
        }
        Ok(())
    }
}

fn origin(login: &Login) -> SessionOrigin {
    const TCP: u8 = 6;
    SessionOrigin {
        peer: Peer {
            address: address(login.peer),
            port: login.peer.port(),
            protocol: TCP,
            ..Peer::default()
        },
        local: address(login.local),
        local_port: login.local.port(),
        quality: quality::INFERRED,
        ..SessionOrigin::default()
    }
}

fn address(end: SocketAddr) -> Address {
    match end.ip() {
        IpAddr::V4(v4) => Address::v4(v4.to_bits()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}
