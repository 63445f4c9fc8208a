//! The agent under test, started as a user would start it and looked at from
//! outside.
//!
//! Safety: it is always attached to the lab's control group and to interfaces of the lab's
//! own namespace, in which it runs. This is checked here, and there is no way to ask for
//! anything else.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::Objects;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::pipe::Pipe;
use crate::program::{Outcome, make_older, pass_on, pass_on_as_root};
use crate::record::Record;
use crate::tail::Tail;
use crate::terminal::Terminal;
use crate::wait::{PATIENCE, wait_for};

/// How long one look at the notification socket lasts before it is checked
/// that the agent still runs.
const NOTIFY_LOOK: Duration = Duration::from_millis(100);

/// The program under test: `TREFOIL_BIN`, or `trefoil` beside the programs of
/// this crate.
pub fn trefoil() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TREFOIL_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("find the running program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("trefoil"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no `trefoil` near {}: run `cargo xtask test`, which builds it",
                own.display()
            )
        })
}

/// The same with other layouts of its tables.
fn of_other_layout() -> Result<PathBuf> {
    let path = trefoil()?.with_file_name("trefoil-other-layout");
    ensure!(
        path.is_file(),
        "no {}: run `cargo xtask test another_version`, which builds it",
        path.display()
    );
    Ok(path)
}

/// An agent that is not started yet.
#[derive(Debug)]
pub struct AgentBuilder<'lab> {
    lab: &'lab Lab,
    policy: String,
    settings: String,
    flows: &'static str,
    terminal: Option<&'lab Terminal>,
    arguments: Vec<&'static str>,
    variables: Vec<(&'static str, &'static str)>,
    uplinks: Vec<String>,
    records: PathBuf,
    json: Option<PathBuf>,
    is_json_written: bool,
    is_of_other_layout: bool,
    pipe: Option<&'lab Pipe>,
    has_journal: bool,
    pins: PathBuf,
    ahead_s: Option<u32>,
}

/// A running agent. Killed and taken out of the kernel when dropped.
#[derive(Debug)]
pub struct Agent<'lab> {
    lab: &'lab Lab,
    child: Child,
    file: PathBuf,
    json: Tail,
    records: Vec<Record>,
    errors: PathBuf,
    policy: PathBuf,
    objects: Objects,
    pins: PathBuf,
}

