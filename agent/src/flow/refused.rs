//! Refused calls: the first of a kind is told by itself, and those like it are counted.
//!
//! A process may ask again as often as it likes, and each time is refused by itself. Its request
//! does not become more interesting by that.

use std::collections::HashSet;

use trefoil_ebpf::abi::{Peer, Tracked};

/// How long a kind is remembered after its last call, at least.
const KEEP_NS: u64 = 60_000_000_000;

/// Kinds that are remembered before the oldest are forgotten, and may be told once more.
const MOST: usize = 16_384;

/// One process, one destination, one decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    pid: u32,
    start_ns: u64,
    exe_id: u64,
    cgroup_id: u64,
    uid: u32,
    peer: Peer,
    decision: u64,
}

impl Kind {
    fn of(tracked: &Tracked) -> Self {
        let Tracked { owner, flow } = tracked;
        Self {
            pid: owner.pid,
            start_ns: owner.start_ns,
            exe_id: owner.exe_id,
            cgroup_id: owner.cgroup_id,
            uid: owner.uid,
            peer: flow.peer,
            decision: flow.decision.to_word(),
        }
    }
}

/// Kinds of calls that were told of, in two generations: one that was not asked about while a
/// generation was the young one is forgotten with the next turn.
#[derive(Debug, Default)]
pub(super) struct Refused {
    young: HashSet<Kind>,
    old: HashSet<Kind>,
    turned_ns: u64,
}

impl Refused {
    /// True if a call like this was told of. Asking remembers it for longer.
    pub(super) fn is_repeated(&mut self, tracked: &Tracked, now_ns: u64) -> bool {
        let kind = Kind::of(tracked);
        if now_ns.saturating_sub(self.turned_ns) >= KEEP_NS {
            // After a long time without a call both generations are too old.
            if now_ns.saturating_sub(self.turned_ns) >= 2 * KEEP_NS {
                self.young.clear();
            }
            self.turn(now_ns);
        }
        if self.young.contains(&kind) {
            return true;
        }
        self.old.remove(&kind) && self.young.insert(kind)
    }

    /// Remembers a call that is told of by itself.
    pub(super) fn remember(&mut self, tracked: &Tracked, now_ns: u64) {
        if self.young.len() >= MOST {
            self.turn(now_ns);
        }
        self.young.insert(Kind::of(tracked));
    }

    fn turn(&mut self, now_ns: u64) {
        self.turned_ns = now_ns;
        self.old = std::mem::take(&mut self.young);
    }
}
