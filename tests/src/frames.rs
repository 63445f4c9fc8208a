//! A packet socket that sends whole frames and receives nothing, and what others have lost.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

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
    pub fn open(interface: &str, ethertype: u16) -> nix::Result<Self> {
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

    /// Has each frame that is sent begin with a `struct virtio_net_hdr`, of ten bytes.
    pub fn describe_frames(&self) -> nix::Result<()> {
        const PACKET_VNET_HDR: libc::c_int = 15;
        let on: libc::c_int = 1;
        // SAFETY: the kernel reads a number, of this size.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        Errno::result(set).map(drop)
    }

    /// Has it receive what the interface sends and receives, of the ethertype that it was opened for.
    pub fn listen(&self) -> nix::Result<()> {
        let length = size_of_val(&self.address) as libc::socklen_t;
        // SAFETY: the kernel reads the address, of this length.
        let bound = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                std::ptr::from_ref(&self.address).cast(),
                length,
            )
        };
        Errno::result(bound).map(drop)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> nix::Result<()> {
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

/// A frame of Ethernet between two link addresses.
pub fn ethernet(to: &str, from: &str, ethertype: u16, content: &[u8]) -> Result<Vec<u8>> {
    let address = |text: &str| -> Result<Vec<u8>> {
        let bytes = text.split(':').map(|part| u8::from_str_radix(part, 16));
        bytes.collect::<Result<_, _>>().context("a link address")
    };
    let kind = ethertype.to_be_bytes();
    Ok([&address(to)?[..], &address(from)?, &kind, content].concat())
}

/// Number of frames that a packet socket had no room for. The kernel begins anew with each answer.
pub fn lost(socket: &OwnedFd) -> nix::Result<u32> {
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
