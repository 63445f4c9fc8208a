//! Records that are not about flows: policy, coverage, loss, heartbeat, tamper.

use trefoil_ebpf::abi::{Owner, Signalled, Totals, verdict};

use super::{Field, FlowFacts, Kind, Priority, Record, flow_record::who, words};
use crate::{
    acknowledged::{Acknowledgement, Covered},
    clock::{self, BootClock},
    evidence::Signed,
    flow::FlowStats,
    losses,
};

/// Outcome of a policy's load.
#[derive(Clone, Copy, Debug)]
pub enum PolicyNews<'a> {
    /// It is in force from now on.
    InForce {
        /// Number of rules.
        n_rules: u64,
        /// Where it is from.
        source: &'a str,
        /// When its enforcement ends unless it is confirmed, microseconds since 1970.
        until_us: Option<u64>,
    },
    /// Somebody confirmed that it is enforced without an end.
    Confirmed {
        /// Where it is from.
        source: &'a str,
        /// User and process that asked for it.
        by: &'a str,
    },
    /// Nobody confirmed it in time, and it only reports now.
    Reverted {
        /// Where it is from.
        source: &'a str,
    },
    /// Connections that it does not approve were open.
    Cut {
        /// Where it is from.
        source: &'a str,
        /// How many were cut.
        n_cut: u64,
        /// How many could not be.
        n_left: u64,
        /// Why not.
        why: &'a str,
    },
    /// It was not put in force: what was before goes on.
    Refused {
        /// Where it is from.
        source: &'a str,
        /// Mistakes of the policy, on one line or many.
        problems: &'a str,
    },
}

/// How much of what one hook should see is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All.
    Covered,
    /// Not all.
    Partly,
    /// Nothing.
    Uncovered,
}

/// Numbers of a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat<'a> {
    /// Time until the next one.
    pub interval_s: u64,
    /// The kernel's sums, indexed by verdict, over all CPUs.
    pub totals: &'a [Totals],
    /// The flow table's.
    pub flows: FlowStats,
    /// Sum of all counters of losses.
    pub losses: u64,
    /// Records that wait to be handed over.
    pub pending: u64,
}

impl Record {
    /// Records were signed for.
    #[must_use]
    pub fn checkpoint(signed: &Signed, time_us: u64) -> Self {
        let records = words::count(signed.size - signed.first, "record");
        let message = format!("{records} signed for, {} in all", signed.size);
        let mut record = Self::new(Kind::Checkpoint, Priority::Info, time_us, message);
        record.set(Field::Note, signed.note.as_str());
        record.set(Field::Frontier, signed.frontier.as_str());
        record.set(Field::Digests, signed.digests.as_str());
        record
    }

    /// A policy came into force, or was refused.
    #[must_use]
    pub fn policy(news: &PolicyNews<'_>, time_us: u64) -> Self {
        match *news {
            PolicyNews::InForce {
                n_rules,
                source,
                until_us,
            } => {
                let rules = words::count(n_rules, "rule");
                let mut message = format!("Policy {source} is in force: {rules}");
                let trial = until_us.map(clock::rfc3339).map(|until| {
                    format!("it is enforced until {until}, unless `trefoil confirm` is run before")
                });
                if let Some(trial) = &trial {
                    message = format!("{message}; {trial}");
                }
                let mut record = Self::new(Kind::Policy, Priority::Notice, time_us, message);
                record.set(Field::State, "in-force");
                record.set(Field::Subject, source);
                record.set(Field::Rules, n_rules);
                record.set_known(Field::Reason, trial.as_deref());
                record
            }
            PolicyNews::Confirmed { source, by } => {
                let reason = format!("confirmed by {by}");
                let message = format!("Policy {source} is enforced without an end: {reason}");
                let mut record = Self::new(Kind::Policy, Priority::Notice, time_us, message);
                record.set(Field::State, "confirmed");
                record.set(Field::Subject, source);
                record.set(Field::Reason, reason.as_str());
                record
            }
            PolicyNews::Reverted { source } => {
                let reason = "nobody ran `trefoil confirm` in time";
                let message =
                    format!("Policy {source} is not enforced any more and only reports: {reason}");
                let mut record = Self::new(Kind::Policy, Priority::Warning, time_us, message);
                record.set(Field::State, "reverted");
                record.set(Field::Subject, source);
                record.set(Field::Reason, reason);
                record
            }
            PolicyNews::Cut {
                source,
                n_cut,
                n_left,
                why,
            } => {
                let connections = words::count(n_cut.max(n_left), "connection");
                let left = format!("and what they send is dropped: {why}");
                let message = match (n_cut, n_left) {
                    (_, 0) => format!("Policy {source} cut {connections} that it does not approve"),
                    (0, _) => format!(
                        "Policy {source} does not approve {connections} that cannot be cut, {left}"
                    ),
                    _ => format!(
                        "Policy {source} cut {} that it does not approve; {n_left} more cannot \
                         be cut, {left}",
                        words::count(n_cut, "connection")
                    ),
                };
                let priority = match n_left {
                    0 => Priority::Notice,
                    _ => Priority::Warning,
                };
                let mut record = Self::new(Kind::Policy, priority, time_us, message);
                record.set(Field::State, "cut");
                record.set(Field::Subject, source);
                record.set(Field::Count, n_cut);
                record.set(Field::Total, n_cut + n_left);
                record.set_known(Field::Reason, (n_left > 0).then_some(why));
                record
            }
            PolicyNews::Refused { source, problems } => {
                let message =
                    format!("Policy {source} was refused, the one before goes on: {problems}");
                let mut record = Self::new(Kind::Policy, Priority::Error, time_us, message);
                record.set(Field::State, "refused");
                record.set(Field::Subject, source);
                record.set(Field::Reason, problems);
                record
            }
        }
    }

