//! Sums of refused calls that the kernel did not tell one by one: what is new of each sender's.
//!
//! It must not look at the kernel.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_ebpf::abi::{Counters, NOBODY_CHARGED, Refusals, RefusedSender, Tracked};

/// Beginning of the names of facts.
pub const REFUSED: &str = "refused.";

/// Time without a call after which a sender is taken out.
const QUIET_NS: u64 = 10_000_000_000;

/// Calls of one sender that were told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// When the entry was made that they were counted in. Of another entry nothing was told.
    since_ns: u64,
    calls: u64,
    /// Turn of the last call, and when this agent has first seen that.
    turn: u64,
    turn_ns: u64,
}

/// Calls of each sender that were told, counted by one map.
#[derive(Clone, Debug, Default)]
pub struct RefusalsTold {
    map_id: u32,
    told: BTreeMap<RefusedSender, Told>,
}

impl RefusalsTold {
    /// Begins with a map, which has this number; what was told of another one counts for nothing.
    pub fn begin(&mut self, map_id: u32) {
        if self.map_id != map_id {
            self.told.clear();
        }
        self.map_id = map_id;
    }

    /// Takes in what an agent before has told, a fact with this name. Anything else is ignored.
    pub fn restore(&mut self, name: &str, value: &str) {
        let mut name = name.split('.').map(str::parse::<u64>);
        let mut value = value.split(' ').map(str::parse::<u64>);
        let (Some(Ok(user)), Some(Ok(verdict)), Some(Ok(cgroup_id))) =
            (name.next(), name.next(), name.next())
        else {
            return;
        };
        let (Some(Ok(map_id)), Some(Ok(since_ns)), Some(Ok(calls))) =
            (value.next(), value.next(), value.next())
        else {
            return;
        };
        let (Ok(user), Ok(verdict), Ok(map_id)) = (
            u32::try_from(user),
            u32::try_from(verdict),
            u32::try_from(map_id),
        ) else {
            return;
        };
        let sender = RefusedSender {
            user,
            verdict,
            cgroup_id,
        };
        self.begin(map_id);
        let told = Told {
            since_ns,
            calls,
            ..Told::default()
        };
        self.told.insert(sender, told);
    }

    /// Takes all that is there for told.
    pub fn skip(&mut self, now: &[(RefusedSender, Refusals)]) {
        for (sender, refusals) in now {
            let told = Told {
                since_ns: refusals.tracked.flow.started_ns,
                calls: refusals.tracked.flow.counters.refused,
                ..Told::default()
            };
            self.told.insert(*sender, told);
        }
    }

    /// For each sender with calls that nobody has told: the last of them, with their number, and
    /// the fact to keep.
    pub fn news(&mut self, now: &[(RefusedSender, Refusals)]) -> Vec<(Tracked, (String, String))> {
        let mut news = Vec::new();
        for (sender, refusals) in now {
            let flow = &refusals.tracked.flow;
            let (since_ns, counted) = (flow.started_ns, flow.counters.refused);
            let told = self.told.entry(*sender).or_default();
            if told.since_ns != since_ns {
                *told = Told {
                    since_ns,
                    ..Told::default()
                };
            }
            let new = counted.saturating_sub(told.calls);
            // Its maker is about to say when it was made.
            if new == 0 || since_ns == 0 {
                continue;
            }
            told.calls = counted;
            let mut tracked = refusals.tracked;
            tracked.flow.base = Counters::default();
            tracked.flow.counters = Counters {
                refused: new,
                ..Counters::default()
            };
            let value = format!("{} {since_ns} {counted}", self.map_id);
            news.push((tracked, (fact(sender), value)));
        }
        news
    }

    /// Senders of whom all is told, and who have made no call for [`QUIET_NS`]. Not the one that is
    /// everybody.
    pub fn quiet(
        &mut self,
        now: &[(RefusedSender, Refusals)],
        now_ns: u64,
    ) -> Vec<(RefusedSender, Refusals)> {
        let mut quiet = Vec::new();
        for (sender, refusals) in now {
            let flow = &refusals.tracked.flow;
            let told = self.told.entry(*sender).or_default();
            if told.turn != refusals.turn || told.turn_ns == 0 {
                (told.turn, told.turn_ns) = (refusals.turn, now_ns);
            }
            let is_told = (told.since_ns, told.calls) == (flow.started_ns, flow.counters.refused);
            let is_quiet = now_ns.saturating_sub(told.turn_ns) > QUIET_NS;
            if sender.user != NOBODY_CHARGED && is_told && is_quiet {
                quiet.push((*sender, *refusals));
            }
        }
        quiet
    }

