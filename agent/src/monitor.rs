//! The daemon's loop: drain, sweep, beat, reload, stop.
//!
//! It moves data from stage to stage (kernel, flow, names, report) and decides
//! only when. Nothing here runs while a packet waits.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashSet},
    rc::Rc,
    sync::Arc,
};

use trefoil_ebpf::abi::Tracked;
use trefoil_evidence::statement::TAKEN_OVER;

use crate::{
    clock::{self, BootClock},
    flow::{FlowSettings, FlowStats, FlowTable, Report},
    geo::Geo,
    kernel::{
        Damage, Enforcement, Events, HeldPage, HookStatus, Kernel, KernelError, LoadSettings,
        OwnProcess, Reader, RefusalTable, Remains, WayOut, give_back_free_memory,
        is_in_first_pid_namespace,
    },
    limits::Said,
    losses::{Losses, Span},
    names::Names,
    policy::{Compiled, Image},
    refusals::RefusalsTold,
    report::{Coverage, FlowFacts, Heartbeat, Origin, Progress, Record, Reporter, Stall},
    settings,
};

mod cuts;
mod cutter;
mod ended_flow;
mod follower;
mod in_force;
mod intake;
mod keeping;
mod legacy;
mod limits;
mod logins;
mod many_peers;
mod pulse;
mod refusals;
mod rest;
mod room;
mod sweep;
mod tampering;
mod unjudged;
mod uplinks;

use cuts::Cuts;
pub use cutter::Cutter;
use follower::{Follower, UplinkNews};
use in_force::PolicyInForce;
use keeping::Keeping;
use limits::Limits;
use many_peers::ManyPeers;
pub use rest::Rest;
use room::Room;
use sweep::Sweeps;
pub use tampering::Standing;
use tampering::Tampering;
use unjudged::UnjudgedSockets;
use uplinks::Uplinks;

/// Events that are taken before anything else gets its turn.
const EVENTS_A_TURN: usize = 4_096;

/// Events that are kept at once: what they amount to fits into the room that the spool has for
/// certain.
const EVENTS_A_BATCH: usize = 256;

/// How long the last records may take to be handed over.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);
/// The same where what is not handed over is lost; shorter than the time that the unit has to stop.
const LAST_FAREWELL: std::time::Duration = std::time::Duration::from_secs(25);

/// A policy that was compiled and is about to be put in force.
pub struct Compilation {
    /// The compiled form.
    pub compiled: Compiled,
    /// The same as it lies in the kernel's memory.
    pub image: Image,
    /// Where it is from, for people.
    pub source: String,
}

impl Compilation {
    /// Makes it this generation's: what decisions under it will say, and which slot
    /// of the tables it takes.
    pub fn set_generation(&mut self, generation: u32) {
        self.compiled.header.generation = generation;
        self.image.policy.generation = generation;
    }
}

/// Everything that the running agent holds.
pub struct Monitor {
    kernel: Kernel,
    reader: Reader,
    events: Events,
    policy: PolicyInForce,
    cuts: Cuts,
    table: FlowTable,
    names: Names,
    reporter: Reporter,
    heartbeat_s: u64,
    /// Country data, shared with the flow table.
    places: Rc<RefCell<Arc<Geo>>>,
    losses: Losses,
    refusals: (RefusalTable, RefusalsTold),
    limits: Limits,
    uplinks: Uplinks,
    tampering: Tampering,
    many_peers: ManyPeers,
    sweeps: Sweeps,
    /// The rest of tables that had another size, to be told.
    remains: Option<Remains>,
    room: Room,
    /// Containers that are in control groups of version 1 alone, and told.
    legacy_containers: BTreeSet<String>,
    /// Process ids are those of the host.
    sees_processes: bool,
    reports: Vec<Report>,
    unreadable_events: u64,
    stalled: Option<String>,
    aside: Option<String>,
    has_no_reader: bool,
    /// Frames are judged that go to a driver past traffic control.
    judges_direct: bool,
    watches_uplinks: bool,
    /// Bytes of the file that says what was acknowledged, when it was read.
    acknowledged_bytes: u64,
    unjudged: UnjudgedSockets,
    keeping: Keeping,
    held: HeldPage,
    /// Nobody will find what is in the kernel now.
    is_at_end: bool,
}

