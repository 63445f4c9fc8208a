//! `trefoil trace` beside an agent of a lab.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::trefoil;
use crate::kernel::Objects;
use crate::program::pass_on;
use crate::{Lab, Record, wait_for};

/// One that runs. Killed when dropped.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

/// How one ended, and what it said.
#[derive(Debug)]
pub struct Traced {
    /// Exit code; none if it died of a signal.
    pub code: Option<i32>,
    /// Its lines.
    pub lines: Vec<Record>,
    /// Standard error.
    pub errors: String,
}

impl Tracer {
    /// Starts it with these arguments on the host under test, and waits until it traces.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (output, errors) = (
            lab.file(&format!("trace-{number}")),
            lab.file(&format!("trace-errors-{number}")),
        );
        let mut command = Command::new(trefoil()?);
        command
            .arg("trace")
            .arg("--json")
            .arg("--pin-dir")
            .arg(lab.pins())
            .args(["--geo".as_ref(), lab.file("geoip").as_os_str()])
            .args(["--geo".as_ref(), lab.file("geoip6").as_os_str()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?);
        pass_on(&mut command, Some(&lab.host), None, None)?;
        let child = command.spawn().context("start trefoil trace")?;
        let mut tracer = Self {
            child,
            output,
            errors,
        };
        wait_for("it traces", || {
            let ended = tracer.child.try_wait()?;
            match (tracer.errors().contains("tracing for"), ended) {
                (true, _) => Ok(Some(())),
                (false, Some(status)) => bail!("it ended ({status}): {}", tracer.errors()),
                (false, None) => Ok(None),
            }
        })?;
        Ok(tracer)
    }

    /// The BPF objects that it holds.
    pub fn objects(&self) -> Result<Objects> {
        Objects::held_by(self.child.id())
    }

    /// Returns the output on standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Lines so far.
    pub fn lines(&self) -> Result<Vec<Record>> {
        let text = fs::read_to_string(&self.output)?;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(Record::parse).collect()
    }

    /// Waits for a line of which this holds.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Record) -> bool) -> Result<Record> {
        wait_for(what, || {
            Ok(self.lines()?.into_iter().find(|line| is_it(line)))
        })
        .with_context(|| format!("{:?} {}", self.lines(), self.errors()))
    }

    /// Sends a signal and waits for its end.
    pub fn end(mut self, signal: Signal) -> Result<Traced> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("signal trefoil trace")?;
        self.ended()
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> Result<Traced> {
        let status = wait_for("the trace ends", || Ok(self.child.try_wait()?))?;
        Ok(Traced {
            code: status.code(),
            lines: self.lines()?,
            errors: self.errors(),
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
