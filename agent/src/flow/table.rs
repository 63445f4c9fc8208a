//! The flows that are open, and what was reported of each.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::Entry as Slot},
    net::IpAddr,
};

use trefoil_ebpf::abi::{
    Counters, Event, FLOW_EMBRYONIC, FLOW_ENDED, Flow, Tracked, quality, reason, verdict,
};

use super::{
    Ending, FlowId, FlowMode, FlowSettings, FlowStats, Report, ReportKind, Stage,
    closed::Closed,
    counted,
    entry::{Entry, Origin, has_happened, is_only_refused, is_violation, kind_of},
    ip_address,
    kept::{self, Change},
    minus,
    pace::{Pace, SharedPace},
    plus,
    refused::Refused,
    rollup::Rollups,
    told::Told,
};
use crate::geo::Country;

/// How often all flows are looked through for updates that are due, at most and at least. It is
/// a sixth of the time between two updates.
const SCAN_NS: (u64, u64) = (1_000_000_000, 10_000_000_000);

/// How long a flow of an agent before may take to show up: what the kernel sends for a socket that is
/// closed may take minutes.
const GIVE_UP_NS: u64 = 600_000_000_000;

/// A pass over flows of the kernel, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Taken before the first flow was read, nanoseconds since boot.
    pub began_ns: u64,
    /// The pass has reached every flow by now. Only then is it asked which ones are missing.
    pub complete: bool,
    /// Records that there is room for, besides those about the states.
    pub room: usize,
}

/// Every flow that is open.
///
/// Call [`observe`](Self::observe) with every event, [`sweep`](Self::sweep) with
/// all states every second or so and [`tick`](Self::tick) often. While the ring
/// buffer is not being drained, do not sweep either: a flow whose last event
/// waits there is missing in the sweep, and would be taken for one whose end
/// nobody saw.
pub struct FlowTable {
    settings: FlowSettings,
    country: Box<dyn Fn(IpAddr) -> Option<Country>>,
    flows: HashMap<FlowId, Entry>,
    told: Told,
    /// When the first pass over all flows began.
    first_sweep_ns: Option<u64>,
    closed: Closed,
    /// Names of flows that were told of in one event: see [`reason::ALONE`], and refused calls.
    alone: Closed,
    /// Sockets that are gone, and when: the next sweep has their last numbers.
    gone: HashMap<u64, u64>,
    flows_pace: Pace,
    violations_pace: SharedPace,
    refused: Refused,
    rollups: Rollups,
    violations: Rollups,
    stats: FlowStats,
    now_ns: u64,
    scanned_ns: u64,
    scan_interval_ns: u64,
}

impl FlowTable {
    /// A table without flows. `country` says where an address is, for rollups.
    #[must_use]
    pub fn new(
        settings: FlowSettings,
        country: impl Fn(IpAddr) -> Option<Country> + 'static,
    ) -> Self {
        let rollups = |kind, interval_ns| Rollups::new(kind, interval_ns, settings.max_rollups);
        Self {
            country: Box::new(country),
            flows: HashMap::new(),
            told: Told::new(settings.max_told),
            first_sweep_ns: None,
            closed: Closed::new(settings.closed_ns, settings.max_closed),
            alone: Closed::new(settings.closed_ns, settings.max_closed),
            gone: HashMap::new(),
            flows_pace: Pace::new(settings.flows_rate),
            violations_pace: SharedPace::new(settings.violations_rate),
            refused: Refused::default(),
            rollups: rollups(ReportKind::Flow, settings.rollup_interval_ns),
            violations: rollups(ReportKind::Violation, settings.violations_interval_ns),
            stats: FlowStats::default(),
            now_ns: 0,
            scanned_ns: 0,
            scan_interval_ns: (settings.update_interval_ns / 6).clamp(SCAN_NS.0, SCAN_NS.1),
            settings,
        }
    }

