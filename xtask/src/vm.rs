//! `vm`: the package on a stock Debian in virtual machines, without KVM.
//!
//! Prepares target/vm and leaves the rest to the scenarios, which are tests of
//! trefoil-tests: `image/` (made once), `packages/` (the Debian package, the same with
//! a higher version, the tarball), `scratch/` (what machines write, removed),
//! `results/` (the console and the journal of each scenario).

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::{
    battery::{self, Battery},
    package,
    setup::{self, Part},
    test::{self, Tally},
    workspace,
};

mod image;
mod kernels;

/// Higher than every version that there will be.
const NEXT_VERSION: &str = "9999";

/// Machines at a time. Each keeps a processor busy, or waits for a time to pass.
const AT_A_TIME: &str = "--test-threads=3";

/// Arguments of `vm`.
#[derive(Args)]
pub struct Vm {
    /// Only scenarios whose name contains this
    filter: Option<String>,
}

impl Vm {
    /// Runs the scenarios, and prints the sums last.
    pub fn run(self) -> Result<()> {
        setup::ensure(&[Part::Bpf])?;
        if !matches(self.filter.as_deref())? {
            bail!("no scenario has that in its name");
        }
        let (tally, succeeded) = run_scenarios(self.filter.as_deref(), &Battery::new()?)?;
        println!("{tally}");
        if !succeeded {
            bail!("scenarios failed");
        }
        Ok(())
    }
}

/// Whether any scenario has this in its name. Needs no image.
pub fn matches(filter: Option<&str>) -> Result<bool> {
    let mut list = scenarios(filter);
    list.args(["--list", "--format=terse"])
        .stderr(Stdio::inherit());
    let output = list
        .output()
        .with_context(|| format!("start {}", workspace::shown(&list)))?;
    if !output.status.success() {
        bail!("{} ended with {}", workspace::shown(&list), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.ends_with(": test")))
}

/// Prepares what machines are made of, and runs the scenarios in them.
pub fn run_scenarios(filter: Option<&str>, battery: &Battery) -> Result<(Tally, bool)> {
    setup::ensure(&[Part::Bpf, Part::CountryData, Part::Package, Part::Vm])?;
    let directory = workspace::target_dir().join("vm");
    // Both are work for one processor most of the time, the one because of what it waits
    // for and the other because whatever is linked is optimised as a whole.
    thread::scope(|scope| {
        let image = scope.spawn(|| image::ensure(&directory.join("image")));
        let packages = make_packages(&directory.join("packages"));
        let image = image
            .join()
            .map_err(|_| anyhow!("making the image panicked"))?;
        image.and(packages)
    })?;
    let scratch = directory.join("scratch");
    let results = directory.join("results");
    for left in [&scratch, &results] {
        remove(left)?;
    }
    let mut cargo = scenarios(filter);
    cargo.arg(AT_A_TIME).env("TREFOIL_VM", &directory);
    cargo.env(battery::DIRECTORY, &battery.directory);
    let ran = test::watch(&mut cargo);
    remove(&scratch)?;
    println!("Consoles and journals are in {}.", results.display());
    ran
}

/// `cargo test` for the scenarios, with the same features of all dependencies as
/// the other tests have, so that nothing is compiled twice.
fn scenarios(filter: Option<&str>) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--features", "trefoil-tests/vm"]);
    cargo.args(["--test", "vm", "--"]).args(filter);
    cargo
}

/// The package, the same with a higher version for the upgrade, the tarball, and the verifier's package.
fn make_packages(directory: &Path) -> Result<()> {
    remove(directory)?;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let keep = |made: &Path, name: &str| {
        fs::copy(made, directory.join(name))
            .map(drop)
            .with_context(|| format!("copy {}", made.display()))
    };
    // At once: making the next one takes the one before away.
    let package = package::debian_package(None)?;
    keep(&package, "trefoil.deb")?;
    keep(&package::tarball(&package)?, "trefoil.tar.gz")?;
    keep(
        &package::debian_package(Some(NEXT_VERSION))?,
        "trefoil-next.deb",
    )?;
    keep(&package::verifier_package()?, "trefoil-verify.deb")
}

fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))
}
