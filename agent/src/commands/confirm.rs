//! `trefoil confirm`: enforcement that is on trial goes on without an end.

use super::{Ending, Failure, say, sources, who::who};
use crate::{
    cli::ConfirmArgs,
    clock::{self, BootClock},
    kernel::{Enforcement, Reader},
    state::State,
    trial::{Moment, Trials},
};

pub fn confirm(args: &ConfirmArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let reader = Reader::open(&sources::pins(pin_dir)?)?;
    let now = Moment::now();
    let until_ns = match reader.enforcement() {
        Enforcement::Always => {
            say("The policy in force is enforced without an end; nothing is on trial.\n")?;
            return Ok(Ending::Fine);
        }
        Enforcement::Never => {
            say("The policy in force only reports; there is nothing to confirm.\n")?;
            return Ok(Ending::Findings);
        }
        Enforcement::Until(until_ns) => until_ns,
    };
    if until_ns <= now.boot_ns {
        let ended = clock::rfc3339(BootClock::read().unix_us(until_ns));
        say(&format!(
            "Too late: the trial ended {ended} without a confirmation, and the policy only \
             reports since. `systemctl reload trefoil` tries it again.\n"
        ))?;
        return Ok(Ending::Findings);
    }
    reader.confirm_enforcement();
    let state = State::read(pin_dir).ok_or_else(|| {
        Failure::Other(
            "the policy goes on being enforced, but its name is not known, so a reboot would \
             begin the trial anew: start the agent, and confirm again then"
                .to_owned(),
        )
    })?;
    let trials = Trials::new(pin_dir, settings.confirm_within);
    trials
        .confirm(&state.policy, &who(), now)
        .map_err(|error| {
            Failure::Other(format!(
                "the policy goes on being enforced, but a reboot would begin the trial anew: write \
             {}: {error}",
                trials.file().display()
            ))
        })?;
    say(&format!(
        "Confirmed: {} is enforced without an end.\n",
        state.policy_source
    ))?;
    Ok(Ending::Fine)
}
