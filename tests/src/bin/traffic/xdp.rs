//! A frame by way of AF_XDP: written to memory that is shared with the kernel, and
//! handed to the link's driver past everything else.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use crate::copy::set_option;
use crate::{Answer, Failure, Named};

const FRAME_SIZE: u32 = 4096;
const FRAMES: u32 = 4;
const MEMORY: usize = (FRAME_SIZE * FRAMES) as usize;

/// Sends one frame on the first queue of a link. `opened` is called once there is a ring to
/// send by.
pub fn send(link: &str, frame: &[u8], opened: impl FnOnce()) -> Answer {
    let index = nix::net::if_::if_nametoindex(link).named("if_nametoindex")?;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) with numbers reads no memory.
    let descriptor = unsafe { libc::socket(libc::AF_XDP, kind, 0) };
    let descriptor = Errno::result(descriptor).named("socket")?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };

    let memory = share_memory(&socket, frame)?;
    let size = FRAMES.to_ne_bytes();
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_TX_RING,
    ] {
        set_option(&socket, libc::SOL_XDP, ring, &size)?;
    }
    let ring = map_ring(&socket)?;
    opened();
    bind(&socket, index)?;
    ring.push(frame.len() as u32);
    // SAFETY: a message without content or address.
    let sent = unsafe {
        let nothing = std::ptr::null();
        libc::sendto(
            socket.as_raw_fd(),
            nothing,
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    Errno::result(sent).named("sendto")?;
    // The kernel has copied the frame by now; until then the memory must stay.
    let _ = memory;
    Ok(())
}

/// Memory with the frame at its beginning, known to the kernel.
fn share_memory(socket: &OwnedFd, frame: &[u8]) -> Result<NonNull<c_void>, Failure> {
    let length = NonZeroUsize::new(MEMORY).ok_or(Failure::Usage("no memory".into()))?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory, which nothing else refers to.
    let memory = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) };
    let memory = memory.named("mmap")?;
    let fits = frame.len().min(FRAME_SIZE as usize);
    // SAFETY: both have `fits` bytes, and do not overlap.
    unsafe {
        memory
            .as_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(frame.as_ptr(), fits)
    };
    // struct xdp_umem_reg as it was at first: address, length, size of a frame, headroom.
    let mut description = (memory.as_ptr() as u64).to_ne_bytes().to_vec();
    description.extend((MEMORY as u64).to_ne_bytes());
    description.extend(FRAME_SIZE.to_ne_bytes());
    description.extend(0u32.to_ne_bytes());
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &description)?;
    Ok(memory)
}

/// The ring of frames to be sent.
struct Ring {
    start: NonNull<c_void>,
    producer: usize,
    descriptors: usize,
}

fn map_ring(socket: &OwnedFd) -> Result<Ring, Failure> {
    // SAFETY: all zeros are offsets.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&offsets) as u32;
    // SAFETY: the kernel writes no more than `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).named("getsockopt")?;
    let descriptors = offsets.tx.desc as usize;
    let size = descriptors + FRAMES as usize * size_of::<libc::xdp_desc>();
    let size = NonZeroUsize::new(size).ok_or(Failure::Usage("no ring".into()))?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let at = libc::XDP_PGOFF_TX_RING;
    // SAFETY: memory of the kernel's, which only this function's result refers to.
    let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, socket, at) };
    Ok(Ring {
        start: start.named("mmap")?,
        producer: offsets.tx.producer as usize,
        descriptors,
    })
}

impl Ring {
    /// Hands over the frame at the beginning of the memory.
    fn push(&self, len: u32) {
        let descriptor = libc::xdp_desc {
            addr: 0,
            len,
            options: 0,
        };
        // SAFETY: within the ring, at the offset that the kernel told.
        let slot = unsafe { self.start.as_ptr().byte_add(self.descriptors) };
        // SAFETY: aligned, and the kernel does not read it before the producer moves.
        unsafe { slot.cast::<libc::xdp_desc>().write(descriptor) };
        // SAFETY: within the ring, at the offset that the kernel told.
        let producer = unsafe { self.start.as_ptr().byte_add(self.producer) };
        // SAFETY: aligned, and mapped as long as this process lives.
        let producer = unsafe { &*producer.cast::<AtomicU32>() };
        producer.store(1, Ordering::Release);
    }
}

fn bind(socket: &OwnedFd, index: u32) -> Answer {
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
    address.sxdp_family = libc::AF_XDP as u16;
    address.sxdp_flags = libc::XDP_COPY;
    address.sxdp_ifindex = index;
    // SAFETY: the kernel reads the address, of this length.
    let result = unsafe {
        let length = size_of_val(&address) as u32;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    Errno::result(result).named("bind").map(drop)
}
