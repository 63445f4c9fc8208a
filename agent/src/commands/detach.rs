//! `trefoil detach`: takes everything out of the kernel.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Ending, Failure,
    reporter::{flow_settings, reporter},
    say, sources,
};
use crate::{
    cli::DetachArgs,
    flow::FlowMode,
    geo::Geo,
    kernel::{self, InNamespace, KernelError, PinDir, Reader},
    losses::Losses,
    monitor::Rest,
    names::Names,
    owner::users::Logins,
    report::words,
    settings::Settings,
    state::State,
    trial::Trials,
};

/// How long sinks may take for the last records.
const FAREWELL: Duration = Duration::from_secs(5);

pub fn detach(args: &DetachArgs) -> Result<Ending, Failure> {
    let mut settings = sources::settings(args.config.as_deref())?;
    if let Some(pin_dir) = &args.pins.pin_dir {
        settings.pin_dir.clone_from(pin_dir);
    }
    let pin_dir = settings.pin_dir.clone();
    let pins = sources::pins(&pin_dir)?;
    let state = State::read(&pin_dir);
    // Filters of interfaces are found by the interface's number, which is the namespace's own.
    let namespace = state.as_ref().filter(|state| state.namespace != 0);
    let entered = namespace.map(|state| InNamespace::enter(state.namespace, state.pid));
    let _inside = entered.and_then(|entered| {
        // Filters in a namespace that is gone went with it, unless it is hidden; nothing is to
        // keep enforcement going.
        entered.map_err(|error| tracing::warn!("{error}")).ok()
    });
    // One that runs notices, and tells it all.
    let told = match pins.has_agent() {
        true => String::new(),
        false => tell_rest(&pins, &mut settings, state),
    };
    let (n_links, n_maps) = kernel::detach(&pins)?;
    // A confirmed policy is not in force any more.
    Trials::new(&pin_dir, settings.confirm_within).forget();
    let dir = pins.base().display();
    if n_links + n_maps == 0 {
        say(&format!("Nothing of Trefoil is pinned in {dir}.\n"))?;
    } else {
        say(&format!(
            "Took {n_links} links and {n_maps} maps in {dir} out of the kernel. \
             Nothing is watched or enforced by them any more.\n{told}"
        ))?;
    }
    Ok(Ending::Fine)
}

/// Tells what no agent has told, and says what became of that. It keeps nobody from detaching.
fn tell_rest(pins: &PinDir, settings: &mut Settings, state: Option<State>) -> String {
    let reader = match Reader::open(pins) {
        Ok(reader) => reader,
        // Another version's tables, or none.
        Err(KernelError::NothingPinned { .. }) => return String::new(),
        Err(error) => return untold(&error.to_string()),
    };
    if let Some(state) = &state {
        settings.journal.clone_from(&state.journal);
        settings.json.clone_from(&state.json);
    }
    if settings.json.as_deref() == Some(Path::new("-")) {
        settings.json = None;
    }
    let told = rest(reader, settings, state).and_then(|rest| Ok(rest.tell()?));
    let mut reporter = match told {
        Ok(reporter) => reporter,
        Err(failure) => return untold(&failure.to_string()),
    };
    if !reporter.keep() {
        return untold("the spool cannot be written");
    }
    match reporter.finish(FAREWELL, true).pending {
        0 => "No agent was running: what none had told is in records now.\n".to_owned(),
        n => format!(
            "No agent was running: what none had told is in {}, which the next agent hands over, \
             unless the host is booted before.\n",
            words::count(n as u64, "record")
        ),
    }
}

fn untold(why: &str) -> String {
    format!("No agent was running, and what none had told is in no record: {why}\n")
}

fn rest(reader: Reader, settings: &Settings, state: Option<State>) -> Result<Rest, Failure> {
    let state = state.unwrap_or_default();
    let failed = |error| Failure::Other(format!("start a thread: {error}"));
    // Without it, records lack countries; the verdicts are the kernel's.
    let geo = Arc::new(
        sources::geo(&[], settings)
            .or_else(|_| Geo::load(&[]).map_err(|error| Failure::Other(error.to_string())))?,
    );
    let mut names = Names::new(Logins::start().map_err(failed)?, None, Arc::clone(&geo));
    names.add_policy(state.rule_names());
    let mut reporter = reporter(settings)?;
    let context = reporter.context_mut();
    let known = |text: &str| (!text.is_empty()).then(|| text.into());
    context.mode = known(&state.mode);
    context.policy = known(&state.policy);
    context.geo = known(&state.geo);
    let lacks_direct = |(hook, _): &(String, String)| hook == kernel::DEV_DIRECT_XMIT;
    Ok(Rest {
        reader,
        reporter,
        names,
        geo,
        judges_direct: !state.uncovered.iter().any(lacks_direct),
        losses: Losses::since(state.losses),
        flow_settings: crate::flow::FlowSettings {
            mode: FlowMode::Auto,
            ..flow_settings(settings)
        },
    })
}
