//! A user makes more processes, executables or control groups than a table has room for: rules
//! about others hold, it is told as a loss, the agent starts at any moment, and room comes back.
//!
//! With `TREFOIL_FULL_TABLES` in tables of the usual size, which takes minutes. A storm of everything
//! at once lasts `TREFOIL_STORM_SECONDS`.

mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Agent, Lab, Record, agent, fill, kernel, places, wait_for};
use world::chance::{Chance, number_of};
use world::told::{arrived, lost as lost_traffic, numbered, told_by_verdict};
use world::{REFUSED, TRAFFIC, at};

/// Somebody who makes too much, and somebody else.
const USER: u32 = 65534;
const OTHER: u32 = 1;

/// Ports that a service may send to, a program, a user, and a container.
const OF_UNIT: u16 = 9;
const OF_EXE: u16 = 10;
const OF_USER: u16 = 11;
const OF_CONTAINER: u16 = 12;

fn is_full_size() -> bool {
    std::env::var_os("TREFOIL_FULL_TABLES").is_some()
}

/// Smaller tables, unless they are to have their usual sizes.
fn settings() -> &'static str {
    if is_full_size() {
        return "";
    }
    "[tables]\nprocesses = 1024\nexecutables = 512\ncgroups = 256\n"
}

/// The same for a storm of everything. A quarter is root's, who makes groups of his own elsewhere on
/// this machine meanwhile.
fn settings_of_storm() -> &'static str {
    if is_full_size() {
        return "";
    }
    "[tables]\nprocesses = 4096\nexecutables = 2048\ncgroups = 2048\n"
}

fn count(small: usize, full: usize) -> String {
    if is_full_size() { full } else { small }.to_string()
}

/// How much a counter of losses has moved.
fn lost(records: &[Record], counter: &str) -> Option<u64> {
    let of_counter = |record: &&Record| record.is("event", "loss") && record.is("subject", counter);
    let counts = records.iter().filter(of_counter);
    let sum: Result<u64> = counts.map(|record| record.number("count")).sum();
    sum.ok().filter(|sum| *sum != 0)
}