impl<'lab> AgentBuilder<'lab> {
    /// An agent that reports each flow, with an empty policy in report mode.
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        Self {
            lab,
            policy: "mode = \"report\"\n".into(),
            settings: String::new(),
            flows: "each",
            terminal: None,
            arguments: Vec::new(),
            variables: Vec::new(),
            uplinks: Vec::new(),
            records: lab.file(""),
            json: None,
            is_json_written: true,
            is_of_other_layout: false,
            pipe: None,
            has_journal: true,
            pins: lab.pins(),
            ahead_s: None,
        }
    }

    /// With this policy.
    pub fn policy(mut self, policy: &str) -> Self {
        policy.clone_into(&mut self.policy);
        self
    }

    /// With this settings file.
    pub fn settings(mut self, settings: &str) -> Self {
        settings.clone_into(&mut self.settings);
        self
    }

    /// With approved flows reported so: `each`, `rollup`, `auto`.
    pub fn flows(mut self, flows: &'static str) -> Self {
        self.flows = flows;
        self
    }

    /// As somebody starts it who sits at a terminal.
    pub fn on_terminal(mut self, terminal: &'lab Terminal) -> Self {
        self.terminal = Some(terminal);
        self
    }

    /// With the host's interface of this name watched, `auto` for all that lead out.
    /// Without, none is.
    pub fn uplink(mut self, name: impl Into<String>) -> Self {
        self.uplinks.push(name.into());
        self
    }

    /// With its records in a file of this directory, and not of the lab's.
    pub fn records_in(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.records);
        self
    }

    /// With this file for records, which is not made. For agents that are to refuse.
    pub fn records_at(mut self, file: &Path) -> Self {
        self.json = Some(file.to_owned());
        self
    }

    /// With pins in another directory, beside those of the lab's other agents.
    pub fn pins(mut self, name: &str) -> Self {
        self.pins = self.pins.with_file_name(name);
        self
    }

    /// In a time namespace in which the host has been up for this much longer.
    pub fn in_time_namespace(mut self, ahead_s: u32) -> Self {
        self.ahead_s = Some(ahead_s);
        self
    }

    /// Of a version with other layouts of its tables.
    pub fn of_other_layout(mut self, is_other: bool) -> Self {
        self.is_of_other_layout = is_other;
        self
    }

    /// With its records in the journal alone.
    pub fn without_json(mut self) -> Self {
        self.is_json_written = false;
        self
    }

    /// With its records in JSON alone, which is the report of record then.
    pub fn without_journal(mut self) -> Self {
        self.has_journal = false;
        self
    }

    /// With its records in JSON through this pipe. Records that its reader has not taken when the agent
    /// ends are those of [`Pipe::finish`] alone.
    pub fn records_through(mut self, pipe: &'lab Pipe) -> Self {
        self.pipe = Some(pipe);
        self
    }

    /// With one more word on the command line.
    pub fn argument(mut self, argument: &'static str) -> Self {
        self.arguments.push(argument);
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    /// The command line. Writes the files that it names.
    fn command(&self, run: u32) -> Result<(Command, PathBuf)> {
        let lab = self.lab;
        let policy = lab.file("policy.toml");
        let settings = lab.file("trefoil.toml");
        fs::write(&policy, &self.policy)?;
        fs::write(&settings, &self.settings)?;
        ensure!(
            lab.cgroup.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with("trefoillab") && name.ends_with(".slice")
            }),
            "refusing to attach an agent to {}: that is no lab",
            lab.cgroup.display()
        );
        let json = match (self.pipe, &self.json) {
            (Some(pipe), _) => pipe.path().to_owned(),
            (None, Some(file)) => file.clone(),
            (None, None) => {
                let file = self.records.join(format!("records-{run}.json"));
                File::create(&file)?;
                file
            }
        };
        let mut command = Command::new(match self.is_of_other_layout {
            true => of_other_layout()?,
            false => trefoil()?,
        });
        command
            .arg("run")
            .arg("--config")
            .arg(&settings)
            .arg("--policy")
            .arg(&policy)
            .arg("--geo")
            .arg(lab.file("geoip"))
            .arg("--geo")
            .arg(lab.file("geoip6"))
            .arg("--cgroup")
            .arg(&lab.cgroup)
            .arg("--pin-dir")
            .arg(&self.pins)
            .args(["--flows", self.flows])
            .args(&self.arguments)
            .envs(self.variables.iter().copied())
            .stdin(match self.terminal {
                Some(terminal) => terminal.stream()?,
                None => Stdio::null(),
            })
            // Ctrl-C in a terminal is not for it.
            .process_group(0);
        if self.is_json_written {
            command.arg("--json").arg(&json);
        }
        match self.uplinks.as_slice() {
            [] => command.args(["--uplink", "none"]),
            names => command.args(names.iter().flat_map(|name| ["--uplink", name])),
        };
        // Records of a test do not belong into the machine's journal.
        command.arg("--journal").arg(match self.has_journal {
            true => lab.journal()?.socket(),
            false => "none".into(),
        });
        pass_on(&mut command, Some(&lab.host), None, None)?;
        if let Some(ahead_s) = self.ahead_s {
            make_older(&mut command, ahead_s);
        }
        Ok((command, json))
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(self) -> Result<Agent<'lab>> {
        let (mut agent, socket) = self.begin()?;
        agent.wait_until_ready(&socket)?;
        agent.objects = Objects::held_by(agent.pid())?;
        Ok(agent)
    }

    /// Starts it for the time until `end` returns, ready or not, and kills it. Returns its
    /// records.
    pub fn start_and_kill(self, end: impl FnOnce()) -> Result<Vec<Record>> {
        let (agent, _socket) = self.begin()?;
        end();
        Ok(agent.stop(Signal::SIGKILL)?.1)
    }

    fn begin(self) -> Result<(Agent<'lab>, UnixDatagram)> {
        let run = next_run();
        let lab = self.lab;
        let pins = self.pins.clone();
        let (mut command, json) = self.command(run)?;
        let errors = lab.file(&format!("stderr-{run}"));
        let notify = lab.file(&format!("notify-{run}"));
        let socket = UnixDatagram::bind(&notify).context("bind a notification socket")?;
        socket.set_read_timeout(Some(NOTIFY_LOOK))?;
        command
            .env("NOTIFY_SOCKET", &notify)
            .stdout(match self.terminal {
                Some(terminal) => terminal.stream()?,
                None => File::create(lab.file(&format!("stdout-{run}")))?.into(),
            })
            .stderr(File::create(&errors)?);
        let child = command.spawn().context("start trefoil")?;
        let agent = Agent {
            lab,
            child,
            json: match self.pipe {
                Some(pipe) => Tail::open_at_end(pipe.taken())?,
                None => Tail::open(&json)?,
            },
            file: json,
            records: Vec::new(),
            errors,
            policy: lab.file("policy.toml"),
            objects: Objects::default(),
            pins,
        };
        Ok((agent, socket))
    }

    /// Runs it where it is expected to refuse: to its end.
    pub fn run_to_end(self) -> Result<Outcome> {
        let (mut command, _) = self.command(next_run())?;
        let Some(terminal) = self.terminal else {
            return run_to_end(command);
        };
        let mut child = command
            .stdout(terminal.stream()?)
            .stderr(terminal.stream()?)
            .spawn()
            .context("start trefoil")?;
        let ended = wait_for("trefoil ends", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let stdout = terminal.text()?;
        let status = ended.with_context(|| format!("it said: {stdout}"))?;
        Ok(Outcome {
            pid: child.id(),
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: String::new(),
        })
    }
}

