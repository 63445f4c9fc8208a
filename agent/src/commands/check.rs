//! `trefoil check`: is everything that `run` would read right, and can this
//! kernel do it? Changes nothing.

mod against;
mod host;
mod places;
mod sinks;

use serde::Serialize;

use self::{against::Against, places::Places};
use super::{Ending, Failure, cuts::Cuts, say, say_json, sources};
use crate::{
    cli::CheckArgs,
    connections::Effort,
    geo::Geo,
    kernel::{self, HookSupport},
    policy::{
        Compiled, Geography, Mode, Place, Policy, Problem, Problems, geography::Nowhere,
        warnings::warnings,
    },
    report::words,
    settings::{Flags, Settings, SettingsError, Uplinks},
};

/// Everything that `check` says; its JSON form.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// True if `run` would start, no promise lacks a hook, and nothing that is open would be cut.
    fine: bool,
    /// Mistakes in settings, country data and policy.
    problems: Vec<Found>,
    /// Oddities of the policy, none of them a reason not to use it.
    warnings: Vec<Found>,
    /// Features that this kernel lacks, and what is not covered for it.
    kernel: Vec<HookSupport>,
    /// True if that was tried; without root, or the rights, it is what its type information says.
    kernel_tried: bool,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_untried: Option<String>,
    /// The policy, if it can be used.
    policy: Option<Usable>,
    /// The country data, if it can be used.
    country_data: Option<Places>,
    /// Connections that enforcing the policy would cut, if there is one to judge by.
    #[serde(flatten)]
    cuts: Option<Cuts>,
    /// Recorded traffic that it would have dropped, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
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
    mode: Mode,
    rules: usize,
    clauses: usize,
    ranges: usize,
    geo: String,
}

pub fn check(args: &CheckArgs) -> Result<Ending, Failure> {
    let mut findings = Findings::default();
    let flags = Flags {
        policy: args.policy.clone(),
        geo: args.sources.geo.clone(),
        ..Flags::default()
    };
    // Each part is looked at even if another is wrong.
    let settings = match Settings::load(args.sources.config.as_deref()) {
        Ok(settings) => settings,
        Err(SettingsError::Problems(problems)) => {
            findings.complain(problems);
            Settings::default()
        }
        Err(error) => {
            findings.complain(general(error.to_string()));
            Settings::default()
        }
    };
    let settings = settings
        .with(flags)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    findings.look_at_kernel(settings.uplinks != Uplinks::None);
    for problem in sinks::problems(&settings) {
        findings.complain(general(problem));
    }
    let geo = sources::geo(&[], &settings)
        .map_err(|failure| findings.complain(general(failure.to_string())))
        .ok();
    findings.country_data = geo.as_ref().map(Places::of);
    let known: &dyn Geography = geo.as_ref().map_or(&Nowhere, |geo| geo);
    let text = sources::policy_text(&settings).map_err(|failure| general(failure.to_string()));
    if let Ok(text) = &text
        && !args.against.is_empty()
    {
        findings.against = Against::find(&args.against, text, geo.as_ref(), settings.link_local)?;
    }
    let compilation = text.and_then(|text| {
        let own = sources::own_addresses();
        let compilation = sources::compile(&text, known, &own, settings.link_local)?;
        findings.warn(&text.source, places::open_link(settings.link_local));
        let policy = Policy::parse(&text.text, &text.source)?;
        findings.warn(&text.source, warnings(&policy, &compilation.compiled));
        findings.warn(&text.source, host::warnings(&policy));
        Ok(compilation)
    });
    let mut enforces = false;
    match compilation {
        Err(problems) => findings.complain(problems),
        Ok(policy) => {
            let compiled = &policy.compiled;
            findings.cuts = open_connections(compiled, geo.as_ref(), &settings)
                .map_err(|problem| findings.complain(problem))
                .ok();
            enforces = compiled.mode() == Mode::Enforce;
            findings.policy = Some(Usable {
                source: policy.source.clone(),
                mode: compiled.mode(),
                rules: compiled.rules.len(),
                clauses: compiled.clauses.len(),
                ranges: compiled.n_destinations(),
                geo: compiled.geo_build_id().to_owned(),
            });
        }
    }
    let n_problems = findings.problems.len() as u64;
    // In report mode nothing is cut: it is good to know, and no finding.
    let cuts_now = enforces
        && findings
            .cuts
            .as_ref()
            .is_some_and(|cuts| !cuts.would_cut.is_empty());
    let was_fine = findings.against.as_ref().is_none_or(Against::is_fine);
    findings.fine = n_problems == 0
        && !cuts_now
        && was_fine
        && !findings.kernel.iter().any(|hook| hook.breaks_promise);
    show(&findings, args.json)?;
    if n_problems > 0 {
        return Err(Failure::Configuration(words::count(n_problems, "problem")));
    }
    Ok(if findings.fine {
        Ending::Fine
    } else {
        Ending::Findings
    })
}

