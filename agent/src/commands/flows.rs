//! `trefoil flows`: what is open now, from the kernel's tables.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use trefoil_ebpf::abi::{FLOW_EMBRYONIC, FLOW_ENDED, Tracked, verdict};

use super::{Ending, Failure, sources};
use crate::{
    cli::FlowsArgs,
    clock::{self, BootClock},
    flow::{FlowId, FlowReport, ReportKind, Stage, counted},
    kernel::{KernelError, PinDir, Reader},
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
    let reader = Reader::open(&PinDir::new(pin_dir))?;
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
            output.show(&Record::flow(&report, &facts, &BootClock::read()))?;
        }
        if !args.follow {
            return Ok(Ending::Fine);
        }
        shown = open
            .into_iter()
            .map(|tracked| (FlowId::of(&tracked.flow), tracked))
            .collect();
        thread::sleep(FOLLOW_INTERVAL);
    }
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

    fn show(&mut self, record: &Record) -> Result<(), Failure> {
        let shown = match self {
            Self::Json => writeln!(io::stdout(), "{}", record.to_json()),
            Self::Terminal(terminal) => terminal.show(record),
        };
        shown.map_err(|error| Failure::Other(format!("write to standard output: {error}")))
    }
}