fn next_run() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Agent<'_> {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time of a processor that it has had, all its threads together.
    pub fn processor(&self) -> Result<Duration> {
        let mut taken_ns = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            taken_ns += text.split(' ').next().context("no time")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(taken_ns))
    }

    /// The file that it writes records to.
    pub fn records_file(&self) -> &Path {
        &self.file
    }

    /// The BPF objects that it held when it was ready.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Returns the output on standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// All records so far.
    pub fn records(&mut self) -> Result<&[Record]> {
        for line in self.json.lines()? {
            self.records.push(Record::parse(&line)?);
        }
        Ok(&self.records)
    }

    /// Waits until `look` finds what it wants among all records so far.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&[Record]) -> Option<T>,
    ) -> Result<T> {
        let waited = wait_for(what, || {
            if let Some(status) = self.child.try_wait()? {
                let found = look(self.records()?);
                if found.is_none() {
                    bail!("the agent ended ({status}): {}", self.errors());
                }
                return Ok(found);
            }
            Ok(look(self.records()?))
        });
        waited.with_context(|| {
            let last: Vec<String> = self
                .records
                .iter()
                .rev()
                .take(12)
                .map(ToString::to_string)
                .collect();
            format!(
                "last records:\n{}\nstderr:\n{}",
                last.join("\n"),
                self.errors()
            )
        })
    }

    /// Writes another policy and tells the agent to read it.
    pub fn reload(&self, policy: &str) -> Result<()> {
        fs::write(&self.policy, policy)?;
        self.signal(Signal::SIGHUP)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("signal the agent")
    }

    /// Waits until it ends by itself, and returns the exit code, if it has one.
    pub fn ended(mut self) -> Result<Option<i32>> {
        let status = wait_for("the agent ends", || Ok(self.child.try_wait()?))
            .with_context(|| self.errors())?;
        Ok(status.code())
    }

    /// As [`ended`](Self::ended), and what is pinned stays.
    pub fn ended_and_left(mut self) -> Result<Option<i32>> {
        // Pinned objects are the caller's from here on.
        self.objects = Objects::default();
        self.ended()
    }

    /// Stops it by `signal` and waits for its end. Pinned objects stay. Returns
    /// the exit code, if it has one, and all records.
    pub fn stop(mut self, signal: Signal) -> Result<(Option<i32>, Vec<Record>)> {
        self.signal(signal)?;
        let status = wait_for("the agent ends", || Ok(self.child.try_wait()?))
            .with_context(|| self.errors())?;
        self.records()?;
        let records = std::mem::take(&mut self.records);
        // Pinned objects are the caller's from here on.
        self.objects = Objects::default();
        Ok((status.code(), records))
    }

    fn wait_until_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        let looks = PATIENCE.as_millis() / NOTIFY_LOOK.as_millis();
        let mut message = [0; 4096];
        for _ in 0..looks {
            match socket.recv(&mut message) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                    if text.lines().any(|line| line == "READY=1") {
                        return Ok(());
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("read notifications"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the agent ended before it was ready ({status}): {}",
                    self.errors()
                );
            }
        }
        Err(anyhow!("the agent is not ready: {}", self.errors()))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let ended = matches!(self.child.try_wait(), Ok(Some(_)));
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if self.pins.exists()
            && !self.objects.is_empty()
            && let Err(error) = detach_at(self.lab, &self.pins)
        {
            eprintln!("{error:#}");
        }
    }
}

