//! `trefoil run`: the daemon, and the first try on a terminal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nix::sys::signal::{SigSet, Signal};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

mod compiler;

use self::compiler::{Compiler, Refusal, Renewal, Renewed};
use super::{
    Ending, Failure, cuts,
    reporter::{flow_settings, nanoseconds, reporter},
    sources::{self, Origins},
};
use crate::{
    cli::RunArgs,
    clock::{self, BootClock},
    kernel::{Enforcement, Kernel, KernelError, LoadSettings, TableSizes, network_namespace},
    limits::Said,
    monitor::{Compilation, Cutter, Monitor, Parts, Standing},
    names::Names,
    notify::{Watchdog, notify},
    owner::{executable::Hashes, users::Logins},
    policy::Mode,
    privileges::{self, Duty},
    report::{Coverage, Record, words},
    settings::{Flags, Settings, Uplinks},
    state::State,
    trial::{Before, Moment, Trials},
};

/// How often the ring buffer is drained. Waking the agent for each event would
/// cost the sender ten times as much as the event itself.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// How often it is looked whether all is as it was left.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub fn run(args: &RunArgs) -> Result<Ending, Failure> {
    let settings = merged(args)?;
    // Before anything is loaded: a policy that is not understood starts nothing.
    let origins = Origins::read(&settings)?;
    let mut policy = origins
        .compile()
        .map_err(|problems| Failure::Configuration(problems.to_string()))?;

    let load = LoadSettings {
        pin_dir: settings.pin_dir.clone(),
        cgroup: sources::cgroup(&settings)?,
        tables: TableSizes {
            events_bytes: settings.tables.events_bytes,
            flows: settings.tables.flows,
            uplink_flows: settings.tables.uplink_flows,
            remembered: settings.tables.remembered,
            uplinks: settings.tables.uplinks,
            ended: settings.tables.ended,
            processes: settings.tables.processes,
            executables: settings.tables.executables,
            cgroups: settings.tables.cgroups,
        },
        local_flows: settings.local_flows,
        watches_uplinks: settings.uplinks != Uplinks::None,
    };
    if !cuts::may_enforce(&policy, &origins.geo, &load, args.yes)? {
        return Ok(Ending::Findings);
    }
    // The kernel's verifier takes minutes where processors are emulated or taken.
    notify("STATUS=Loading the kernel programs\nEXTEND_TIMEOUT_USEC=600000000");
    let kernel = Kernel::load(&load)?;
    policy.set_generation(kernel.next_generation());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("start the event loop: {error}")))?;
    runtime.block_on(watch(kernel, &load, &settings, origins, policy))
}

/// Settings with what the command line says instead.
fn merged(args: &RunArgs) -> Result<Settings, Failure> {
    let settings = sources::settings(args.sources.config.as_deref())?;
    let flags = Flags {
        policy: args.policy.clone(),
        geo: args.sources.geo.clone(),
        cgroup: args.cgroup.clone(),
        uplinks: args.uplink.clone(),
        pin_dir: args.pins.pin_dir.clone(),
        journal: args.journal.clone(),
        json: args.json.clone(),
        flows: args.flows.map(Into::into),
        confirm_within: args.confirm_within.clone(),
    };
    settings
        .with(flags)
        .map_err(|error| Failure::Configuration(error.to_string()))
}