/// Parts of a monitor besides the kernel side.
pub struct Parts<'a> {
    /// Settings that the kernel side was loaded with.
    pub load: &'a LoadSettings,
    /// Limits of the flow table: how much it may hold and how often it may speak.
    pub flow_settings: FlowSettings,
    /// The interfaces to watch.
    pub uplinks: &'a settings::Uplinks,
    /// Gives names to ids.
    pub names: Names,
    /// Takes records.
    pub reporter: Reporter,
    /// Cuts connections.
    pub cutter: Cutter,
    /// Seconds between two heartbeats, for their records.
    pub heartbeat_s: u64,
    /// Losses that an agent before has reported.
    pub reported_losses: BTreeMap<String, u64>,
    /// Messages of an agent before about budgets and exceptions.
    pub said: Said,
    /// When an agent before was last seen, microseconds since 1970.
    pub last_seen_us: Option<u64>,
}

impl Monitor {
    /// Attaches the programs and puts the policy in force. If that fails, what
    /// was in the kernel before is there again, and nothing else.
    pub fn start(
        mut kernel: Kernel,
        parts: Parts<'_>,
        geo: &Arc<Geo>,
        policy: &Compilation,
        enforcement: Enforcement,
    ) -> Result<Self, KernelError> {
        // Before the right to do so is given up.
        kernel.load_judge()?;
        let clock = BootClock::read();
        let mut uplinks = (None, Vec::new());
        let attach_uplinks = |kernel: &Kernel| {
            uplinks = Uplinks::prepare(kernel, parts.uplinks)?;
            Ok(())
        };
        let budgets = kernel.come_into_force(
            parts.load,
            &policy.image,
            &clock,
            enforcement,
            attach_uplinks,
        )?;
        let ways_out = kernel.ways_out(parts.load)?;
        let (follower, uplink_news) = uplinks;
        let mut reader = kernel.reader()?;
        // An agent before may have been killed while it cut something.
        reader.set_cuts(&HashSet::new())?;
        let events = reader.events()?;
        let (process, killed) = OwnProcess::watch(kernel.pins())?;
        // Before it is looked after.
        let held = HeldPage::open(kernel.pins())?;
        let tampering = Tampering::new(kernel.guard(&parts.load.cgroup)?, process);
        let places = Rc::new(RefCell::new(Arc::clone(geo)));
        let of_table = Rc::clone(&places);
        let country = move |address| of_table.borrow().country(address);
        let mut monitor = Self {
            table: FlowTable::new(parts.flow_settings, country),
            losses: Losses::since(parts.reported_losses),
            limits: Limits::new(parts.said),
            uplinks: Uplinks::follow(&kernel, follower, &uplink_news)?,
            tampering,
            judges_direct: kernel.judges_direct(parts.load),
            watches_uplinks: parts.load.watches_uplinks,
            acknowledged_bytes: 0,
            unjudged: UnjudgedSockets::new(&parts.load.cgroup),
            remains: Some(kernel.remains()?),
            room: Room::new(kernel.pins())?,
            held,
            refusals: (RefusalTable::open(kernel.pins())?, RefusalsTold::default()),
            kernel,
            reader,
            events,
            policy: PolicyInForce::default(),
            cuts: Cuts::new(parts.cutter),
            names: parts.names,
            reporter: parts.reporter,
            heartbeat_s: parts.heartbeat_s,
            places,
            many_peers: ManyPeers::default(),
            sweeps: Sweeps::default(),
            legacy_containers: BTreeSet::new(),
            sees_processes: is_in_first_pid_namespace(),
            reports: Vec::new(),
            unreadable_events: 0,
            stalled: None,
            aside: None,
            has_no_reader: false,
            keeping: Keeping::default(),
            is_at_end: false,
        };
        // Without a spool, nobody knows what of it was told.
        let is_unknown = monitor.kernel.took_over() && *monitor.reporter.origin() == Origin::First;
        monitor.restore_refusals(is_unknown)?;
        monitor.restore();
        monitor.tell_of_spool();
        monitor.tell_of_others()?;
        monitor.in_force(policy, enforcement);
        monitor.limit(policy, budgets, clock)?;
        if let Some(killed) = killed {
            monitor.report_signal(&killed)?;
        }
        monitor.report_coverage(parts.last_seen_us)?;
        monitor.report_ways_out(&ways_out)?;
        monitor.add_older_logins()?;
        monitor.report_uplinks(parts.uplinks, uplink_news)?;
        Ok(monitor)
    }

    /// Tells of ways out that no hook judges and that were open before there was one.
    fn report_ways_out(&mut self, all: &[WayOut]) -> Result<(), KernelError> {
        for open in all {
            if !self.unjudged.is_news(open.way, &open.owner) {
                continue;
            }
            let tracked = Tracked {
                owner: open.owner,
                ..Tracked::default()
            };
            let facts = self.facts(&tracked)?;
            if !self.unjudged.is_watched(open.way, &facts) {
                continue;
            }
            let clock = BootClock::read();
            let record = Record::way_out(&open.owner, open.way, open.is_covered, &facts, &clock);
            self.reporter.emit(record);
        }
        Ok(())
    }

