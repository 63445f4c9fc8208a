//! Flows: what left, to where, how much, under which decision.

use super::{Address, Decision, Owner, near};

/// Side that began the exchange.
pub mod direction {
    /// Not known: of a connection that is older than the agent, of raw packets, and of what no
    /// socket's hooks have seen.
    pub const UNKNOWN: u8 = 0;
    /// This host named the destination. So it is of every datagram: who sent one before says
    /// nothing that a sender cannot write himself.
    pub const OUTBOUND: u8 = 1;
    /// A peer connected to a listener of this host: the kernel made the socket for it.
    pub const ACCEPTED: u8 = 2;
    /// As [`ACCEPTED`], as far as a socket of another network namespace than the agent's can say,
    /// or a connection of MPTCP that this host has opened: who is root there writes what comes in
    /// by an interface of his own. To the judge it is not known.
    pub const CLAIMED: u8 = 3;

    /// True if it is told as the answer of a service.
    #[inline(always)]
    #[must_use]
    pub const fn is_answer(direction: u8) -> bool {
        matches!(direction, ACCEPTED | CLAIMED)
    }
}

/// The far end of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Destination address.
    pub address: Address,
    /// Destination port in host byte order; 0 where the protocol has none.
    pub port: u16,
    /// IP protocol number (6 TCP, 17 UDP, ...), after IPv6 extension headers.
    pub protocol: u8,
    /// Zero, but for some keys of map `REMEMBERED`.
    pub pad: [u8; 5],
}

impl Peer {
    /// With what [`rest`](Self::rest) has made.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, rest: u64) -> Self {
        let [a, b, protocol, pad @ ..] = rest.to_le_bytes();
        Self {
            address,
            port: u16::from_le_bytes([a, b]),
            protocol,
            pad,
        }
    }

    /// Returns port, protocol and padding, the bytes behind the address, in one word.
    #[inline(always)]
    #[must_use]
    pub const fn rest(&self) -> u64 {
        let ([a, b], [c, d, e, f, g]) = (self.port.to_le_bytes(), self.pad);
        u64::from_le_bytes([a, b, self.protocol, c, d, e, f, g])
    }
}

/// Amount of a flow so far. Bytes are those of IP packets, headers included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes handed to the link.
    pub bytes_out: u64,
    /// Packets handed to the link.
    pub packets_out: u64,
    /// Bytes delivered to the socket.
    pub bytes_in: u64,
    /// Packets delivered to the socket.
    pub packets_in: u64,
    /// Bytes of packets that were dropped here (enforce mode).
    pub blocked_bytes: u64,
    /// Packets that were dropped here (enforce mode).
    pub blocked_packets: u64,
    /// Calls of connect or sendmsg that were refused with EPERM (enforce mode).
    pub refused: u64,
}

/// The [`FLOW_OPENED`](reason::OPENED) event of this flow was handed over.
pub const FLOW_ANNOUNCED: u16 = 1;
/// The flow has ended; a packet that still comes is a flow of its own.
pub const FLOW_ENDED: u16 = 2;
/// Several processes sent on this flow; its owner is the last one. In the tag of a socket
/// that has no peer: several have sent on the socket. This and [`FLOW_SENT`] are in a byte of
/// their own: senders set them while packets set the others.
pub const FLOW_SHARED: u16 = 1 << 8;

/// Only answers of a listener to connection requests so far. The accepted session
/// takes the numbers over; what is left in `FLOWS` was never answered. It is announced
/// only if the answer is blocked, since then there will be no session.
pub const FLOW_EMBRYONIC: u16 = 8;
/// The agent cut the connection, since the policy does not approve it: the reset that
/// tells the far end so has left.
pub const FLOW_CUT: u16 = 16;

/// The owner has sent on this flow: if another process sends as well, it is shared.
pub const FLOW_SENT: u16 = 1 << 9;

/// Most entries of map `CUTS`.
pub const MAX_CUTS: usize = 1 << 16;

/// One owner, one peer, one verdict.
///
/// Counters are cumulative over the life of the slot; a flow that follows another in the same slot
/// (reconnect, new verdict) begins at `base`: what was handed over of the one before, so that
/// nothing that is counted at the same moment can get lost. The flow has sent `counters - base`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The far end.
    pub peer: Peer,
    /// Decision of the policy about it.
    pub decision: Decision,
    /// Near port in host byte order.
    pub local_port: u16,
    /// `FLOW_*` bits.
    pub state: u16,
    /// One of [`direction`].
    pub direction: u8,
    /// Zero.
    pub pad: u8,
    /// Port that the process named in host byte order, where the host translated it.
    pub named_port: u16,
    /// Cumulative counters of the slot.
    pub counters: Counters,
    /// Socket cookie. With `started_ns` and `peer` it names a flow for good.
    pub cookie: u64,
    /// Nanoseconds since boot (suspend included). Odd if it is [`reason::ALONE`], else even,
    /// so that such a flow has no name that another has. 0 where one flow makes way for
    /// another, and in an entry of `FLOWS` or `UPLINK_FLOWS` that is not complete yet.
    pub started_ns: u64,
    /// Near address; unspecified until a packet was seen.
    pub local: Address,
    /// Address that the process named, where the host translated it into that of `peer`; else
    /// unspecified.
    pub named: Address,
    /// The slot's counters when this flow began.
    pub base: Counters,
}

impl Flow {
    /// Its near end, see [`near`](mod@super::near).
    #[inline(always)]
    #[must_use]
    pub const fn near(&self) -> u32 {
        let port = match self.local_port {
            // No packet was seen yet.
            0 if self.direction == direction::OUTBOUND && self.local.is_unspecified() => {
                return (self.direction as u32) << near::SHIFT | near::NO_PORT;
            }
            port => port,
        };
        near::of(self.direction, self.peer.protocol, port)
    }
}

