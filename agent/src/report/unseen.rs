//! Records about ways out that no hook judges, when a process opens one.

use trefoil_ebpf::abi::{Event, unseen};

use super::{Field, FlowFacts, Kind, Priority, Record, flow_record::who};
use crate::clock::BootClock;

/// What came of it.
struct Outcome {
    subject: &'static str,
    state: &'static str,
    consequence: &'static str,
}

fn outcome(way: u16, refused: bool) -> Outcome {
    let (subject, state, consequence) = match (way, refused) {
        (unseen::QUEUE, _) => (
            "a packet socket that asks to skip the queue",
            "covered",
            "it does not, and its frames are judged as those of others",
        ),
        (unseen::XDP, true) => (
            "an AF_XDP socket that asks to send",
            "covered",
            "the kernel refused it, since its frames could not be judged",
        ),
        (unseen::XDP, false) => (
            "an AF_XDP socket that sends",
            "uncovered",
            "its frames pass every hook by; those that the kernel copies are a remainder of the \
             uplink's books",
        ),
        (unseen::RDMA, _) => (
            "a device for remote direct memory access",
            "uncovered",
            "what leaves by it is in no record and in no counter of this host",
        ),
        (unseen::VFIO, _) => (
            "a device that is driven past the kernel",
            "uncovered",
            "if it is a network device, what leaves by it is in no record and in no counter of \
             this host",
        ),
        _ => (
            "something unknown",
            "uncovered",
            "this agent does not know what the kernel programs mean",
        ),
    };
    Outcome {
        subject,
        state,
        consequence,
    }
}

impl Record {
    /// A process opened a way out that no hook judges, or tried to.
    #[must_use]
    pub fn unseen(event: &Event, facts: &FlowFacts, clock: &BootClock) -> Self {
        let tracked = &event.tracked;
        let refused = tracked.flow.counters.refused > 0;
        let Outcome {
            subject,
            state,
            consequence,
        } = outcome(tracked.flow.local_port, refused);
        let message = format!(
            "{} opens {subject}: {consequence}",
            who(&tracked.owner, facts)
        );
        let time_us = clock.unix_us(event.time_ns);
        let mut record = Self::new(Kind::Coverage, Priority::Warning, time_us, message);
        record.set(Field::Subject, subject);
        record.set(Field::State, state);
        record.set(Field::Reason, consequence);
        record.set_owner(&tracked.owner, facts, clock);
        record
    }
}