    /// From here on, what is in the kernel stays there when this ends. Without, a start
    /// that fails takes out what it has put in.
    pub fn keep(&mut self) {
        self.kernel.keep();
    }

    /// Opens anew what records are written to.
    pub fn reopen_sinks(&mut self) {
        self.reporter.reopen();
    }

    /// Puts a record at the end of the queue.
    pub fn emit(&mut self, record: Record) {
        self.reporter.emit(record);
    }

    /// Says that the agent lives, and what the sums are.
    pub fn beat(&mut self) -> Result<(), KernelError> {
        let totals = self.reader.totals()?;
        let beat = Heartbeat {
            interval_s: self.heartbeat_s,
            totals: &totals,
            flows: self.table.stats(),
            losses: self.losses.sum(),
            pending: self.reporter.pending() as u64,
        };
        let record = Record::heartbeat(&beat, clock::unix_us());
        self.reporter.emit(record);
        let open = self.kernel.unjudged_sockets()?;
        self.report_ways_out(&open)?;
        self.report_legacy_containers();
        self.report_books();
        self.hand_over();
        give_back_free_memory();
        Ok(())
    }

    /// Reports what was counted till the programs were taken out. By `trefoil detach`, if
    /// `is_asked`: then that is said as well.
    pub fn lost_attachment(&mut self, is_asked: bool) -> Result<(), KernelError> {
        // The tables are there as long as this agent holds them.
        self.is_at_end = true;
        self.sweep()?;
        // With the pins, the kernel keeps open flows for the next agent.
        if self.kernel.is_attached() {
            self.table.flush(clock::since_boot_ns(), &mut self.reports);
        } else {
            self.table
                .close_all(clock::since_boot_ns(), &mut self.reports);
        }
        self.report()?;
        if is_asked {
            let reason = Some("somebody ran `trefoil detach`");
            let record =
                Record::coverage("this host", Coverage::Uncovered, reason, clock::unix_us());
            self.reporter.emit(record);
        }
        self.hand_over_all(!self.kernel.is_attached());
        Ok(())
    }

    /// Hooks that this kernel does not have, or not all of, and what is not covered then.
    pub fn uncovered(&self) -> Vec<(String, String)> {
        let of = |hook: &HookStatus| Some((hook.name.to_owned(), hook.uncovered()?.to_owned()));
        self.kernel.hooks().iter().filter_map(of).collect()
    }

    /// Hooks that this kernel does not have, and without which a promise does not hold.
    pub fn promised(&self) -> Vec<String> {
        let hooks = self.kernel.hooks().iter();
        let broken = hooks.filter(|hook| hook.breaks_promise(self.watches_uplinks));
        broken.map(|hook| hook.name.to_owned()).collect()
    }

    /// Losses that were reported so far.
    pub fn reported_losses(&self) -> &BTreeMap<String, u64> {
        self.losses.reported()
    }

    /// When they were seen.
    pub fn loss_spans(&self) -> &BTreeMap<String, Span> {
        self.losses.spans()
    }

    /// Returns the flow table's statistics so far.
    pub fn flow_stats(&self) -> FlowStats {
        self.table.stats()
    }

    /// Records that wait to be handed over.
    pub fn pending(&self) -> usize {
        self.reporter.pending()
    }

    /// True when whoever read the records on standard output is gone.
    pub fn has_no_reader(&self) -> bool {
        self.has_no_reader
    }

    /// Why they wait, if they do.
    pub fn stalled(&self) -> Option<String> {
        self.stalled.clone()
    }

    /// The sink that misses records, and why.
    pub fn aside(&self) -> Option<String> {
        self.aside.clone()
    }

    /// Reports what is known by now, and closes the books; the kernel part goes on.
    pub fn leave(mut self) -> Result<(), KernelError> {
        // The last sweep is due whatever those before it took.
        self.sweeps = Sweeps::default();
        self.sweep()?;
        self.table.flush(clock::since_boot_ns(), &mut self.reports);
        self.report()?;
        self.close_books(
            "it was stopped; the programs go on counting and judging, and the next \
                          agent tells what leaves from here on",
        )?;
        self.hand_over_all(false);
        self.release()?;
        self.persist();
        Ok(())
    }

