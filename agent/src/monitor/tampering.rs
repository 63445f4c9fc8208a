//! Whether all that was put into the kernel is still there as it was left, and whether
//! this loop has gone on.
//!
//! Damage that can be put right is put right; else the agent ends with a failure, so that the
//! service manager starts one that has the rights to attach. Nothing here keeps anybody from
//! anything: a process that may change this may stop the agent as well.

use std::collections::BTreeMap;

use trefoil_ebpf::abi::{Control, Owner, Signalled, Tracked};

use super::{Monitor, pulse::Pulse};
use crate::{
    clock::{self, BootClock},
    kernel::{Damage, Enforcement, Guard, KernelError, OwnProcess},
    report::{Coverage, Record, words},
};

/// Looks at a control word that says "detached" before it is taken for somebody else's:
/// `trefoil detach` writes it first, and may have to wait for its turn.
const PATIENCE: u8 = 4;

/// Action to take after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: all is as it should be, or is again.
    Whole,
    /// The policy is to be put into the kernel once more.
    PolicyDamaged,
    /// To end: somebody ran `trefoil detach`.
    Detached,
    /// To fail, so that the next agent attaches what is missing.
    Broken,
}

/// State that is remembered between looks.
pub(super) struct Tampering {
    pub(super) guard: Guard,
    process: OwnProcess,
    pulse: Pulse,
    n_detached: u8,
    /// The generation of which it was said that its tables are not what was written.
    damaged: Option<u32>,
    /// Counters by whose they are, in the order of the table.
    counters: BTreeMap<String, Vec<u64>>,
}

impl Tampering {
    pub(super) fn new(guard: Guard, process: OwnProcess) -> Self {
        Self {
            guard,
            process,
            pulse: Pulse::new(),
            n_detached: 0,
            damaged: None,
            counters: BTreeMap::new(),
        }
    }

    /// An interface is gone, and its books with it.
    pub(super) fn forget_uplink(&mut self, index: u32) {
        self.guard.forget_uplink(index);
        self.counters.remove(&index.to_string());
    }

    /// Notes counters that only grow. Returns true if one does not.
    fn went_back(&mut self, whose: &str, now: Vec<u64>) -> bool {
        let Some(before) = self.counters.get_mut(whose) else {
            self.counters.insert(whose.to_owned(), now);
            return false;
        };
        let went_back = before.iter().zip(&now).any(|(before, now)| now < before);
        *before = now;
        went_back
    }
}

impl Monitor {
    /// Looks, and reports what is not as it should be.
    pub fn look_for_tampering(&mut self) -> Result<Standing, KernelError> {
        // Which interfaces are gone comes first: what was attached to them is gone as well.
        self.take_uplink_news()?;
        let since_us = self.tampering.pulse.since_us();
        let now_us = clock::unix_us();
        let gap_ns = self.tampering.pulse.beat(clock::awake_ns(), now_us);
        match (self.tampering.process.take_stop()?, gap_ns) {
            (Some(stopped), _) => self.report_signal(&stopped)?,
            // Nobody has stopped it; it did not get its turn, or its group was frozen.
            (None, Some(gap_ns)) => self.report_stall(gap_ns, since_us, now_us),
            (None, None) => {}
        }
        let mut found = Vec::new();
        if !self.kernel.was_detached() {
            self.tampering.n_detached = 0;
            found.extend(self.tampering.guard.look(self.uplinks.routes()));
            if self.kernel.was_detached() {
                // Somebody began to while this looked, and what was found missing is his work.
                self.tampering.guard.take_back();
                return Ok(Standing::Whole);
            }
            found.extend(self.control_damage());
            found.extend(self.counter_damage()?);
            found.extend(self.uplink_damage()?);
        } else if !self.kernel.is_attached() {
            return Ok(Standing::Detached);
        } else {
            self.tampering.n_detached += 1;
            if self.tampering.n_detached < PATIENCE {
                return Ok(Standing::Whole);
            }
            found.push(Damage {
                subject: "the control word".to_owned(),
                reason: "it says that nothing is to be counted or judged, as `trefoil detach` \
                         has it say, but nothing was taken out; the next agent begins again"
                    .to_owned(),
                is_mended: false,
                by: self.tampering.guard.who_wrote(&["CONTROL"]),
            });
        }
        let is_broken = found.iter().any(|damage| !damage.is_mended);
        let mut standing = if is_broken {
            Standing::Broken
        } else {
            Standing::Whole
        };
        if !is_broken && let Some(damage) = self.policy_damage()? {
            found.push(damage);
            standing = Standing::PolicyDamaged;
        }
        for damage in found {
            let record = self.tamper(&damage, now_us)?;
            self.reporter.emit(record.between(since_us, now_us));
            self.hand_over();
        }
        Ok(standing)
    }

