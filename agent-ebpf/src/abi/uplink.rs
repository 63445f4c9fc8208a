//! Uplinks: what left by each interface, and who had judged it.

use super::{Address, Peer, verdict};

/// Kinds of senders of a frame, as far as the frame tells.
pub mod sender {
    /// A socket whose own hooks had judged this destination.
    pub const SOCKET: u8 = 0;
    /// The kernel: it has a socket of the kernel's own, one that the hooks do not
    /// know, one whose data the kernel sends elsewhere (a tunnel), or none.
    pub const KERNEL: u8 = 1;
    /// It came in by another interface: another host's, a virtual machine's, a
    /// container's.
    pub const FORWARDED: u8 = 2;
    /// A packet socket.
    pub const PACKET: u8 = 3;
    /// Number of senders.
    pub const N: u8 = 4;
}

/// Kinds of frames that have no destination to judge.
pub mod unjudged {
    /// Address resolution (ethertype 0x0806).
    pub const ARP: u8 = 0;
    /// Link layer discovery (ethertype 0x88cc).
    pub const LLDP: u8 = 1;
    /// No IP, and neither of those.
    pub const OTHER: u8 = 2;
    /// Number of them.
    pub const N: u8 = 3;
}

/// Frames that the hook let pass. Counters never go back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkTotals {
    /// Bytes as the hook sees them, link header included: before segmentation.
    pub bytes: u64,
    /// Bytes as they are on the wire, where each segment has headers of its own.
    pub wire_bytes: u64,
    /// Frames as the hook sees them.
    pub frames: u64,
}

/// Everything that came to the hook on one interface, per CPU in map `UPLINK_BOOKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkBooks {
    /// By [`sender`] and [`verdict`]: `sender * verdict::N + verdict`.
    pub judged: [UplinkTotals; sender::N as usize * verdict::N as usize],
    /// By [`unjudged`].
    pub unjudged: [UplinkTotals; unjudged::N as usize],
    /// By [`verdict`]: what was dropped here (enforce mode), and did not leave.
    pub dropped: [UplinkTotals; verdict::N as usize],
}

impl Default for UplinkBooks {
    fn default() -> Self {
        const NONE: UplinkTotals = UplinkTotals {
            bytes: 0,
            wire_bytes: 0,
            frames: 0,
        };
        Self {
            judged: [NONE; sender::N as usize * verdict::N as usize],
            unjudged: [NONE; unjudged::N as usize],
            dropped: [NONE; verdict::N as usize],
        }
    }
}

/// In [`Uplink::flags`]: there was no clsact qdisc, and one was made to hold the hook (before
/// 6.6).
pub const UPLINK_MADE_QDISC: u32 = 1;
/// In [`Uplink::flags`]: it is no uplink, but the entrance of a tunnel. Packets that pass there are
/// not counted; their owners are kept for the uplink by which they leave.
pub const UPLINK_IS_TUNNEL: u32 = 2;

/// One interface that is watched, in map `UPLINKS` by its index. The agent writes it
/// before and after it attaches the hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// When the hook was attached first, nanoseconds since boot (suspend included).
    pub attached_ns: u64,
    /// The interface's transmit counter in bytes just before that.
    pub before_bytes: u64,
    /// The same when the hook counted: what is in between may be in the books or not.
    pub after_bytes: u64,
    /// Name of the interface then, padded with zeros.
    pub name: [u8; 16],
    /// Bytes of the link header: [`ETHERNET_HEADER`], or 0 where a frame begins with
    /// its IP header.
    pub header_bytes: u32,
    /// `UPLINK_*` bits.
    pub flags: u32,
}

impl Uplink {
    /// True if a qdisc has to go with the hook.
    #[must_use]
    pub const fn made_qdisc(&self) -> bool {
        self.flags & UPLINK_MADE_QDISC != 0
    }

    /// True if it is the entrance of a tunnel, and has no books.
    #[must_use]
    pub const fn is_tunnel(&self) -> bool {
        self.flags & UPLINK_IS_TUNNEL != 0
    }
}

/// Key of map `UPLINK_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkFlowKey {
    /// Cookie of the packet socket that sends, or of the socket whose data is in the
    /// tunnel's packet; 0 where there is none.
    pub cookie: u64,
    /// The far end.
    pub peer: Peer,
    /// The near address.
    pub source: Address,
    /// The near port in host byte order; 0 where the protocol has none.
    pub source_port: u16,
    /// One of [`sender`].
    pub sender: u8,
    /// One of [`super::quality`] where no tag says whose it is; else 0.
    pub quality: u8,
    /// Index of the interface that it came in by, where no tag says whose it is; else 0. Two
    /// guests may have the same address.
    pub came_in_by: u32,
}

/// Stands in [`Peer::protocol`] for a frame that carries no IP: the address is unspecified, and the
/// port is the ethertype, or a number below 0x0600 if the frame has none. IANA reserves it.
pub const NO_IP: u8 = 255;

/// Set in the cookie of a flow that has no socket. The kernel counts cookies from 1.
pub const COOKIE_OF_NO_SOCKET: u64 = 1 << 63;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<UplinkTotals>() == 24);
    assert!(size_of::<UplinkBooks>() == 48 * 24);
    assert!(size_of::<Uplink>() == 48);
    assert!(size_of::<UplinkFlowKey>() == 56);
};
