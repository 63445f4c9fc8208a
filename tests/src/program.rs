//! Programs that run at a place of the lab: in a namespace, in a control group,
//! as a user.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::battery::Privilege;
use crate::namespace::{HOST, Namespace};

/// Time between two looks at whether a program is over.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes `command`'s child enter a namespace and a control group and become a
/// user before its first instruction, and die with the thread that started it. In a
/// namespace of an ordinary user's, its user is that one's root.
pub fn pass_on(
    command: &mut Command,
    namespace: Option<&Namespace>,
    cgroup: Option<&Path>,
    uid: Option<u32>,
) -> Result<()> {
    let user = namespace.and_then(Namespace::user);
    enter_and_become(command, namespace, user, cgroup, uid)
}

/// As [`pass_on`], and stays root of the machine, as whoever sets the namespace up.
pub fn pass_on_as_root(command: &mut Command, namespace: &Namespace) -> Result<()> {
    enter_and_become(command, Some(namespace), None, None, None)
}

fn enter_and_become(
    command: &mut Command,
    namespace: Option<&Namespace>,
    user: Option<&File>,
    cgroup: Option<&Path>,
    uid: Option<u32>,
) -> Result<()> {
    let namespace: Option<OwnedFd> = match namespace {
        Some(namespace) => Some(
            namespace
                .file()
                .try_clone()
                .context("copy descriptor")?
                .into(),
        ),
        None => None,
    };
    let user: Option<OwnedFd> = match user {
        Some(user) => Some(user.try_clone().context("copy descriptor")?.into()),
        None => None,
    };
    let procs: Option<OwnedFd> = match cgroup {
        Some(directory) => {
            let path = directory.join("cgroup.procs");
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            Some(file.into())
        }
        None => None,
    };
    let parent = std::process::id();
    let enter = move || {
        // Signals that the parent blocks for itself must not be blocked here.
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        if let Some(procs) = &procs {
            // "0" stands for whoever writes it.
            nix::unistd::write(procs, b"0")?;
        }
        if let Some(namespace) = &namespace {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(user) = &user {
            nix::sched::setns(user, nix::sched::CloneFlags::CLONE_NEWUSER)?;
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(0.into())?;
            nix::unistd::setuid(0.into())?;
        }
        if let Some(uid) = uid {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(uid.into())?;
            nix::unistd::setuid(uid.into())?;
        }
        // A test that is killed must not leave programs behind. Changing the
        // user would clear this, so it comes last.
        // SAFETY: prctl with these arguments reads no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        if nix::unistd::getppid().as_raw() as u32 != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Makes `command`'s child a program in a time namespace of its own, in which the host has been up
/// for this much longer.
pub fn make_older(command: &mut Command, by_seconds: u32) {
    // Since Linux 6.3 a program that is executed is in the namespace that its children would be in.
    const CLONE_NEWTIME: libc::c_int = 0x80;
    let offsets = format!("monotonic {by_seconds} 0\nboottime {by_seconds} 0\n");
    let enter = move || {
        // SAFETY: unshare reads no memory of ours.
        if unsafe { libc::unshare(CLONE_NEWTIME) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let file = nix::fcntl::open(
            c"/proc/self/timens_offsets",
            nix::fcntl::OFlag::O_WRONLY,
            nix::sys::stat::Mode::empty(),
        )?;
        nix::unistd::write(file, offsets.as_bytes())?;
        Ok(())
    };
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// A program to be started somewhere in the lab.
#[derive(Debug)]
pub struct Program {
    command: Command,
    described: String,
    privilege: Privilege,
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Process id it had.
    pub pid: u32,
    /// Exit code; -1 if it died of a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Fails unless the exit code is 0.
    pub fn success(self) -> Result<Self> {
        if self.code != 0 {
            bail!("exit code {}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

impl Program {
    /// `executable` in `namespace`, with standard streams captured.
    pub fn new(
        executable: impl AsRef<OsStr>,
        namespace: &Namespace,
        cgroup: Option<&Path>,
        uid: Option<u32>,
    ) -> Result<Self> {
        let mut command = Command::new(executable.as_ref());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        pass_on(&mut command, Some(namespace), cgroup, uid)?;
        let described = format!(
            "{} in {}",
            Path::new(executable.as_ref()).display(),
            namespace.name
        );
        let privilege = match (namespace.name, uid) {
            (name, _) if name != HOST => Privilege::Container,
            (_, None | Some(0)) => Privilege::Root,
            (_, Some(_)) => Privilege::User,
        };
        Ok(Self {
            command,
            described,
            privilege,
        })
    }

    /// Privilege that it is started with.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.described.push(' ');
            self.described
                .push_str(&argument.as_ref().to_string_lossy());
            self.command.arg(argument);
        }
        self
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Outcome> {
        let child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.described))?;
        let pid = child.id();
        let output = child
            .wait_with_output()
            .with_context(|| format!("wait for {}", self.described))?;
        Ok(Outcome {
            pid,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs to the end. Killed, and a failure, if it runs longer than `time`, which is a bound for
    /// hopeless cases and no expectation.
    pub fn run_within(mut self, time: Duration) -> Result<Outcome> {
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.described))?;
        let pid = child.id();
        // Both are read while it runs: a full pipe would stop it.
        let stdout = child
            .stdout
            .take()
            .map(|pipe| thread::spawn(|| all_of(pipe)));
        let stderr = child
            .stderr
            .take()
            .map(|pipe| thread::spawn(|| all_of(pipe)));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > time {
                child.kill()?;
                child.wait()?;
                bail!("{} was not over after {} s", self.described, time.as_secs());
            }
            thread::sleep(PAUSE);
        };
        let text = |reader: Option<thread::JoinHandle<std::io::Result<Vec<u8>>>>| {
            let read = reader.map(|it| it.join().expect("it does not panic"));
            anyhow::Ok(String::from_utf8_lossy(&read.transpose()?.unwrap_or_default()).into_owned())
        };
        Ok(Outcome {
            pid,
            code: status.code().unwrap_or(-1),
            stdout: text(stdout)?,
            stderr: text(stderr)?,
        })
    }

    /// Starts and returns, with a pipe to its standard input.
    pub fn start(mut self) -> Result<Running> {
        self.command.stdin(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.described))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Running {
            child,
            stdin,
            stdout,
            described: self.described,
        })
    }
}

/// A program that was started and answers line by line. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    described: String,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> Result<String> {
        let stdout = self.stdout.as_mut().context("standard output was taken")?;
        let mut line = String::new();
        if stdout.read_line(&mut line)? == 0 {
            bail!("{} ended without a word", self.described);
        }
        Ok(line)
    }

    /// Tells it to go on, by an empty line.
    pub fn proceed(&mut self) -> Result<()> {
        self.tell("")
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input was closed")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("write to {}", self.described))
    }

    /// Closes its standard input and waits for its end.
    pub fn finish(mut self) -> Result<Outcome> {
        self.stdin = None;
        let mut stdout = String::new();
        if let Some(mut pipe) = self.stdout.take() {
            pipe.read_to_string(&mut stdout)?;
        }
        let status = self.child.wait()?;
        Ok(Outcome {
            pid: self.child.id(),
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: String::new(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn all_of(mut pipe: impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    pipe.read_to_end(&mut all)?;
    Ok(all)
}

/// Forks a child that ends at once, and waits for its end. The calling program has no other
/// thread.
pub fn fork_once() -> Result<()> {
    // SAFETY: the child calls nothing but _exit.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        nix::unistd::ForkResult::Child => {
            // SAFETY: it ends the process, and nothing else.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).context("wait for a child")?;
            Ok(())
        }
    }
}
