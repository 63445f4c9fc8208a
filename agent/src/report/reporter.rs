//! From records to sinks: numbers, order, back pressure.
//!
//! The rules of this stage:
//!
//! - A record gets its number when it is emitted, is handed over once it is kept in the spool,
//!   and leaves that when every sink has it ("report, then remember", see [`super::spool`]).
//!   So every sink sees every number, in order, whatever becomes of the agent.
//! - What a record was made of is kept with it: [`Reporter::set_fact`] and
//!   [`Reporter::emit`] take effect together, with the next [`Reporter::keep`].
//! - The first sink is the report of record. While it takes nothing, records
//!   wait, [`Reporter::is_backed_up`] turns true, and the caller leaves events in
//!   the kernel, where numbers are cumulative and nothing gets lost. The same if the spool
//!   cannot be written.
//! - Any other sink that fails for longer than
//!   [`ReporterSettings::patience_ns`] is left aside, so that a full disk does
//!   not silence the journal. A `loss` record says how many it misses: at once, each
//!   minute, and when it takes records again; by the next agent, if this one ends before.
//! - Records that find the spool full in spite of that are dropped, and `loss` records say
//!   how many they were, and what they told of last, by verdict.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{Field, Kind, Origin, Record, Sealed, Sink, SpoolError, spool::Spool};
use crate::{clock, settings::DEFAULT_PIN_DIR};

/// What belongs into every record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Boot, 32 hex digits.
    pub boot_id: Arc<str>,
    /// Name of the host.
    pub host: Arc<str>,
    /// Pin directory, if it is not the usual one: two agents on one host have numbers of
    /// their own.
    pub instance: Option<Arc<str>>,
    /// Contents of /etc/machine-id, if there is one.
    pub machine_id: Option<Arc<str>>,
    /// `report` or `enforce`.
    pub mode: Option<Arc<str>>,
    /// The policy in force.
    pub policy: Option<Arc<str>>,
    /// Build of the country data.
    pub geo: Option<Arc<str>>,
}

impl Context {
    /// The context of the agent with this pin directory.
    #[must_use]
    pub fn of_instance(self, pin_dir: &Path) -> Self {
        let is_usual = pin_dir == Path::new(DEFAULT_PIN_DIR);
        let instance = (!is_usual).then(|| pin_dir.to_string_lossy().into());
        Self { instance, ..self }
    }

    /// The context of this host, with no policy and no country data.
    ///
    /// # Errors
    ///
    /// When /proc is not there.
    pub fn of_this_host() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let machine_id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let machine_id = machine_id.trim();
        let is_id = machine_id.len() == 32 && machine_id.bytes().all(|it| it.is_ascii_hexdigit());
        Ok(Self {
            machine_id: is_id.then(|| machine_id.into()),
            boot_id: boot_id.trim().replace('-', "").into(),
            host: host.trim().into(),
            ..Self::default()
        })
    }
}

/// Where the reporter keeps what waits, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReporterSettings {
    /// Names the files of the spool, without `.0` and `.1`. Their directory must be on a file
    /// system that is empty after a boot and not after a restart of the agent: with systemd,
    /// `RuntimeDirectoryPreserve=yes`.
    pub spool: PathBuf,
    /// Most records that wait. Backed up from half of it on; the rest is for what comes from
    /// memory and not from the kernel.
    pub max_pending: usize,
    /// Most bytes of them in the spool, likewise.
    pub max_pending_bytes: usize,
    /// How long a sink, other than the first, may hold up the others.
    pub patience_ns: u64,
}

impl ReporterSettings {
    /// Defaults, with this spool.
    #[must_use]
    pub fn new(spool: impl Into<PathBuf>) -> Self {
        Self {
            spool: spool.into(),
            max_pending: 16_384,
            max_pending_bytes: 32 << 20,
            patience_ns: 10_000_000_000,
        }
    }
}

/// Why records wait.
#[derive(Debug)]
pub struct Stall {
    /// The sink that does not take them, or `spool`.
    pub sink: &'static str,
    /// What it says.
    pub error: io::Error,
}

/// What a call of [`Reporter::flush`] achieved.
#[derive(Debug)]
pub struct Progress {
    /// Records that every sink has now.
    pub handed_over: usize,
    /// Records that still wait.
    pub pending: usize,
    /// Set when there is no use in trying again at once.
    pub stalled: Option<Stall>,
    /// Set while a sink is left aside, and misses records.
    pub aside: Option<Stall>,
}

