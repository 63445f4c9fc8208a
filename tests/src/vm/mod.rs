//! Virtual machines with a stock Debian in them, in which the package is
//! installed as an operator would and looked at as an operator does.
//!
//! A scenario is a test on the host: it starts a [`Vm`] and gives its shell
//! commands. Every machine begins from the same saved moment, so that a
//! scenario starts in a second, and what it does to its disk goes with it. The
//! image is made by `cargo xtask vm`, which also says where it is.
//!
//! /guest in the machine is a file system of its own with the programs and
//! packages under test ([`payload`]): all else there is what Debian installs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::record::Record;

pub mod console;
pub mod payload;
pub mod qemu;
pub mod wire;

use qemu::{Origin, Qemu};
use wire::{Message, Request};

/// Names the directory that `cargo xtask vm` has prepared: `image/`, `packages/`,
/// and room for `scratch/` and `results/`.
const DIRECTORY: &str = "TREFOIL_VM";

/// The package as it is built, and the same with a higher version, in /guest.
pub const PACKAGE: &str = "/guest/trefoil.deb";
/// See [`PACKAGE`].
pub const NEXT_PACKAGE: &str = "/guest/trefoil-next.deb";
/// The package of the verifier.
pub const VERIFIER_PACKAGE: &str = "/guest/trefoil-verify.deb";
/// See [`PACKAGE`].
pub const TARBALL: &str = "/guest/trefoil.tar.gz";

/// How long a command, a boot or a condition may take: emulation is slow, and
/// two machines share two processors. A wait of this length has failed.
const PATIENCE: Duration = Duration::from_secs(420);

/// Boots of one machine that may be tried.
const BOOTS: u32 = 3;

/// How often the wire is looked at, and the pause between the first two looks at a
/// condition.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two looks at a condition: each costs emulated processor
/// time, which whatever is waited for needs as well.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How much of a journal is kept: of the scenarios in which thousands of packets are
/// refused, the end.
const KEPT_LINES: u32 = 2000;

/// A running machine. Its console and journal are kept in `results/NAME` when
/// it is dropped, and what its commands took in `times.txt`; nothing else of it is.
#[derive(Debug)]
pub struct Vm {
    name: String,
    wire: BufReader<UnixStream>,
    half_line: Vec<u8>,
    last_id: u64,
    /// For each command: seconds of the host's processors until its end, those that
    /// it took, and its seconds by the clock.
    times: File,
    qemu: Qemu,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit code, as a shell tells it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A moment in the life of a machine that others begin from. It is reached once,
/// by the first who asks.
#[derive(Debug)]
pub struct Moment(OnceLock<Result<Origin, String>>);

/// The system is up, and nothing was done to it.
static BOOTED: Moment = Moment::new();

impl Vm {
    /// A machine on which Debian has just started. `name` is that of the scenario.
    pub fn booted(name: &str) -> Result<Self> {
        let origin = BOOTED.origin(|| Self::boot("booted", None))?;
        Self::start(name, &origin)
    }

    /// As [`booted`](Self::booted), with another kernel, of those that the image has been made
    /// with. Nobody else begins from there.
    pub fn booted_with(kernel: &str, name: &str) -> Result<Self> {
        Self::boot(name, Some(kernel))
    }

    /// Boots Debian as the image has it, on which nothing of Trefoil has run.
    ///
    /// The emulator sometimes loses a timer of a processor that is halted, and the guest's kernel
    /// then tells of a stall, so a boot that fails is begun again, [`BOOTS`] times in all.
    fn boot(name: &str, kernel: Option<&str>) -> Result<Self> {
        let origin = stock(kernel)?;
        let mut attempt = 1;
        loop {
            let mut vm = Self::start(name, &origin)?;
            match vm.wait_for_boot(None) {
                Ok(()) => return Ok(vm),
                Err(error) if attempt < BOOTS => eprintln!("{name}, boot {attempt}: {error:#}"),
                Err(error) => return Err(error),
            }
            attempt += 1;
        }
    }

    /// A machine as it was at a moment; `reach` is asked for one that has got there.
    pub fn at(moment: &Moment, name: &str, reach: impl FnOnce() -> Result<Self>) -> Result<Self> {
        Self::start(name, &moment.origin(reach)?)
    }

    fn start(name: &str, origin: &Origin) -> Result<Self> {
        let results = directory()?.join("results").join(name);
        fs::create_dir_all(&results).with_context(|| format!("make {}", results.display()))?;
        let (qemu, wire) = Qemu::start(origin, scratch()?, results.join("console.log"))?;
        wire.set_read_timeout(Some(PAUSE))?;
        Ok(Self {
            name: name.to_owned(),
            wire: BufReader::new(wire),
            half_line: Vec::new(),
            last_id: 0,
            times: File::create(results.join("times.txt"))?,
            qemu,
        })
    }

    /// Runs a command line to its end, whatever that is.
    pub fn run(&mut self, command: &str) -> Result<Ended> {
        self.run_with_input(command, "")
    }

    /// Runs a command line, and fails unless it succeeds. Returns its output.
    pub fn ok(&mut self, command: &str) -> Result<String> {
        let ended = self.run(command)?;
        ensure!(ended.code == 0, "{command}: {ended:?}");
        Ok(ended.stdout)
    }

    /// Writes a file.
    pub fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let ended = self.run_with_input(&format!("cat > '{path}'"), text)?;
        ensure!(ended.code == 0, "write {path}: {ended:?}");
        Ok(())
    }

