//! `trefoil diff`: which of the flows that were seen would another policy judge
//! differently?

use std::path::Path;

use serde::Serialize;

use super::{
    Ending, Failure,
    groups::{self, Group, Opinion, groups},
    live::Live,
    observations::Observations,
    say, say_json, sources,
};
use crate::{
    cli::DiffArgs,
    observed::{Judge, Judgement, Reading},
    owner::users::OfHostOnce,
    policy::{self, Compiled, Geography, Mode, Policy, Surroundings},
    settings::{Flags, Settings},
};

/// Output of the command; its JSON form.
#[derive(Debug, Serialize)]
struct Differences {
    old: Side,
    new: Side,
    /// Flows that were seen.
    flows: u64,
    /// Bytes that they sent.
    bytes_out: u64,
    reading: Reading,
    /// Approved by the old policy, not by the new one.
    no_longer_approved: Vec<Group<Both>>,
    /// The other way round.
    newly_approved: Vec<Group<Both>>,
    /// Another verdict, and approved by both or by none.
    otherwise: Vec<Group<Both>>,
    /// Flows for which facts would decide that the records do not have.
    uncertain: Vec<Group<Both>>,
}

#[derive(Debug, Serialize)]
struct Side {
    policy: String,
    mode: Mode,
}

/// Opinions of both policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Both {
    old: Opinion,
    new: Opinion,
}

impl Both {
    fn words(&self) -> String {
        format!("{} before, {} now", self.old.words(), self.new.words())
    }
}

pub fn diff(args: &DiffArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.sources.config.as_deref())?;
    let geo = sources::geo(&args.sources.geo, &settings)?;
    let users = OfHostOnce::default();
    // Traffic that was seen to leave was not local then, whatever is today.
    let surroundings = Surroundings {
        geography: &geo as &dyn Geography,
        users: &users,
        own_addresses: &[],
        link_local: settings.link_local,
    };
    let old = load(&args.old, &settings, &surroundings)?;
    let new = load(&args.new, &settings, &surroundings)?;
    let observations = if args.files.is_empty() {
        let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
        let geo = sources::geo(&args.sources.geo, &settings)?;
        Observations::of_now(&mut Live::open(pin_dir, geo)?)?
    } else {
        Observations::read(&args.files)?
    };
    let limits = groups::about_budgets(&[&old.0, &new.0]);
    let differences = compare(
        &judge(&old, &surroundings),
        &judge(&new, &surroundings),
        &observations,
    );
    if args.json {
        say_json(&differences)?;
    } else {
        say(&(text(&differences) + limits))?;
    }
    observations.say_faults();
    let differ = !differences.lists().iter().all(|(_, list)| list.is_empty());
    Ok(match differ || observations.reading.is_faulty() {
        true => Ending::Findings,
        false => Ending::Fine,
    })
}

/// A policy as it is written, and compiled.
fn load(
    file: &Path,
    settings: &Settings,
    surroundings: &Surroundings<'_>,
) -> Result<(Policy, Compiled), Failure> {
    let flags = Flags {
        policy: Some(file.to_owned()),
        ..Flags::default()
    };
    let settings = settings
        .clone()
        .with(flags)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let text = sources::policy_text(&settings)?;
    let bad = |problems: policy::Problems| Failure::Configuration(problems.to_string());
    let policy = Policy::parse(&text.text, &text.source).map_err(bad)?;
    let compiled = policy::compile(&policy, surroundings, 1).map_err(bad)?;
    Ok((policy, compiled))
}

fn judge<'a>(
    (policy, compiled): &'a (Policy, Compiled),
    surroundings: &'a Surroundings<'a>,
) -> Judge<'a> {
    Judge {
        policy,
        compiled,
        surroundings,
    }
}

fn compare(old: &Judge<'_>, new: &Judge<'_>, observations: &Observations) -> Differences {
    let mut lists = [(); 4].map(|()| Vec::new());
    for observed in &observations.seen {
        let (before, now) = (old.judge(observed), new.judge(observed));
        let at = match (&before, &now, before.approves(), now.approves()) {
            (Judgement::Certain(before), Judgement::Certain(now), _, _)
                if before.verdict == now.verdict =>
            {
                continue;
            }
            (_, _, Some(true), Some(false)) => 0,
            (_, _, Some(false), Some(true)) => 1,
            (Judgement::Certain(_), Judgement::Certain(_), _, _) => 2,
            // The policies may be one and the same.
            _ if old.compiled.fingerprint() == new.compiled.fingerprint() => continue,
            _ => 3,
        };
        let both = Both {
            old: Opinion::of(old, &before),
            new: Opinion::of(new, &now),
        };
        lists[at].push((observed, both));
    }
    let [no_longer_approved, newly_approved, otherwise, uncertain] =
        lists.map(|list| groups(list.into_iter()));
    let side = |judge: &Judge<'_>| Side {
        policy: judge.policy.file.clone(),
        mode: judge.policy.mode,
    };
    let sum = |of: fn(&crate::observed::Amount) -> u64| {
        let all = observations.seen.iter().map(|one| of(&one.amount));
        all.fold(0, u64::saturating_add)
    };
    Differences {
        old: side(old),
        new: side(new),
        flows: sum(|amount| amount.flows),
        bytes_out: sum(|amount| amount.bytes_out),
        reading: observations.reading.clone(),
        no_longer_approved,
        newly_approved,
        otherwise,
        uncertain,
    }
}

impl Differences {
    /// Every list, with its title.
    fn lists(&self) -> [(&'static str, &[Group<Both>]); 4] {
        [
            ("no longer approved", &self.no_longer_approved),
            ("newly approved", &self.newly_approved),
            ("judged otherwise", &self.otherwise),
            ("not certain", &self.uncertain),
        ]
    }
}

fn text(differences: &Differences) -> String {
    let Differences {
        old,
        new,
        flows,
        bytes_out,
        reading,
        ..
    } = differences;
    let mut text = format!(
        "{} ({} mode) before, {} ({} mode) now, about {}{}\n",
        old.policy,
        old.mode.as_str(),
        new.policy,
        new.mode.as_str(),
        groups::sum([(*flows, *bytes_out)].into_iter()),
        groups::span(reading)
    );
    if old.mode != new.mode {
        text += &match new.mode {
            Mode::Enforce => format!(
                "what is not approved was reported and passed; now it is dropped: `trefoil check {} \
                 --against FILE` lists it\n",
                new.policy
            ),
            Mode::Report => {
                "what is not approved was dropped; now it is reported and passes\n".to_owned()
            }
        };
    }
    let lists = differences.lists();
    for (title, list) in lists {
        text += &groups::text(title, list, Both::words);
    }
    if lists.iter().all(|(_, list)| list.is_empty()) {
        text += "both policies judge all of it alike\n";
    }
    text
}