    /// Makes the record of one part of the coverage as it is now, and why it is not
    /// complete.
    #[must_use]
    pub fn coverage(subject: &str, coverage: Coverage, reason: Option<&str>, time_us: u64) -> Self {
        let (state, says, priority) = match coverage {
            Coverage::Covered => ("covered", "is watched and judged", Priority::Notice),
            Coverage::Partly => ("partly", "is watched only in part", Priority::Warning),
            Coverage::Uncovered => ("uncovered", "is not watched", Priority::Warning),
        };
        let because = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let message = format!("{subject} {says}{because}");
        let mut record = Self::new(Kind::Coverage, priority, time_us, message);
        record.set(Field::Subject, subject);
        record.set(Field::State, state);
        record.set_known(Field::Reason, reason);
        record
    }

    /// A counter of losses moved by `count` and is `total` now. `meaning` says
    /// what that costs.
    #[must_use]
    pub fn loss(counter: &str, count: u64, total: u64, meaning: &str, time_us: u64) -> Self {
        let message = format!("{counter}: {count} lost, {total} in all; {meaning}");
        let mut record = Self::new(Kind::Loss, Priority::Warning, time_us, message);
        record.set(Field::Subject, counter);
        record.set(Field::Reason, meaning);
        record.set(Field::Count, count);
        record.set(Field::Total, total);
        record
    }

    /// Somebody has acknowledged what was lost until then, or what is not covered.
    #[must_use]
    pub fn acknowledged(
        covered: &Covered,
        acknowledgement: &Acknowledgement,
        time_us: u64,
    ) -> Self {
        let Covered {
            subject, amount, ..
        } = covered;
        let Acknowledgement { by, at_us, .. } = acknowledgement;
        let reason = format!("acknowledged by {by} at {}", clock::rfc3339(*at_us));
        let is_counter = losses::MEANINGS.iter().any(|(name, _)| name == subject);
        let message = match amount {
            0 => format!("{subject}: {reason}"),
            amount => format!("{subject}: {amount} until then, {reason}"),
        };
        let kind = match is_counter {
            true => Kind::Loss,
            false => Kind::Coverage,
        };
        let mut record = Self::new(kind, Priority::Notice, time_us, message);
        record.set(Field::Subject, subject.as_str());
        record.set(Field::State, "acknowledged");
        record.set(Field::Reason, reason);
        if is_counter {
            record.set(Field::Count, 0_u64);
            record.set(Field::Total, *amount);
        }
        record
    }