/// Starts watching, and goes on until a signal ends it.
async fn watch(
    kernel: Kernel,
    load: &LoadSettings,
    settings: &Settings,
    origins: Origins,
    policy: Compilation,
) -> Result<Ending, Failure> {
    // Whoever started the agent may have blocked what it listens for.
    let mut own = SigSet::empty();
    for kind in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        own.add(kind);
    }
    own.thread_unblock()
        .map_err(|error| Failure::Other(format!("unblock signals: {error}")))?;
    let listen =
        |kind| signal(kind).map_err(|error| Failure::Other(format!("listen for signals: {error}")));
    let (mut hangup, mut interrupt, mut terminate) = (
        listen(SignalKind::hangup())?,
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );

    let reporter = reporter(settings)?;
    let failed = |error| Failure::Other(format!("start a thread: {error}"));
    let mut names = Names::new(
        Logins::start().map_err(failed)?,
        Some(Hashes::start(settings.sha256_max_bytes).map_err(failed)?),
        Arc::clone(&origins.geo),
    );
    let before = State::read(&settings.pin_dir);
    // Only what is in force by the kernel's own account: a file may be left over.
    let in_force_before = before
        .as_ref()
        .filter(|before| kernel.took_over() && before.generation == kernel.generation())
        .map(|before| (before.policy.clone(), kernel.enforcement()));
    if let Some(before) = &before {
        // Events that wait in the kernel were judged by the policy of the agent
        // before.
        names.add_policy(before.rule_names());
    }
    let parts = Parts {
        load,
        flow_settings: flow_settings(settings),
        uplinks: &settings.uplinks,
        names,
        reporter,
        cutter: Cutter::start().map_err(failed)?,
        heartbeat_s: settings.heartbeat_interval.as_secs(),
        last_seen_us: before.as_ref().map(|before| before.written_us),
        said: before
            .as_ref()
            .map_or_else(Said::default, |before| before.said.clone()),
        // Counters of tables that are new say nothing about an agent before.
        reported_losses: before
            .filter(|_| kernel.took_over())
            .map_or_else(BTreeMap::new, |before| before.losses),
    };
    let trials = Trials::new(&settings.pin_dir, settings.confirm_within);
    let enforcement = trials.enforcement(
        policy.compiled.id(),
        policy.compiled.mode(),
        in_force_before
            .as_ref()
            .map(|(policy, enforcement)| Before {
                policy,
                enforcement: *enforcement,
            }),
        false,
        Moment::now(),
    );
    let mut monitor = Monitor::start(kernel, parts, &origins.geo, &policy, enforcement)?;
    let mut own_addresses = origins.own_addresses.clone();
    let mut compiler = Compiler::start(settings.clone(), origins).map_err(failed)?;
    monitor.keep();
    privileges::keep_only(Duty::Monitor);
    let mut state = State {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        attached_us: clock::unix_us(),
        cgroup: load.cgroup.clone(),
        uncovered: monitor.uncovered(),
        promised: monitor.promised(),
        namespace: network_namespace()?,
        journal: settings.journal.clone(),
        json: settings.json.clone(),
        ..State::default()
    };
    let mut is_unwritable = false;
    describe(&mut state, &policy, &monitor);
    save(&mut state, &mut monitor, settings, &mut is_unwritable);
    notify(&format!("READY=1\nSTATUS={}", status_line(&state)));

    let mut drain = interval(DRAIN_INTERVAL);
    let mut sweep = interval(settings.sweep_interval);
    let mut beat = interval(settings.heartbeat_interval);
    let mut look = interval(LOOK_INTERVAL);
    for timer in [&mut drain, &mut sweep, &mut beat, &mut look] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut watchdog = Watchdog::of_manager();
    loop {
        if let Some(watchdog) = &mut watchdog {
            watchdog.alive();
        }
        tokio::select! {
            _ = drain.tick() => {
                monitor.drain()?;
                // As `trefoil run | head` expects.
                if monitor.has_no_reader() {
                    return interrupted(monitor, settings);
                }
            }
            _ = look.tick() => match monitor.look_for_tampering()? {
                Standing::Whole => {}
                // As it was read; a compiler that is busy makes another one anyway.
                Standing::PolicyDamaged if compiler.is_busy() => {}
                Standing::PolicyDamaged => compiler.readdress(own_addresses.clone()),
                Standing::Detached => {
                    monitor.lost_attachment(true)?;
                    State::remove(&settings.pin_dir);
                    notify("STOPPING=1\nSTATUS=Taken out of the kernel by `trefoil detach`");
                    return Ok(Ending::Fine);
                }
                Standing::Broken => {
                    monitor.lost_attachment(false)?;
                    return Err(Failure::Other(
                        "somebody else has taken kernel programs out; not all is watched any \
                         more: start trefoil again".to_owned(),
                    ));
                }
            },
            _ = sweep.tick() => {
                monitor.sweep()?;
                monitor.tell_acknowledged();
                let addresses_now = sources::own_addresses();
                let mut is_outdated =
                    || addresses_now != own_addresses || monitor.notices_that_clock_was_set();
                if !compiler.is_busy() && is_outdated() {
                    // Tried once, also if the policy cannot be made with them.
                    own_addresses.clone_from(&addresses_now);
                    compiler.readdress(addresses_now);
                }
                if monitor.watch_trial(|| trials.confirmed_by(&state.policy)) {
                    describe_mode(&mut state, &monitor);
                    notify(&format!("STATUS={}", status_line(&state)));
                }
                save(&mut state, &mut monitor, settings, &mut is_unwritable);
            }
            _ = beat.tick() => monitor.beat()?,
            _ = hangup.recv() => {
                notify("RELOADING=1");
                monitor.reopen_sinks();
                compiler.reread();
            }
            renewal = compiler.done() => {
                // The policy in force goes on, but no other would ever come into
                // force: the operator has to know, and to start the agent again.
                let Some(renewal) = renewal else {
                    return Err(Failure::Other(
                        "the thread that compiles policies has panicked; start trefoil again"
                            .to_owned(),
                    ));
                };
                if let Ok(renewed) = &renewal.result {
                    own_addresses.clone_from(&renewed.own_addresses);
                }
                renew(&mut monitor, renewal, &trials, &mut state)?;
                save(&mut state, &mut monitor, settings, &mut is_unwritable);
                notify(&format!("READY=1\nSTATUS={}", status_line(&state)));
            }
            _ = interrupt.recv() => {
                notify("STOPPING=1");
                return interrupted(monitor, settings);
            }
            _ = terminate.recv() => {
                notify("STOPPING=1");
                monitor.leave()?;
                return Ok(Ending::Fine);
            }
        }
    }
}

