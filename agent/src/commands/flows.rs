//! `trefoil flows`: what is open now, from the kernel's tables.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use trefoil_ebpf::abi::{FLOW_EMBRYONIC, FLOW_ENDED, Tracked, verdict};

use super::{Ending, Failure, sources};
use crate::{
    cli::FlowsArgs,
    clock::{self, BootClock},
    flow::{FlowId, FlowReport, ReportKind, Stage, counted},
    kernel::{KernelError, Reader},
    names::Names,
    owner::users::Logins,
    report::{Record, Terminal},
    state::State,
};

/// How often `--follow` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

pub fn flows(args: &FlowsArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.sources.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let reader = Reader::open(&sources::pins(pin_dir)?)?;
    let geo = sources::geo(&args.sources.geo, &settings)?;
    let logins = Logins::start()
        .map_err(|error| Failure::Other(format!("start the look-up of login names: {error}")))?;
    let mut names = Names::new(logins, None, Arc::new(geo));
    if let Some(state) = State::read(pin_dir) {
        names.add_policy(state.rule_names());
    }
    let mut output = Output::new(args.json)?;
    let mut shown: HashMap<FlowId, Tracked> = HashMap::new();
    loop {
        let open = open_flows(&reader)?;
        for tracked in &open {
            if shown.get(&FlowId::of(&tracked.flow)) == Some(tracked) {
                continue;
            }
            let facts = names.facts(&reader, tracked)?;
            let stage = match shown.contains_key(&FlowId::of(&tracked.flow)) {
                true => Stage::Update,
                false => Stage::Opened,
            };
            let report = FlowReport {
                kind: ReportKind::Flow,
                stage,
                time_ns: clock::since_boot_ns(),
                tracked: *tracked,
                counted: counted(&tracked.flow),
                since_last: counted(&tracked.flow),
                ending: None,
            };
            if !output.show(&Record::flow(&report, &facts, &BootClock::read()))? {
                return Ok(Ending::Fine);
            }
        }
        if !args.follow {
            return Ok(Ending::Fine);
        }
        shown = open
            .into_iter()
            .map(|tracked| (FlowId::of(&tracked.flow), tracked))
            .collect();
        if !has_reader_after(FOLLOW_INTERVAL) {
            return Ok(Ending::Fine);
        }
    }
}

/// Waits, and ends when whoever read standard output is gone: as long as nothing
/// changes, nothing is written that would find out.
fn has_reader_after(interval: Duration) -> bool {
    let stdout = io::stdout();
    // No events asked for: what is always told is that the other end is gone.
    let mut ends = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    !poll(&mut ends, timeout).is_ok_and(|n_gone| n_gone > 0)
}

/// Everything that something happened on and that is not over, oldest first.
fn open_flows(reader: &Reader) -> Result<Vec<Tracked>, KernelError> {
    let mut open = reader.socket_flows()?;
    open.extend(
        reader
            .many_peer_flows()?
            .into_iter()
            .map(|(_, tracked)| tracked),
    );
    open.retain(|tracked| {
        let counted = counted(&tracked.flow);
        tracked.flow.state & (FLOW_ENDED | FLOW_EMBRYONIC) == 0
            && tracked.flow.decision.verdict != verdict::LOCAL
            && counted.packets_out + counted.packets_in + counted.blocked_packets > 0
    });
    open.sort_by_key(|tracked| tracked.flow.started_ns);
    Ok(open)
}

/// Standard output: lines of JSON for programs, lines for people.
enum Output {
    Json,
    Terminal(Box<Terminal>),
}

impl Output {
    fn new(json: bool) -> Result<Self, Failure> {
        if json {
            return Ok(Self::Json);
        }
        let terminal = Terminal::stdout()
            .map_err(|error| Failure::Other(format!("use standard output: {error}")))?;
        Ok(Self::Terminal(Box::new(terminal)))
    }

    /// Returns false when nobody reads any more, as `trefoil flows | head` expects.
    fn show(&mut self, record: &Record) -> Result<bool, Failure> {
        let shown = match self {
            Self::Json => writeln!(io::stdout(), "{}", record.to_json()),
            Self::Terminal(terminal) => terminal.show(record),
        };
        match shown {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::Other(format!("write to standard output: {error}"))),
        }
    }
}