impl Findings {
    /// Looks at the features of this kernel, as far as the caller may find out.
    fn look_at_kernel(&mut self, watches_uplinks: bool) {
        let tried = match nix::unistd::geteuid().is_root() {
            true => {
                kernel::tried_support(watches_uplinks).map_err(|error| kernel::with_causes(&error))
            }
            false => Err("only root may load them".to_owned()),
        };
        self.kernel_tried = tried.is_ok();
        self.kernel = tried.unwrap_or_else(|why| {
            self.kernel_untried = Some(why);
            kernel::support(watches_uplinks)
        });
    }

    fn complain(&mut self, problems: Problems) {
        let Problems { file, list } = problems;
        self.problems.extend(list.into_iter().map(|problem| Found {
            file: file.clone(),
            problem,
        }));
    }

    fn warn(&mut self, file: &str, warnings: Vec<Problem>) {
        self.warnings
            .extend(warnings.into_iter().map(|problem| Found {
                file: file.to_owned(),
                problem,
            }));
        self.warnings.sort_by(|a, b| a.problem.cmp(&b.problem));
    }
}

/// Lists the open connections that `run` would watch.
fn open_connections(
    compiled: &Compiled,
    geo: Option<&Geo>,
    settings: &Settings,
) -> Result<Cuts, Problems> {
    let cgroup = match &settings.cgroup {
        Some(_) => sources::cgroup(settings).map_err(|failure| general(failure.to_string()))?,
        // Where there is none, everything counts.
        None => kernel::cgroup2_root().unwrap_or_else(|| "/".into()),
    };
    Cuts::find(compiled, geo, &cgroup, &settings.pin_dir, Effort::MUCH)
        .map_err(|error| general(format!("list the processes in /proc: {error}")))
}

/// A problem that is not in a line of a file.
fn general(message: String) -> Problems {
    let problem = Problem {
        place: Place::START,
        key: String::new(),
        message,
        help: None,
    };
    Problems::new("", vec![problem])
}

fn show(findings: &Findings, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(findings);
    }
    let mut text = String::new();
    for Found { file, problem } in &findings.problems {
        if file.is_empty() {
            eprintln!("{}", problem.message);
        } else {
            eprintln!("{}", problem.in_file(file));
        }
    }
    for Found { file, problem } in &findings.warnings {
        eprintln!("{}", problem.as_warning(file));
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
        let count = |n: &usize, noun| words::count(*n as u64, noun);
        let warned = match findings.warnings.len() {
            0 => String::new(),
            n => format!(", {}", count(&n, "warning")),
        };
        text += &format!(
            "policy {source}: fine; {} mode, {}{warned}\n  compiles to {} and {}, with country data {geo}\n",
            mode.as_str(),
            count(rules, "rule"),
            count(clauses, "clause"),
            count(ranges, "address range")
        );
    }
    if let Some(places) = &findings.country_data {
        text += &places.text();
    }
    if let (Some(policy), Some(cuts)) = (&findings.policy, &findings.cuts) {
        text += &cuts.text(policy.mode);
    }
    if let Some(against) = &findings.against {
        text += &against.text();
        against.say_faults();
    }
    text += &kernel_text(findings);
    say(&text)
}

fn kernel_text(findings: &Findings) -> String {
    let mut text = String::new();
    let lacking: Vec<_> = findings
        .kernel
        .iter()
        .filter(|hook| !hook.supported)
        .collect();
    match &findings.kernel_untried {
        None if lacking.is_empty() => text += "kernel: has everything that Trefoil uses\n",
        None => {}
        Some(why) => {
            text += &format!(
                "kernel: its type information is all that was looked at, and it may refuse what it \
                 has: the programs were not loaded ({why})\n"
            );
        }
    }
    for hook in lacking {
        let needed = match (hook.breaks_promise, hook.without) {
            (_, None) => ", and Trefoil does not run without it".to_owned(),
            (true, Some(without)) => format!(", and a promise needs it; not covered: {without}"),
            (false, Some(without)) => format!("; not covered: {without}"),
        };
        let why = hook.why.as_ref();
        let why = why.map_or(String::new(), |why| format!(" ({why})"));
        text += &format!("kernel: lacks {}{needed}{why}\n", hook.name);
    }
    text
}