    /// Says that this agent tells of nothing more, and what the sums are until then.
    fn close_books(&mut self, reason: &str) -> Result<(), KernelError> {
        self.beat()?;
        let time_us = clock::unix_us();
        let record = Record::coverage("this agent", Coverage::Uncovered, Some(reason), time_us);
        self.reporter.emit(record);
        Ok(())
    }

    /// Ends every flow and takes everything out of the kernel.
    pub fn detach(mut self) -> Result<(), KernelError> {
        self.kernel.stop_counting();
        self.is_at_end = true;
        self.sweep()?;
        self.table
            .close_all(clock::since_boot_ns(), &mut self.reports);
        self.report()?;
        let reason = Some("it was stopped, and taken out of the kernel");
        let record = Record::coverage("this host", Coverage::Uncovered, reason, clock::unix_us());
        self.reporter.emit(record);
        self.beat()?;
        self.hand_over_all(true);
        self.cuts.remove_filters(self.kernel.pins())?;
        crate::kernel::detach(self.kernel.pins())?;
        Ok(())
    }

    fn hand_over(&mut self) {
        self.persist();
        let progress = self.reporter.flush(clock::since_boot_ns());
        self.hold();
        self.note(progress);
    }

    /// Hands over until nothing is left, or the sinks take no more. `is_last` if the kernel keeps nothing
    /// for a next agent.
    fn hand_over_all(&mut self, is_last: bool) {
        let is_at_stake = !self.persist() && is_last;
        let patience = match is_at_stake {
            true => LAST_FAREWELL,
            false => FAREWELL,
        };
        let progress = self.reporter.finish(patience, is_last);
        match progress.pending {
            0 => {}
            n if is_at_stake => tracing::error!(
                "{n} records are lost: no sink takes them, and the spool has no room for them"
            ),
            n => tracing::warn!("{n} records wait for the next agent to hand them over"),
        }
        self.hold();
        self.note(progress);
    }

    fn note(&mut self, progress: Progress) {
        self.has_no_reader |= progress
            .stalled
            .as_ref()
            .is_some_and(|stall| stall.error.kind() == std::io::ErrorKind::BrokenPipe);
        let told = |stall: Stall| format!("{}: {}", stall.sink, stall.error);
        self.stalled = progress.stalled.map(told);
        self.aside = progress.aside.map(told);
    }

    /// Gives names to what the flow table has to say, and hands it on.
    fn report(&mut self) -> Result<(), KernelError> {
        if self.reports.is_empty() {
            return Ok(());
        }
        let clock = BootClock::read();
        for report in std::mem::take(&mut self.reports) {
            let record = match &report {
                Report::Flow(flow) => Record::flow(flow, &self.facts(&flow.tracked)?, &clock),
                Report::Rollup(rollup) => {
                    Record::rollup(rollup, &self.facts(&rollup.sample)?, &clock)
                }
            };
            self.reporter.emit(record);
        }
        Ok(())
    }

    fn facts(&mut self, tracked: &Tracked) -> Result<FlowFacts, KernelError> {
        self.names.facts(&self.reader, tracked)
    }

    fn report_coverage(&mut self, last_seen_us: Option<u64>) -> Result<(), KernelError> {
        let time_us = clock::unix_us();
        for hook in self.kernel.hooks().to_vec() {
            let Some(uncovered) = hook.uncovered() else {
                continue;
            };
            let reason = match &hook.why {
                Some(why) => format!("not covered: {uncovered} ({why})"),
                None => format!("not covered: {uncovered}"),
            };
            let subject = format!("hook {}", hook.name);
            self.reporter.emit(Record::coverage(
                &subject,
                Coverage::Partly,
                Some(&reason),
                time_us,
            ));
        }
        for (hook, by) in self.kernel.found_detached().to_vec() {
            let damage = Damage {
                subject: format!("hook {hook}"),
                reason: "it was not attached when this agent started, and is again; what passed \
                         meanwhile this hook has not seen"
                    .to_owned(),
                is_mended: true,
                by,
            };
            let record = self.tamper(&damage, time_us)?;
            let since_us = last_seen_us.unwrap_or(time_us);
            self.reporter.emit(record.between(since_us, time_us));
        }
        let is_gapless = self.kernel.found_detached().is_empty();
        let reason = (self.kernel.took_over() && is_gapless).then(|| {
            let since = last_seen_us.map_or("an unknown time".to_owned(), clock::rfc3339);
            format!(
                "{TAKEN_OVER}; the programs went on counting and judging, but nobody reported \
                 since {since}"
            )
        });
        self.reporter.emit(Record::coverage(
            "this host",
            Coverage::Covered,
            reason.as_deref(),
            time_us,
        ));
        self.report_legacy_containers();
        self.hand_over();
        Ok(())
    }
}