    /// The agent lives.
    #[must_use]
    pub fn heartbeat(beat: &Heartbeat<'_>, time_us: u64) -> Self {
        const SUMS: [(u8, Field); 8] = [
            (verdict::LOCAL, Field::BytesLocal),
            (verdict::GATEWAY, Field::BytesGateway),
            (verdict::APPROVED, Field::BytesApproved),
            (verdict::EXCEPTION, Field::BytesException),
            (verdict::OVER_BUDGET, Field::BytesOverBudget),
            (verdict::DENIED, Field::BytesDenied),
            (verdict::UNAPPROVED, Field::BytesUnapproved),
            (verdict::UNDETERMINED, Field::BytesUndetermined),
        ];
        let sum = |verdict: u8| {
            beat.totals
                .get(usize::from(verdict))
                .map(|sum| sum.bytes_out)
        };
        let sums = |approved| -> u64 {
            SUMS.iter()
                .filter(|(verdict, _)| *verdict != verdict::LOCAL)
                .filter(|(verdict, _)| verdict::is_approved(*verdict) == approved)
                .filter_map(|(verdict, _)| sum(*verdict))
                .sum()
        };
        let losses = match beat.losses {
            0 => "nothing lost".to_owned(),
            1 => "1 loss".to_owned(),
            losses => format!("{losses} losses"),
        };
        let message = format!(
            "Watching: {} open, {} approved and {} not approved since the programs were loaded, \
             {losses}",
            words::count(beat.flows.open, "flow"),
            words::bytes(sums(true)),
            words::bytes(sums(false)),
        );
        let mut record = Self::new(Kind::Heartbeat, Priority::Info, time_us, message);
        record.set(Field::IntervalS, beat.interval_s);
        record.set(Field::FlowsOpen, beat.flows.open);
        for (verdict, field) in SUMS {
            record.set_known(field, sum(verdict));
        }
        record.set(Field::FlowsDirect, beat.flows.owner_direct);
        record.set(Field::FlowsInferred, beat.flows.owner_inferred);
        record.set(Field::FlowsNone, beat.flows.owner_none);
        record.set(Field::Losses, beat.losses);
        record.set(Field::Pending, beat.pending);
        record
    }

    /// Somebody changed what only Trefoil should change.
    #[must_use]
    pub fn tamper(subject: &str, reason: &str, time_us: u64) -> Self {
        let message = format!("Tampering with {subject}: {reason}");
        let mut record = Self::new(Kind::Tamper, Priority::Critical, time_us, message);
        record.set(Field::Subject, subject);
        record.set(Field::Reason, reason);
        record
    }

    /// As [`Record::tamper`], by a process that the kernel has seen at it.
    #[must_use]
    pub fn tamper_by(
        owner: &Owner,
        facts: &FlowFacts,
        subject: &str,
        reason: &str,
        clock: &BootClock,
        time_us: u64,
    ) -> Self {
        let reason = format!("{reason}; {} was seen at it", who(owner, facts));
        let mut record = Self::tamper(subject, &reason, time_us);
        record.set_owner(owner, facts, clock);
        record
    }

    /// Somebody stopped the agent with a signal, or killed the one before.
    ///
    /// Makes the record of a signal to the agent. A signal of the kernel, for want of
    /// memory or from a terminal, or of process 1, which manages services, is a gap and
    /// no tampering.
    #[must_use]
    pub fn signalled(
        deed: &Signalled,
        facts: &FlowFacts,
        clock: &BootClock,
        ended_us: u64,
    ) -> Self {
        const SIGKILL: u32 = 9;
        let started_us = clock.unix_us(deed.time_ns);
        let for_ns = ended_us.saturating_sub(started_us).saturating_mul(1000);
        let who = match deed.sender.pid {
            0 => "the kernel".to_owned(),
            _ => who(&deed.sender, facts),
        };
        let what = match deed.signal {
            SIGKILL => "killed the agent before this one",
            _ => "stopped the agent",
        };
        let reason = format!(
            "{who} {what}; for {} nothing was reported, and the programs went on counting and \
             judging",
            words::duration(for_ns)
        );
        let is_tampering = deed.sender.pid > 1;
        let mut record = if is_tampering {
            Self::tamper("the agent", &reason, ended_us)
        } else {
            Self::coverage("this host", Coverage::Covered, Some(&reason), ended_us)
        };
        if is_tampering {
            record.set_owner(&deed.sender, facts, clock);
        }
        record.between(started_us, ended_us)
    }

