//! Connections that are open, and that the policy in force does not approve any more.
//!
//! Every packet is judged as it comes, so nothing of them leaves. But a process that
//! waits for an answer would go on waiting, and the far end with it, until both give up.
//! So they are cut, and both ends know at once. Only TCP, where a socket has one peer: of
//! a socket with many, the others may be approved; and one of UDP that has one peer now
//! may have another by the time it is cut, while all that it sends fails at once anyway.
//!
//! Decides nothing: the judge in the kernel is asked about each connection. Flows come
//! from the tables of the control group that is watched, so nobody else's are touched.

use std::collections::{HashMap, HashSet};

use trefoil_ebpf::abi::{
    DECISION_ENFORCED, Decision, FLOW_ENDED, MAX_CUTS, Question, Tracked, verdict,
};

use super::{Monitor, cutter::Cutter};
use crate::{
    clock,
    kernel::{KernelError, PinDir},
    report::{PolicyNews, Record},
};

/// How often all connections are looked at, and not only those that have tried to send:
/// an exception may have ended since.
const INTERVAL_NS: u64 = 10_000_000_000;

/// How often they are looked at after a policy came into force. More than once, since
/// a connection that is being opened is judged first and seen later.
const LOOKS: u8 = 3;

/// How often it is tried to cut a connection. The kernel may miss one when it lists
/// them, but hardly twice.
const TRIES: u8 = 2;

/// Connections that are being cut, and those that could not be.
pub(super) struct Cuts {
    cutter: Cutter,
    asked: HashSet<u64>,
    /// How often it was tried in vain, by cookie.
    tried: HashMap<u64, u8>,
    /// The policy that was in force at the last look.
    generation: u32,
    /// Looks at all connections that are due at once.
    n_due: u8,
    looked_ns: u64,
}

impl Cuts {
    pub(super) fn new(cutter: Cutter) -> Self {
        Self {
            cutter,
            asked: HashSet::new(),
            tried: HashMap::new(),
            generation: 0,
            n_due: 0,
            looked_ns: 0,
        }
    }

    /// See [`Cutter::remove_filters`].
    pub(super) fn remove_filters(&self, pins: &PinDir) -> Result<(), KernelError> {
        self.cutter.remove_filters(pins)
    }

    /// Begins a look; true if it is to be at all connections.
    fn look(&mut self, generation: u32, now_ns: u64) -> bool {
        if generation != self.generation {
            self.generation = generation;
            self.tried.clear();
            self.n_due = LOOKS;
        }
        let all = self.n_due > 0 || now_ns.saturating_sub(self.looked_ns) >= INTERVAL_NS;
        if all {
            self.n_due = self.n_due.saturating_sub(1);
            self.looked_ns = now_ns;
        }
        all
    }

    /// True if the judge has to be asked about this flow.
    fn is_suspect(&self, tracked: &Tracked, all: bool) -> bool {
        const TCP: u8 = 6;
        let flow = &tracked.flow;
        let decision = &flow.decision;
        let is_settled = decision.generation == self.generation
            && decision.flags == DECISION_ENFORCED
            && verdict::is_approved(decision.verdict);
        flow.peer.protocol == TCP
            && flow.state & FLOW_ENDED == 0
            && flow.cookie != 0
            && if all { !is_settled } else { decision.blocks() }
            && self.tried.get(&flow.cookie).is_none_or(|n| *n < TRIES)
    }

    /// Notes what came of the request: how many were cut, and how many stay.
    fn note(&mut self, cut: &HashSet<u64>, is_over: bool) -> (u64, u64) {
        let (mut n_cut, mut n_left) = (0, 0);
        for cookie in std::mem::take(&mut self.asked) {
            if cut.contains(&cookie) {
                n_cut += 1;
                continue;
            }
            let tried = self.tried.entry(cookie).or_default();
            *tried = if is_over { TRIES } else { *tried + 1 };
            if *tried < TRIES {
                self.n_due = self.n_due.max(1);
            } else {
                n_left += 1;
            }
        }
        (n_cut, n_left)
    }
}

impl Monitor {
    /// Looks for connections that the policy does not approve, among the tags of all
    /// sockets, and has them cut.
    pub(super) fn cut_unapproved(&mut self, sockets: &[Tracked]) -> Result<(), KernelError> {
        self.take_cuts()?;
        let now_ns = clock::since_boot_ns();
        if self.cuts.cutter.is_busy() || !self.kernel.enforcement().holds_at(now_ns) {
            return Ok(());
        }
        let all = self.cuts.look(self.kernel.generation(), now_ns);
        if all && !self.cuts.tried.is_empty() {
            let open: HashSet<u64> = sockets.iter().map(|socket| socket.flow.cookie).collect();
            self.cuts.tried.retain(|cookie, _| open.contains(cookie));
        }
        let (cookies, questions): (Vec<u64>, Vec<Question>) = sockets
            .iter()
            .filter(|socket| self.cuts.is_suspect(socket, all))
            .map(|Tracked { owner, flow }| (flow.cookie, Question::of(owner, flow)))
            .unzip();
        if questions.is_empty() {
            return Ok(());
        }
        let (answers, _) = self.kernel.ask(&questions)?;
        let unapproved: HashSet<u64> = cookies
            .into_iter()
            .zip(answers)
            .filter(|(_, answer)| answered(*answer).blocks())
            .map(|(cookie, _)| cookie)
            .take(MAX_CUTS)
            .collect();
        if unapproved.is_empty() {
            return Ok(());
        }
        if unapproved.len() == MAX_CUTS {
            self.cuts.n_due = self.cuts.n_due.max(1);
        }
        self.reader.set_cuts(&unapproved)?;
        self.cuts.asked.clone_from(&unapproved);
        self.cuts.cutter.cut(unapproved);
        Ok(())
    }

