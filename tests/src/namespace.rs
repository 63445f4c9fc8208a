//! Network namespaces, held by a file descriptor and without a name.
//!
//! A namespace without a name dies with the last process and descriptor that
//! uses it, so a killed test leaves none behind. `ip netns exec` is not used:
//! it mounts /sys anew, which hides the BPF file system and the control groups.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::program::pass_on_as_root;

/// First of the user ids of containers, which nobody outside has.
const SUBORDINATE: u32 = 200_000;

/// Name of the namespace of the host under test.
pub const HOST: &str = "host";

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Name that the lab gives it.
    pub name: &'static str,
    file: Arc<File>,
    /// The user namespace that it belongs to, if it is not the machine's.
    user: Option<Arc<File>>,
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
            user: None,
        })
    }

    /// As [`new`](Self::new), in a user namespace of its own whose root is a user without
    /// privileges: a container as an ordinary user may make one. Programs in it have all
    /// capabilities there, and none outside.
    pub fn unprivileged(name: &'static str) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--user", "--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run unshare (package util-linux)")?;
        let made = Self::of_holder(name, &mut holder);
        holder.kill()?;
        holder.wait()?;
        made
    }

    fn of_holder(name: &'static str, holder: &mut Child) -> Result<Self> {
        // It answers once it is in its namespaces.
        let stdin = holder.stdin.as_mut().context("no pipe")?;
        stdin.write_all(b"x")?;
        let stdout = holder.stdout.as_mut().context("no pipe")?;
        stdout.read_exact(&mut [0])?;
        let of = |file: &str| format!("/proc/{}/{file}", holder.id());
        for map in ["uid_map", "gid_map"] {
            std::fs::write(of(map), format!("0 {SUBORDINATE} 65536"))
                .with_context(|| format!("write {map}"))?;
        }
        Ok(Self {
            name,
            file: Arc::new(File::open(of("ns/net"))?),
            user: Some(Arc::new(File::open(of("ns/user"))?)),
        })
    }

    /// The user namespace that programs in this one are in, if it is not the machine's.
    pub fn user(&self) -> Option<&File> {
        self.user.as_deref()
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
        self.batch("ip", &["-batch", "-"], commands)
    }

    /// Runs `tc` (package iproute2) with several commands, one a line, inside the namespace.
    pub fn tc(&self, commands: &str) -> Result<()> {
        self.batch("tc", &["-batch", "-"], commands)
    }

    /// Hands rules to `nft` inside the namespace.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.batch("nft", &["-f", "-"], rules)
    }

    fn batch(&self, program: &str, arguments: &[&str], commands: &str) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        pass_on_as_root(&mut command, self)?;
        let mut child = command.spawn().with_context(|| format!("run {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(commands.as_bytes())
                .with_context(|| format!("hand commands to {program}"))?;
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("wait for {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} in namespace {}: {}\ncommands were:\n{commands}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}