    /// Senders who are not there any more: an agent before has taken them out, and did not come to say so.
    pub fn absent(&self, now: &[(RefusedSender, Refusals)]) -> Vec<RefusedSender> {
        let there: BTreeSet<RefusedSender> = now.iter().map(|(sender, _)| *sender).collect();
        let told = self.told.keys();
        told.filter(|sender| !there.contains(sender))
            .copied()
            .collect()
    }

    /// Forgets a sender who was taken out. Returns the name of the fact about him.
    pub fn forget(&mut self, sender: &RefusedSender) -> String {
        self.told.remove(sender);
        fact(sender)
    }
}

/// Name of the fact about a sender.
fn fact(sender: &RefusedSender) -> String {
    let RefusedSender {
        user,
        verdict,
        cgroup_id,
    } = sender;
    format!("{REFUSED}{user}.{verdict}.{cgroup_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(user: u32, count: u64) -> (RefusedSender, Refusals) {
        let sender = RefusedSender {
            user,
            verdict: 4,
            cgroup_id: 0,
        };
        let mut refusals = Refusals::default();
        refusals.tracked.flow.started_ns = 5;
        refusals.tracked.flow.counters.refused = count;
        (sender, refusals)
    }

    fn counts(news: &[(Tracked, (String, String))]) -> Vec<u64> {
        let counts = news
            .iter()
            .map(|(tracked, _)| tracked.flow.counters.refused);
        counts.collect()
    }

    #[test]
    fn refused_calls_are_told_once_by_whichever_agent() {
        let mut told = RefusalsTold::default();
        told.begin(7);
        let news = told.news(&[refused(1, 30), refused(2, 0), refused(3, 5)]);
        assert_eq!(counts(&news), [30, 5]);
        let mut next = RefusalsTold::default();
        for (_, (name, value)) in &news {
            next.restore(name.strip_prefix(REFUSED).unwrap(), value);
        }
        next.begin(7);
        assert_eq!(counts(&next.news(&[refused(1, 30), refused(3, 6)])), [1]);
        next.begin(8);
        assert_eq!(counts(&next.news(&[refused(1, 2)])), [2]);
    }

    #[test]
    fn a_sender_who_is_quiet_leaves_and_begins_anew() {
        let mut told = RefusalsTold::default();
        told.begin(7);
        let mut all = [refused(1, 30), refused(2, 0), refused(NOBODY_CHARGED, 4)];
        let quiet = |told: &mut RefusalsTold, all: &[_], now_ns| -> Vec<u32> {
            let quiet = told.quiet(all, now_ns);
            quiet.iter().map(|(sender, _)| sender.user).collect()
        };
        told.news(&all);
        assert_eq!(quiet(&mut told, &all, 1), [0; 0]);
        assert_eq!(quiet(&mut told, &all, 1 + QUIET_NS), [0; 0]);
        all[1].1.turn = 95;
        assert_eq!(quiet(&mut told, &all, 2 + QUIET_NS), [1]);
        assert_eq!(quiet(&mut told, &all, 3 + 2 * QUIET_NS), [1, 2]);
        assert_eq!(told.forget(&all[0].0), "refused.1.4.0");
        // Nobody has told these.
        assert_eq!(quiet(&mut told, &all, 4 + 2 * QUIET_NS), [2]);
        assert_eq!(told.absent(&all), []);
        assert_eq!(told.absent(&all[..1]), [all[1].0, all[2].0]);
        // Of another entry nothing was told, also if this agent does not know that the first is gone.
        let mut next = refused(2, 3);
        told.skip(&[refused(2, 30)]);
        next.1.tracked.flow.started_ns = 9;
        assert_eq!(counts(&told.news(&[next])), [3]);
        // Not while its maker has not written when it was made.
        next.1.tracked.flow.started_ns = 0;
        assert_eq!(counts(&told.news(&[next])), [0; 0]);
    }
}
