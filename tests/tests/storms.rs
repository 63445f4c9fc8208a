//! A user makes more processes, executables or control groups than a table has room for: rules
//! about others hold, it is told as a loss, the agent starts at any moment, and room comes back.
//!
//! With `TREFOIL_FULL_TABLES` in tables of the usual size, which takes minutes.

mod world;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::program::Program;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Agent, Lab, Record, agent, places, wait_for};
use world::{REFUSED, TRAFFIC, at};

/// Somebody who makes too much, and somebody else.
const USER: u32 = 65534;
const OTHER: u32 = 1;

/// Ports that a service may send to, a program, and a user.
const OF_UNIT: u16 = 9;
const OF_EXE: u16 = 10;
const OF_USER: u16 = 11;

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
        ];
        let sinks = [OF_UNIT, OF_EXE, OF_USER].map(|port| UdpSink::new(&lab.peer, port));
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
        let (good, bad, traffic) = (copy("good")?, copy("denied")?, PathBuf::from(TRAFFIC));
        for (what, unit, program, user, port, expected) in [
            ("a service", &fresh, &traffic, OTHER, OF_UNIT, true),
            ("a program", &lab, &good, OTHER, OF_EXE, true),
            ("a user", &lab, &traffic, OTHER, OF_USER, true),
            ("another user", &lab, &traffic, 2, OF_USER, false),
            ("a denied service", &denied, &good, OTHER, OF_EXE, false),
            ("a denied program", &fresh, &bad, OTHER, OF_UNIT, false),
        ] {
            let sent = self.sends(unit, program, user, port)?;
            ensure!(sent == expected, "{when}, {what}: sent is {sent}");
        }
        Ok(())
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
    wait_for("a program of the user's is known again", || {
        number += 1;
        let late = world
            .lab
            .copy_program(TRAFFIC, &format!("good/late-{number}"))?;
        let unit = world.lab.unit("lab.service")?;
        let sent = world.sends(&unit, &late, USER, OF_EXE)?;
        Ok(sent.then_some(()))
    })?;
    // One that has left since is known again when it is executed again.
    let unit = world.lab.unit("lab.service")?;
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