    /// Takes in what the ring buffer, or the table of what found no room there,
    /// delivered. The latter has no reason of its own: it is `CLOSED`.
    pub fn observe(&mut self, event: &Event, out: &mut Vec<Report>) {
        self.now_ns = self.now_ns.max(event.time_ns);
        let ended = event.tracked.flow.state & FLOW_ENDED != 0;
        let is_over = match event.reason {
            reason::OPENED | reason::OWNER => false,
            reason::CLOSED => true,
            reason::REFUSED => ended,
            reason::ALONE => return self.take_alone(event, out),
            reason::SOCKET_GONE => {
                return self.socket_gone(event.tracked.flow.cookie, event.time_ns);
            }
            _ => {
                self.stats.unknown_events += 1;
                return;
            }
        };
        if is_over && is_only_refused(&counted(&event.tracked.flow)) {
            return self.take_refused(event, out);
        }
        let over = is_over.then_some(Ending {
            time_ns: event.time_ns,
            inferred: false,
        });
        self.take(&event.tracked, event.time_ns, Origin::Event, over, out);
    }

    /// Takes in the state of all flows, and ends those that are missing.
    pub fn sweep(
        &mut self,
        sweep: &Sweep,
        states: impl IntoIterator<Item: Borrow<Tracked>>,
        out: &mut Vec<Report>,
    ) {
        self.now_ns = self.now_ns.max(sweep.began_ns);
        for tracked in states {
            let tracked: &Tracked = tracked.borrow();
            let flow = &tracked.flow;
            // Another begins in its place at this moment.
            if flow.started_ns == 0 {
                continue;
            }
            let gone_ns = self
                .gone
                .get(&flow.cookie)
                .copied()
                .filter(|&gone_ns| gone_ns <= sweep.began_ns);
            let over = match gone_ns {
                Some(time_ns) => Some(Ending {
                    time_ns,
                    inferred: false,
                }),
                None if flow.state & FLOW_ENDED != 0 => Some(Ending {
                    time_ns: sweep.began_ns,
                    inferred: false,
                }),
                None => None,
            };
            self.take(tracked, sweep.began_ns, Origin::Sweep, over, out);
        }
        if sweep.complete {
            let first_ns = *self.first_sweep_ns.get_or_insert(sweep.began_ns);
            if sweep.began_ns.saturating_sub(first_ns) >= GIVE_UP_NS {
                self.told.give_up();
            }
            self.end_missing(sweep, out);
            self.gone.retain(|_, gone_ns| *gone_ns > sweep.began_ns);
        }
        self.tick(sweep.began_ns, sweep.room, out);
    }

    /// Tells what has become due, as far as there is room for so many records; of rollups, all
    /// or none. Cheap when nothing has.
    pub fn tick(&mut self, now_ns: u64, room: usize, out: &mut Vec<Report>) {
        self.now_ns = self.now_ns.max(now_ns);
        self.closed.tick(self.now_ns);
        self.alone.tick(self.now_ns);
        let (flows_due, violations_due) = (
            self.rollups.is_due(self.now_ns),
            self.violations.is_due(self.now_ns),
        );
        if room == 0 {
            return;
        }
        // One of them at a time, so that the records find room behind those that wait already.
        if flows_due {
            self.roll_up(ReportKind::Flow, out);
        } else if violations_due {
            self.roll_up(ReportKind::Violation, out);
        } else if self.now_ns.saturating_sub(self.scanned_ns) >= self.scan_interval_ns {
            let is_whole = self.scan(room, out);
            let since_ns = if is_whole {
                0
            } else {
                self.scan_interval_ns - SCAN_NS.0
            };
            self.scanned_ns = self.now_ns.saturating_sub(since_ns);
        }
    }

    /// The socket is gone: what the next sweep says of its flows is final.
    pub fn socket_gone(&mut self, cookie: u64, time_ns: u64) {
        // Without room, its flows end when sweeps no longer show them.
        if self.gone.len() < self.settings.max_flows {
            self.gone.insert(cookie, time_ns);
        }
    }

    /// Tells of all rollups at once: the agent is about to stop, and the kernel
    /// programs go on.
    pub fn flush(&mut self, now_ns: u64, out: &mut Vec<Report>) {
        self.now_ns = self.now_ns.max(now_ns);
        self.roll_up(ReportKind::Flow, out);
        self.roll_up(ReportKind::Violation, out);
    }