/// Gives records their numbers and hands them to the sinks.
pub struct Reporter {
    settings: ReporterSettings,
    context: Context,
    sinks: Vec<Attached>,
    spool: Spool,
    origin: Origin,
    /// Records that not every sink has, in the order of numbers.
    pending: VecDeque<Sealed>,
    pending_bytes: usize,
    /// How many of them are in the spool.
    n_kept: usize,
    /// Number of the next record.
    next: u64,
    /// Sinks that have the first of `pending`, in their order.
    done: Vec<bool>,
    dropped: Dropped,
    /// Why the spool could not be written the last time.
    unkept: Option<io::Error>,
}

struct Attached {
    sink: Box<dyn Sink>,
    failing_since_ns: Option<u64>,
    /// Why it is left aside.
    aside: Option<io::Error>,
    /// Records that it has missed while it was aside.
    missed: u64,
    /// Of them, those that somebody was told of.
    missed_told: u64,
    told_ns: Option<u64>,
}

/// Time between two records about a sink that is left aside.
const TELL_ASIDE_NS: u64 = 60_000_000_000;

/// Names of facts.
mod fact {
    /// And the name of a sink: how many records that it missed somebody was told of.
    pub(super) const MISSED: &str = "missed.";
    /// Records that found no room so far.
    pub(super) const DROPPED: &str = "dropped";
    /// And a verdict: what they told of last, and nobody was told of.
    pub(super) const DROPPED_OF: &str = "dropped.";
}

/// Records that found no room.
#[derive(Default)]
struct Dropped {
    total: u64,
    /// By verdict; without one, those that were not the last about something.
    untold: BTreeMap<String, Untold>,
}

/// Records and traffic that nobody was told of.
#[derive(Clone, Copy, Default)]
struct Untold {
    records: u64,
    bytes_out: u64,
    packets_out: u64,
}

impl Untold {
    fn to_fact(self) -> String {
        let Self {
            records,
            bytes_out,
            packets_out,
        } = self;
        format!("{records} {bytes_out} {packets_out}")
    }

    fn of_fact(fact: &str) -> Self {
        let mut numbers = fact.split(' ').map(|it| it.parse().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        Self {
            records: number(),
            bytes_out: number(),
            packets_out: number(),
        }
    }
}

impl Reporter {
    /// Takes over from the agent before its numbers, the records that it did not hand over, and
    /// its facts. The first sink is the report of record.
    ///
    /// # Errors
    ///
    /// When the spool cannot be used.
    pub fn open(
        settings: ReporterSettings,
        context: Context,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Result<Self, SpoolError> {
        let (spool, origin, left) = Spool::open(&settings.spool, &context.boot_id)?;
        let number = |name: &str| spool.fact(name).and_then(|it| it.parse().ok()).unwrap_or(0);
        let attach = |sink: Box<dyn Sink>| Attached {
            missed: left.missed.get(sink.name()).copied().unwrap_or(0),
            missed_told: number(&format!("{}{}", fact::MISSED, sink.name())),
            ..Attached::new(sink)
        };
        let sinks: Vec<_> = sinks.into_iter().map(attach).collect();
        let has_it = |it: &Attached| left.done.iter().any(|name| name == it.sink.name());
        let untold = spool.facts(fact::DROPPED_OF);
        let dropped = Dropped {
            total: number(fact::DROPPED),
            untold: untold
                .map(|(verdict, fact)| (verdict.to_owned(), Untold::of_fact(fact)))
                .collect(),
        };
        let last = left.pending.back().map(|sealed| sealed.seq() + 1);
        let mut reporter = Self {
            done: sinks.iter().map(has_it).collect(),
            next: last.unwrap_or(spool.first()),
            pending_bytes: left.pending.iter().map(|it| it.line().len()).sum(),
            n_kept: left.pending.len(),
            pending: left.pending,
            settings,
            context,
            sinks,
            origin,
            dropped,
            unkept: None,
            spool,
        };
        if let Origin::Damaged(reason) = &reporter.origin {
            let path = reporter.settings.spool.display().to_string();
            let reason = format!("{reason}; the numbers of records begin with 1 again");
            reporter.emit(Record::tamper(&path, &reason, clock::unix_us()));
        }
        Ok(reporter)
    }

    /// Where the first number comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What goes into every record that is emitted from now on.
    pub fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Gives a record its number and puts it at the end of the queue.
    pub fn emit(&mut self, mut record: Record) {
        self.add_context(&mut record);
        let sealed = Sealed::new(record, self.next);
        let bytes = self.pending_bytes + sealed.line().len();
        if self.pending.len() >= self.settings.max_pending
            || bytes > self.settings.max_pending_bytes
        {
            return self.drop_record(sealed.record());
        }
        self.next += 1;
        self.pending_bytes = bytes;
        self.pending.push_back(sealed);
    }

    fn drop_record(&mut self, record: &Record) {
        let verdict = record.text(Field::Verdict).filter(|_| is_final(record));
        let untold = self
            .dropped
            .untold
            .entry(verdict.unwrap_or_default().to_owned());
        let untold = untold.or_default();
        untold.records += 1;
        if verdict.is_some() {
            untold.bytes_out += record.number(Field::BytesOut).unwrap_or(0);
            untold.packets_out += record.number(Field::PacketsOut).unwrap_or(0);
        }
        self.dropped.total += 1;
        let name = format!("{}{}", fact::DROPPED_OF, verdict.unwrap_or_default());
        self.spool.set(name, Some(untold.to_fact()));
        let total = self.dropped.total.to_string();
        self.spool.set(fact::DROPPED.to_owned(), Some(total));
    }

    /// A fact, of this agent or the one before.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.spool.fact(name)
    }