/// A lab in which rules hold for services, programs and users that come later.
struct World {
    lab: Lab,
    policy: String,
    _sinks: Vec<UdpSink>,
    n_probes: Cell<usize>,
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let directory = |name: &str| lab.file(name).join("**");
        let deny = |name: &str, from: &str| {
            format!("[[rules]]\nname = \"{name}\"\nfrom = {{ {from} }}\nverdict = \"deny\"\n")
        };
        let approve = |name: &str, from: &str, port: u16| {
            format!(
                "[[rules]]\nname = \"{name}\"\nfrom = {{ {from} }}\nverdict = \"approve\"\n\
                 to = {{ networks = [\"198.51.100.0/24\"], ports = [\"{port}/udp\"] }}\n"
            )
        };
        let policy = [
            "mode = \"enforce\"\n".to_owned(),
            deny("not this service", "unit = \"denied-*.service\""),
            deny(
                "not this program",
                &format!("exe = {:?}", directory("denied")),
            ),
            approve(
                "services",
                "unit = [\"fresh-*.service\", \"delegated.service\"]",
                OF_UNIT,
            ),
            approve(
                "programs",
                &format!("exe = {:?}", directory("good")),
                OF_EXE,
            ),
            approve("a user", "user = \"daemon\"", OF_USER),
            approve("containers", "container = \"docker:c0ffee*\"", OF_CONTAINER),
        ];
        let sinks =
            [OF_UNIT, OF_EXE, OF_USER, OF_CONTAINER].map(|port| UdpSink::new(&lab.peer, port));
        Ok(Self {
            policy: policy.concat(),
            _sinks: sinks.into_iter().collect::<Result<_>>()?,
            n_probes: Cell::new(0),
            lab,
        })
    }

    fn start(&self) -> Result<Agent<'_>> {
        let agent = self.lab.agent().policy(&self.policy).settings(settings());
        agent.flows("each").start()
    }

    /// An agent for a storm of everything.
    fn start_in_storm(&self) -> Result<Agent<'_>> {
        let agent = self.lab.agent().policy(&self.policy);
        agent.settings(settings_of_storm()).flows("auto").start()
    }

    /// A control group that belongs to the user, with its processes in one below.
    fn delegated(&self) -> Result<PathBuf> {
        let group = self.lab.unit("delegated.service")?;
        for path in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(group.join(path), Some(USER), Some(USER))?;
        }
        Ok(group)
    }

    /// The user's own copy of a program that does nothing.
    fn program_of_user(&self) -> Result<PathBuf> {
        let program = self.lab.copy_program("/bin/true", "own/true")?;
        chown(self.lab.file("own"), Some(USER), Some(USER))?;
        chown(&program, Some(USER), Some(USER))?;
        Ok(program)
    }

    fn storm(&self) -> Result<Program> {
        let program = Program::new(
            TRAFFIC,
            &self.lab.host,
            Some(&self.lab.unit("storm.service")?),
            Some(USER),
        )?;
        Ok(program.args(["storm"]))
    }

    /// True if a datagram to the port leaves.
    fn sends(&self, unit: &Path, program: &Path, user: u32, port: u16) -> Result<bool> {
        let program = Program::new(program, &self.lab.host, Some(unit), Some(user))?;
        let outcome = program.args(["udp", &at(places::PEER, port)]).run()?;
        match outcome.code {
            0 => Ok(true),
            REFUSED => Ok(false),
            _ => anyhow::bail!("neither sent nor refused: {outcome:?}"),
        }
    }

    /// Fails unless each rule holds for what is there since this moment.
    fn probe(&self, when: &str) -> Result<()> {
        let number = self.n_probes.get();
        self.n_probes.set(number + 1);
        let group = |name: &str| self.lab.unit(&format!("{name}-{number}.service"));
        let copy = |name: &str| {
            let path = format!("{name}/{number}");
            self.lab.copy_program(TRAFFIC, &path)
        };
        let (fresh, denied, lab) = (group("fresh")?, group("denied")?, group("lab")?);
        let scope = |name: &str| self.lab.unit(&format!("docker-{name}{number:058x}.scope"));
        let (container, other) = (scope("c0ffee")?, scope("decade")?);
        let (good, bad, traffic) = (copy("good")?, copy("denied")?, PathBuf::from(TRAFFIC));
        for (what, unit, program, user, port, expected) in [
            ("a service", &fresh, &traffic, OTHER, OF_UNIT, true),
            ("a program", &lab, &good, OTHER, OF_EXE, true),
            ("a user", &lab, &traffic, OTHER, OF_USER, true),
            (
                "a container",
                &container,
                &traffic,
                OTHER,
                OF_CONTAINER,
                true,
            ),
            (
                "another container",
                &other,
                &traffic,
                OTHER,
                OF_CONTAINER,
                false,
            ),
            ("another user", &lab, &traffic, 2, OF_USER, false),
            ("a denied service", &denied, &good, OTHER, OF_EXE, false),
            ("a denied program", &fresh, &bad, OTHER, OF_UNIT, false),
        ] {
            let sent = self.sends(unit, program, user, port)?;
            ensure!(sent == expected, "{when}, {what}: sent is {sent}");
        }
        Ok(())
    }

    /// The words of `trefoil status`, for who wants to know why something failed.
    fn status(&self) -> String {
        let said = agent::kernel_verb(&self.lab, "status", &[]);
        said.map_or_else(|error| format!("{error:#}"), |said| said.stdout)
    }

    /// Removes what the last probe has made.
    fn tidy(&self) -> Result<()> {
        let number = self.n_probes.get() - 1;
        let services = ["fresh", "denied"].map(|name| format!("{name}-{number}.service"));
        let scopes = ["c0ffee", "decade"].map(|name| format!("docker-{name}{number:058x}.scope"));
        for group in services.iter().chain(&scopes) {
            fs::remove_dir(self.lab.unit(group)?).with_context(|| format!("remove {group}"))?;
        }
        for name in ["good", "denied"] {
            fs::remove_file(self.lab.file(&format!("{name}/{number}")))?;
        }
        Ok(())
    }

    /// Starts a storm of everything that a user with a group of his own can make, as fast as it goes.
    fn everything(&self) -> Result<Vec<Running>> {
        let (group, program) = (self.delegated()?, self.program_of_user()?);
        let words = [
            vec!["groups".into(), group.into_os_string()],
            vec!["executables".into(), program.into_os_string()],
            vec!["forks".into()],
            vec!["sockets".into(), at(places::PEER, OF_UNIT).into()],
            vec!["namespaces".into()],
        ];
        let storms = words.into_iter().map(|words| {
            let storm = self.storm()?.args(words);
            storm.args(["--until-end"]).start()
        });
        storms.collect()
    }

    /// Fails unless rules hold after a storm, with the agent killed, and with the next one, which
    /// is returned; and unless what was lost is told.
    fn hold<'lab>(&'lab self, mut agent: Agent<'lab>, counter: &str) -> Result<Agent<'lab>> {
        self.probe("after the storm")?;
        let what = format!("{counter} is told");
        let n_lost = agent.wait_for(&what, |records| lost(records, counter))?;
        println!("{counter}: {n_lost}");
        agent.stop(Signal::SIGKILL)?;
        self.probe("with the agent killed")?;
        let agent = self.start()?;
        self.probe("with the next agent")?;
        Ok(agent)
    }

    fn close(self) -> Result<()> {
        agent::detach(&self.lab)?;
        self.lab.close()
    }
}