    /// The words that the agent, `trefoil detach` and `trefoil confirm` write, and nobody
    /// else.
    fn control_damage(&mut self) -> Option<Damage> {
        let policy = &self.policy;
        let wanted = Control {
            generation: policy.generation,
            instance: self.kernel.instance(),
        };
        let (found, enforcement) = (self.kernel.control(), self.kernel.enforcement());
        let is_confirmed = matches!(policy.enforcement, Enforcement::Until(_))
            && enforcement == Enforcement::Always;
        let reason = if found != wanted {
            format!(
                "it named policy {} and programs {} instead of {} and {}; it is as it was",
                found.generation, found.instance, wanted.generation, wanted.instance
            )
        } else if enforcement != policy.enforcement && !is_confirmed {
            "it said otherwise about whether the policy is enforced; it is as it was".to_owned()
        } else {
            return None;
        };
        // Not if it says by now that nobody counts: see the next look.
        let is_mended = self
            .kernel
            .put_in_force(policy.generation, policy.enforcement);
        is_mended.then(|| Damage {
            subject: "the control word".to_owned(),
            reason,
            is_mended: true,
            by: self.tampering.guard.who_wrote(&["CONTROL"]),
        })
    }

    /// The tables of the policy in force. Their contents nobody can edit, but others may
    /// be put in their place.
    fn policy_damage(&mut self) -> Result<Option<Damage>, KernelError> {
        let generation = self.policy.generation;
        if self.tampering.damaged == Some(generation) || self.kernel.holds_what_was_written()? {
            return Ok(None);
        }
        self.tampering.damaged = Some(generation);
        Ok(Some(Damage {
            subject: "the policy in the kernel".to_owned(),
            reason: "its tables are not those that were written; it is compiled and put in \
                     force once more"
                .to_owned(),
            is_mended: true,
            by: self.tampering.guard.who_wrote(&["POLICIES", "TABLES"]),
        }))
    }

    /// The counters that are never set back.
    fn counter_damage(&mut self) -> Result<Vec<Damage>, KernelError> {
        let totals = self.reader.totals()?;
        let totals = totals.iter().flat_map(|sum| {
            [
                sum.bytes_out,
                sum.packets_out,
                sum.blocked_bytes,
                sum.blocked_packets,
                sum.refused,
            ]
        });
        let totals = totals.collect();
        let losses = self.reader.losses()?;
        let mut found = Vec::new();
        if self.tampering.went_back("the sums by verdict", totals) {
            let by = self.tampering.guard.who_wrote(&["TOTALS"]);
            found.push(set_back("the sums by verdict", by));
        }
        if self
            .tampering
            .went_back("the counters of losses", losses.values().copied().collect())
        {
            self.losses.set_back(&losses);
            let by = self.tampering.guard.who_wrote(&["LOSSES"]);
            found.push(set_back("the counters of losses", by));
        }
        Ok(found)
    }

    /// The books of interfaces that are watched, and are there.
    fn uplink_damage(&mut self) -> Result<Vec<Damage>, KernelError> {
        let mut found = Vec::new();
        let by = self.tampering.guard.who_wrote(&["UPLINKS", "UPLINK_BOOKS"]);
        for (index, subject) in self.uplinks.subjects() {
            let subject = format!("the books of {subject}");
            if let Some(counters) = self.uplinks.counters(index)? {
                if self.tampering.went_back(&index.to_string(), counters) {
                    found.push(set_back(&subject, by));
                }
            } else if self.uplinks.is_there(index) {
                // Nobody else closes books but the thread that saw the interface go.
                self.uplinks.begin_again(index)?;
                self.tampering.counters.remove(&index.to_string());
                found.push(Damage {
                    subject,
                    reason: "they were removed, and begin again with nothing; what they held is \
                             in the remainder"
                        .to_owned(),
                    is_mended: true,
                    by,
                });
            }
        }
        Ok(found)
    }

    /// Makes the record of a damage.
    pub(super) fn tamper(&mut self, damage: &Damage, time_us: u64) -> Result<Record, KernelError> {
        let Some(owner) = damage.by else {
            return Ok(Record::tamper(&damage.subject, &damage.reason, time_us));
        };
        let tracked = Tracked {
            owner,
            ..Tracked::default()
        };
        let facts = self.names.facts(&self.reader, &tracked)?;
        let (subject, reason, clock) = (&damage.subject, &damage.reason, BootClock::read());
        Ok(Record::tamper_by(
            &owner, &facts, subject, reason, &clock, time_us,
        ))
    }

    /// Reports a signal to this agent, or to the one before.
    pub(super) fn report_signal(&mut self, signalled: &Signalled) -> Result<(), KernelError> {
        let tracked = Tracked {
            owner: signalled.sender,
            ..Tracked::default()
        };
        let facts = self.names.facts(&self.reader, &tracked)?;
        let clock = BootClock::read();
        let record = Record::signalled(signalled, &facts, &clock, clock::unix_us());
        self.reporter.emit(record);
        Ok(())
    }

    fn report_stall(&mut self, gap_ns: u64, since_us: u64, now_us: u64) {
        let reason = format!(
            "the agent stood still for {}, and nothing was reported; the programs went on \
             counting and judging, and what they could not keep is reported as a loss",
            words::duration(gap_ns)
        );
        let record = Record::coverage("this host", Coverage::Covered, Some(&reason), now_us);
        self.reporter.emit(record.between(since_us, now_us));
    }
}

fn set_back(subject: &str, by: Option<Owner>) -> Damage {
    Damage {
        subject: subject.to_owned(),
        reason: "a counter that only grows was set back; what it held is not known any more"
            .to_owned(),
        is_mended: true,
        by,
    }
}