    /// Says when this may have been so, in microseconds since 1970.
    #[must_use]
    pub fn between(mut self, started_us: u64, ended_us: u64) -> Self {
        self.set(Field::Started, clock::rfc3339(started_us));
        self.set(Field::Ended, clock::rfc3339(ended_us));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_was_refused_says_what_is_wrong() {
        let news = PolicyNews::Refused {
            source: "policy.toml",
            problems: "3:1: no such key",
        };
        let record = Record::policy(&news, 0);
        assert_eq!(record.priority(), Priority::Error);
        assert_eq!(
            record.message(),
            "Policy policy.toml was refused, the one before goes on: 3:1: no such key"
        );
        let record = Record::policy(
            &PolicyNews::InForce {
                n_rules: 1,
                source: "policy.toml",
                until_us: None,
            },
            0,
        );
        assert_eq!(record.message(), "Policy policy.toml is in force: 1 rule");
        let record = Record::policy(
            &PolicyNews::InForce {
                n_rules: 1,
                source: "policy.toml",
                until_us: Some(0),
            },
            0,
        );
        assert_eq!(
            record.message(),
            "Policy policy.toml is in force: 1 rule; it is enforced until \
             1970-01-01T00:00:00.000000Z, unless `trefoil confirm` is run before"
        );
    }

    #[test]
    fn what_is_cut_is_counted_and_what_cannot_be_is_a_warning() {
        let told = |n_cut, n_left| {
            let news = PolicyNews::Cut {
                source: "policy.toml",
                n_cut,
                n_left,
                why: "they are elsewhere",
            };
            let record = Record::policy(&news, 0);
            assert_eq!(record.number(Field::Count), Some(n_cut));
            assert_eq!(record.number(Field::Total), Some(n_cut + n_left));
            (record.priority(), record.message().to_owned())
        };
        assert_eq!(
            told(1, 0),
            (
                Priority::Notice,
                "Policy policy.toml cut 1 connection that it does not approve".to_owned()
            )
        );
        let (priority, message) = told(3, 2);
        assert_eq!(priority, Priority::Warning);
        assert_eq!(
            message,
            "Policy policy.toml cut 3 connections that it does not approve; 2 more cannot be \
             cut, and what they send is dropped: they are elsewhere"
        );
        assert_eq!(
            told(0, 2).1,
            "Policy policy.toml does not approve 2 connections that cannot be cut, and what \
             they send is dropped: they are elsewhere"
        );
    }

    #[test]
    fn a_hole_in_the_coverage_is_a_warning() {
        let reason = Some("the kernel has no tcx");
        let record = Record::coverage("uplink eth0", Coverage::Uncovered, reason, 0);
        assert_eq!(record.priority(), Priority::Warning);
        assert_eq!(
            record.message(),
            "uplink eth0 is not watched: the kernel has no tcx"
        );
        assert_eq!(record.text(Field::State), Some("uncovered"));
    }

    #[test]
    fn a_heartbeat_has_all_sums() {
        let mut totals = [Totals::default(); verdict::N as usize];
        for (index, sum) in totals.iter_mut().enumerate() {
            sum.bytes_out = 10_u64.pow(index as u32);
        }
        let beat = Heartbeat {
            interval_s: 60,
            totals: &totals,
            flows: FlowStats {
                open: 3,
                ..FlowStats::default()
            },
            losses: 0,
            pending: 0,
        };
        let record = Record::heartbeat(&beat, 0);
        assert_eq!(
            record.message(),
            "Watching: 3 flows open, 11 kB approved and 111 MB not approved since the programs \
             were loaded, nothing lost"
        );
        assert_eq!(record.number(Field::BytesUndetermined), Some(100_000_000));
        assert_eq!(record.number(Field::BytesLocal), Some(10));
        let record = Record::heartbeat(&Heartbeat { losses: 2, ..beat }, 0);
        assert!(
            record.message().ends_with("2 losses"),
            "{}",
            record.message()
        );
    }

    #[test]
    fn losses_and_tampering_say_how_much_and_what() {
        let record = Record::loss("events-full", 4, 10, "numbers come later", 0);
        assert_eq!(
            record.message(),
            "events-full: 4 lost, 10 in all; numbers come later"
        );
        let record = Record::tamper("/run/trefoil/agent.seq", "it is damaged", 0);
        assert_eq!(record.priority(), Priority::Critical);
        assert_eq!(
            record.message(),
            "Tampering with /run/trefoil/agent.seq: it is damaged"
        );
    }

    #[test]
    fn who_stopped_the_agent_is_named_and_is_not_always_tampering() {
        let told = |pid| {
            let mut deed = Signalled {
                time_ns: 2_000_000_000,
                signal: 19,
                ..Signalled::default()
            };
            deed.sender.pid = pid;
            deed.sender.comm[..4].copy_from_slice(b"kill");
            let clock = BootClock::booted_at(0);
            Record::signalled(&deed, &FlowFacts::default(), &clock, 5_000_000)
        };
        let record = told(17);
        assert_eq!(record.kind(), Kind::Tamper);
        assert_eq!(
            record.message(),
            "Tampering with the agent: kill (pid 17) stopped the agent; for 3.0 s nothing was \
             reported, and the programs went on counting and judging"
        );
        assert_eq!(record.number(Field::Pid), Some(17));
        assert_eq!(
            record.text(Field::Started),
            Some("1970-01-01T00:00:02.000000Z")
        );
        assert_eq!(
            record.text(Field::Ended),
            Some("1970-01-01T00:00:05.000000Z")
        );
        for nobody in [0, 1] {
            assert_eq!(told(nobody).kind(), Kind::Coverage);
        }
    }
}
