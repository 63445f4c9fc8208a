//! `fuzz`: searches for inputs that break the readers of files.
//!
//! libFuzzer's sources come with a crate and are built with the host's C++ compiler;
//! what guides it is a pass of LLVM that the stable compiler has too. So neither a
//! nightly nor clang is needed. There is no address sanitizer: what is fuzzed is safe
//! Rust, built so that overflows and broken assertions stop it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    setup::{self, Part},
    workspace,
};

const PACKAGE: &str = "trefoil-fuzz";
const CORPUS: &str = "tests/fuzz/corpus";
const DICTIONARIES: &str = "tests/fuzz/dictionaries";

/// The code that libFuzzer is guided by: a counter for each edge of the control flow,
/// and the operands of comparisons.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// An input that takes longer than this is a finding. It is generous, because a search
/// shares the machine with other work; `report_slow_units` names what is merely slow.
const LONGEST_SECONDS: u32 = 60;
/// Memory that no input of this size may take.
const MOST_MIB: u32 = 1024;
/// Large enough for everything that a file of these formats can contain.
const LONGEST_INPUT: u32 = 4096;

/// Arguments of `fuzz`.
#[derive(Args)]
pub struct Fuzz {
    /// Only these readers; without any, one after the other
    targets: Vec<String>,
    /// How long to search for each
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u32,
    /// Do not search: keep of what former searches found what is needed to get
    /// everywhere they got, in the repository
    #[arg(long)]
    minimise: bool,
    /// Further arguments for libFuzzer
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

impl Fuzz {
    /// Builds the fuzzer and runs it on each reader.
    pub fn run(self) -> Result<()> {
        let known = targets()?;
        if let Some(unknown) = self.targets.iter().find(|name| !known.contains(name)) {
            bail!(
                "no reader is called {unknown}; there are: {}",
                known.join(", ")
            );
        }
        let wanted = if self.targets.is_empty() {
            &known
        } else {
            &self.targets
        };
        setup::ensure(&[Part::Bpf, Part::Fuzz])?;
        let program = build()?;
        for name in wanted {
            let target = Target::new(name)?;
            if self.minimise {
                target.minimise(&program)?;
            } else {
                target.search(&program, self.time, &self.arguments)?;
            }
        }
        Ok(())
    }
}

/// A reader, with the directories of its search.
struct Target<'n> {
    name: &'n str,
    /// Inputs that are in the repository.
    kept: PathBuf,
    /// Inputs that searches on this machine found besides.
    found: PathBuf,
    /// Inputs that break it.
    broken: PathBuf,
}

impl<'n> Target<'n> {
    fn new(name: &'n str) -> Result<Self> {
        let work = workspace::target_dir().join("fuzzing").join(name);
        let target = Self {
            name,
            kept: workspace::root().join(CORPUS).join(name),
            found: work.join("corpus"),
            broken: work.join("findings"),
        };
        for directory in [&target.found, &target.broken] {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        Ok(target)
    }

    fn fuzzer(&self, program: &Path) -> Command {
        let mut fuzzer = Command::new(program);
        fuzzer
            .current_dir(workspace::root())
            .env("TREFOIL_FUZZ_TARGET", self.name)
            .env("TREFOIL_FUZZ_SEEDS", &self.found)
            .arg(format!("-max_len={LONGEST_INPUT}"))
            .arg(format!("-timeout={LONGEST_SECONDS}"))
            .arg(format!("-rss_limit_mb={MOST_MIB}"))
            .arg(format!("-artifact_prefix={}/", self.broken.display()));
        fuzzer
    }

    fn search(&self, program: &Path, seconds: u32, arguments: &[OsString]) -> Result<()> {
        println!("==> {} for {seconds} s", self.name);
        let mut fuzzer = self.fuzzer(program);
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            .args(["-report_slow_units=2", "-print_final_stats=1"]);
        let dictionary = workspace::root()
            .join(DICTIONARIES)
            .join(format!("{}.dict", self.name));
        if dictionary.is_file() {
            fuzzer.arg(format!("-dict={}", dictionary.display()));
        }
        fuzzer.args(arguments).args([&self.found, &self.kept]);
        workspace::run(&mut fuzzer).with_context(|| {
            format!(
                "an input breaks the reader of {}; it is in {}. Mend the reader, and keep the \
                 input in {} under a name that says what it did",
                self.name,
                self.broken.display(),
                self.kept.display()
            )
        })
    }

    /// Inputs that a person named stay; of the others, those that add something.
    fn minimise(&self, program: &Path) -> Result<()> {
        println!("==> {}", self.name);
        for entry in fs::read_dir(&self.kept)?.flatten() {
            let name = entry.file_name();
            if is_hash(&name.to_string_lossy()) {
                fs::copy(entry.path(), self.found.join(&name))?;
                fs::remove_file(entry.path())?;
            }
        }
        let mut fuzzer = self.fuzzer(program);
        // Every place that can be reached, and not how often it was: that would be ten
        // times the files.
        fuzzer
            .args(["-merge=1", "-use_counters=0"])
            .args([&self.kept, &self.found]);
        workspace::run(&mut fuzzer)
    }
}

/// Whether libFuzzer gave an input its name.
fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The readers that have a corpus.
fn targets() -> Result<Vec<String>> {
    let corpus = workspace::root().join(CORPUS);
    let entries = fs::read_dir(&corpus).with_context(|| format!("read {}", corpus.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

fn build() -> Result<PathBuf> {
    let host = host()?;
    let flags = INSTRUMENTATION.join("\x1f");
    // With a target named, the flags are not for build scripts and macros.
    workspace::run(
        workspace::cargo()
            .args(["build", "--package", PACKAGE, "--bin", "fuzz"])
            .args(["--features", "libfuzzer", "--profile", "fuzz"])
            .args(["--target", &host])
            .env("CARGO_ENCODED_RUSTFLAGS", flags),
    )?;
    Ok(workspace::target_dir().join(host).join("fuzz/fuzz"))
}

/// The machine's own target.
fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let output = command.arg("-vV").output().context("start rustc")?;
    let text = String::from_utf8(output.stdout).context("understand what rustc says")?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not say for which machine it builds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_a_person_named_is_kept() {
        assert!(is_hash("da39a3ee5e6b4b0d3255bfef95601890afd80709"));
        assert!(!is_hash("a-tree-that-repeats-itself"));
        assert!(!is_hash("the-forty-characters-of-this-name-are-it"));
    }

    #[test]
    fn every_reader_has_its_corpus() {
        let targets = targets().unwrap();
        assert!(targets.contains(&"policy".to_owned()), "{targets:?}");
    }
}
