//! Every place where something can get lost has a counter here.

/// Indices of the per-CPU array `LOSSES`, each a count of occurrences.
///
/// A name here is the name in `loss` records and in `status`.
pub const LOSSES: &[&str] = &[
    "events-full",
    "flows-full",
    "processes-full",
    "executables-full",
    "cgroups-full",
    "tags-failed",
    "ended-full",
    "ended-bytes",
    "packets-unparsed",
    "processes-unknown",
    "executables-unread",
    "cgroups-unknown",
    "policy-missing",
    "sockets-untagged",
    "uplinks-unknown",
    "remembered-full",
    "headers-unheld",
    "packets-untold",
    "untold-bytes",
];

/// The ring buffer had no room. The event's numbers are not lost: they come
/// with a later event, from `ENDED`, or from the next sweep.
pub const LOSS_EVENTS_FULL: u32 = 0;
/// Packets for which `FLOWS` or `UPLINK_FLOWS` had no room: each was handed over as a flow
/// of its own ([`reason::ALONE`](super::reason::ALONE)).
pub const LOSS_FLOWS_FULL: u32 = 1;
/// `PROCESSES` had no room, or none for a user.
pub const LOSS_PROCESSES_FULL: u32 = 2;
/// `EXECUTABLES` had no room, or none for a user.
pub const LOSS_EXECUTABLES_FULL: u32 = 3;
/// `CGROUPS` had no room, or none for a user.
pub const LOSS_CGROUPS_FULL: u32 = 4;
/// No memory for a socket tag: packets were judged and are in `TOTALS`, but in no flow.
pub const LOSS_TAGS_FAILED: u32 = 5;
/// `ENDED` had no room: the last numbers of a flow are only in `TOTALS`.
pub const LOSS_ENDED_FULL: u32 = 6;
/// Bytes out that [`LOSS_ENDED_FULL`] is about.
pub const LOSS_ENDED_BYTES: u32 = 7;
/// A packet whose IP header could not be read; judged `undetermined`.
pub const LOSS_PACKETS_UNPARSED: u32 = 8;
/// A task acted that is not in `PROCESSES`.
pub const LOSS_PROCESSES_UNKNOWN: u32 = 9;
/// The path of an executable could not be read.
pub const LOSS_EXECUTABLES_UNREAD: u32 = 10;
/// A cgroup that is not in `CGROUPS`; rules that approve a unit do not match, and rules that deny
/// one do.
pub const LOSS_CGROUPS_UNKNOWN: u32 = 11;
/// A decision found no policy or an incomplete one; judged `undetermined`.
pub const LOSS_POLICY_MISSING: u32 = 12;
/// A socket that sent without having been tagged when it was made: older than
/// the agent, or made by the kernel. Not a loss of bytes, but of attribution.
pub const LOSS_SOCKETS_UNTAGGED: u32 = 13;
/// A frame left by an interface that has no books: judged, and in no sum.
pub const LOSS_UPLINKS_UNKNOWN: u32 = 14;
/// `REMEMBERED` had no room: what comes to an uplink without the socket that sent it is
/// judged by its destination alone, and a packet that found no room may be told of twice.
pub const LOSS_REMEMBERED_FULL: u32 = 15;
/// No memory to copy the headers of a frame from where its sender may still write; judged
/// `undetermined`.
pub const LOSS_HEADERS_UNHELD: u32 = 16;
/// Those of [`LOSS_FLOWS_FULL`] that the ring buffer had no room for either: they are only
/// in `TOTALS` or `UPLINK_BOOKS`.
pub const LOSS_PACKETS_UNTOLD: u32 = 17;
/// Bytes of them that left.
pub const LOSS_UNTOLD_BYTES: u32 = 18;

/// Number of counters.
pub const N_LOSSES: u32 = 19;

const _: () = assert!(LOSSES.len() == N_LOSSES as usize);
