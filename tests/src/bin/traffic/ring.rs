//! Frames by the ring of a packet socket, memory that stays the sender's while they are on their way.

use std::ffi::c_void;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use trefoil_lab::frames::{PacketSocket, ethernet};
use trefoil_lab::packets::{self, ethertype_of};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::{Answer, Failure, Named, Sent};

/// Bytes of the ring, one frame.
const RING_BYTES: usize = 4096;
/// Where in a frame the destination of IPv4 begins.
const DESTINATION_AT: usize = 14 + 16;
const LINK: &str = "02:00:00:00:01:64";

/// `traffic ring`
pub fn ring(arguments: &mut Arguments) -> Answer {
    let interface = arguments.word("INTERFACE")?;
    let mac = arguments.word("MAC")?;
    let first: SocketAddr = arguments.value("ADDR:PORT")?;
    let second: IpAddr = arguments.value("ADDR")?;
    let from: SocketAddr = arguments
        .option("--from")?
        .ok_or_else(|| Failure::Usage("--from is missing".to_owned()))?;
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let version = arguments.option("--version")?.unwrap_or(2);
    arguments.done()?;
    let (IpAddr::V4(good), IpAddr::V4(other)) = (first.ip(), second) else {
        return Err(Failure::Usage("addresses of IPv4 are needed".to_owned()));
    };
    let ethertype = ethertype_of(first.ip());
    let frame = ethernet(&mac, LINK, ethertype, &packets::udp(from, first, 64))
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let socket = PacketSocket::open(&interface, ethertype).named("socket")?;
    let ring = Ring::make(socket.descriptor(), &interface, ethertype, version)?;
    ring.write(&frame);
    let halves = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        [[a, b], [c, d]].map(u16::from_ne_bytes)
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let destination = [0, 2].map(|at| ring.half_word(ring.frame_at + DESTINATION_AT + at));
            while !is_over.load(Ordering::Relaxed) {
                for address in [other, good] {
                    for (place, half) in destination.iter().zip(halves(address)) {
                        place.store(half, Ordering::Relaxed);
                    }
                }
            }
        });
        let mut sent = Sent::default();
        for _ in 0..count {
            let is_sent = ring.send(socket.descriptor(), frame.len() as u32);
            sent.packets += u64::from(is_sent);
        }
        is_over.store(true, Ordering::Relaxed);
        sent.tell();
    });
    Ok(())
}

/// Memory that the kernel sends from.
pub struct Ring {
    start: NonNull<c_void>,
    /// Where a frame begins behind its header.
    frame_at: usize,
    /// Where that header, `struct tpacket2_hdr` or `struct tpacket3_hdr`, has the state.
    state_at: usize,
    /// Where it has the frame's length.
    length_at: usize,
}

// SAFETY: it is of atomic words, and mapped as long as the process lives.
unsafe impl Sync for Ring {}

impl Ring {
    /// Makes the ring of a socket, of the second version or the third.
    pub fn make(
        socket: &OwnedFd,
        interface: &str,
        ethertype: u16,
        version: u32,
    ) -> Result<Self, Failure> {
        // TPACKET_V2 is 1.
        let number = (version - 1).to_ne_bytes();
        set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &number)?;
        // struct tpacket_req: bytes of a block, blocks, bytes of a frame, frames; three more fields
        // of struct tpacket_req3.
        let bytes = RING_BYTES as u32;
        let mut request: Vec<u8> = [bytes, 1, bytes, 1].map(u32::to_ne_bytes).concat();
        let (frame_at, state_at, length_at) = match version {
            3 => (48, 20, 16),
            _ => (32, 0, 4),
        };
        if version == 3 {
            request.extend([0; 12]);
        }
        set_option(socket, libc::SOL_PACKET, libc::PACKET_TX_RING, &request)?;
        bind(socket, interface, ethertype)?;
        let size = NonZeroUsize::new(RING_BYTES).ok_or(Failure::Usage("no ring".into()))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: memory of the kernel's, which only this function's result refers to.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, socket, 0) };
        Ok(Self {
            start: start.named("mmap")?,
            frame_at,
            state_at,
            length_at,
        })
    }

    /// Has the kernel send the frame in it. False if it did not, since a hook has dropped it.
    pub fn send(&self, socket: &OwnedFd, length: u32) -> bool {
        /// The kernel is to send it.
        const SEND_REQUEST: u32 = 1;
        self.word(self.length_at).store(length, Ordering::Relaxed);
        self.word(self.state_at)
            .store(SEND_REQUEST, Ordering::Release);
        // SAFETY: a message without content or address.
        let sent = unsafe {
            let nothing = std::ptr::null();
            libc::sendto(socket.as_raw_fd(), nothing, 0, 0, std::ptr::null(), 0)
        };
        Errno::result(sent).is_ok()
    }

    /// Writes another frame over the one in it, while others use the ring; an odd last byte stays.
    pub fn overwrite(&self, frame: &[u8]) {
        for (index, pair) in frame.as_chunks().0.iter().enumerate() {
            let place = self.half_word(self.frame_at + 2 * index);
            place.store(u16::from_ne_bytes(*pair), Ordering::Relaxed);
        }
    }

    /// The address of byte `at` of the ring, behind which there are `bytes`.
    fn at(&self, at: usize, bytes: usize) -> NonNull<c_void> {
        assert!(at + bytes <= RING_BYTES, "not in the ring");
        // SAFETY: within the ring, which is mapped as long as the process lives.
        unsafe { self.start.byte_add(at) }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4), "no such word");
        // SAFETY: aligned, since the ring begins at a page.
        unsafe { self.at(at, 4).cast().as_ref() }
    }

    fn half_word(&self, at: usize) -> &AtomicU16 {
        assert!(at.is_multiple_of(2), "no such word");
        // SAFETY: as above.
        unsafe { self.at(at, 2).cast().as_ref() }
    }

    /// Writes the frame, before anybody else uses the ring.
    pub fn write(&self, frame: &[u8]) {
        let start = self.at(self.frame_at, frame.len()).cast::<u8>().as_ptr();
        // SAFETY: as many bytes of the ring, and nobody else has it.
        unsafe { start.copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
    }
}

fn bind(socket: &OwnedFd, interface: &str, ethertype: u16) -> Answer {
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = if_nametoindex(interface).named("if_nametoindex")? as i32;
    // SAFETY: the kernel reads the address, of this length.
    let result = unsafe {
        let length = size_of_val(&address) as u32;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    Errno::result(result).named("bind").map(drop)
}