    /// Reads a file.
    pub fn read(&mut self, path: &str) -> Result<String> {
        self.ok(&format!("cat '{path}'"))
    }

    /// Returns the records that `journalctl -o json` prints with these arguments.
    pub fn journal(&mut self, arguments: &str) -> Result<Vec<Record>> {
        self.ok(&format!("journalctl --quiet -o json {arguments}"))?
            .lines()
            .map(Record::parse)
            .collect()
    }

    /// Asks until the answer is `Some`.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut pause = PAUSE;
        loop {
            if let Some(answer) = ask(self)? {
                return Ok(answer);
            }
            if start.elapsed() > PATIENCE {
                bail!("waited {} s in vain: {what}", PATIENCE.as_secs());
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 3 / 2);
        }
    }

    /// Shuts the system down as an operator does, and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        let boot_id = self.read("/proc/sys/kernel/random/boot_id")?;
        self.send("systemctl reboot", "")?;
        self.wait_for_boot(Some(boot_id.trim()))
    }

    /// Waits for another boot than `before`, and until systemd has started all
    /// that it starts.
    fn wait_for_boot(&mut self, before: Option<&str>) -> Result<()> {
        self.wait_for("the system boots", |message| match message {
            Message::Hello { boot_id } if Some(boot_id.as_str()) != before => Some(()),
            _ => None,
        })?;
        self.run("systemctl is-system-running --wait")?;
        Ok(())
    }

    fn run_with_input(&mut self, command: &str, stdin: &str) -> Result<Ended> {
        let (start, processor_start) = (Instant::now(), self.qemu.processor_time());
        let sent = self.send(command, stdin)?;
        let ended = self.wait_for(command, |message| match message {
            Message::Answer {
                id,
                code,
                stdout,
                stderr,
            } if id == sent => Some(Ended {
                code,
                stdout,
                stderr,
            }),
            _ => None,
        })?;
        writeln!(
            self.times,
            "{:7.1} {:6.1} {:6.1}  {}",
            self.qemu.processor_time().as_secs_f32(),
            (self.qemu.processor_time() - processor_start).as_secs_f32(),
            start.elapsed().as_secs_f32(),
            command.lines().next().unwrap_or_default()
        )?;
        Ok(ended)
    }

    fn send(&mut self, command: &str, stdin: &str) -> Result<u64> {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            command: command.to_owned(),
            stdin: stdin.to_owned(),
        };
        self.wire
            .get_ref()
            .write_all(request.to_line().as_bytes())
            .with_context(|| format!("{command}: {}", self.qemu.explain()))?;
        Ok(self.last_id)
    }

    /// The first message that `look` finds something in.
    fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(Message) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.next_message()?.and_then(&mut look) {
                return Ok(found);
            }
            if start.elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                bail!("no end of {what:?} in {seconds} s{}", self.qemu.explain());
            }
        }
    }

    /// The next message, if there is one soon.
    fn next_message(&mut self) -> Result<Option<Message>> {
        match self.wire.read_until(b'\n', &mut self.half_line) {
            Ok(0) => bail!("the machine is gone: {}", self.qemu.explain()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("read from the guest"),
        }
        let line = std::mem::take(&mut self.half_line);
        Ok(Message::parse(&String::from_utf8_lossy(&line)).ok())
    }

    fn keep_journal(&mut self) -> Result<()> {
        let text = self.ok(&format!(
            "journalctl --quiet --merge -o short-precise -n {KEPT_LINES}"
        ))?;
        let path = directory()?.join("results").join(&self.name);
        fs::write(path.join("journal.txt"), text).context("write the journal")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It is for whoever looks for the reason of a failure, and no part of it.
        if self.qemu.failure().is_none() {
            let _ = self.keep_journal();
        }
    }
}

impl Moment {
    /// A moment that nobody has reached yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Where to begin from. Whoever comes while another is on the way there waits
    /// for that one, and fails with it.
    fn origin(&self, reach: impl FnOnce() -> Result<Vm>) -> Result<Origin> {
        self.0
            .get_or_init(|| {
                let saved = reach().and_then(|mut vm| vm.qemu.save(&scratch()?));
                saved.map_err(|error| format!("{error:#}"))
            })
            .clone()
            .map_err(|error| anyhow!(error))
    }
}

impl Default for Moment {
    fn default() -> Self {
        Self::new()
    }
}

/// The image as it was made, with its own kernel or another one, and the payload.
fn stock(kernel: Option<&str>) -> Result<Origin> {
    static PAYLOAD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = directory()?;
    let payload = PAYLOAD.get_or_init(|| {
        let made = scratch().and_then(|at| payload::make(&at, &directory.join("packages")));
        made.map_err(|error| format!("{error:#}"))
    });
    let image = directory.join("image");
    Ok(Origin {
        disk: image.join("disk.raw"),
        format: "raw",
        payload: payload.clone().map_err(|error| anyhow!(error))?,
        memory: None,
        kernel: kernel.map_or_else(|| image.clone(), |name| image.join("kernels").join(name)),
    })
}

fn directory() -> Result<PathBuf> {
    std::env::var_os(DIRECTORY)
        .map(PathBuf::from)
        .with_context(|| {
            format!("{DIRECTORY} is not set: run `cargo xtask vm`, which makes the image")
        })
}

/// A directory that nobody else has.
fn scratch() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(directory()?
        .join("scratch")
        .join(format!("{}-{number}", std::process::id())))
}