/// A flow with its owner: what events and iterators carry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// The flow itself.
    pub flow: Flow,
    /// Owner of the flow.
    pub owner: Owner,
}

/// The socket listens; what is cloned from it is an accepted session.
pub const SOCKET_LISTENS: u32 = 1;
/// `tracked.flow` is in use: the socket has one peer.
pub const SOCKET_HAS_PEER: u32 = 4;
/// Flows of this socket are in map `FLOWS`. In a byte of its own, since packets set it while
/// calls set the others.
pub const SOCKET_HAS_FLOWS: u32 = 1 << 8;

/// The socket is older than the agent: it may be connected, and nobody was asked.
pub const SOCKET_IS_OLDER: u32 = 64;

/// A connection of TCP that carries one of MPTCP, whose socket processes use. In a byte of its own,
/// likewise.
pub const SOCKET_OF_MPTCP: u32 = 1 << 16;

/// The socket belongs to the agent's own network namespace.
pub const SOCKET_OWN_NAMESPACE: u32 = 16;

/// A packet socket. `tracked.flow` is no flow: its two ends and its cookie are those of
/// the flow in map `UPLINK_FLOWS` that its last frame belongs to.
pub const SOCKET_OF_FRAMES: u32 = 32;

/// The socket tag, value of the socket storage `SOCKETS`.
///
/// A socket that has one peer (TCP, connected UDP) keeps its flow here; flows of
/// a socket with many peers are in `FLOWS`, and `tracked.owner` is its last actor. Of one for
/// datagrams that is connected once more, to another, the flow here stays that of the first.
///
/// All that a packet of a known flow needs is at the beginning, in two cache lines.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// `SOCKET_*` bits.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// Last actor, and the flow if the socket has one peer.
    pub tracked: Tracked,
    /// Of a socket for datagrams, the peer that its process has named last.
    pub named: Peer,
    /// Where packets to that go, where the host translates it; else of protocol 0.
    pub translated: Peer,
}

/// Key of map `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Socket cookie.
    pub cookie: u64,
    /// The far end.
    pub peer: Peer,
}

/// Key of map `ENDED`, where the last state of a flow waits when the ring
/// buffer had no room for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndedKey {
    /// Socket cookie.
    pub cookie: u64,
    /// [`Flow::started_ns`].
    pub started_ns: u64,
}

/// Why an event was sent. Numbers are never used twice; unknown ones are counted.
pub mod reason {
    /// First packet or connect of a flow.
    pub const OPENED: u32 = 1;
    /// The owner of an open flow became known or changed.
    pub const OWNER: u32 = 2;
    /// The flow ended: these are its final counters.
    pub const CLOSED: u32 = 3;
    /// A call was refused (enforce mode).
    pub const REFUSED: u32 = 4;
    /// The socket `cookie` is gone: its flows in `FLOWS` get no more packets.
    /// Only the cookie and the owner are filled in.
    pub const SOCKET_GONE: u32 = 5;
    /// A process opened a way out that no hook judges, or tried to: the owner is the
    /// process, `local_port` one of [`unseen`](super::unseen), `counters.refused` 1 if it
    /// does not get it.
    pub const UNSEEN: u32 = 6;
    /// One packet that found no room in `FLOWS` or `UPLINK_FLOWS`: a flow that begins and
    /// ends with it, of which nothing else is told.
    pub const ALONE: u32 = 7;
}

/// Ways out that no hook judges.
pub mod unseen {
    /// A packet socket that asks to skip the queue (`PACKET_QDISC_BYPASS`).
    pub const QUEUE: u16 = 1;
    /// A ring for sending of an AF_XDP socket.
    pub const XDP: u16 = 2;
    /// A device for remote direct memory access.
    pub const RDMA: u16 = 3;
    /// A device that a process or a guest drives by itself.
    pub const VFIO: u16 = 4;
    /// A socket of a family that no hook judges: this, and the number of the family.
    pub const FAMILY: u16 = 0x100;
}

/// A socket that may send past all hooks, and was open before one could see it: an element of the
/// output of iterator `iter_task_file`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WayOut {
    /// Process that has it open.
    pub owner: Owner,
    /// Its number among the open files of that process.
    pub fd: u32,
    /// One of [`unseen`]; [`unseen::QUEUE`] for every packet socket.
    pub way: u16,
    /// Zero.
    pub pad: u16,
}

/// An element of the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, nanoseconds since boot (suspend included).
    pub time_ns: u64,
    /// One of [`reason`].
    pub reason: u32,
    /// Zero.
    pub pad: u32,
    /// Cumulative state of the flow at that time.
    pub tracked: Tracked,
}

/// Everything that was judged with one verdict, per CPU in map `TOTALS`,
/// indexed by verdict. Never reset: the books are made of differences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// As in [`Counters`].
    pub bytes_out: u64,
    /// As in [`Counters`].
    pub packets_out: u64,
    /// As in [`Counters`].
    pub blocked_bytes: u64,
    /// As in [`Counters`].
    pub blocked_packets: u64,
    /// As in [`Counters`].
    pub refused: u64,
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<Peer>() == 24);
    assert!(size_of::<Counters>() == 56);
    assert!(size_of::<Flow>() == 16 + 24 + 2 * 16 + 8 + 8 + 56 + 56);
    assert!(size_of::<Tracked>() == 288);
    assert!(size_of::<Socket>() == 344);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<EndedKey>() == 16);
    assert!(size_of::<WayOut>() == size_of::<Owner>() + 8);
    assert!(size_of::<Event>() == 304);
    assert!(size_of::<Totals>() == 40);
};