/// Ctrl-C: in report mode nothing is left behind. Enforcement ends only with
/// `trefoil detach`.
fn interrupted(monitor: Monitor, settings: &Settings) -> Result<Ending, Failure> {
    match monitor.mode() {
        Mode::Report => {
            monitor.detach()?;
            State::remove(&settings.pin_dir);
            Trials::new(&settings.pin_dir, settings.confirm_within).forget();
        }
        Mode::Enforce => {
            monitor.leave()?;
            eprintln!(
                "trefoil: the policy goes on being enforced; `trefoil detach --pin-dir {}` ends that",
                settings.pin_dir.display()
            );
        }
    }
    Ok(Ending::Fine)
}

/// Puts another policy in force, or says why not.
fn renew(
    monitor: &mut Monitor,
    renewal: Renewal,
    trials: &Trials,
    state: &mut State,
) -> Result<(), KernelError> {
    match renewal.result {
        Ok(Renewed {
            mut policy, geo, ..
        }) => {
            policy.set_generation(monitor.next_generation());
            let before = Before {
                policy: &state.policy,
                enforcement: monitor.enforcement(),
            };
            let enforcement = trials.enforcement(
                policy.compiled.id(),
                policy.compiled.mode(),
                Some(before),
                renewal.is_asked,
                Moment::now(),
            );
            if !monitor.replace_policy(&policy, &geo, enforcement)? {
                // Whoever asked finds that this agent has ended.
                return Ok(());
            }
            describe(state, &policy, monitor);
        }
        Err(Refusal { source, problems }) => {
            monitor.refuse_policy(&source, &problems);
            if renewal.is_asked {
                state.refused = Some(problems);
            }
        }
    }
    if renewal.is_asked {
        state.read_ns = renewal.began_ns;
    }
    Ok(())
}

fn describe(state: &mut State, policy: &Compilation, monitor: &Monitor) {
    let compiled = &policy.compiled;
    describe_mode(state, monitor);
    state.policy = compiled.id().to_owned();
    state.refused = None;
    state.policy_source.clone_from(&policy.source);
    state.generation = compiled.header.generation;
    state.rules = compiled
        .rules
        .iter()
        .map(|rule| rule.name.clone())
        .collect();
    state.geo = compiled.geo_build_id().to_owned();
}

fn describe_mode(state: &mut State, monitor: &Monitor) {
    monitor.mode().as_str().clone_into(&mut state.mode);
    state.enforced_until_us = match monitor.enforcement() {
        Enforcement::Until(until_ns) if monitor.mode() == Mode::Enforce => {
            Some(BootClock::read().unix_us(until_ns))
        }
        _ => None,
    };
}

fn save(state: &mut State, monitor: &mut Monitor, settings: &Settings, is_unwritable: &mut bool) {
    let stats = monitor.flow_stats();
    state.written_us = clock::unix_us();
    state.written_ns = clock::since_boot_ns();
    state.written_every_ns = nanoseconds(settings.sweep_interval);
    state.owners = [stats.owner_direct, stats.owner_inferred, stats.owner_none];
    state.losses.clone_from(monitor.reported_losses());
    state.spans.clone_from(monitor.loss_spans());
    state.said.clone_from(monitor.said());
    state.unwatched = monitor.unwatched();
    state.pending = monitor.pending() as u64;
    state.stalled = monitor.stalled();
    state.aside = monitor.aside();
    let written = state.write(&settings.pin_dir);
    let is_news = written.is_err() != *is_unwritable;
    *is_unwritable = written.is_err();
    if !is_news {
        return;
    }
    let (coverage, reason) = match written {
        Ok(()) => (Coverage::Covered, "it can be written again".to_owned()),
        Err(error) => (
            Coverage::Partly,
            format!(
                "it cannot be written ({error}): `trefoil status` and the next agent know what is \
                 in it, and nothing newer; free memory or mount it writable"
            ),
        ),
    };
    let file = State::file(&settings.pin_dir).display().to_string();
    let record = Record::coverage(&file, coverage, Some(&reason), state.written_us);
    monitor.emit(record);
}

fn status_line(state: &State) -> String {
    let rules = words::count(state.rules.len() as u64, "rule");
    let verb = if state.mode == "enforce" {
        "Enforcing"
    } else {
        "Reporting by"
    };
    let until = state.enforced_until_us.map_or(String::new(), |until_us| {
        format!(" until {} unless confirmed", clock::rfc3339(until_us))
    });
    format!(
        "{verb} {} ({rules}){until}, watching {}",
        state.policy_source,
        state.cgroup.display()
    )
}
