//! Records about ways out that no hook judges, when a process opens one or has had one open.

use trefoil_ebpf::abi::{Event, Owner, unseen};

use super::{Field, FlowFacts, Kind, Priority, Record, flow_record::who};
use crate::clock::{BootClock, since_boot_ns};

/// Traffic that leaves by it is judged.
const COVERED: &str = "covered";
/// Some of it is, or it is judged and not kept from leaving.
const PARTLY: &str = "partly";
/// It is not.
const UNCOVERED: &str = "uncovered";

/// A way out and what is to be said of it.
struct Outcome {
    subject: &'static str,
    state: &'static str,
    consequence: &'static str,
}

/// Of a way that a process opens. `judges_direct` says whether frames are judged that go to a
/// driver past traffic control.
fn opened(way: u16, refused: bool, judges_direct: bool) -> Outcome {
    let (subject, state, consequence) = match (way, refused) {
        (unseen::QUEUE, true) => (
            "a packet socket that asks to skip the queue",
            COVERED,
            "it does not, and its frames are judged as those of others",
        ),
        (unseen::QUEUE, false) => (
            "a packet socket that skips the queue",
            UNCOVERED,
            "no uplink is watched, so its frames are in no record",
        ),
        (unseen::XDP, true) => (
            "an AF_XDP socket that asks to send",
            COVERED,
            "the kernel refused it, since its frames could not be judged",
        ),
        (unseen::XDP, false) if judges_direct => return sends_by_xdp(),
        _ => return uncovered(way),
    };
    Outcome {
        subject,
        state,
        consequence,
    }
}

fn sends_by_xdp() -> Outcome {
    Outcome {
        subject: "an AF_XDP socket that sends",
        state: PARTLY,
        consequence: "those of its frames that the kernel copies are judged, and leave \
                      nevertheless; those that the driver takes itself are a remainder of the \
                      uplink's books",
    }
}

/// Of a way that a process has had open since before it could be seen.
fn open(way: u16, is_covered: bool) -> Outcome {
    match (way, is_covered) {
        (unseen::QUEUE, true) => Outcome {
            subject: "a packet socket that skipped the queue",
            state: COVERED,
            consequence: "from now on it does not, and its frames are judged as those of others",
        },
        (unseen::XDP, is_covered) => Outcome {
            subject: "an AF_XDP socket that may send",
            ..if is_covered {
                sends_by_xdp()
            } else {
                uncovered(way)
            }
        },
        _ => uncovered(way),
    }
}

/// Families of sockets that no hook judges, by number.
const FAMILIES: [(u16, &str); 35] = [
    (3, "a socket of AF_AX25"),
    (4, "a socket of AF_IPX"),
    (5, "a socket of AF_APPLETALK"),
    (6, "a socket of AF_NETROM"),
    (7, "a socket of AF_BRIDGE"),
    (8, "a socket of AF_ATMPVC"),
    (9, "a socket of AF_X25"),
    (11, "a socket of AF_ROSE"),
    (12, "a socket of AF_DECnet"),
    (18, "a socket of AF_ASH"),
    (19, "a socket of AF_ECONET"),
    (20, "a socket of AF_ATMSVC"),
    (21, "a socket of AF_RDS"),
    (22, "a socket of AF_SNA"),
    (23, "a socket of AF_IRDA"),
    (24, "a socket of AF_PPPOX"),
    (25, "a socket of AF_WANPIPE"),
    (26, "a socket of AF_LLC"),
    (27, "a socket of AF_IB"),
    (28, "a socket of AF_MPLS"),
    (29, "a socket of AF_CAN"),
    (30, "a socket of AF_TIPC"),
    (31, "a socket of AF_BLUETOOTH"),
    (32, "a socket of AF_IUCV"),
    (33, "a socket of AF_RXRPC"),
    (34, "a socket of AF_ISDN"),
    (35, "a socket of AF_PHONET"),
    (36, "a socket of AF_IEEE802154"),
    (37, "a socket of AF_CAIF"),
    (39, "a socket of AF_NFC"),
    (40, "a socket of AF_VSOCK"),
    (41, "a socket of AF_KCM"),
    (42, "a socket of AF_QIPCRTR"),
    (43, "a socket of AF_SMC"),
    (45, "a socket of AF_MCTP"),
];

fn of_family(way: u16) -> Outcome {
    let is_it = |(number, _): &&(u16, &str)| *number == way - unseen::FAMILY;
    let family = FAMILIES.iter().find(is_it).map(|(_, subject)| *subject);
    Outcome {
        subject: family.unwrap_or("a socket of a family that is not known here"),
        state: UNCOVERED,
        consequence: "no hook judges what leaves by it; if it passes an uplink it is in the books \
                      there, and else in no counter",
    }
}

fn uncovered(way: u16) -> Outcome {
    if way >= unseen::FAMILY {
        return of_family(way);
    }
    let (subject, consequence) = match way {
        unseen::QUEUE => (
            "a packet socket that may skip the queue",
            "whether it does could not be asked; if so, its frames pass every hook by and are a \
             remainder of the uplink's books",
        ),
        unseen::XDP => (
            "an AF_XDP socket that sends",
            "its frames pass every hook by; where uplinks are watched, they are a remainder of \
             their books",
        ),
        unseen::RDMA => (
            "a device for remote direct memory access",
            "what leaves by it is in no record and in no counter of this host",
        ),
        unseen::VFIO => (
            "a device that is driven past the kernel",
            "if it is a network device, what leaves by it is in no record and in no counter of \
             this host",
        ),
        _ => (
            "something unknown",
            "this agent does not know what the kernel programs mean",
        ),
    };
    Outcome {
        subject,
        state: UNCOVERED,
        consequence,
    }
}

impl Record {
    /// A process opened a way out that no hook judges, or tried to. `judges_direct` says whether
    /// frames are judged that go to a driver past traffic control.
    #[must_use]
    pub fn unseen(
        event: &Event,
        judges_direct: bool,
        facts: &FlowFacts,
        clock: &BootClock,
    ) -> Self {
        let flow = &event.tracked.flow;
        let outcome = opened(flow.local_port, flow.counters.refused > 0, judges_direct);
        let owner = &event.tracked.owner;
        Self::told("opens", &outcome, owner, facts, (event.time_ns, clock))
    }

    /// A process has a way out open that no hook judged, since before there was one.
    #[must_use]
    pub fn way_out(
        owner: &Owner,
        way: u16,
        is_covered: bool,
        facts: &FlowFacts,
        clock: &BootClock,
    ) -> Self {
        let outcome = open(way, is_covered);
        let now = (since_boot_ns(), clock);
        Self::told("has open", &outcome, owner, facts, now)
    }

    fn told(
        verb: &str,
        outcome: &Outcome,
        owner: &Owner,
        facts: &FlowFacts,
        (time_ns, clock): (u64, &BootClock),
    ) -> Self {
        let Outcome {
            subject,
            state,
            consequence,
        } = *outcome;
        let message = format!("{} {verb} {subject}: {consequence}", who(owner, facts));
        let time_us = clock.unix_us(time_ns);
        let mut record = Self::new(Kind::Coverage, Priority::Warning, time_us, message);
        record.set(Field::Subject, subject);
        record.set(Field::State, state);
        record.set(Field::Reason, consequence);
        record.set_owner(owner, facts, clock);
        record
    }
}
