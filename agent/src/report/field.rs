//! The fields of a record: one definition for the journal, for JSON and for the
//! manual.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::Kind;

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u16);

impl Kinds {
    /// Every kind.
    pub const ALL: Self = Self::of(&Kind::ALL);

    /// These kinds.
    #[must_use]
    pub const fn of(kinds: &[Kind]) -> Self {
        let (mut bits, mut index) = (0, 0);
        while index < kinds.len() {
            bits |= 1 << kinds[index] as u16;
            index += 1;
        }
        Self(bits)
    }

    /// True if `kind` is one of them.
    #[must_use]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u16 != 0
    }
}

/// Form of a field's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text; JSON string.
    Text,
    /// Number from 0, decimal; JSON number.
    Number,
    /// RFC 3339, UTC, with microseconds; JSON string.
    Time,
    /// IPv4 or IPv6 address, IPv4-mapped ones as IPv4; JSON string.
    Address,
}

/// A value; its variant fits the field's [`Form`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// For every form but a number.
    Text(Arc<str>),
    /// A number.
    Number(u64),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::Text(text)
    }
}

/// Description of a field.
#[derive(Clone, Copy, Debug)]
pub struct FieldInfo {
    /// Name in JSON. The journal's is `TREFOIL_` and this in upper case.
    pub name: &'static str,
    /// Form of its values.
    pub form: Form,
    /// Unit of a number, or empty.
    pub unit: &'static str,
    /// Kinds of records that may have it. A fact that is not known is a field
    /// that is not there.
    pub kinds: Kinds,
    /// Meaning of the field.
    pub doc: &'static str,
}

macro_rules! fields {
    ($($variant:ident $name:literal $form:ident $unit:literal $kinds:ident $doc:literal;)*) => {
        /// A field of a record. The order is that of [`FIELDS`] and of JSON.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Field {
            $(#[doc = $doc] $variant,)*
        }

        impl Field {
            /// Every field, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        /// All fields, indexed by [`Field`]: the one definition that the journal,
        /// JSON and the manual page share.
        pub const FIELDS: &[FieldInfo] = &[$(FieldInfo {
            name: $name,
            form: Form::$form,
            unit: $unit,
            kinds: $kinds,
            doc: $doc,
        }),*];
    };
}

const ALL: Kinds = Kinds::ALL;
const FLOWS: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation]);
const ACTORS: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation, Kind::Coverage, Kind::Tamper]);
const SPANS: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation, Kind::Coverage, Kind::Tamper]);
const JUDGED: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation, Kind::Budget, Kind::Exception]);
const VERDICTS: Kinds = Kinds::of(&[
    Kind::Flow,
    Kind::Violation,
    Kind::Budget,
    Kind::Exception,
    Kind::Loss,
]);
const STATES: Kinds = Kinds::of(&[
    Kind::Flow,
    Kind::Violation,
    Kind::Budget,
    Kind::Exception,
    Kind::Policy,
    Kind::Coverage,
    Kind::Loss,
]);
const NEWS: Kinds = Kinds::of(&[
    Kind::Budget,
    Kind::Exception,
    Kind::Policy,
    Kind::Coverage,
    Kind::Loss,
    Kind::Heartbeat,
    Kind::Tamper,
]);
const COUNTS: Kinds = Kinds::of(&[Kind::Policy, Kind::Loss]);
const POLICY: Kinds = Kinds::of(&[Kind::Policy]);
const BYTES: Kinds = Kinds::of(&[
    Kind::Flow,
    Kind::Violation,
    Kind::Budget,
    Kind::Exception,
    Kind::Loss,
]);
const PACKETS: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation, Kind::Exception, Kind::Loss]);
const LIMITS: Kinds = Kinds::of(&[Kind::Budget, Kind::Exception]);
const BUDGET: Kinds = Kinds::of(&[Kind::Budget]);
const EXCEPTION: Kinds = Kinds::of(&[Kind::Exception]);
const OPEN: Kinds = Kinds::of(&[Kind::Flow, Kind::Violation, Kind::Heartbeat]);
const HEARTBEAT: Kinds = Kinds::of(&[Kind::Heartbeat]);
const CHECKPOINT: Kinds = Kinds::of(&[Kind::Checkpoint]);
const SUMS: Kinds = Kinds::of(&[Kind::Heartbeat, Kind::Coverage]);
const COVERAGE: Kinds = Kinds::of(&[Kind::Coverage]);

