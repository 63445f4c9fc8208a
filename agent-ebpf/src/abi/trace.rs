//! Contract between `trefoil trace` and its programs. None of it is pinned: each trace brings
//! its own programs, so a change here is no other [`ABI_VERSION`](super::ABI_VERSION).
//!
//! Each packet or call is one line of text, `key=value` with a space between, in the keys of
//! [`key`].

use super::Address;

/// Longest unit or path of a control group that can be asked for, in bytes.
pub const TRACE_UNIT: usize = 256;

/// Filter and rate of a trace. Constant for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceFilter {
    /// Network of the destination, its other bits zero; in network byte order.
    pub network: Address,
    /// Bits of a destination that are compared with `network`; none for any destination.
    pub mask: Address,
    /// When the last line is written, nanoseconds since boot (suspend included).
    pub until_ns: u64,
    /// Lines in a second, for each processor.
    pub per_second: u32,
    /// Thread group id in the initial pid namespace; 0 for any, and for no process.
    pub pid: u32,
    /// Port of the destination in host byte order; 0 for any.
    pub port: u16,
    /// Bytes of `unit` in use; 0 for any.
    pub unit_len: u16,
    /// 1 if the kernel says what programs before have answered (`bpf_get_retval`); else 0.
    pub knows_answers: u32,
    /// Component of a control group's path, or the beginning of one with a `/` in front.
    pub unit: [u8; TRACE_UNIT],
}

impl Default for TraceFilter {
    fn default() -> Self {
        Self {
            network: Address::default(),
            mask: Address::default(),
            until_ns: u64::MAX,
            per_second: u32::MAX,
            pid: 0,
            port: 0,
            unit_len: 0,
            knows_answers: 0,
            unit: [0; TRACE_UNIT],
        }
    }
}

/// Counts of one processor, in map `TRACE_COUNTS`. Never reset.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// Lines that were written, or found no room.
    pub told: u64,
    /// Packets and calls that were asked for and exceeded the rate.
    pub over_rate: u64,
    /// Packets that came while the program was at another on the same processor.
    pub nested: u64,
    /// The second in which lines were written last, since boot.
    pub second: u64,
    /// Lines in that second.
    pub in_second: u64,
}

/// Keys of a line. Values are decimal numbers unless said otherwise.
pub mod key {
    /// When, nanoseconds since boot (suspend included).
    pub const TIME: &str = "time";
    /// One of [`hook`](super::hook).
    pub const HOOK: &str = "hook";
    /// One of [`basis`](super::basis).
    pub const BASIS: &str = "basis";
    /// One of [`known`](super::known).
    pub const FLOW: &str = "flow";
    /// One of [`outcome`](super::outcome).
    pub const OUTCOME: &str = "outcome";
    /// One of [`sender`](super::super::sender).
    pub const SENDER: &str = "sender";
    /// Index of the interface; 0 for none.
    pub const INTERFACE: &str = "interface";
    /// Bytes that the hook sees; 0 for a call.
    pub const BYTES: &str = "bytes";
    /// Destination, an IPv6 address; IPv4 addresses are mapped.
    pub const TO: &str = "to";
    /// Its port; an ethertype if there is no IP.
    pub const PORT: &str = "port";
    /// Number of the protocol.
    pub const PROTOCOL: &str = "protocol";
    /// A [`Decision`](super::super::Decision) as one word, hexadecimal.
    pub const DECISION: &str = "decision";
    /// Fields of an [`Owner`](super::super::Owner).
    pub const PID: &str = "pid";
    /// As above.
    pub const START: &str = "start";
    /// As above.
    pub const EXE: &str = "exe";
    /// As above.
    pub const CGROUP: &str = "cgroup";
    /// As above.
    pub const UID: &str = "uid";
    /// As above.
    pub const GID: &str = "gid";
    /// As above.
    pub const QUALITY: &str = "quality";
    /// Its halves as numbers in the byte order of this machine, hexadecimal, joined by a comma.
    pub const COMM: &str = "comm";
}

/// Which program saw it.
pub mod hook {
    /// `connect4` or `connect6`.
    pub const CONNECT: u8 = 1;
    /// `sendmsg4` or `sendmsg6`.
    pub const SENDMSG: u8 = 2;
    /// `egress`.
    pub const EGRESS: u8 = 3;
    /// `uplink_egress`.
    pub const UPLINK: u8 = 4;
}

/// Where a decision is from.
pub mod basis {
    /// The judge, asked about owner and destination.
    pub const JUDGE: u8 = 1;
    /// The decision about its flow.
    pub const FLOW: u8 = 2;
    /// Its socket's hooks, which let it pass on its way to here.
    pub const SOCKET: u8 = 3;
    /// The decision about the beginning of its datagram.
    pub const DATAGRAM: u8 = 4;
    /// The link needs it, and nobody is asked.
    pub const LINK: u8 = 5;
    /// It goes to the loopback interface.
    pub const LOOPBACK: u8 = 6;
    /// Its headers cannot be read.
    pub const UNREADABLE: u8 = 7;
}

/// Whether there was a flow to which it belongs.
pub mod known {
    /// None, so far.
    pub const NONE: u8 = 0;
    /// It begins with this.
    pub const NEW: u8 = 1;
    /// It had begun before.
    pub const KNOWN: u8 = 2;
}

/// Outcome of a packet or call.
pub mod outcome {
    /// It went on.
    pub const PASSED: u8 = 1;
    /// The packet was dropped.
    pub const DROPPED: u8 = 2;
    /// The call was refused.
    pub const REFUSED: u8 = 3;
    /// The call was refused by another program.
    pub const REFUSED_BY_OTHER: u8 = 4;
    /// The call went on, since the host may translate what it names: its packets are judged.
    pub const LEFT_TO_EGRESS: u8 = 5;
    /// The reset with which the agent cuts a connection.
    pub const CUT: u8 = 6;
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<TraceFilter>() == 56 + TRACE_UNIT);
    assert!(size_of::<TraceCounts>() == 40);
};
