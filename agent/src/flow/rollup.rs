//! Many flows in one report.

use std::collections::{HashMap, HashSet};

use trefoil_ebpf::abi::{
    Counters, NO_RULE, NOBODY_LOGGED_IN, Owner, Peer, Tracked, direction, quality, verdict,
};

use super::{
    ReportKind,
    kept::{self, Change, Kept},
    plus,
};
use crate::geo::Country;

/// Key that the flows of one rollup have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RollupKey {
    /// Verdict.
    pub verdict: u8,
    /// `DECISION_*` bits.
    pub flags: u8,
    /// The rest; `None` for flows that found no room in a rollup of their own.
    pub group: Option<RollupGroup>,
}

/// Part of the key that the flows of one rollup have in common besides the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RollupGroup {
    /// Key into `EXECUTABLES`.
    pub exe_id: u64,
    /// Key into `CGROUPS`.
    pub cgroup_id: u64,
    /// Real user id.
    pub uid: u32,
    /// The owner's quality if no process of this host sent it: the kernel did, or it was
    /// forwarded. Else 0.
    pub without_process: u8,
    /// Generation of the policy, which the number of the rule belongs to.
    pub generation: u32,
    /// Index of the rule in the policy file.
    pub rule: u16,
    /// Country of the destination.
    pub country: Option<Country>,
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// The service's port: the far end's, or the near end's of accepted flows.
    pub port: u16,
}

impl RollupKey {
    pub(super) fn of(tracked: &Tracked, country: Option<Country>) -> Self {
        let Tracked { owner, flow } = tracked;
        let accepted = direction::is_answer(flow.direction);
        let group = RollupGroup {
            exe_id: owner.exe_id,
            cgroup_id: owner.cgroup_id,
            uid: owner.uid,
            without_process: match owner.quality {
                quality::KERNEL | quality::FORWARDED => owner.quality,
                _ => 0,
            },
            generation: flow.decision.generation,
            rule: flow.decision.rule,
            country,
            protocol: flow.peer.protocol,
            direction: flow.direction,
            port: if accepted {
                flow.local_port
            } else {
                flow.peer.port
            },
        };
        Self {
            group: Some(group),
            ..Self::merged(tracked)
        }
    }

    pub(super) fn merged(tracked: &Tracked) -> Self {
        let decision = &tracked.flow.decision;
        Self {
            verdict: decision.verdict,
            flags: decision.flags,
            group: None,
        }
    }
}

/// Flows that have an owner, a verdict and a destination class in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollup {
    /// Key of the flows.
    pub key: RollupKey,
    /// A flow with what they have in common; what differs is zero, unspecified
    /// or nobody. Its owner's quality is the worst of them.
    pub sample: Tracked,
    /// Kind of this report.
    pub kind: ReportKind,
    /// Begin of the interval, nanoseconds since boot.
    pub began_ns: u64,
    /// Its end, when this was reported.
    pub ended_ns: u64,
    /// Flows that ended in the interval. They are in no other final record.
    pub closed: u64,
    /// Counters of these flows since they began.
    pub counted: Counters,
    /// Counters of these flows, and of those that are open, that were in no record
    /// before; `None` if an agent before has told of some, and how much is not known.
    pub new: Option<Counters>,
    /// Flows that are open and were active in the interval. They are counted
    /// when they are over.
    pub open: u64,
    /// Counters of the open flows since they began, by now.
    pub open_counted: Counters,
}

impl Rollup {
    fn of(key: RollupKey, tracked: &Tracked, kind: ReportKind) -> Self {
        Self {
            key,
            sample: in_common(&key, tracked),
            kind,
            began_ns: 0,
            ended_ns: 0,
            closed: 0,
            counted: Counters::default(),
            new: Some(Counters::default()),
            open: 0,
            open_counted: Counters::default(),
        }
    }
}

/// Blanks what the key does not say.
fn in_common(key: &RollupKey, tracked: &Tracked) -> Tracked {
    let nobody = Owner {
        gid: u32::MAX,
        loginuid: NOBODY_LOGGED_IN,
        session: NOBODY_LOGGED_IN,
        ..Owner::default()
    };
    let mut sample = Tracked {
        owner: nobody,
        ..Tracked::default()
    };
    sample.flow.decision = tracked.flow.decision;
    match &key.group {
        None => {
            sample.owner.uid = u32::MAX;
            sample.flow.decision.rule = NO_RULE;
        }
        Some(group) => {
            sample.owner.quality = tracked.owner.quality;
            sample.owner.exe_id = group.exe_id;
            sample.owner.cgroup_id = group.cgroup_id;
            sample.owner.uid = group.uid;
            sample.flow.direction = group.direction;
            sample.flow.peer = Peer {
                protocol: group.protocol,
                ..Peer::default()
            };
            if direction::is_answer(group.direction) {
                sample.flow.local_port = group.port;
            } else {
                sample.flow.peer.port = group.port;
            }
        }
    }
    sample
}