fields! {
    Event "event" Text "" ALL
        "kind of record";
    Seq "seq" Number "" ALL
        "number of the record, from 1 in each boot (and `instance`) and without gaps: a missing number is a record \
         that was removed or got lost after it was handed over";
    Time "time" Time "" ALL
        "when the record was made";
    BootId "boot_id" Text "" ALL
        "boot of the host, as `_BOOT_ID` in the journal; with `seq`, and `instance` if there is one, \
         it names the record for good";
    Instance "instance" Text "" ALL
        "pin directory of the agent, unless it is the usual one: each numbers its own records";
    MachineId "machine_id" Text "" ALL
        "the installation, as `_MACHINE_ID` in the journal";
    Host "host" Text "" ALL
        "name of the host";
    Salt "salt" Text "" ALL
        "with evidence: 16 random bytes, in hexadecimal digits, by which values that are hidden in a \
         copy cannot be found by trying";
    Mode "mode" Text "" ALL
        "`report` (pass and report) or `enforce` (drop and report), as it was when it was judged";
    Policy "policy" Text "" ALL
        "the policy that judged: the beginning of its SHA-256; `unknown` if that is long ago";
    Geo "geo" Text "" ALL
        "build of the country data";
    State "state" Text "" STATES
        "flow, violation: `opened`, `update`, `closed` (last numbers) or `rollup`; policy: \
         `in-force`, `confirmed`, `reverted`, `refused` or `cut`; coverage: `covered`, `partly` or \
         `uncovered`; coverage and loss: `acknowledged` by an operator; budget: `near` (four fifths), `used-up` or `renewed`; exception: those, and \
         `in-force`, `used` (for the first time), `ends-soon` (within a day) or `expired`";
    Flow "flow" Text "" FLOWS
        "names the flow within the boot, the same in all its records";
    CommunityId "community_id" Text "" FLOWS
        "Community ID version 1, seed 0, to find the flow in what other tools saw";
    Direction "direction" Text "" FLOWS
        "`outbound`: this host named the destination, as it does of every datagram; `accepted`: a \
         peer connected to this host; `claimed`: as `accepted`, in a network namespace that may be \
         somebody's own, so that to rules it is not known; absent if it is not known";
    Protocol "protocol" Text "" FLOWS
        "`tcp`, `udp`, `icmp`, ... or the IP protocol's number; `ethertype-8847` for a frame that \
         carries no IP, with its ethertype";
    SrcAddr "src_addr" Address "" FLOWS
        "the near end, also of accepted flows: egress goes from it";
    SrcPort "src_port" Number "" FLOWS
        "the near end's port";
    DstAddr "dst_addr" Address "" FLOWS
        "the far end";
    DstPort "dst_port" Number "" FLOWS
        "the far end's port";
    DstNamed "dst_named" Address "" FLOWS
        "the address that the process named, where the host translated it into the far end's";
    DstCountry "dst_country" Text "" FLOWS
        "country of the far end, ISO 3166-1 alpha-2";
    DstAsn "dst_asn" Number "" FLOWS
        "autonomous system of the far end";
    DstName "dst_name" Text "" FLOWS
        "name by which the far end was looked up; reserved, this version does not know it";
    NameSource "name_source" Text "" FLOWS
        "where that name is from; reserved as well";
    Verdict "verdict" Text "" VERDICTS
        "`local`, `gateway`, `approved`, `exception`, `over-budget`, `denied`, `unapproved` or \
         `undetermined`";
    Rule "rule" Text "" JUDGED
        "name of the rule that decided";
    Outcome "outcome" Text "" FLOWS
        "`passed`, `refused` (the call failed with EPERM), `dropped`, `would-drop` (report mode) or \
         `cut` (the connection was open)";
    BytesOut "bytes_out" Number "byte" BYTES
        "IP packets handed to the link, headers included, since the flow began; budget: within the \
         window that ends now; exception: in all; loss: of this verdict, and in no final record";
    PacketsOut "packets_out" Number "packet" PACKETS
        "packets that these bytes were in";
    BytesNew "bytes_new" Number "byte" FLOWS
        "the part of `bytes_out` that no record of the flow had before; rollup: the bytes of its \
         flows that no record had before, those of open flows included. The sum over all records \
         of a time is the traffic that left in it. Absent if an agent before was killed, and the \
         spool does not say what it has told";
    PacketsNew "packets_new" Number "packet" FLOWS
        "packets that these bytes were in";
    BytesIn "bytes_in" Number "byte" FLOWS
        "IP packets delivered to the socket, headers included, since the flow began";
    PacketsIn "packets_in" Number "packet" FLOWS
        "packets that these bytes were in";
    BlockedBytes "blocked_bytes" Number "byte" FLOWS
        "IP packets that were dropped, headers included, since the flow began";
    BlockedPackets "blocked_packets" Number "packet" FLOWS
        "packets that these bytes were in";
    Refused "refused" Number "call" FLOWS
        "calls of connect or send that failed with EPERM";
    Started "started" Time "" SPANS
        "first packet or call of the flow; begin of the interval of a rollup; books of an uplink: \
         when it began to be watched; gap: when all was seen to be well for the last time";
    Ended "ended" Time "" SPANS
        "end of the flow; end of the interval of a rollup; books of an uplink: when they were read; \
         gap: when it was noticed, or over";
    End "end" Text "" FLOWS
        "`seen`, or `inferred`: the flow no longer showed up, and `ended` is when it was last seen";
    Flows "flows" Number "flow" FLOWS
        "rollup: flows that ended in the interval. The sums are theirs, and they are in no other \
         final record";
    FlowsOpen "flows_open" Number "flow" OPEN
        "heartbeat: flows that are open; rollup: those that were active and are not over, so that \
         their bytes are not yet in the sums";
    BytesOpen "bytes_open" Number "byte" FLOWS
        "rollup: bytes that those have sent so far";
    Pid "pid" Number "" ACTORS
        "the process, in the host's pid namespace; coverage, tamper: of whoever did it. So below";
    StartTime "start_time" Time "" ACTORS
        "when it started; with `pid` it names the process for good";
    Exe "exe" Text "" ACTORS
        "path of its executable when it was executed";
    ExeNote "exe_note" Text "" ACTORS
        "why `exe` is not the path of a file of the host: `truncated`, `foreign` (of a \
         container, of a user's own mount, of memory) or `unlinked` (had no name any more)";
    ExeSha256 "exe_sha256" Text "" ACTORS
        "SHA-256 of the executable";
    Comm "comm" Text "" ACTORS
        "name of the thread that acted, which it can choose itself";
    Uid "uid" Number "" ACTORS
        "user id";
    Gid "gid" Number "" ACTORS
        "group id, which a rollup has not";
    User "user" Text "" ACTORS
        "name of that user";
    Loginuid "loginuid" Number "" ACTORS
        "user id with which somebody logged in to start it";
    Login "login" Text "" ACTORS
        "name of that user";
    Session "session" Number "" ACTORS
        "audit session of that login";
    SessionAddr "session_addr" Text "" ACTORS
        "where that login came from: far address of the connection that its service accepted. \
         Kept over su, sudo and the end of the connection; absent for a session that nobody \
         opened by the network, or whose connection is not known";
    SessionPort "session_port" Number "" ACTORS
        "far port of that connection";
    SessionGateway "session_gateway" Text "" ACTORS
        "gateway of the policy in force whose `clients` have that address";
    SessionCommunityId "session_community_id" Text "" ACTORS
        "`community_id` of that connection";
    SessionAttribution "session_attribution" Text "" ACTORS
        "`direct` (the kernel saw the login) or `inferred` (the session is older than the agent)";
    Unit "unit" Text "" ACTORS
        "systemd unit of the system that the process runs in";
    UserUnit "user_unit" Text "" ACTORS
        "systemd unit of a user's manager that it runs in";
    Container "container" Text "" ACTORS
        "container that it runs in";
    Cgroup "cgroup" Text "" ACTORS
        "path of its control group";
    Ppid "ppid" Number "" ACTORS
        "its parent";
    ParentExe "parent_exe" Text "" ACTORS
        "executable of its parent";
    Attribution "attribution" Text "" ACTORS
        "`direct` (the kernel saw this process act on this socket), `inferred` (derived), `none`, \
         or that there is none on this host: `kernel` (sent by itself) or `forwarded` (came in by \
         another interface); the worst of all in a rollup";
    Subject "subject" Text "" NEWS
        "subject of the record: a hook, a counter of losses, a budget, an exception, a file";
    Reason "reason" Text "" NEWS
        "why";
    BytesLimit "bytes_limit" Number "byte" LIMITS
        "how much may leave; an exception may have no limit";
    WindowS "window_s" Number "second" BUDGET
        "within any time of this length";
    Basis "basis" Text "" EXCEPTION
        "its legal basis";
    ApprovedBy "approved_by" Text "" EXCEPTION
        "names of those who approved";
    Starts "starts" Time "" EXCEPTION
        "from when on it holds";
    Expires "expires" Time "" EXCEPTION
        "from when on it does not hold any more";
    Rules "rules" Number "rule" POLICY
        "rules of the policy";
    Count "count" Number "" COUNTS
        "loss: how many were lost since the last record about it; policy: connections that were \
         cut";
    Total "total" Number "" COUNTS
        "loss: how many were lost since the kernel programs were loaded; policy: connections that \
         were to be cut";
    IntervalS "interval_s" Number "second" HEARTBEAT
        "time until the next heartbeat";
    Uplink "uplink" Text "" COVERAGE
        "name of the interface";
    BytesBefore "bytes_before" Number "byte" COVERAGE
        "bytes that the interface had sent before it was watched: they are in no books. Where \
         something left while it began to be watched, the books tell exactly, and the record before them \
         the most";
    BytesSent "bytes_sent" Number "byte" COVERAGE
        "bytes of the interface's own transmit counter since then, read at the moment of \
         the sums. It is the sum of what was judged, what could not be, and `bytes_unaccounted`, \
         less `bytes_unsent`; where the interface segments frames, segments have headers of their \
         own, and it is more by these";
    BytesUnaccounted "bytes_unaccounted" Number "byte" COVERAGE
        "the remainder of the books: bytes that the interface has counted and no hook has seen";
    BytesUnsent "bytes_unsent" Number "byte" COVERAGE
        "bytes that passed the hook and are not in the interface's counter: they were dropped \
         behind the hook, or waits to be sent";
    BytesWire "bytes_wire" Number "byte" COVERAGE
        "bytes that passed the hook, with the headers of each segment";
    BytesSocket "bytes_socket" Number "byte" COVERAGE
        "of the frames that were judged, those that the hooks of their socket had judged";
    BytesKernel "bytes_kernel" Number "byte" COVERAGE
        "those of the kernel: its own sockets, tunnels, answers without a socket";
    BytesForwarded "bytes_forwarded" Number "byte" COVERAGE
        "those that came in by another interface and of which no socket of a container here is \
         known";
    BytesPacketSocket "bytes_packet_socket" Number "byte" COVERAGE
        "those of packet sockets";
    BytesArp "bytes_arp" Number "byte" COVERAGE
        "of the frames that have no destination to judge, those of address resolution";
    BytesLldp "bytes_lldp" Number "byte" COVERAGE
        "those of link layer discovery";
    BytesNotIp "bytes_not_ip" Number "byte" COVERAGE
        "all others";
    BytesDropped "bytes_dropped" Number "byte" COVERAGE
        "frames that were dropped and did not leave";
    BytesLocal "bytes_local" Number "byte" SUMS
        "IP packets judged `local` since the kernel programs were loaded; books of an uplink, here \
         and below: frames, link headers included, since it began to be watched";
    BytesGateway "bytes_gateway" Number "byte" SUMS
        "those judged `gateway`";
    BytesApproved "bytes_approved" Number "byte" SUMS
        "those judged `approved`";
    BytesException "bytes_exception" Number "byte" SUMS
        "those judged `exception`";
    BytesOverBudget "bytes_over_budget" Number "byte" SUMS
        "those judged `over-budget`";
    BytesDenied "bytes_denied" Number "byte" SUMS
        "those judged `denied`, and not dropped";
    BytesUnapproved "bytes_unapproved" Number "byte" SUMS
        "those judged `unapproved`, and not dropped";
    BytesUndetermined "bytes_undetermined" Number "byte" SUMS
        "those judged `undetermined`, and not dropped";
    FlowsDirect "flows_direct" Number "flow" HEARTBEAT
        "flows since the agent started whose attribution was `direct` when they opened";
    FlowsInferred "flows_inferred" Number "flow" HEARTBEAT
        "those with `inferred`";
    FlowsNone "flows_none" Number "flow" HEARTBEAT
        "all others: no process is known, or there is none";
    Losses "losses" Number "" HEARTBEAT
        "sum of all counters of losses; 0 if nothing ever got lost";
    Pending "pending" Number "record" HEARTBEAT
        "records that wait to be handed over";
    Note "note" Text "" CHECKPOINT
        "signed note with a checkpoint: name of the log, number of its leaves, root of the tree over \
         them (C2SP tlog-checkpoint). This record is the next leaf";
    Frontier "frontier" Text "" CHECKPOINT
        "edge of the tree before these digests: roots of its full subtrees from the largest on, 32 bytes \
         each, base64; absent in the first";
    Digests "digests" Text "" CHECKPOINT
        "digests of the records since the checkpoint before, in their order, 32 bytes each, base64";
}