/// Runs `trefoil` with these arguments on the host under test.
pub fn verb(lab: &Lab, arguments: &[&str]) -> Result<Outcome> {
    let mut command = Command::new(trefoil()?);
    command.args(arguments).stdin(Stdio::null());
    pass_on(&mut command, Some(&lab.host), None, None)?;
    run_to_end(command)
}

/// The same in another network namespace of the lab.
pub fn verb_in(namespace: &Namespace, arguments: &[&str]) -> Result<Outcome> {
    let mut command = Command::new(trefoil()?);
    command.args(arguments).stdin(Stdio::null());
    pass_on_as_root(&mut command, namespace)?;
    run_to_end(command)
}

/// Runs a program that is expected to end by itself, and kills it if it does not.
fn run_to_end(mut command: Command) -> Result<Outcome> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start trefoil")?;
    let pid = child.id();
    let pipes = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (
        std::thread::spawn(|| read_all(pipes.0)),
        std::thread::spawn(|| read_all(pipes.1)),
    );
    let ended = wait_for(&format!("{command:?} ends"), || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    let status = ended.with_context(|| format!("it said: {stdout}{stderr}"))?;
    Ok(Outcome {
        pid,
        code: status.code().unwrap_or(-1),
        stdout,
        stderr,
    })
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // Output that was read before an error is worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a verb that looks at what the lab's agent has in the kernel.
pub fn kernel_verb(lab: &Lab, verb_name: &str, arguments: &[&str]) -> Result<Outcome> {
    kernel_verb_at(lab, &lab.pins(), verb_name, arguments)
}

/// The same for an agent whose pins are there.
fn kernel_verb_at(lab: &Lab, pins: &Path, verb_name: &str, arguments: &[&str]) -> Result<Outcome> {
    let pins = pins.to_str().context("path of the pins")?;
    let mut all = vec![verb_name, "--pin-dir", pins];
    all.extend(arguments);
    verb(lab, &all)
}

/// Has `trefoil status` take note of what this kernel lacks, and of what is lost by now.
pub fn acknowledge(lab: &Lab) -> Result<()> {
    kernel_verb(lab, "status", &["--acknowledge"]).map(drop)
}

/// Takes the lab's agent out of the kernel.
pub fn detach(lab: &Lab) -> Result<()> {
    detach_at(lab, &lab.pins())
}

fn detach_at(lab: &Lab, pins: &Path) -> Result<()> {
    kernel_verb_at(lab, pins, "detach", &[])?
        .success()
        .context("trefoil detach")?;
    Ok(())
}
