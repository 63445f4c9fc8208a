//! One QEMU process: started with three wires to it (console, guest program,
//! control), saved, and ended whatever happens to this process.
//!
//! Emulation without KVM, so that it runs wherever the tests do, and without a
//! network card: nothing that a guest sends can leave it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};

use super::console;

/// QEMU has answered by then, or never will.
const CONTROL_PATIENCE: Duration = Duration::from_secs(120);

/// A whole scenario takes fewer minutes, or hangs; `TREFOIL_VM_MINUTES` says otherwise.
const LIFE_MINUTES: u64 = 15;

/// The kernel's command line. `panic=0`: a failed kernel stays as it is, for
/// the console's watcher to find; `loglevel=5` shows warnings and worse.
const KERNEL_ARGUMENTS: &str =
    "root=/dev/vda rw console=ttyS0 loglevel=5 panic=0 systemd.show_status=0";

/// All that QEMU can emulate, except what makes it slow. With `erms` and `fsrm` the
/// guest's kernel copies and clears memory by instructions that are emulated byte by
/// byte, and with `la57` each walk through page tables is a level longer.
const PROCESSOR: &str = "max,erms=off,fsrm=off,la57=off";

/// Files that a guest is started from. The guest changes none of them.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The directory with `vmlinuz` and `initrd`.
    pub kernel: PathBuf,
    /// The disk, and its format.
    pub disk: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// A file system that is read only.
    pub payload: PathBuf,
    /// The memory and devices of a guest that ran on this disk, to go on from
    /// there; it boots if there is none.
    pub memory: Option<PathBuf>,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    origin: Origin,
    child: Arc<Mutex<Child>>,
    control: BufReader<UnixStream>,
    directory: PathBuf,
    /// Failure that the console's watcher found.
    fatal: Arc<Mutex<Option<String>>>,
    log: PathBuf,
}

