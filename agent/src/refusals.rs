//! Sums of refused calls that the kernel did not tell one by one: what is new of each sender's.
//!
//! It must not look at the kernel.

use std::collections::BTreeMap;

use trefoil_ebpf::abi::{Counters, Refusals, RefusedSender, Tracked};

/// Beginning of the names of facts.
pub const REFUSED: &str = "refused.";

/// Calls of each sender that were told, counted by one map.
#[derive(Clone, Debug, Default)]
pub struct RefusalsTold {
    map_id: u32,
    told: BTreeMap<RefusedSender, u64>,
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
        let mut words = name.split('.').map(str::parse::<u64>);
        let (Some(Ok(user)), Some(Ok(verdict)), Some(Ok(cgroup_id)), Some((map_id, told))) = (
            words.next(),
            words.next(),
            words.next(),
            value.split_once(' '),
        ) else {
            return;
        };
        let (Ok(user), Ok(verdict)) = (u32::try_from(user), u32::try_from(verdict)) else {
            return;
        };
        if let (Ok(map_id), Ok(told)) = (map_id.parse(), told.parse()) {
            let sender = RefusedSender {
                user,
                verdict,
                cgroup_id,
            };
            self.begin(map_id);
            self.told.insert(sender, told);
        }
    }

    /// Takes all that is there for told.
    pub fn skip(&mut self, now: &[(RefusedSender, Refusals)]) {
        for (sender, refusals) in now {
            self.told
                .insert(*sender, refusals.tracked.flow.counters.refused);
        }
    }

    /// For each sender with calls that nobody has told: the last of them, with their number, and
    /// the fact to keep.
    pub fn news(&mut self, now: &[(RefusedSender, Refusals)]) -> Vec<(Tracked, (String, String))> {
        let mut news = Vec::new();
        for (sender, refusals) in now {
            let counted = refusals.tracked.flow.counters.refused;
            let told = self.told.entry(*sender).or_default();
            let new = counted.saturating_sub(*told);
            if new == 0 {
                continue;
            }
            *told = counted;
            let mut tracked = refusals.tracked;
            tracked.flow.base = Counters::default();
            tracked.flow.counters = Counters {
                refused: new,
                ..Counters::default()
            };
            let RefusedSender {
                user,
                verdict,
                cgroup_id,
            } = sender;
            let name = format!("{REFUSED}{user}.{verdict}.{cgroup_id}");
            news.push((tracked, (name, format!("{} {counted}", self.map_id))));
        }
        news
    }
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
}