/// Names in the journal, indexed by [`Field`].
pub(super) static JOURNAL_NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let all = FIELDS.iter();
    all.map(|it| format!("TREFOIL_{}", it.name.to_ascii_uppercase()))
        .collect()
});

impl Field {
    /// Returns the description of the field.
    #[must_use]
    pub const fn info(self) -> &'static FieldInfo {
        &FIELDS[self as usize]
    }

    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.info().name
    }

    /// The field with this name in JSON.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        static BY_NAME: LazyLock<HashMap<&str, Field>> = LazyLock::new(|| {
            let all = Field::ALL.iter();
            all.map(|field| (field.name(), *field)).collect()
        });
        BY_NAME.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The names that the design fixes.
    const FIXED: &str = "event seq time boot_id host mode policy geo
        flow community_id direction protocol src_addr src_port dst_addr dst_port dst_named
        dst_country dst_asn dst_name name_source verdict rule outcome
        bytes_out packets_out bytes_in packets_in started ended
        pid start_time exe exe_sha256 comm uid user loginuid login session
        session_addr session_port session_gateway session_community_id unit container cgroup ppid parent_exe attribution";

    #[test]
    fn the_fixed_names_are_there() {
        for name in FIXED.split_whitespace() {
            assert!(Field::parse(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_field_is_a_valid_field_of_the_journal_and_found_by_its_name() {
        let mut names = HashSet::new();
        for field in Field::ALL {
            let info = field.info();
            assert!(names.insert(info.name), "{} is there twice", info.name);
            assert_eq!(Field::parse(info.name), Some(*field));
            assert!("TREFOIL_".len() + info.name.len() <= 64, "{}", info.name);
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(info.name.chars().all(is_plain), "{}", info.name);
            assert!(
                !info.doc.is_empty() && !info.doc.contains("  "),
                "{}",
                info.doc
            );
            assert!(Kind::ALL.iter().any(|kind| info.kinds.contains(*kind)));
        }
    }
}
