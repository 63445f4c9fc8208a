//! `trefoil learn`: from what was seen, a policy that approves of exactly that.

use super::{Ending, Failure, live::Live, observations::Observations, say, sources};
use crate::{
    cli::LearnArgs,
    learn,
    owner::users::OfHost,
    policy::{LinkLocal, geography::Nowhere},
};

pub fn learn(args: &LearnArgs) -> Result<Ending, Failure> {
    let observations = if args.files.is_empty() {
        let settings = sources::settings(args.sources.config.as_deref())?;
        let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
        let geo = sources::geo(&args.sources.geo, &settings)?;
        Observations::of_now(&mut Live::open(pin_dir, geo)?)?
    } else {
        Observations::read(&args.files)?
    };
    let learned = learn::learn(&observations.seen, &observations.reading, &OfHost);
    let text = sources::PolicyText {
        text: learned.text,
        source: "what was learned".to_owned(),
    };
    // A policy that is put out can be put in force.
    sources::compile(&text, &Nowhere, &[], LinkLocal::default()).map_err(|problems| {
        Failure::Other(format!(
            "{problems}\nlearn from less at a time, such as one unit: journalctl -u trefoil \
             TREFOIL_UNIT=x.service -o json | trefoil learn -"
        ))
    })?;
    say(&text.text)?;
    observations.say_faults();
    Ok(match observations.reading.is_faulty() {
        true => Ending::Findings,
        false => Ending::Fine,
    })
}
