//! From records to sinks: numbers, order, back pressure.
//!
//! The rules of this stage:
//!
//! - A record gets its number when its turn has come, and its number is used up
//!   when every sink has it ("report, then remember", see [`super::sequence`]).
//!   So every sink sees every number, in order.
//! - The first sink is the report of record. While it takes nothing, records
//!   wait, [`Reporter::is_backed_up`] turns true, and the caller leaves events in
//!   the kernel, where numbers are cumulative and nothing gets lost.
//! - Any other sink that fails for longer than
//!   [`ReporterSettings::patience_ns`] is left aside, so that a full disk does
//!   not silence the journal. A `loss` record says how many it misses: at once, each
//!   minute, and when it takes records again; by the next agent, if this one ends before.
//! - Records that find the queue full in spite of that are dropped, and a `loss`
//!   record says how many they were, and how many bytes they told of last.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{Field, Kind, Origin, Record, Sealed, SequenceError, Sink, sequence::Sequence};
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

/// Where the reporter keeps its numbers, and how much it keeps waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReporterSettings {
    /// The sequence file. Its directory must be on a file system that is empty
    /// after a boot and not after a restart of the agent: with systemd,
    /// `RuntimeDirectoryPreserve=yes`.
    pub sequence_file: PathBuf,
    /// Most records that wait; about 2 kilobytes each. Backed up from half of
    /// it on; the rest is for what comes from memory and not from the kernel.
    pub max_pending: usize,
    /// How long a sink, other than the first, may hold up the others.
    pub patience_ns: u64,
}

impl ReporterSettings {
    /// Defaults, with this sequence file.
    #[must_use]
    pub fn new(sequence_file: impl Into<PathBuf>) -> Self {
        Self {
            sequence_file: sequence_file.into(),
            max_pending: 16_384,
            patience_ns: 10_000_000_000,
        }
    }
}

/// Why records wait.
#[derive(Debug)]
pub struct Stall {
    /// The sink that does not take them, or `sequence`.
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
    sequence: Sequence,
    origin: Origin,
    pending: VecDeque<Record>,
    /// The record whose turn it is.
    current: Option<Current>,
    dropped: Dropped,
}

struct Attached {
    sink: Box<dyn Sink>,
    failing_since_ns: Option<u64>,
    /// Why it is left aside.
    aside: Option<io::Error>,
    /// Records that it missed while it was aside, and nobody was told of.
    missed: u64,
    missed_total: u64,
    told_ns: Option<u64>,
}

/// Time between two records about a sink that is left aside.
const TELL_ASIDE_NS: u64 = 60_000_000_000;

struct Current {
    sealed: Sealed,
    /// Written to the sequence file.
    is_remembered: bool,
    /// In the order of the sinks.
    done: Vec<bool>,
}

#[derive(Default)]
struct Dropped {
    records: u64,
    final_bytes: u64,
    total: u64,
}