#[test]
fn control_groups_that_a_user_makes_take_no_room_of_others() -> Result<()> {
    let world = World::new()?;
    let agent = world.start()?;
    let delegated = world.delegated()?;
    let storm = world.storm()?.args(["groups"]).args([&delegated]);
    let storm = storm.args(["--count", &count(600, 17_000)]);
    storm.run()?.success()?;
    let agent = world.hold(agent, "cgroups-full")?;
    // All that is gone has left, so there is room for more of his own.
    let mut number = 0;
    wait_for("a group of the user's is known again", || {
        number += 1;
        let late = delegated.join(format!("late-{number}"));
        let mkdir = Program::new("/bin/mkdir", &world.lab.host, None, Some(USER))?;
        mkdir.args([&late]).run()?.success()?;
        let sent = world.sends(&late, Path::new(TRAFFIC), USER, OF_UNIT)?;
        fs::remove_dir(&late)?;
        Ok(sent.then_some(()))
    })?;
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

#[test]
fn executables_that_a_user_executes_take_no_room_of_others() -> Result<()> {
    let world = World::new()?;
    let agent = world.start()?;
    let program = world.program_of_user()?;
    let storm = world.storm()?.args(["executables"]).args([&program]);
    let storm = storm.args(["--count", &count(800, 16_500)]);
    storm.run()?.success()?;
    let agent = world.hold(agent, "executables-full")?;
    let mut number = 0;
    let unit = world.lab.unit("lab.service")?;
    wait_for("a program of the user's is known again", || {
        number += 1;
        let late = world
            .lab
            .copy_program(TRAFFIC, &format!("good/late-{number}"))?;
        let sent = world.sends(&unit, &late, USER, OF_EXE)?;
        fs::remove_file(&late)?;
        Ok(sent.then_some(()))
    })?;
    // One that has left since is known again when it is executed again.
    ensure!(
        world.sends(&unit, &world.lab.file("good/0"), OTHER, OF_EXE)?,
        "a program that has left is not known when it comes back"
    );
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

#[test]
fn processes_of_a_user_take_no_room_of_others() -> Result<()> {
    let world = World::new()?;
    let agent = world.start()?;
    let storm = world.storm()?.args(["processes"]);
    let mut storm = storm.args(["--count", &count(1_200, 9_000)]).start()?;
    storm.line()?;
    let agent = world.hold(agent, "processes-full")?;
    storm.proceed()?;
    storm.finish()?.success()?;
    let good = world.lab.copy_program(TRAFFIC, "good/late")?;
    let unit = world.lab.unit("lab.service")?;
    wait_for("a process of the user's is known again", || {
        Ok(world.sends(&unit, &good, USER, OF_EXE)?.then_some(()))
    })?;
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

/// Neither is made anew, executed anew or sends by a hook that could know it: they are looked for.
#[test]
fn what_found_no_room_is_looked_up_when_there_is_some() -> Result<()> {
    let world = World::new()?;
    let agent = world.start()?;
    let delegated = world.delegated()?;
    let make = |groups: &[PathBuf]| -> Result<()> {
        let mkdir = Program::new("/bin/mkdir", &world.lab.host, None, Some(USER))?;
        mkdir.args(groups).run()?.success().map(drop)
    };
    let groups: Vec<PathBuf> = (0..300)
        .map(|number| delegated.join(format!("early-{number}")))
        .collect();
    make(&groups)?;
    let late = delegated.join("late");
    make(std::slice::from_ref(&late))?;
    let is_known = || world.sends(&late, Path::new(TRAFFIC), OTHER, OF_UNIT);
    ensure!(!is_known()?, "there was room for the group");

    let storm = world.storm()?;
    let mut storm = storm.args(["processes", "--count", "1200"]).start()?;
    storm.line()?;
    let good = world.lab.copy_program(TRAFFIC, "good/late")?;
    let unit = world.lab.unit("lab.service")?;
    let process = Program::new(&good, &world.lab.host, Some(&unit), Some(USER))?;
    let process = process.args(["insist", &at(places::PEER, OF_EXE)]);
    let mut process = process.start()?;
    let mut passed = || Record::parse(&process.line()?)?.number("passed");
    ensure!(passed()? == 0, "there was room for the process");

    for group in &groups {
        fs::remove_dir(group)?;
    }
    storm.proceed()?;
    storm.finish()?.success()?;
    wait_for("the same group is known", || Ok(is_known()?.then_some(())))?;
    wait_for("the same process is known", || {
        Ok((passed()? > 0).then_some(()))
    })?;
    drop(process);
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

/// The users within a namespace that a user has made are his to name.
#[test]
fn users_of_a_user_namespace_have_the_room_of_who_made_it() -> Result<()> {
    let world = World::new()?;
    let agent = world.start()?;
    let storm = world.storm()?.args(["processes", "--users", "64"]);
    let mut storm = storm.args(["--count", "600"]).start()?;
    storm.line()?;
    let pid = storm.pid();
    fs::write(format!("/proc/{pid}/uid_map"), "0 65534 1\n1 200000 64\n")?;
    storm.proceed()?;
    storm.line()?;
    let agent = world.hold(agent, "processes-full")?;
    storm.proceed()?;
    storm.finish()?.success()?;
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

/// Nobody sees how these end: the hook was taken away while no agent ran.
#[test]
fn processes_whose_end_nobody_has_seen_leave() -> Result<()> {
    let world = World::new()?;
    world.start()?.stop(Signal::SIGKILL)?;
    let pins = world.lab.pinned();
    let hook = |pin: &&PathBuf| pin.to_string_lossy().ends_with("-sched_process_exit");
    fs::remove_file(pins.iter().find(hook).context("no pin of the hook")?)?;
    let storm = world.storm()?.args(["processes"]);
    let mut storm = storm.args(["--count", &count(400, 9_000)]).start()?;
    storm.line()?;
    storm.proceed()?;
    storm.finish()?.success()?;
    let agent = world.start()?;
    world.probe("after the storm")?;
    let good = world.lab.copy_program(TRAFFIC, "good/late")?;
    let unit = world.lab.unit("lab.service")?;
    wait_for("a process of the user's is known again", || {
        Ok(world.sends(&unit, &good, USER, OF_EXE)?.then_some(()))
    })?;
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

/// All tables at once, whoever fills them, and with nobody who empties them.
#[test]
fn rules_hold_with_every_table_full() -> Result<()> {
    const SMALL: &str = "[tables]\nprocesses = 1024\nexecutables = 512\ncgroups = 256\n\
                         flows = 64\nuplink_flows = 64\nended = 64\nremembered = 64\n\
                         events_bytes = \"4 KiB\"\n";
    let world = World::new()?;
    let agent = world.lab.agent().policy(&world.policy).settings(SMALL);
    let mut agent = agent.flows("each").uplink("auto").start()?;
    let (delegated, program) = (world.delegated()?, world.program_of_user()?);
    let storm = |what: &str, on: Option<&Path>, count: &str| -> Result<Program> {
        let storm = world.storm()?.args([what]).args(on);
        Ok(storm.args(["--count", count]))
    };
    storm("groups", Some(&delegated), "600")?.run()?.success()?;
    storm("executables", Some(&program), "800")?
        .run()?
        .success()?;
    let mut processes = storm("processes", None, "1200")?.start()?;
    processes.line()?;
    let unit = world.lab.unit("lab.service")?;
    let to_many = || -> Result<Program> {
        let program = Program::new(TRAFFIC, &world.lab.host, Some(&unit), Some(OTHER))?;
        let to = at(places::PEER, OF_USER);
        Ok(program.args(["udp-many", &to, "--destinations", "200", "--count", "400"]))
    };
    let mut flows = to_many()?.args(["--hold"]).start()?;
    flows.line()?;
    flows.proceed()?;
    flows.line()?;
    for counter in [
        "cgroups-full",
        "executables-full",
        "processes-full",
        "flows-full",
    ] {
        agent.wait_for(counter, |records| lost(records, counter))?;
    }
    world.probe("with full tables")?;
    agent.signal(Signal::SIGSTOP)?;
    to_many()?.run()?.success()?;
    world.probe("with full tables, and nobody who empties them")?;
    agent.signal(Signal::SIGCONT)?;
    for counter in ["events-full", "packets-untold"] {
        agent.wait_for(counter, |records| lost(records, counter))?;
    }
    drop(flows);
    processes.proceed()?;
    processes.finish()?.success()?;
    agent.stop(Signal::SIGTERM)?;
    world.close()
}

/// Each start interned all executables again, under another key.
#[test]
fn the_next_agent_knows_executables_by_the_same_numbers() -> Result<()> {
    let world = World::new()?;
    let pin = |name: &str| {
        let mut pins = world.lab.pinned().into_iter();
        pins.find(|pin| pin.ends_with(name)).context("no such pin")
    };
    // A program that runs all the time: no other has its path.
    let own = world.lab.copy_program(TRAFFIC, "own/program")?;
    let unit = world.lab.unit("lab.service")?;
    let words = ["udp", &at(places::PEER, OF_UNIT), "--hold"];
    let runs = Program::new(&own, &world.lab.host, Some(&unit), None)?;
    let mut runs = runs.args(words).start()?;
    runs.line()?;
    let mut first = None;
    for signal in [Signal::SIGKILL, Signal::SIGTERM].repeat(2) {
        let agent = world.start()?;
        let key = kernel::element(&kernel::pinned(&pin("EXECUTABLE_KEY")?)?, 0)?;
        ensure!(key.iter().any(|byte| *byte != 0), "there is no key");
        ensure!(
            *first.get_or_insert_with(|| key.clone()) == key,
            "another key"
        );
        let pin = pin("EXECUTABLES")?;
        let n_entries = fill::entries_with(&pin, own.as_os_str().as_bytes())?;
        ensure!(n_entries == 1, "one program has {n_entries} numbers");
        agent.stop(signal)?;
    }
    world.close()
}

/// Memory that the agent may have whatever a user does, in KiB.
const MOST_KIB: u64 = 192 << 10;

/// Sums of a storm, over the agents that it has seen.
#[derive(Debug, Default)]
struct Seen {
    n_agents: u64,
    most_kib: u64,
    /// Of all agents, from when they were ready on.
    processor: Duration,
    running: Duration,
}

/// Groups, executables, processes, sockets and namespaces at once, by a user who has a group of his
/// own: each second rules of every kind hold for others, agents end and start at any moment, and
/// what they tell adds up.
#[test]
fn a_storm_of_everything_changes_nothing_for_others() -> Result<()> {
    let seconds = number_of("TREFOIL_STORM_SECONDS", 20);
    let mut chance = Chance::from_time();
    let world = World::new()?;
    let mut records = Vec::new();
    records.extend(world.start_in_storm()?.stop(Signal::SIGTERM)?.1);
    let (begun, mut seen) = (Instant::now(), Seen::default());
    let storms = world.everything()?;
    let mut n_probes = 0;
    while begun.elapsed().as_secs() < seconds || seen.n_agents < 2 {
        let agent = world.start_in_storm()?;
        let (started, at_start) = (Instant::now(), agent.processor()?);
        let until = Duration::from_millis(2_000 + chance.below(18_000));
        while started.elapsed() < until {
            let probed = world.probe("in the storm");
            probed.with_context(|| format!("{n_probes} before, status: {}", world.status()))?;
            world.tidy()?;
            n_probes += 1;
            seen.most_kib = seen.most_kib.max(agent.resident_kib()?);
            std::thread::sleep(Duration::from_millis(500));
        }
        seen.processor += agent.processor()? - at_start;
        seen.running += started.elapsed();
        seen.n_agents += 1;
        let signal = [Signal::SIGKILL, Signal::SIGTERM][chance.below(2) as usize];
        records.extend(agent.stop(signal)?.1);
        if chance.below(2) == 0 {
            world.probe("with no agent")?;
            world.tidy()?;
            n_probes += 1;
        }
    }
    for storm in storms {
        println!("rounds: {}", storm.finish()?.success()?.stdout.trim());
    }
    let left = arrived(&world.lab, &[("approved", &world.lab.peer)])?;
    let mut last = world.start_in_storm()?;
    let before = records.clone();
    let mut told = Ok(BTreeMap::new());
    let waited = last.wait_for("all that left is told", |records| {
        told = told_by_verdict(&[&before, records].concat());
        told.as_ref().is_ok_and(|told| *told == left).then_some(())
    });
    // Not the last records, of which there are many.
    ensure!(waited.is_ok(), "left {left:?}, told {told:?}");
    records.extend(last.stop(Signal::SIGTERM)?.1);
    let share = seen.processor.as_secs_f64() / seen.running.as_secs_f64();
    println!("{seen:?}, {n_probes} probes, {share:.2} of a processor");
    println!("lost: {:?}", lost_traffic(&records)?);
    // One whose sink was slow is told by two agents.
    let told: Vec<Record> = numbered(&records)?.into_iter().cloned().collect();
    for counter in ["cgroups-full", "executables-full", "processes-full"] {
        println!("{counter}: {}", lost(&told, counter).unwrap_or(0));
    }
    ensure!(
        lost(&told, "cgroups-full").is_some(),
        "room that he had not is not told"
    );
    assert_eq!(told_by_verdict(&records)?, left);
    ensure!(seen.most_kib < MOST_KIB, "{} KiB", seen.most_kib);
    ensure!(share < 1.0, "{share} of a processor");
    world.close()
}
