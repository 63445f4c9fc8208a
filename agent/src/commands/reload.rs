//! `trefoil reload`: has the running agent read policy and country data anew, and
//! waits for what comes of it.
//!
//! A signal alone says nothing about that; this is what a service manager runs.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Ending, Failure, say, sources};
use crate::{cli::ReloadArgs, clock, state::State};

/// How long the agent may take. Compiling takes well under a second, unless the
/// host's processors are emulated or taken.
const PATIENCE: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(10);

pub fn reload(args: &ReloadArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let pins = sources::pins(pin_dir)?;
    let before = State::read(pin_dir)
        .filter(|_| pins.has_agent())
        .ok_or_else(|| {
            Failure::Other(format!(
                "no agent is running with pins in {}; start one, which reads the policy itself",
                pin_dir.display()
            ))
        })?;
    // A policy that was read earlier may have been read before the files were changed.
    let asked_ns = clock::since_boot_ns();
    let pid = i32::try_from(before.pid).map_err(|error| Failure::Other(error.to_string()))?;
    kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(|error| match error {
        nix::Error::EPERM => {
            Failure::NotPermitted(format!("signal the agent, process {pid}; run as root"))
        }
        error => Failure::Other(format!("signal the agent, process {pid}: {error}")),
    })?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(state) = State::read(pin_dir).filter(|state| state.read_ns >= asked_ns) {
            return match state.refused {
                Some(problems) => Err(Failure::Configuration(format!(
                    "the policy was refused, the one before goes on: {problems}"
                ))),
                None => {
                    say(&format!(
                        "{} is in force, {} mode.\n",
                        state.policy_source, state.mode
                    ))?;
                    Ok(Ending::Fine)
                }
            };
        }
        if kill(Pid::from_raw(pid), None) == Err(nix::Error::ESRCH) {
            return Err(Failure::Other(format!(
                "the agent, process {pid}, ended before it answered; `trefoil status` tells what \
                 is in force"
            )));
        }
        thread::sleep(PAUSE);
    }
    Err(Failure::Other(format!(
        "the agent, process {pid}, has not answered within {} s; `trefoil status` may tell why",
        PATIENCE.as_secs()
    )))
}
