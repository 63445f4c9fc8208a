//! `test`: every test of the workspace, counted; a skip nobody declared fails. The
//! scenarios in virtual machines come last, so that nothing competes with them.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, BufRead, BufReader, Read, Write, pipe},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    battery::{self, Battery},
    build,
    setup::{self, Part},
    vm, workspace,
};

/// Skips that are declared: see the head of that file.
const SKIPS: &str = "tests/skips.txt";

/// How long output may go on after cargo has ended.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// The test that needs an agent with other layouts of its tables.
const OF_ANOTHER_VERSION: &str =
    "another_version_takes_over_and_nothing_gets_through_or_lost_untold";

/// As much of what a failed test said is repeated at the end.
const REPEATED_LINES: usize = 60;

/// Arguments of `test`.
#[derive(Args)]
pub struct Test {
    /// Only tests whose name contains this; declared skips are not compared then
    filter: Option<String>,
}

impl Test {
    /// Builds everything, runs the tests as root, and prints the sums last.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf, Part::CountryData, Part::Lab, Part::Manual])?;
        let kernel = running_kernel()?;
        let declared = declared_skips(
            &fs::read_to_string(workspace::root().join(SKIPS))
                .with_context(|| format!("read {SKIPS}"))?,
            &kernel,
        )?;
        // Another filter must not cost a build.
        let filter = self.filter.as_deref();
        if filter.is_none_or(|filter| OF_ANOTHER_VERSION.contains(filter)) {
            build::other_layout()?;
        }
        // The end-to-end tests start the agent's binary, which `cargo test`
        // alone would not build anew.
        workspace::run(workspace::cargo().args(["build", "--workspace"]))?;

        let battery = Battery::new()?;
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--workspace", "--no-fail-fast"]);
        cargo.env(battery::DIRECTORY, &battery.directory);
        if !workspace::is_root() {
            // Only the test programs are root's: what cargo writes into
            // target/ stays the user's.
            cargo.args([
                "--config",
                "target.'cfg(unix)'.runner = ['sudo', '--preserve-env']",
            ]);
        }
        cargo.args(&self.filter);
        let (mut tally, mut succeeded) = watch(&mut cargo)?;
        // A filter that means another test must not cost an image.
        if self.filter.is_none() || vm::matches(self.filter.as_deref())? {
            let (more, all_succeeded) = vm::run_scenarios(self.filter.as_deref(), &battery)?;
            tally.add(more);
            succeeded &= all_succeeded;
        }

        let mut problems = Vec::new();
        if tally.results == 0 {
            problems.push("no test ran".to_owned());
        }
        if !succeeded {
            problems.push("cargo test failed; the reason is above".to_owned());
        }
        println!("{}", battery.observed()?);
        for failure in &tally.failures {
            println!("{failure}");
        }
        if self.filter.is_none() {
            problems.extend(battery.missing()?);
            problems.extend(tally.skipped.difference(&declared).map(|name| {
                format!("{name} was skipped, but {SKIPS} does not declare it for kernel {kernel}")
            }));
            problems.extend(declared.difference(&tally.skipped).map(|name| {
                format!("{name} was not skipped, but {SKIPS} declares it for kernel {kernel}")
            }));
        }
        for problem in &problems {
            println!("error: {problem}");
        }
        println!("{tally}");
        if !problems.is_empty() {
            bail!("the tests did not pass");
        }
        Ok(())
    }
}

/// Results from the tests' own output, added up over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many test programs came to their closing line.
    results: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
    /// The names of the tests that were ignored.
    skipped: BTreeSet<String>,
    failures: Vec<Failure>,
    /// The lines that are read now are what the last of them said.
    is_in_failure: bool,
}

/// A test that failed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Failure {
    name: String,
    said: Vec<String>,
}

/// Its reason stands at the end of what it said.
impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} failed:", self.name)?;
        let from = self.said.len().saturating_sub(REPEATED_LINES);
        for line in &self.said[from..] {
            writeln!(formatter, "    {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.ignored
        )
    }
}

impl Tally {
    /// Adds what other test programs said.
    fn add(&mut self, more: Self) {
        self.results += more.results;
        self.passed += more.passed;
        self.failed += more.failed;
        self.ignored += more.ignored;
        self.skipped.extend(more.skipped);
        self.failures.extend(more.failures);
    }

    /// Takes in one line of the test harness, and ignores what is no such line.
    fn read(&mut self, line: &str) {
        self.read_failure(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.results += 1;
            // "ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s"
            let words: Vec<&str> = counts.split([' ', ';']).filter(|w| !w.is_empty()).collect();
            for pair in words.windows(2) {
                let Ok(count) = pair[0].parse::<u32>() else {
                    continue;
                };
                match pair[1] {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        } else if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, outcome)) = rest.split_once(" ... ")
            && outcome.starts_with("ignored")
        {
            self.skipped.insert(name.to_owned());
        }
    }

