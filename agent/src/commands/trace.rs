//! `trefoil trace`: what hooks find about packets and calls, and why they decide so.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use trefoil_ebpf::abi::trace::TraceFilter;

use super::{Ending, Failure, say, say_json, sources};
use crate::{
    cli::TraceArgs,
    clock::{self, BootClock},
    geo::Geo,
    kernel::{Reader, Trace, cgroup2_root},
    names::Names,
    owner::users::Logins,
    quantity,
    settings::Settings,
    state::State,
    trace::{Seen, filter},
};

/// The longest that it may last.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long loading the programs may take, on a slow machine: they end by themselves so much later.
const LONGEST_START: Duration = Duration::from_secs(60);

/// How often it looks whether it is over.
const LOOK: Duration = Duration::from_millis(500);

pub fn trace(args: &TraceArgs) -> Result<Ending, Failure> {
    let duration = duration(&args.duration)?;
    let filter = filter(args.pid, args.unit.as_deref(), args.to.as_deref());
    let filter = filter.map_err(|(flag, fault)| super::wrong(flag, &fault))?;
    let settings = sources::settings(args.sources.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let pins = sources::pins(pin_dir)?;
    // Before there is another thread, which would be ended by them.
    let signals = signals()?;
    let mut speaker = Speaker::new(args, pin_dir, &settings)?;
    let until = duration + LONGEST_START;
    let filter = TraceFilter {
        until_ns: clock::since_boot_ns() + until.as_nanos() as u64,
        per_second: args.rate,
        ..filter
    };
    let mut trace = Trace::start(&pins, &watched(pin_dir, &settings)?, &filter)?;
    let ends = Instant::now() + duration;
    for unseen in &trace.unseen {
        eprintln!("trefoil: not shown: {unseen}");
    }
    eprintln!("trefoil: tracing for {}", args.duration);
    while Instant::now() < ends && !wait(&trace, &signals, ends) {
        speaker.say_all(trace.lines())?;
        match speaker.reader.instance() {
            instance if instance == trace.instance => {}
            0 => {
                eprintln!("trefoil: the hooks were taken out of the kernel");
                break;
            }
            _ => {
                eprintln!("trefoil: another agent has taken over; trace again to see its hooks");
                break;
            }
        }
    }
    trace.detach();
    speaker.say_all(trace.lines())?;
    sum_up(&trace, &speaker, args.rate)
}

fn duration(text: &str) -> Result<Duration, Failure> {
    let duration =
        quantity::duration(text).map_err(|error| Failure::Usage(format!("--for: {error}")))?;
    match duration {
        Duration::ZERO => Err(Failure::Usage(
            "--for: it has to last; write a time such as 10s".to_owned(),
        )),
        longer if longer > LONGEST => Err(Failure::Usage(format!(
            "--for: `{text}` is longer than an hour; trace again when it is over"
        ))),
        _ => Ok(duration),
    }
}

/// The control group that the agent watches, by its own word, or by the settings.
fn watched(pin_dir: &Path, settings: &Settings) -> Result<PathBuf, Failure> {
    let told = State::read(pin_dir).map(|state| state.cgroup);
    told.filter(|cgroup| !cgroup.as_os_str().is_empty())
        .or_else(|| settings.cgroup.clone())
        .or_else(cgroup2_root)
        .ok_or_else(|| {
            Failure::Other(
                "no control group hierarchy (version 2) is mounted; say which group `trefoil run` \
                 watches, with `cgroup` in the settings"
                    .to_owned(),
            )
        })
}

/// Signals that end it: its links go, and it says what it has left out.
fn signals() -> Result<SignalFd, Failure> {
    let failed = |error: nix::Error| Failure::Other(format!("wait for signals: {error}"));
    let ending = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    ending.thread_block().map_err(failed)?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Waits for lines, at most until it is over. True if it is to end now: somebody says so, or
/// nobody reads any more.
fn wait(trace: &Trace, signals: &SignalFd, ends: Instant) -> bool {
    let stdout = io::stdout();
    let mut places = [
        PollFd::new(trace.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        // No events asked for: what is always told is that the other end is gone.
        PollFd::new(stdout.as_fd(), PollFlags::empty()),
    ];
    let left = ends.saturating_duration_since(Instant::now()).min(LOOK);
    // Rounded up, so that it does not spin in the last millisecond.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
    match poll(&mut places, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(1..) => places[1..]
            .iter()
            .any(|place| place.revents().is_some_and(|events| !events.is_empty())),
        _ => false,
    }
}

/// Names what was seen, and says it.
struct Speaker {
    names: Names,
    reader: Reader,
    pin_dir: PathBuf,
    /// Generation of the policy whose rules have names.
    generation: u32,
    is_json: bool,
    n_lines: u64,
    n_unread: u64,
}

impl Speaker {
    fn new(args: &TraceArgs, pin_dir: &Path, settings: &Settings) -> Result<Self, Failure> {
        let geo: Geo = sources::geo(&args.sources.geo, settings)?;
        let logins = Logins::start().map_err(|error| {
            Failure::Other(format!("start the look-up of login names: {error}"))
        })?;
        Ok(Self {
            names: Names::new(logins, None, Arc::new(geo)),
            reader: Reader::open(&sources::pins(pin_dir)?)?,
            pin_dir: pin_dir.to_owned(),
            generation: 0,
            is_json: args.json,
            n_lines: 0,
            n_unread: 0,
        })
    }

    fn say_all(&mut self, lines: Vec<String>) -> Result<(), Failure> {
        let clock = BootClock::read();
        let mut text = String::new();
        for line in lines {
            self.n_lines += 1;
            let Some(seen) = Seen::parse(&line) else {
                self.n_unread += 1;
                continue;
            };
            let generation = seen.tracked.flow.decision.generation;
            if generation > self.generation
                && let Some(state) = State::read(&self.pin_dir)
            {
                self.names.add_policy(state.rule_names());
                // One that the agent has not told of yet is asked for with the next line.
                self.generation = state.generation;
            }
            let facts = self.names.facts(&self.reader, &seen.tracked)?;
            let interface = (seen.interface != 0).then(|| interface_name(seen.interface));
            let explained = seen.explain(&facts, interface, &clock);
            if self.is_json {
                say_json(&explained)?;
            } else {
                text.push_str(&format!("{explained}\n"));
            }
        }
        say(&text)
    }
}

/// Of this network namespace; of another there is its number.
fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index).map_or_else(
        |_| format!("interface {index}"),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Says what was left out. Findings are lines that got lost.
fn sum_up(trace: &Trace, speaker: &Speaker, rate: u32) -> Result<Ending, Failure> {
    let counts = trace.counts()?;
    let mut parts = vec![crate::report::words::count(speaker.n_lines, "line")];
    if counts.over_rate > 0 {
        parts.push(format!(
            "{} more were beyond {rate} lines a second on each processor; raise --rate or ask for \
             less",
            counts.over_rate
        ));
    }
    let lost = counts.told.saturating_sub(speaker.n_lines);
    if lost > 0 {
        parts.push(format!(
            "{lost} found no room; lower --rate or ask for less"
        ));
    }
    if counts.nested > 0 {
        parts.push(format!(
            "{} came while another was looked at on the same processor, and were not",
            counts.nested
        ));
    }
    if speaker.n_unread > 0 {
        parts.push(format!("{} could not be read", speaker.n_unread));
    }
    eprintln!("trefoil: {}", parts.join("; "));
    Ok(match lost + speaker.n_unread {
        0 => Ending::Fine,
        _ => Ending::Findings,
    })
}
