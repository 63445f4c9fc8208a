//! Network namespaces, held by a file descriptor and without a name.
//!
//! A namespace without a name dies with the last process and descriptor that
//! uses it, so a killed test leaves none behind. `ip netns exec` is not used:
//! it mounts /sys anew, which hides the BPF file system and the control groups.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::program::pass_on;

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// What the lab calls it.
    pub name: &'static str,
    file: Arc<File>,
}

impl Namespace {
    /// A new namespace with nothing in it but a loopback interface that is down.
    pub fn new(name: &'static str) -> Result<Self> {
        let make = move || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let file = std::thread::spawn(make)
            .join()
            .map_err(|_| anyhow!("the thread that makes namespace {name} panicked"))?
            .with_context(|| format!("make network namespace {name} (needs root)"))?;
        Ok(Self {
            name,
            file: Arc::new(file),
        })
    }

    /// The descriptor's file, for `setns` in a child.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Path under which another process can open this namespace while this
    /// process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `act` on a thread inside the namespace. Sockets made there stay
    /// there, whoever uses them.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter network namespace {}", self.name))?;
                    act()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with several commands, one a line, inside the namespace.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        pass_on(&mut ip, Some(self), None, None)?;
        let mut child = ip.spawn().context("run ip (package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(commands.as_bytes())
                .context("hand commands to ip")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        if !output.status.success() {
            bail!(
                "ip in namespace {}: {}\ncommands were:\n{commands}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}