    /// Keeps what failed tests said, up to the backtrace.
    fn read_failure(&mut self, line: &str) {
        let head = line.strip_prefix("---- ");
        if let Some(name) = head.and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.is_in_failure = true;
            self.failures.push(Failure {
                name: name.to_owned(),
                said: Vec::new(),
            });
        } else if line == "failures:" || line.to_lowercase().starts_with("stack backtrace:") {
            self.is_in_failure = false;
        } else if self.is_in_failure
            && let Some(failure) = self.failures.last_mut()
        {
            failure.said.push(line.to_owned());
        }
    }
}

/// Runs cargo, passes on all it prints as it prints it, and adds up.
pub fn watch(cargo: &mut Command) -> Result<(Tally, bool)> {
    let (reader, writer) = pipe().context("make a pipe for the tests' output")?;
    // One pipe for both, so that a failure stands beside the name of its test program.
    cargo
        .stdout(writer.try_clone().context("duplicate the pipe")?)
        .stderr(writer);
    let mut child = cargo
        .spawn()
        .with_context(|| format!("start {}", workspace::shown(cargo)))?;
    // This process's own copies of the writing end must go, or the reader never ends.
    cargo.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(pass_on(reader)));
    let status = child.wait().context("wait for cargo test")?;
    // Whoever still holds the pipe after cargo has gone is a process that a
    // test left behind: that is a failure, not a reason to wait for ever.
    let tally = receiver
        .recv_timeout(LEFT_BEHIND)
        .context("a process that a test started still runs after the tests")?
        .context("read the tests' output")?;
    Ok((tally, status.success()))
}

/// Copies the tests' output to this program's own, line by line.
fn pass_on(reader: impl Read) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut output = io::stdout();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let begun = Instant::now();
    let mut n_programs = 0;
    while reader.read_until(b'\n', &mut line)? != 0 {
        if line.trim_ascii_start().starts_with(b"Running ") {
            n_programs += 1;
            let minutes = begun.elapsed().as_secs_f64() / 60.0;
            writeln!(
                output,
                "==> test program {n_programs}, after {minutes:.1} min"
            )?;
        }
        output.write_all(&line)?;
        tally.read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(tally)
}

/// The names that are declared as skipped on this kernel.
///
/// A line is `KERNEL NAME REASON`: a kernel release's prefix or `*`, the
/// test's name as the harness prints it, and why.
fn declared_skips(text: &str, kernel: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.splitn(3, char::is_whitespace);
        let (Some(release), Some(name), Some(_reason)) = (words.next(), words.next(), words.next())
        else {
            bail!("{SKIPS}:{}: expected KERNEL NAME REASON", number + 1);
        };
        if release == "*" || is_release_of(release, kernel) {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether `kernel` is `release` or a version below it: 6.1 covers 6.1.0-40, not 6.12.
fn is_release_of(release: &str, kernel: &str) -> bool {
    kernel
        .strip_prefix(release)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

fn running_kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the release")?;
    Ok(release.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/trefoil-1)",
            "test policy::parses ... ok",
            "test lab::needs_a_kernel ... ignored, not here",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            tally.read(line);
        }
        let expected = Tally {
            results: 2,
            passed: 6,
            failed: 2,
            ignored: 1,
            skipped: BTreeSet::from(["lab::needs_a_kernel".to_owned()]),
            ..Tally::default()
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let mut tally = Tally::default();
        for line in [
            "failures:",
            "",
            "---- a::b stdout ----",
            "Error: the reason",
            "Stack backtrace:",
            "   0: somewhere",
            "",
            "---- c stdout ----",
            "assertion failed",
            "",
            "failures:",
            "    a::b",
        ] {
            tally.read(line);
        }
        let failure = |name: &str, said: &[&str]| Failure {
            name: name.to_owned(),
            said: said.iter().map(|&line| line.to_owned()).collect(),
        };
        let expected = [
            failure("a::b", &["Error: the reason"]),
            failure("c", &["assertion failed", ""]),
        ];
        assert_eq!(tally.failures, expected);
    }

    #[test]
    fn a_declared_skip_holds_for_its_kernel_alone() {
        let text = "# head\n\n6.1 a::b no such hook\n* c::d never\n";
        let on = |kernel| declared_skips(text, kernel).unwrap();
        assert_eq!(on("6.1.0-40-cloud-amd64").len(), 2);
        assert_eq!(on("6.12.1"), BTreeSet::from(["c::d".to_owned()]));
    }

    #[test]
    fn a_skip_without_a_reason_is_refused() {
        assert!(declared_skips("6.1 a::b", "6.1").is_err());
    }
}