impl Qemu {
    /// Starts a guest on a layer of its own over the disk in `origin`, in
    /// `directory`, which goes with it. Returns the wire to the guest program, too.
    pub fn start(origin: &Origin, directory: PathBuf, log: PathBuf) -> Result<(Self, UnixStream)> {
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let disk = directory.join("disk.qcow2");
        add_layer(origin, &disk)?;
        let (console, console_end) = UnixStream::pair()?;
        let (guest, guest_end) = UnixStream::pair()?;
        let (control, control_end) = UnixStream::pair()?;
        let memory = origin.memory.as_ref().map(File::open).transpose()?;

        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2"])
            .args([
                "-m",
                "768",
                "-nic",
                "none",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-append", KERNEL_ARGUMENTS])
            .arg("-kernel")
            .arg(origin.kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(origin.kernel.join("initrd"))
            .args(["-drive", &drive(&disk, "qcow2", "cache=unsafe")])
            .args(["-drive", &drive(&origin.payload, "raw", "readonly=on")]);
        for (name, wire) in [
            ("console", &console_end),
            ("guest", &guest_end),
            ("control", &control_end),
        ] {
            let wire = wire.as_raw_fd();
            command.args(["-chardev", &format!("socket,id={name},fd={wire}")]);
        }
        command
            .args(["-serial", "chardev:console"])
            .args(["-mon", "chardev=control,mode=control"])
            .args(["-device", "virtio-serial-pci", "-device"])
            .arg(format!(
                "virtserialport,chardev=guest,name={}",
                super::wire::PORT
            ));
        let mut inherited: Vec<OwnedFd> =
            vec![console_end.into(), guest_end.into(), control_end.into()];
        if let Some(memory) = memory {
            command.args(["-incoming", &format!("fd:{}", memory.as_raw_fd())]);
            inherited.push(memory.into());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        bind_to_this_thread(&mut command, inherited);
        let child = command
            .spawn()
            .context("start qemu-system-x86_64 (`cargo xtask setup vm` installs it)")?;
        // With it go this process's copies of the far ends of the wires, so that
        // they end when QEMU does.
        drop(command);

        let child = Arc::new(Mutex::new(child));
        let fatal = Arc::new(Mutex::new(None));
        watch(console, &log, &guest, &fatal, &child)?;
        control.set_read_timeout(Some(CONTROL_PATIENCE))?;
        let mut qemu = Self {
            origin: origin.clone(),
            child,
            control: BufReader::new(control),
            directory,
            fatal,
            log,
        };
        qemu.begin().with_context(|| qemu.explain())?;
        Ok((qemu, guest))
    }

    /// Opens the control channel, and waits until the guest runs.
    fn begin(&mut self) -> Result<()> {
        self.read_control("QMP").context("greeting of QEMU")?;
        self.control("qmp_capabilities", json!({}))?;
        if self.origin.memory.is_some() {
            // It was saved while it stood still, and so it is restored.
            self.wait_for_status("paused")?;
            self.control("cont", json!({}))?;
        }
        self.wait_for_status("running")
    }

    /// Stops the guest for good, and returns what it can be started from again,
    /// any number of times.
    pub fn save(&mut self, directory: &Path) -> Result<Origin> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let memory = directory.join("memory");
        let disk = directory.join("disk.qcow2");
        self.control("stop", json!({}))?;
        // Without a limit of its own QEMU would write 128 MiB a second.
        self.control(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 1u64 << 40 }),
        )?;
        let uri = format!("exec:cat > '{}'", memory.display());
        self.control("migrate", json!({ "uri": uri }))?;
        let start = Instant::now();
        loop {
            let state = self.control("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => bail!("save the guest: {state}"),
                _ if start.elapsed() > CONTROL_PATIENCE => bail!("save the guest: {state}"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.control("quit", json!({}))?;
        lock(&self.child).wait().context("wait for QEMU to end")?;
        fs::rename(self.directory.join("disk.qcow2"), &disk)?;
        Ok(Origin {
            disk,
            format: "qcow2",
            memory: Some(memory),
            ..self.origin.clone()
        })
    }

    /// Why nothing can be expected of the guest any more, if that is so.
    pub fn failure(&self) -> Option<String> {
        if let Some(fatal) = lock(&self.fatal).clone() {
            return Some(fatal);
        }
        match lock(&self.child).try_wait() {
            Ok(Some(status)) => Some(format!("QEMU ended: {status}")),
            _ => None,
        }
    }

    /// Returns the time that it has taken of the host's processors.
    pub fn processor_time(&self) -> Duration {
        let id = lock(&self.child).id();
        let ticks = || -> Option<u64> {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let (_, fields) = stat.rsplit_once(')')?;
            let mut numbers = fields.split_whitespace().skip(11).map(str::parse::<u64>);
            Some(numbers.next()?.ok()? + numbers.next()?.ok()?)
        };
        // A hundredth of a second each, on all of Linux' usual machines.
        Duration::from_millis(ticks().unwrap_or_default() * 10)
    }

    /// The failure, and the end of the console.
    pub fn explain(&self) -> String {
        let failure = self.failure().unwrap_or_default();
        let log = self.log.display();
        format!("{failure}\nend of {log}:\n{}", console::tail(&self.log))
    }

    fn wait_for_status(&mut self, wanted: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.control("query-status", json!({}))?;
            if status["status"] == wanted {
                return Ok(());
            }
            ensure!(
                start.elapsed() < CONTROL_PATIENCE,
                "wait until the guest is {wanted}: {status}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// One command of QEMU's control protocol.
    fn control(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.control
            .get_ref()
            .write_all(line.as_bytes())
            .with_context(|| format!("tell QEMU to {command}"))?;
        self.read_control("return")
            .with_context(|| format!("QEMU's answer to {command}"))
    }

    /// The next message of this kind; events are of no interest.
    fn read_control(&mut self, kind: &str) -> Result<Value> {
        loop {
            let mut line = String::new();
            ensure!(self.control.read_line(&mut line)? > 0, "QEMU hung up");
            let mut message: Value = serde_json::from_str(&line)?;
            if let Some(error) = message.get("error") {
                bail!("{error}");
            }
            if let Some(value) = message.get_mut(kind) {
                return Ok(value.take());
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Both fail when it has ended already, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drive(file: &Path, format: &str, more: &str) -> String {
    // A comma ends a value, and is doubled where it is meant.
    let file = file.display().to_string().replace(',', ",,");
    format!("file={file},format={format},if=virtio,{more}")
}

/// An empty layer over the disk, which takes what the guest writes.
fn add_layer(origin: &Origin, layer: &Path) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", origin.format, "-b"])
        .args([&origin.disk, layer])
        .output()
        .context("start qemu-img (`cargo xtask setup vm` installs it)")?;
    ensure!(
        output.status.success(),
        "make {}: {}",
        layer.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Lets the command inherit these descriptors, and die with the thread that
/// starts it: a test that is killed must leave no QEMU behind.
fn bind_to_this_thread(command: &mut Command, inherited: Vec<OwnedFd>) {
    let parent = std::process::id();
    let enter = move || {
        for descriptor in &inherited {
            fcntl(descriptor.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
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
}

/// Watches the console and the clock from threads of their own. A fatal finding
/// ends QEMU, and with it the wire to the guest, so that nobody waits.
fn watch(
    console: UnixStream,
    log: &Path,
    guest: &UnixStream,
    fatal: &Arc<Mutex<Option<String>>>,
    child: &Arc<Mutex<Child>>,
) -> Result<()> {
    let guest = guest.try_clone()?;
    let (log, fatal, child) = (log.to_owned(), fatal.clone(), child.clone());
    let clock = console.try_clone()?;
    let (fatal_by_clock, ended) = (fatal.clone(), Arc::new(()));
    let running = Arc::downgrade(&ended);
    std::thread::spawn(move || {
        let _ended = ended;
        let found =
            console::watch(console, &log).unwrap_or_else(|error| Some(format!("{error:#}")));
        if let Some(found) = found {
            lock(&fatal).get_or_insert_with(|| format!("the guest's kernel failed: {found}"));
        }
        // Also when QEMU ended by itself.
        let _ = lock(&child).kill();
        let _ = guest.shutdown(std::net::Shutdown::Both);
    });
    let minutes = match std::env::var("TREFOIL_VM_MINUTES") {
        Ok(minutes) => minutes.parse().context("TREFOIL_VM_MINUTES is no number")?,
        Err(_) => LIFE_MINUTES,
    };
    std::thread::spawn(move || {
        let start = Instant::now();
        while running.strong_count() > 0 {
            if start.elapsed() > Duration::from_secs(minutes * 60) {
                lock(&fatal_by_clock).get_or_insert(format!("it still ran after {minutes} min"));
                let _ = clock.shutdown(std::net::Shutdown::Both);
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    Ok(())
}
