//! A real journald of the lab's own.
//!
//! journald has namespaces of its own: an instance with its own sockets and
//! files, which `journalctl --namespace` reads. It needs no systemd around it.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::pass_on;
use crate::record::Record;
use crate::wait::wait_for;

/// The first descriptor that sd_listen_fds(3) hands over.
const FIRST_PASSED: i32 = 3;
const JOURNALD: [&str; 2] = [
    "/lib/systemd/systemd-journald",
    "/usr/lib/systemd/systemd-journald",
];

/// A running journald. Stopped, with all it wrote, when dropped.
#[derive(Debug)]
pub struct Journal {
    name: String,
    socket: UnixDatagram,
    child: Mutex<Child>,
}

impl Journal {
    /// Starts a journald for the journal namespace `name`.
    pub fn start(name: &str) -> Result<Self> {
        // Without a limit: tests log more in a second than a service ought to. A
        // journald with a namespace ends when nothing came for 30 s, unless it has
        // to keep watch over a retention time.
        let configuration = configuration_directory(name);
        fs::create_dir_all(&configuration)
            .with_context(|| format!("create {}", configuration.display()))?;
        fs::write(
            configuration.join("lab.conf"),
            "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nSyncIntervalSec=1s\n\
             MaxRetentionSec=1week\n",
        )
        .context("write journald's settings")?;
        let runtime = runtime_directory(name);
        fs::create_dir_all(&runtime).with_context(|| format!("create {}", runtime.display()))?;

        let socket = runtime.join("socket");
        let socket =
            UnixDatagram::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;
        let child = Mutex::new(spawn(name, &socket)?);
        let journal = Self {
            name: name.to_owned(),
            socket,
            child,
        };
        journal.wait_until_it_writes()?;
        Ok(journal)
    }

    /// Stops it, as an update of systemd would. Entries that it wrote stay, and
    /// those that are sent to it wait.
    pub fn stop(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).context("stop journald")?;
        child.wait().context("wait for journald")?;
        Ok(())
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn start_again(&self) -> Result<()> {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) =
            spawn(&self.name, &self.socket)?;
        self.wait_until_it_writes()
    }

    /// Lets it take nothing more: what is sent to it waits as far as the socket has room.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        kill(Pid::from_raw(child.id() as i32), signal).context("signal journald")
    }

    fn wait_until_it_writes(&self) -> Result<()> {
        wait_for("journald has begun its journal", || {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = child.try_wait()? {
                bail!("journald ended at once: {status}");
            }
            let begun = self
                .command()
                .args(["-q", "-n", "1", "-o", "cat"])
                .output()?;
            Ok((!begun.stdout.is_empty()).then_some(()))
        })
    }

    /// Returns the name for `journalctl --namespace`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The socket that takes entries.
    pub fn socket(&self) -> PathBuf {
        runtime_directory(&self.name).join("socket")
    }

    /// `journalctl` for this journal.
    pub fn command(&self) -> Command {
        let mut command = Command::new("journalctl");
        command
            .arg(format!("--namespace={}", self.name))
            .arg("--no-pager");
        command
    }

    /// Returns the output of `journalctl` with these arguments.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command()
            .args(arguments)
            .output()
            .context("run journalctl")?;
        if !output.status.success() {
            bail!("journalctl: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Entries that match, as records with the journal's field names.
    pub fn entries(&self, matches: &[&str]) -> Result<Vec<Record>> {
        let mut arguments = vec!["-q", "-o", "json", "--all"];
        arguments.extend(matches);
        self.text(&arguments)?.lines().map(Record::parse).collect()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Ending by SIGTERM would flush files that are thrown away below.
        let _ = child.kill();
        let _ = child.wait();
        if let Err(error) = clean(&self.name)
            && !std::thread::panicking()
        {
            eprintln!("journal {}: {error:#}", self.name);
        }
    }
}

/// Starts journald with a socket that is ours, as systemd would: what was sent
/// while there is no journald waits for the next one.
fn spawn(name: &str, socket: &UnixDatagram) -> Result<Child> {
    let program = JOURNALD
        .iter()
        .find(|path| Path::new(path).exists())
        .context("systemd-journald is missing: install package systemd")?;
    let mut command = Command::new("sh");
    // sd_listen_fds(3): only its addressee may take the descriptors.
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$1\"", program, name])
        .env("LISTEN_FDS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C in a terminal is not for it.
        .process_group(0);
    pass_on(&mut command, None, None, None)?;
    let socket = socket.as_raw_fd();
    let pass_socket = move || {
        let passed = if socket == FIRST_PASSED {
            // SAFETY: fcntl with these numbers reads no memory.
            unsafe { libc::fcntl(socket, libc::F_SETFD, 0) }
        } else {
            // SAFETY: dup2 reads no memory. The copy is not closed on exec.
            unsafe { libc::dup2(socket, FIRST_PASSED) }
        };
        if passed < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(pass_socket) };
    command.spawn().with_context(|| format!("start {program}"))
}

/// Removes the files of journal namespace `name`.
pub fn clean(name: &str) -> Result<()> {
    for path in traces(name)? {
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }
    Ok(())
}

/// Directories that exist for journal namespace `name`.
pub fn traces(name: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![configuration_directory(name), runtime_directory(name)];
    let suffix = format!(".{name}");
    for parent in ["/run/log/journal", "/var/log/journal"] {
        let Ok(entries) = fs::read_dir(parent) else {
            continue;
        };
        found.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix))
                .map(|entry| entry.path()),
        );
    }
    found.retain(|path| path.exists());
    Ok(found)
}

fn runtime_directory(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/systemd/journal.{name}"))
}

fn configuration_directory(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/systemd/journald@{name}.conf.d"))
}