impl Reporter {
    /// Takes the numbers over from the agent before, and a record that it did
    /// not finish handing over. The first sink is the report of record.
    ///
    /// # Errors
    ///
    /// When the sequence file cannot be used.
    pub fn open(
        settings: ReporterSettings,
        context: Context,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Result<Self, SequenceError> {
        let (sequence, origin, unfinished) =
            Sequence::open(&settings.sequence_file, &context.boot_id)?;
        let attach = |sink: Box<dyn Sink>| Attached {
            missed: sequence.missed(sink.name()),
            ..Attached::new(sink)
        };
        let sinks: Vec<_> = sinks.into_iter().map(attach).collect();
        let current = unfinished.map(|unfinished| Current {
            sealed: Sealed::new(unfinished.record, sequence.next()),
            is_remembered: true,
            done: sinks
                .iter()
                .map(|attached| {
                    unfinished
                        .done
                        .iter()
                        .any(|name| name == attached.sink.name())
                })
                .collect(),
        });
        let mut reporter = Self {
            settings,
            context,
            sinks,
            sequence,
            origin,
            pending: VecDeque::new(),
            current,
            dropped: Dropped::default(),
        };
        if let Origin::Damaged(reason) = &reporter.origin {
            let path = reporter.settings.sequence_file.display().to_string();
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

    /// Puts a record at the end of the queue.
    pub fn emit(&mut self, mut record: Record) {
        if self.pending.len() >= self.settings.max_pending {
            self.dropped.records += 1;
            self.dropped.final_bytes += final_bytes(&record);
            return;
        }
        self.add_context(&mut record);
        self.pending.push_back(record);
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
            if self.current.is_none() {
                self.tell_losses(now_ns);
                let Some(record) = self.pending.pop_front() else {
                    break;
                };
                self.current = Some(Current {
                    sealed: Sealed::new(record, self.sequence.next()),
                    is_remembered: false,
                    done: vec![false; self.sinks.len()],
                });
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
            Some(Stall {
                sink: attached.sink.name(),
                error: io::Error::new(error.kind(), error.to_string()),
            })
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
        self.pending.len() + usize::from(self.current.is_some())
    }

    /// True when the caller should leave events where they are.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.pending.len() >= self.settings.max_pending / 2
    }

    /// Hands the current record to those sinks that do not have it.
    fn hand_over(&mut self, now_ns: u64) -> Result<(), Stall> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let of_sequence = |error| Stall {
            sink: "sequence",
            error,
        };
        if !current.is_remembered {
            self.sequence
                .begin(current.sealed.line())
                .map_err(of_sequence)?;
            current.is_remembered = true;
        }
        let (mut stalled, mut moved) = (None, false);
        let missed_before: u64 = self.sinks.iter().map(|attached| attached.missed).sum();
        for (index, attached) in self.sinks.iter_mut().enumerate() {
            if current.done[index] {
                continue;
            }
            match attached.try_hand_over(&current.sealed, index == 0, now_ns, &self.settings) {
                Ok(()) => {
                    current.done[index] = true;
                    moved = true;
                }
                Err(error) => {
                    stalled = stalled.or(Some(Stall {
                        sink: attached.sink.name(),
                        error,
                    }));
                }
            }
        }
        let missed: u64 = self.sinks.iter().map(|attached| attached.missed).sum();
        if missed != missed_before {
            self.sequence.set_missed(missed_of(&self.sinks));
        }
        if let Some(stall) = stalled {
            if moved {
                let done: Vec<_> = self
                    .sinks
                    .iter()
                    .zip(&current.done)
                    .filter(|(_, done)| **done)
                    .map(|(attached, _)| attached.sink.name())
                    .collect();
                self.sequence.note(&done.join(",")).map_err(of_sequence)?;
            }
            return Err(stall);
        }
        self.sequence.finish().map_err(of_sequence)?;
        self.current = None;
        Ok(())
    }

    /// Makes records of what was lost here, once there is room for them.
    fn tell_losses(&mut self, now_ns: u64) {
        if self.pending.len() > self.settings.max_pending / 2 {
            return;
        }
        if self.dropped.records > 0 {
            let total = self.dropped.total + self.dropped.records;
            let Dropped {
                records,
                final_bytes,
                ..
            } = std::mem::replace(
                &mut self.dropped,
                Dropped {
                    total,
                    ..Dropped::default()
                },
            );
            let meaning = "records of flows found no room in the queue to the sinks; \
                           what they told of is in the sums of the next heartbeat";
            let mut loss =
                Record::loss("records-dropped", records, total, meaning, clock::unix_us());
            loss.set(Field::BytesOut, final_bytes);
            self.emit(loss);
        }
        for index in 0..self.sinks.len() {
            let attached = &mut self.sinks[index];
            let is_due = match (&attached.aside, attached.told_ns) {
                (Some(_), Some(told_ns)) => now_ns.saturating_sub(told_ns) >= TELL_ASIDE_NS,
                _ => true,
            };
            if attached.missed > 0 && is_due {
                let missed = std::mem::take(&mut attached.missed);
                attached.missed_total += missed;
                attached.told_ns = Some(now_ns);
                let subject = format!("records-{}", attached.sink.name());
                let total = attached.missed_total;
                let meaning = match &attached.aside {
                    None => "this sink took no records for a while; the others have them".into(),
                    Some(error) => format!(
                        "this sink takes no records ({error}), and misses those that come until \
                         it does; the others have them"
                    ),
                };
                let time_us = clock::unix_us();
                let mut loss = Record::loss(&subject, missed, total, &meaning, time_us);
                self.add_context(&mut loss);
                // The next to be written down, and that is when they count as told.
                self.pending.push_front(loss);
                self.sequence.set_missed(missed_of(&self.sinks));
                return;
            }
        }
    }
}

impl Attached {
    fn new(sink: Box<dyn Sink>) -> Self {
        Self {
            sink,
            failing_since_ns: None,
            aside: None,
            missed: 0,
            missed_total: 0,
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

fn missed_of(sinks: &[Attached]) -> impl Iterator<Item = (&'static str, u64)> {
    sinks.iter().map(|it| (it.sink.name(), it.missed))
}

/// Bytes that are in no record but this one.
fn final_bytes(record: &Record) -> u64 {
    let is_final = matches!(record.kind(), Kind::Flow | Kind::Violation)
        && matches!(record.text(Field::State), Some("closed" | "rollup"));
    if is_final {
        record.number(Field::BytesOut).unwrap_or_default()
    } else {
        0
    }
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