    /// Says what has been cut since it was asked for.
    pub(super) fn take_cuts(&mut self) -> Result<(), KernelError> {
        let Some(cut) = self.cuts.cutter.done() else {
            return Ok(());
        };
        self.reader.set_cuts(&HashSet::new())?;
        let (n_cut, n_left) = self.cuts.note(&cut.cookies, cut.failure.is_some());
        let why = cut.failure.map_or_else(
            || "they are in another network namespace than the agent".to_owned(),
            |failure| failure.to_string(),
        );
        if n_cut + n_left > 0 {
            let source = self.policy.source().to_owned();
            let news = PolicyNews::Cut {
                source: &source,
                n_cut,
                n_left,
                why: &why,
            };
            self.reporter.emit(Record::policy(&news, clock::unix_us()));
        }
        Ok(())
    }
}

/// The decision in an answer of the judge.
fn answered(answer: u32) -> Decision {
    Decision {
        generation: 0,
        rule: (answer >> 16) as u16,
        verdict: answer as u8,
        flags: (answer >> 8) as u8,
    }
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::DECISION_LIMITED;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn cuts() -> Cuts {
        Cuts::new(Cutter::start().unwrap())
    }

    fn connection(generation: u32, verdict: u8) -> Tracked {
        let mut tracked = Tracked::default();
        tracked.flow.cookie = 7;
        tracked.flow.peer.protocol = 6;
        tracked.flow.decision = Decision {
            generation,
            rule: 0,
            verdict,
            flags: DECISION_ENFORCED,
        };
        tracked
    }

    #[test]
    fn after_another_policy_all_are_looked_at_and_later_those_that_try_to_send() {
        let mut cuts = cuts();
        let looks: Vec<bool> = (0..5)
            .map(|second| cuts.look(1, second * SECOND_NS))
            .collect();
        assert_eq!(looks, [true, true, true, false, false]);
        assert!(cuts.look(1, 12 * SECOND_NS));
        assert!(!cuts.look(1, 13 * SECOND_NS));
        assert!(cuts.look(2, 13 * SECOND_NS));

        let approved_before = connection(1, verdict::APPROVED);
        assert!(cuts.is_suspect(&approved_before, true));
        assert!(!cuts.is_suspect(&approved_before, false));
        let approved_now = connection(2, verdict::APPROVED);
        assert!(!cuts.is_suspect(&approved_now, true));
        let denied_now = connection(2, verdict::DENIED);
        assert!(cuts.is_suspect(&denied_now, false));
    }

    #[test]
    fn a_decision_that_holds_for_one_packet_is_asked_about_again() {
        let mut cuts = cuts();
        cuts.look(1, 0);
        let mut limited = connection(1, verdict::EXCEPTION);
        limited.flow.decision.flags |= DECISION_LIMITED;
        assert!(cuts.is_suspect(&limited, true));
    }

    #[test]
    fn what_is_not_tcp_is_left_alone() {
        let mut cuts = cuts();
        cuts.look(1, 0);
        let mut other = connection(1, verdict::DENIED);
        for protocol in [0, 17, 132] {
            other.flow.peer.protocol = protocol;
            assert!(!cuts.is_suspect(&other, true));
        }
    }

    #[test]
    fn what_cannot_be_cut_is_tried_twice_and_counted_once() {
        let mut cuts = cuts();
        let open = connection(0, verdict::DENIED);
        cuts.look(1, 0);
        cuts.n_due = 0;
        let none = HashSet::new();
        cuts.asked = HashSet::from([7, 8]);
        assert_eq!(cuts.note(&HashSet::from([8]), false), (1, 0));
        assert!(cuts.look(1, SECOND_NS), "it is looked at once more");
        assert!(cuts.is_suspect(&open, true));
        cuts.asked = HashSet::from([7]);
        assert_eq!(cuts.note(&none, false), (0, 1));
        assert!(!cuts.is_suspect(&open, true));
        // Another policy is another reason to try.
        cuts.look(2, 2 * SECOND_NS);
        assert!(cuts.is_suspect(&open, true));
        cuts.asked = HashSet::from([7]);
        assert_eq!(cuts.note(&none, true), (0, 1));
    }
}