    /// Ends every flow: the kernel programs are about to be taken out, and
    /// nobody will see what is sent after that.
    pub fn close_all(&mut self, now_ns: u64, out: &mut Vec<Report>) {
        self.now_ns = self.now_ns.max(now_ns);
        let ids: Vec<_> = self.flows.keys().copied().collect();
        for id in ids {
            self.end(
                &id,
                Ending {
                    time_ns: self.now_ns,
                    inferred: true,
                },
                out,
            );
        }
        self.flush(now_ns, out);
    }

    /// Flows whose numbers have not moved since `before_ns`. Those of them that
    /// are in the kernel's tables for sockets with many peers and for uplinks may be
    /// ended there, to make room: a packet that still comes is a flow of its own.
    pub fn idle(&self, before_ns: u64) -> impl Iterator<Item = FlowId> {
        self.flows
            .iter()
            .filter(move |(_, entry)| entry.moved_ns < before_ns)
            .map(|(id, _)| *id)
    }

    /// The newest state of every open flow.
    pub fn open(&self) -> impl Iterator<Item = &Tracked> {
        self.flows.values().map(|entry| &entry.tracked)
    }

    /// Flows that were rolled up and are not told yet.
    pub fn rolled_up(&self) -> impl Iterator<Item = &Tracked> {
        self.rollups.samples().chain(self.violations.samples())
    }

    /// Bytes and packets that rollups count as sent and no record has, by verdict.
    #[must_use]
    pub fn held(&self) -> [(u64, u64); verdict::N as usize] {
        let mut held = self.rollups.held;
        for (sum, (bytes, packets)) in held.iter_mut().zip(self.violations.held) {
            *sum = (sum.0 + bytes, sum.1 + packets);
        }
        held
    }

    /// Returns the statistics so far.
    #[must_use]
    pub fn stats(&self) -> FlowStats {
        FlowStats {
            open: self.flows.len() as u64,
            merged: self.rollups.n_merged + self.violations.n_merged,
            ..self.stats
        }
    }

    /// Takes in one state of one flow.
    fn take(
        &mut self,
        tracked: &Tracked,
        time_ns: u64,
        origin: Origin,
        over: Option<Ending>,
        out: &mut Vec<Report>,
    ) {
        let flow = &tracked.flow;
        if flow.decision.verdict == verdict::LOCAL && !self.settings.local {
            return;
        }
        let id = FlowId::of(flow);
        if let Some(entry) = self.flows.get_mut(&id) {
            entry.missed = 0;
            if !entry.merge(tracked, time_ns, origin) {
                self.stats.torn += 1;
            }
        } else if let Some(reported) = self.closed.get_mut(&id) {
            let late = minus(&counted(flow), reported);
            if late != Counters::default() {
                *reported = plus(reported, &late);
                self.stats.late += 1;
                let country = self.country_of(tracked);
                self.rollups_of(tracked)
                    .close(tracked, country, &late, Some(late), 0);
            }
            return;
        } else {
            // The end of a flow is always told by an event of its own; if anything else shows
            // it, its record was made before this table began, or comes yet.
            let is_end = origin == Origin::Event && over.is_some();
            let is_history = !is_end && flow.state & FLOW_ENDED != 0;
            let is_embryo = may_become_a_session(flow) && over.is_none();
            if !has_happened(&counted(flow)) || is_history || is_embryo {
                return;
            }
            if self.flows.len() >= self.settings.max_flows {
                return self.take_untracked(tracked, time_ns, origin, over, out);
            }
            let entry = self.admit(tracked, time_ns);
            self.stats.open_rolled += u64::from(!entry.single);
            self.flows.insert(id, entry);
        }
        match over {
            Some(ending) => self.end(&id, ending, out),
            None => self.tell(&id, out),
        }
    }

    /// Takes in a flow of which this is all that there will ever be. It is not open for a
    /// moment, and nothing can come late.
    fn take_alone(&mut self, event: &Event, out: &mut Vec<Report>) {
        let mut tracked = event.tracked;
        let mut id = FlowId::of(&tracked.flow);
        // Two processors may have sent at the same moment, and each packet counts.
        while self.alone.get_mut(&id).is_some() {
            id.started_ns += 2;
        }
        self.alone.insert(id, Counters::default());
        tracked.flow.started_ns = id.started_ns;
        let ending = Ending {
            time_ns: event.time_ns,
            inferred: false,
        };
        self.tell_whole(&tracked, event.time_ns, ending, out);
    }

