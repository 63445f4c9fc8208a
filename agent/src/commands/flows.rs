//! `trefoil flows`: what is open now, from the kernel's tables.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::fd::AsFd,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use trefoil_ebpf::abi::Tracked;

use super::{Ending, Failure, live::Live, sources};
use crate::{
    cli::FlowsArgs,
    flow::{FlowId, Stage},
    report::{Record, Terminal},
};

/// How often `--follow` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

pub fn flows(args: &FlowsArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.sources.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let mut live = Live::open(pin_dir, sources::geo(&args.sources.geo, &settings)?)?;
    let mut output = Output::new(args.json)?;
    let mut shown: HashMap<FlowId, Tracked> = HashMap::new();
    loop {
        let open = live.open_flows()?;
        for tracked in &open {
            if shown.get(&FlowId::of(&tracked.flow)) == Some(tracked) {
                continue;
            }
            let stage = match shown.contains_key(&FlowId::of(&tracked.flow)) {
                true => Stage::Update,
                false => Stage::Opened,
            };
            if !output.show(&live.record(tracked, stage)?)? {
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
