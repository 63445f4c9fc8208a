//! `trefoil check`: is everything that `run` would read right, and can this
//! kernel do it? Changes nothing.

use serde::Serialize;

use super::{Ending, Failure, sources};
use crate::{
    cli::CheckArgs,
    kernel::{self, HookSupport},
    policy::{Geography, Place, Problem, geography::Nowhere},
    settings::Flags,
};

/// Everything that `check` says; its JSON form.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// True if `run` would start and cover everything.
    fine: bool,
    /// What is wrong with settings, country data and policy.
    problems: Vec<Found>,
    /// What this kernel lacks, and what is not covered for it.
    kernel: Vec<HookSupport>,
    /// The policy, if it can be used.
    policy: Option<Usable>,
}

#[derive(Debug, Serialize)]
struct Found {
    file: String,
    #[serde(flatten)]
    problem: Problem,
}

#[derive(Debug, Serialize)]
struct Usable {
    source: String,
    mode: &'static str,
    rules: usize,
    clauses: usize,
    ranges: usize,
    geo: String,
}

pub fn check(args: &CheckArgs) -> Result<Ending, Failure> {
    let mut findings = Findings {
        kernel: kernel::support(),
        ..Findings::default()
    };
    let flags = Flags {
        policy: args.policy.clone(),
        geo: args.sources.geo.clone(),
        ..Flags::default()
    };
    let settings = sources::settings(args.sources.config.as_deref()).and_then(|settings| {
        settings
            .with(flags)
            .map_err(|error| Failure::Configuration(error.to_string()))
    });
    let mut bad = false;
    let mut complain = |failure: Failure| {
        bad = true;
        if !args.json {
            eprintln!("{failure}");
        }
        failure.to_string()
    };
    let mut general = Vec::new();
    // Each part is looked at even if another is wrong.
    let settings = settings.unwrap_or_else(|failure| {
        general.push(complain(failure));
        crate::settings::Settings::default()
            .with(Flags {
                policy: args.policy.clone(),
                geo: args.sources.geo.clone(),
                ..Flags::default()
            })
            .unwrap_or_default()
    });
    let geo = sources::geo(&[], &settings)
        .map_err(|failure| general.push(complain(failure)))
        .ok();
    match sources::policy_text(&settings) {
        Err(failure) => general.push(complain(failure)),
        Ok(text) => {
            let known: &dyn Geography = geo.as_ref().map_or(&Nowhere, |geo| geo);
            match sources::compile(&text, known, &sources::own_addresses(), 1) {
                Ok(policy) => {
                    let compiled = &policy.compiled;
                    findings.policy = Some(Usable {
                        source: policy.source.clone(),
                        mode: compiled.mode().as_str(),
                        rules: compiled.rules.len(),
                        clauses: compiled.clauses.len(),
                        ranges: compiled.ranges32.len() + compiled.ranges128.len(),
                        geo: compiled.geo_build_id().to_owned(),
                    });
                }
                Err(problems) => {
                    bad = true;
                    if !args.json {
                        eprintln!("{problems}");
                    }
                    findings
                        .problems
                        .extend(problems.list.iter().map(|problem| Found {
                            file: problems.file.clone(),
                            problem: problem.clone(),
                        }));
                }
            }
        }
    }
    findings
        .problems
        .extend(general.into_iter().map(|message| Found {
            file: String::new(),
            problem: Problem {
                place: Place::START,
                key: String::new(),
                message,
                help: None,
            },
        }));
    findings.fine = !bad && findings.kernel.iter().all(|hook| hook.supported);
    show(&findings, args.json)?;
    if bad {
        let n_problems = findings.problems.len();
        return Err(Failure::Configuration(format!("{n_problems} problems")));
    }
    Ok(if findings.fine {
        Ending::Fine
    } else {
        Ending::Findings
    })
}

fn show(findings: &Findings, json: bool) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string(findings)
            .map_err(|error| Failure::Other(format!("write JSON: {error}")))?;
        println!("{text}");
        return Ok(());
    }
    if let Some(policy) = &findings.policy {
        let Usable {
            source,
            mode,
            rules,
            clauses,
            ranges,
            geo,
        } = policy;
        println!("policy {source}: fine; {mode} mode, {rules} rules");
        println!("  compiles to {clauses} clauses and {ranges} address ranges, with {geo}");
    }
    let lacking: Vec<_> = findings
        .kernel
        .iter()
        .filter(|hook| !hook.supported)
        .collect();
    if lacking.is_empty() {
        println!("kernel: has everything that Trefoil uses");
    }
    for hook in lacking {
        let without = hook.without.unwrap_or("Trefoil does not run without it");
        println!("kernel: lacks {}; not covered: {without}", hook.name);
    }
    Ok(())
}