    /// Takes in a call that was refused: told by itself, or counted with those like it. Nothing
    /// can come late, so it takes no room from flows that are over.
    fn take_refused(&mut self, event: &Event, out: &mut Vec<Report>) {
        let tracked = &event.tracked;
        let id = FlowId::of(&tracked.flow);
        if self.closed.get_mut(&id).is_some() || self.alone.get_mut(&id).is_some() {
            return;
        }
        self.alone.insert(id, Counters::default());
        let ending = Ending {
            time_ns: event.time_ns,
            inferred: false,
        };
        let is_repeated = self.refused.is_repeated(tracked, self.now_ns);
        let mut entry = self.admit_as(tracked, event.time_ns, is_repeated.then_some(false));
        if entry.single {
            self.refused.remember(tracked, self.now_ns);
        }
        self.stats.closed += 1;
        self.tell_end(&mut entry, ending, out);
    }

    /// Counts refused calls that the kernel has not told one by one, as of this owner.
    pub fn count_refused(&mut self, mut tracked: Tracked, now_ns: u64, out: &mut Vec<Report>) {
        self.now_ns = self.now_ns.max(now_ns);
        tracked.flow.started_ns = now_ns | 1;
        let ending = Ending {
            time_ns: now_ns,
            inferred: false,
        };
        let mut entry = self.admit_as(&tracked, now_ns, Some(false));
        self.stats.closed += 1;
        self.tell_end(&mut entry, ending, out);
    }

    /// Tells of a flow that is over and was never told of.
    fn tell_whole(
        &mut self,
        tracked: &Tracked,
        time_ns: u64,
        ending: Ending,
        out: &mut Vec<Report>,
    ) {
        let mut entry = self.admit(tracked, time_ns);
        self.stats.closed += 1;
        self.tell_end(&mut entry, ending, out);
    }

    /// The table is full. Violations are told at once nevertheless; the numbers
    /// come when the flow is over.
    fn take_untracked(
        &mut self,
        tracked: &Tracked,
        time_ns: u64,
        origin: Origin,
        over: Option<Ending>,
        out: &mut Vec<Report>,
    ) {
        match over {
            Some(ending) => {
                let id = FlowId::of(&tracked.flow);
                self.closed.insert(id, counted(&tracked.flow));
                self.tell_whole(tracked, time_ns, ending, out);
            }
            // Events announce a flow once, sweeps show it again and again.
            None if origin == Origin::Event => {
                self.stats.untracked += 1;
                let uid = tracked.owner.uid;
                if is_violation(tracked) && self.violations_pace.take(uid, self.now_ns) {
                    let mut entry = Entry::new(tracked, None, time_ns, true);
                    // All of it is new in the record of its end.
                    entry.told_counted = counted(&tracked.flow);
                    out.push(entry.report(ReportKind::Violation, Stage::Opened, self.now_ns, None));
                }
            }
            None => {}
        }
    }

    /// Makes an entry, and decides whether the flow is reported by itself.
    fn admit(&mut self, tracked: &Tracked, time_ns: u64) -> Entry {
        self.admit_as(tracked, time_ns, None)
    }

    /// As [`admit`](Self::admit), where `single` may have been decided.
    fn admit_as(&mut self, tracked: &Tracked, time_ns: u64, single: Option<bool>) -> Entry {
        self.stats.opened += 1;
        match tracked.owner.quality {
            quality::DIRECT => self.stats.owner_direct += 1,
            quality::INFERRED => self.stats.owner_inferred += 1,
            _ => self.stats.owner_none += 1,
        }
        // Each use of an exception is somebody's business, as each violation is.
        let is_exception = tracked.flow.decision.verdict == verdict::EXCEPTION;
        let single = if let Some(single) = single {
            single
        } else if is_violation(tracked) || is_exception {
            self.violations_pace.take(tracked.owner.uid, self.now_ns)
        } else {
            match self.settings.mode {
                FlowMode::Each => true,
                FlowMode::Rollup => false,
                FlowMode::Auto => self.flows_pace.take(self.now_ns),
            }
        };
        let country = if single {
            None
        } else {
            self.country_of(tracked)
        };
        let mut entry = Entry::new(tracked, country, time_ns, single);
        (entry.told_counted, entry.told_more) = self.told.take(&FlowId::of(&tracked.flow));
        entry
    }

