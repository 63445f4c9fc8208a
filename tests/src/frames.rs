//! A packet socket that sends whole frames and receives nothing, and what others have lost.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::Result;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// A packet socket, and the interface that it sends by.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Opens one. It tells the kernel that its frames are of this ethertype, whatever they are.
    pub fn open(interface: &str, ethertype: u16) -> Result<Self> {
        let index = if_nametoindex(interface)?;
        // SAFETY: socket(2) with numbers reads no memory. Protocol 0: it receives nothing.
        let descriptor =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let descriptor = Errno::result(descriptor)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // SAFETY: a struct of integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index as i32;
        address.sll_halen = 6;
        Ok(Self { socket, address })
    }

    /// The socket itself, to set its options.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.socket
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: a frame and an address with their sizes.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&self.address).cast(),
                size_of_val(&self.address) as libc::socklen_t,
            )
        };
        Errno::result(sent).map(drop)
    }
}

/// Number of frames that a packet socket had no room for. The kernel begins anew with each answer.
pub fn lost(socket: &OwnedFd) -> Result<u32> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the kernel writes no more than that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(statistics.tp_drops)
}