    /// Facts whose names begin so; the rest of their names.
    pub fn facts<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
        self.spool.facts(prefix)
    }

    /// Remembers something beyond the life of this agent, or forgets it, together with the
    /// records that are emitted before the next [`keep`](Self::keep).
    pub fn set_fact(&mut self, name: String, value: Option<String>) {
        self.spool.set(name, value);
    }

    /// Keeps what has been emitted and set since the last time: all of it, or nothing. False if
    /// it could not be, and then it is tried again with the next call.
    pub fn keep(&mut self) -> bool {
        self.unkept = self.spool.keep(&self.pending, self.n_kept).err();
        if self.unkept.is_none() {
            self.n_kept = self.pending.len();
        }
        self.unkept.is_none()
    }

    fn add_context(&self, record: &mut Record) {
        let Context {
            boot_id,
            host,
            instance,
            machine_id,
            mode,
            policy,
            geo,
        } = self.context.clone();
        record.set_default(Field::BootId, Some(boot_id));
        record.set_default(Field::Instance, instance);
        record.set_default(Field::MachineId, machine_id);
        record.set_default(Field::Host, Some(host));
        record.set_default(Field::Mode, mode);
        record.set_default(Field::Policy, policy);
        record.set_default(Field::Geo, geo);
    }

    /// Hands over everything, and waits for the sinks until `patience` is over:
    /// for an agent that is about to stop.
    pub fn finish(&mut self, patience: Duration) -> Progress {
        const PAUSE: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + patience;
        for attached in &mut self.sinks {
            attached.told_ns = None;
        }
        loop {
            let progress = self.flush(clock::since_boot_ns());
            if progress.pending == 0 || Instant::now() >= deadline {
                return progress;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Hands over as much as the sinks take, without waiting for them. `now_ns`
    /// is a clock that does not run backwards.
    pub fn flush(&mut self, now_ns: u64) -> Progress {
        let (mut handed_over, mut stalled) = (0, None);
        loop {
            self.tell_losses(now_ns);
            if self.n_kept == 0 && !self.keep() {
                stalled = self.unkept.as_ref().map(|error| stall("spool", error));
                break;
            }
            if self.n_kept == 0 {
                break;
            }
            match self.hand_over(now_ns) {
                Ok(()) => handed_over += 1,
                Err(stall) => {
                    stalled = Some(stall);
                    break;
                }
            }
        }
        Progress {
            handed_over,
            pending: self.pending(),
            stalled,
            aside: self.aside(),
        }
    }

    fn aside(&self) -> Option<Stall> {
        let aside = |attached: &Attached| {
            let error = attached.aside.as_ref()?;
            Some(stall(attached.sink.name(), error))
        };
        self.sinks.iter().find_map(aside)
    }

    /// Opens anew what sinks write to.
    pub fn reopen(&mut self) {
        for attached in &mut self.sinks {
            // The next record fails as well, and that is told.
            if let Err(error) = attached.sink.reopen() {
                tracing::warn!("open the sink {} anew: {error}", attached.sink.name());
            }
        }
    }

    /// Records that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// True when the caller should leave events where they are.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.unkept.is_some()
            || self.pending.len() >= self.settings.max_pending / 2
            || self.pending_bytes >= self.settings.max_pending_bytes / 2
    }

    /// Hands the first record to those sinks that do not have it.
    fn hand_over(&mut self, now_ns: u64) -> Result<(), Stall> {
        let Some(first) = self.pending.front() else {
            return Ok(());
        };
        let (mut stalled, mut moved) = (None, false);
        for (index, attached) in self.sinks.iter_mut().enumerate() {
            if self.done[index] {
                continue;
            }
            match attached.try_hand_over(first, index == 0, now_ns, &self.settings) {
                Ok(()) => {
                    self.done[index] = true;
                    moved = true;
                }
                Err(error) => stalled = stalled.or(Some(stall(attached.sink.name(), &error))),
            }
        }
        let seq = first.seq();
        let acknowledged = match &stalled {
            None => self.acknowledge(seq + 1, false),
            Some(_) if moved => self.acknowledge(seq, true),
            Some(_) => Ok(()),
        };
        acknowledged.map_err(|error| stall("spool", &error))?;
        if let Some(stall) = stalled {
            return Err(stall);
        }
        self.pending_bytes -= self.pending.pop_front().map_or(0, |it| it.line().len());
        self.n_kept -= 1;
        self.done.fill(false);
        Ok(())
    }

    /// Notes that all sinks have what comes before record `first`, and some sinks that one.
    fn acknowledge(&mut self, first: u64, has_some: bool) -> io::Result<()> {
        let done = self.sinks.iter().zip(&self.done);
        let done = done.filter(|(_, done)| has_some && **done);
        let missed = self.sinks.iter().map(|it| (it.sink.name(), it.missed));
        let done = done.map(|(attached, _)| attached.sink.name());
        self.spool.acknowledge(first, done, missed)
    }

    /// Makes records of what was lost here, once there is room for them.
    fn tell_losses(&mut self, now_ns: u64) {
        let time_us = clock::unix_us();
        let half = self.settings.max_pending / 2;
        let half_bytes = self.settings.max_pending_bytes / 2;
        if self.pending.len() > half || self.pending_bytes > half_bytes {
            return;
        }
        for (verdict, untold) in std::mem::take(&mut self.dropped.untold) {
            let meaning = match verdict.is_empty() {
                true => {
                    "records that were not the last about something found no room; nothing \
                     that they told of is missing from the sums"
                }
                false => {
                    "the last records of flows found no room; what they told of is in no \
                     other record"
                }
            };
            let total = self.dropped.total;
            let records = untold.records;
            let mut loss = Record::loss("records-dropped", records, total, meaning, time_us);
            if !verdict.is_empty() {
                loss.set(Field::Verdict, verdict.as_str());
                loss.set(Field::BytesOut, untold.bytes_out);
                loss.set(Field::PacketsOut, untold.packets_out);
            }
            self.spool
                .set(format!("{}{verdict}", fact::DROPPED_OF), None);
            self.emit(loss);
        }
        for index in 0..self.sinks.len() {
            let attached = &mut self.sinks[index];
            let is_due = match (&attached.aside, attached.told_ns) {
                (Some(_), Some(told_ns)) => now_ns.saturating_sub(told_ns) >= TELL_ASIDE_NS,
                _ => true,
            };
            let missed = attached.missed - attached.missed_told.min(attached.missed);
            if missed == 0 || !is_due {
                continue;
            }
            attached.missed_told = attached.missed;
            attached.told_ns = Some(now_ns);
            let name = attached.sink.name();
            let total = attached.missed;
            let meaning = match &attached.aside {
                None => "this sink took no records for a while; the others have them".into(),
                Some(error) => format!(
                    "this sink takes no records ({error}), and misses those that come until \
                     it does; the others have them"
                ),
            };
            let subject = format!("records-{name}");
            self.spool
                .set(format!("{}{name}", fact::MISSED), Some(total.to_string()));
            self.emit(Record::loss(&subject, missed, total, &meaning, time_us));
        }
    }
}

fn stall(sink: &'static str, error: &io::Error) -> Stall {
    Stall {
        sink,
        error: io::Error::new(error.kind(), error.to_string()),
    }
}

impl Attached {
    fn new(sink: Box<dyn Sink>) -> Self {
        Self {
            sink,
            failing_since_ns: None,
            aside: None,
            missed: 0,
            missed_told: 0,
            told_ns: None,
        }
    }

    /// `Ok` also for a sink that is left aside, and then it counts.
    fn try_hand_over(
        &mut self,
        sealed: &Sealed,
        is_first: bool,
        now_ns: u64,
        settings: &ReporterSettings,
    ) -> io::Result<()> {
        match self.sink.hand_over(sealed) {
            Ok(()) => {
                self.failing_since_ns = None;
                self.aside = None;
                Ok(())
            }
            Err(error) => {
                let since_ns = *self.failing_since_ns.get_or_insert(now_ns);
                if is_first || now_ns.saturating_sub(since_ns) < settings.patience_ns {
                    return Err(error);
                }
                self.aside = Some(error);
                // What it began it will finish first.
                self.missed += u64::from(!self.sink.is_partway(sealed.seq()));
                Ok(())
            }
        }
    }
}

/// True if what a record tells of is in no other that is final.
fn is_final(record: &Record) -> bool {
    matches!(record.kind(), Kind::Flow | Kind::Violation)
        && matches!(record.text(Field::State), Some("closed" | "rollup"))
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