    /// Begins, after [`restore`](Self::restore) was told all that was kept: flows of an agent
    /// before go on, or do not.
    pub fn begin(&mut self, goes_on: bool, now_ns: u64) {
        self.told.begin(goes_on, now_ns);
    }

    /// Changes since the last call of rollups and of what was told of open flows, for an agent
    /// after this one.
    pub fn changes(&mut self) -> impl Iterator<Item = Change> {
        let named = |kind: &'static str| move |(name, value)| (format!("{kind}{name}"), value);
        let rollups = self.rollups.changes().map(named(kept::FLOWS));
        let violations = self.violations.changes().map(named(kept::VIOLATIONS));
        let told = self.told.changes().map(named(kept::TOLD));
        rollups.chain(violations).chain(told)
    }

    /// Goes on with what an agent before this one has kept. False if it cannot be read.
    pub fn restore(&mut self, name: &str, value: &str) -> bool {
        if let Some(name) = name.strip_prefix(kept::TOLD) {
            return self.told.restore(name, value);
        }
        let (rollups, name) = if let Some(name) = name.strip_prefix(kept::FLOWS) {
            (&mut self.rollups, name)
        } else if let Some(name) = name.strip_prefix(kept::VIOLATIONS) {
            (&mut self.violations, name)
        } else {
            return false;
        };
        let kept = kept::parse(name, value);
        kept.is_some_and(|kept| {
            rollups.restore(&kept);
            true
        })
    }

    /// A flow that an agent before this one has taken for over, with these numbers. The kernel
    /// may show it still.
    pub fn remember_over(&mut self, id: FlowId, counted: Counters) {
        self.closed.insert(id, counted);
    }

    /// Reports an open flow if it is time to.
    fn tell(&mut self, id: &FlowId, out: &mut Vec<Report>) {
        let Some(entry) = self.flows.get_mut(id) else {
            return;
        };
        let now_ns = self.now_ns;
        if !entry.single {
            return;
        }
        if !entry.told {
            let kind = kind_of(&entry.tracked);
            out.push(entry.report(kind, Stage::Opened, now_ns, None));
            return self.told.note(*id, entry.told_counted);
        }
        let is_due = now_ns.saturating_sub(entry.told_ns) >= self.settings.update_interval_ns;
        let moved = entry.is_news();
        // An owner is told as soon as it is known.
        let is_known_now =
            entry.told_quality == quality::NONE && entry.tracked.owner.quality != quality::NONE;
        if is_known_now || is_due && moved {
            out.push(entry.report(ReportKind::Flow, Stage::Update, now_ns, None));
            self.told.note(*id, entry.told_counted);
        }
    }

    /// Tells what is due of all open flows, and takes out of the rollups what
    /// has been open for long. False if there was no room for all of it.
    fn scan(&mut self, room: usize, out: &mut Vec<Report>) -> bool {
        let (now_ns, interval_ns) = (self.now_ns, self.settings.update_interval_ns);
        let mut due = Vec::new();
        for (id, entry) in &mut self.flows {
            if !entry.single && now_ns.saturating_sub(entry.first_seen_ns) >= interval_ns {
                let may_be_single = match (kind_of(&entry.tracked), self.settings.mode) {
                    (ReportKind::Violation, _) => {
                        let uid = entry.tracked.owner.uid;
                        self.violations_pace.take(uid, now_ns)
                    }
                    (ReportKind::Flow, FlowMode::Auto) => self.flows_pace.take(now_ns),
                    _ => false,
                };
                if may_be_single {
                    (entry.single, entry.told) = (true, false);
                    self.stats.open_rolled -= 1;
                }
            }
            let is_due = !entry.told || now_ns.saturating_sub(entry.told_ns) >= interval_ns;
            if entry.single && is_due && entry.is_news() {
                if due.len() == room {
                    return self.tell_all(&due, out, false);
                }
                due.push(*id);
            }
        }
        self.tell_all(&due, out, true)
    }