/// The rollups of one kind that are being filled.
#[derive(Debug)]
pub(super) struct Rollups {
    kind: ReportKind,
    open: HashMap<RollupKey, Rollup>,
    /// Those that have changed since [`Rollups::changes`] told of them.
    changed: HashSet<RollupKey>,
    began_ns: u64,
    interval_ns: u64,
    max: usize,
    pub(super) n_merged: u64,
    /// Bytes and packets that those which are being filled count as sent, by verdict.
    pub(super) held: [(u64, u64); verdict::N as usize],
}

impl Rollups {
    pub(super) fn new(kind: ReportKind, interval_ns: u64, max: usize) -> Self {
        Self {
            kind,
            open: HashMap::new(),
            changed: HashSet::new(),
            began_ns: 0,
            interval_ns,
            max,
            n_merged: 0,
            held: Default::default(),
        }
    }

    /// Counts `n_flows` that are over.
    pub(super) fn close(
        &mut self,
        tracked: &Tracked,
        country: Option<Country>,
        counted: &Counters,
        new: Option<Counters>,
        n_flows: u64,
    ) {
        self.hold(tracked.flow.decision.verdict, counted);
        let rollup = self.rollup(tracked, country);
        rollup.new = rollup.new.zip(new).map(|(sum, new)| plus(&sum, &new));
        rollup.closed += n_flows;
        rollup.counted = plus(&rollup.counted, counted);
    }

    fn hold(&mut self, verdict: u8, counted: &Counters) {
        if let Some(held) = self.held.get_mut(usize::from(verdict)) {
            held.0 += counted.bytes_out;
            held.1 += counted.packets_out;
        }
    }

    /// Tells of a flow that is open when the interval ends.
    pub(super) fn tell_open(
        &mut self,
        tracked: &Tracked,
        country: Option<Country>,
        counted: &Counters,
        new: Option<Counters>,
    ) {
        let rollup = self.rollup(tracked, country);
        rollup.new = rollup.new.zip(new).map(|(sum, new)| plus(&sum, &new));
        rollup.open += 1;
        rollup.open_counted = plus(&rollup.open_counted, counted);
    }

    /// True when the interval is over. The first one begins with the first call.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        if self.began_ns == 0 {
            self.began_ns = now_ns;
        }
        now_ns.saturating_sub(self.began_ns) >= self.interval_ns
    }

    /// Ends the interval.
    pub(super) fn take(&mut self, now_ns: u64) -> Vec<Rollup> {
        let began_ns = std::mem::replace(&mut self.began_ns, now_ns);
        self.held = Default::default();
        self.changed.extend(self.open.keys());
        let mut rollups: Vec<_> = self.open.drain().map(|(_, rollup)| rollup).collect();
        // Largest first, and otherwise in an order that does not depend on chance.
        rollups.sort_by_key(|rollup| {
            let sample = &rollup.sample;
            let bytes = rollup.counted.bytes_out + rollup.open_counted.bytes_out;
            (
                std::cmp::Reverse(bytes),
                sample.owner.exe_id,
                sample.owner.uid,
                sample.flow.peer,
            )
        });
        for rollup in &mut rollups {
            rollup.began_ns = began_ns;
            rollup.ended_ns = now_ns;
        }
        rollups
    }

    /// Changes of the rollups, for an agent after this one.
    pub(super) fn changes(&mut self) -> impl Iterator<Item = Change> {
        let (open, began_ns) = (&self.open, self.began_ns);
        self.changed.drain().map(move |key| {
            let value = open.get(&key).map(|rollup| kept::value(rollup, began_ns));
            (kept::name(&key), value)
        })
    }

    /// Goes on with a rollup of an agent before this one.
    pub(super) fn restore(&mut self, kept: &Kept) {
        self.began_ns = match self.began_ns {
            0 => kept.began_ns,
            began_ns => began_ns.min(kept.began_ns),
        };
        self.hold(kept.key.verdict, &kept.counted);
        let mut rollup = Rollup::of(kept.key, &kept.sample, self.kind);
        rollup.closed = kept.closed;
        rollup.counted = kept.counted;
        rollup.new = kept.new;
        self.open.insert(kept.key, rollup);
    }

    pub(super) fn samples(&self) -> impl Iterator<Item = &Tracked> {
        self.open.values().map(|rollup| &rollup.sample)
    }

    fn rollup(&mut self, tracked: &Tracked, country: Option<Country>) -> &mut Rollup {
        let mut key = RollupKey::of(tracked, country);
        if self.open.len() >= self.max && !self.open.contains_key(&key) {
            self.n_merged += 1;
            key = RollupKey::merged(tracked);
        }
        let kind = self.kind;
        self.changed.insert(key);
        let rollup = self
            .open
            .entry(key)
            .or_insert_with(|| Rollup::of(key, tracked, kind));
        if key.group.is_some() {
            rollup.sample.owner.quality = rollup.sample.owner.quality.min(tracked.owner.quality);
        }
        rollup
    }
}
