//! From settings to what takes records, and how flows are told in them.

use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Failure, sources};
use crate::{
    flow::FlowSettings,
    report::{Context, Journal, JournalSettings, Json, Reporter, ReporterSettings, Sink, Terminal},
    settings::{DEFAULT_JOURNAL, Settings},
    state::State,
};

/// The sinks: the journal first, since it is the report; a terminal gets lines
/// for a person unless it gets JSON.
pub fn reporter(settings: &Settings) -> Result<Reporter, Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::Configuration(format!("open {what} for records: {error}"))
    };
    let no_file = |file: &Path, error| Failure::Configuration(sources::no_records(file, &error));
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    // Where nobody asked for the journal and there is none, the terminal is it.
    if let Some(socket) = &settings.journal
        && (socket.exists()
            || *socket != Path::new(DEFAULT_JOURNAL)
            || std::env::var_os("JOURNAL_STREAM").is_some())
    {
        let journal = JournalSettings {
            object_pid: settings.journal_object_pid,
            ..JournalSettings::new(socket)
        };
        let journal =
            Journal::open(journal).map_err(|error| failed("a socket to the journal", error))?;
        sinks.push(Box::new(journal));
    }
    let to_stdout = settings.json.as_deref() == Some(Path::new("-"));
    match &settings.json {
        Some(_) if to_stdout => {
            sinks.push(Box::new(
                Json::stdout().map_err(|error| failed("standard output", error))?,
            ));
        }
        Some(file) => {
            let json = Json::file(file).map_err(|error| no_file(file, error))?;
            sinks.push(Box::new(json));
        }
        None => {}
    }
    if !to_stdout && (std::io::stdout().is_terminal() || sinks.is_empty()) {
        let terminal = Terminal::stdout().map_err(|error| failed("standard output", error))?;
        sinks.push(Box::new(terminal));
    }
    let dir: PathBuf = State::dir(&settings.pin_dir);
    fs::create_dir_all(&dir)
        .map_err(|error| Failure::Other(format!("make directory {}: {error}", dir.display())))?;
    let context = Context::of_this_host()
        .map_err(|error| Failure::Other(format!("read the host's name and boot id: {error}")))?
        .of_instance(&settings.pin_dir);
    let evidence = settings.evidence.clone();
    let reporter = ReporterSettings {
        evidence: evidence.map(|directory| (directory, context.log_name())),
        max_pending: settings.tables.pending as usize,
        // Data that counts is in one file, with as much that no longer does, and on its way
        // to the other; a quarter is for rollups.
        max_pending_bytes: usize::try_from(settings.tables.spool_bytes / 4).unwrap_or(usize::MAX),
        ..ReporterSettings::new(dir.join("spool"))
    };
    Reporter::open(reporter, context, sinks)
        .map_err(|error| Failure::Other(crate::kernel::with_causes(&error)))
}

/// How flows are told.
pub fn flow_settings(settings: &Settings) -> FlowSettings {
    FlowSettings {
        mode: settings.flows,
        flows_rate: settings.flows_rate,
        violations_rate: settings.violations_rate,
        update_interval_ns: nanoseconds(settings.update_interval),
        rollup_interval_ns: nanoseconds(settings.rollup_interval),
        local: settings.local_flows,
        max_flows: settings.tables.followed as usize,
        max_rollups: settings.tables.rollups as usize,
        // An eighth of the spool, at less than 200 bytes each.
        max_told: usize::try_from(settings.tables.spool_bytes / 8 / 200).unwrap_or(usize::MAX),
        ..FlowSettings::default()
    }
}

/// As the kernel counts time.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