    fn tell_all(&mut self, ids: &[FlowId], out: &mut Vec<Report>, is_whole: bool) -> bool {
        for id in ids {
            self.tell(id, out);
        }
        is_whole
    }

    /// Ends the flows that a complete sweep should have shown and did not.
    fn end_missing(&mut self, sweep: &Sweep, out: &mut Vec<Report>) {
        let began_ns = sweep.began_ns;
        let mut missing = Vec::new();
        for (id, entry) in &mut self.flows {
            if entry.seen_ns >= began_ns {
                continue;
            }
            let ending = Ending {
                time_ns: entry.seen_ns,
                inferred: true,
            };
            let is_gone = self
                .gone
                .get(&id.cookie)
                .is_some_and(|gone_ns| *gone_ns <= began_ns);
            if !is_gone {
                entry.missed = entry.missed.saturating_add(1);
            }
            let unseen_ns = began_ns.saturating_sub(entry.seen_ns);
            let is_over = is_gone
                || entry.missed >= self.settings.missed_sweeps
                    && unseen_ns >= self.settings.missed_ns;
            if is_over && missing.len() < sweep.room {
                missing.push((*id, ending));
            }
        }
        for (id, ending) in missing {
            self.end(&id, ending, out);
        }
    }

    fn end(&mut self, id: &FlowId, ending: Ending, out: &mut Vec<Report>) {
        let Slot::Occupied(slot) = self.flows.entry(*id) else {
            return;
        };
        let mut entry = slot.remove();
        self.told.forget(id);
        self.stats.open_rolled -= u64::from(!entry.single);
        self.closed.insert(*id, counted(&entry.tracked.flow));
        self.stats.closed += 1;
        self.stats.inferred_ends += u64::from(ending.inferred);
        self.tell_end(&mut entry, ending, out);
    }

    /// The final record of a flow, or its share of a rollup.
    fn tell_end(&mut self, entry: &mut Entry, ending: Ending, out: &mut Vec<Report>) {
        let now_ns = self.now_ns;
        let counted = counted(&entry.tracked.flow);
        if !entry.single {
            let new = entry.take_new();
            let rollups = self.rollups_of(&entry.tracked);
            return rollups.close(&entry.tracked, entry.country, &counted, new, 1);
        }
        if is_only_refused(&counted) {
            if !entry.told || counted.refused > entry.told_counted.refused {
                let kind = ReportKind::Violation;
                out.push(entry.report(kind, Stage::Closed, now_ns, Some(ending)));
            }
            return;
        }
        if !entry.told && is_violation(&entry.tracked) {
            out.push(entry.report(ReportKind::Violation, Stage::Opened, now_ns, None));
        }
        out.push(entry.report(ReportKind::Flow, Stage::Closed, now_ns, Some(ending)));
    }

    fn roll_up(&mut self, kind: ReportKind, out: &mut Vec<Report>) {
        let rollups = match kind {
            ReportKind::Flow => &mut self.rollups,
            ReportKind::Violation => &mut self.violations,
        };
        for (id, entry) in &mut self.flows {
            let counted = counted(&entry.tracked.flow);
            let moved = !entry.told || counted != entry.told_counted;
            if !entry.single && moved && kind_of(&entry.tracked) == kind {
                let new = entry.take_new();
                rollups.tell_open(&entry.tracked, entry.country, &counted, new);
                self.told.note(*id, counted);
                entry.told = true;
            }
        }
        out.extend(rollups.take(self.now_ns).into_iter().map(Report::Rollup));
    }

    fn country_of(&self, tracked: &Tracked) -> Option<Country> {
        (self.country)(ip_address(&tracked.flow.peer.address))
    }

    fn rollups_of(&mut self, tracked: &Tracked) -> &mut Rollups {
        match kind_of(tracked) {
            ReportKind::Flow => &mut self.rollups,
            ReportKind::Violation => &mut self.violations,
        }
    }
}

/// True for answers to a connection request that tell nothing yet: the session will. If
/// one was blocked there will be none, and that is told at once.
#[must_use]
pub fn may_become_a_session(flow: &Flow) -> bool {
    flow.state & FLOW_EMBRYONIC != 0 && flow.counters.blocked_packets == flow.base.blocked_packets
}
