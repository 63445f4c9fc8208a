//! Packages of the distribution, for [`setup`](crate::setup).

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{
    bpf_toolchain::executable_in_path,
    workspace::{self, as_root},
};

/// Installs packages, and removes none: a compiler of the distribution's that
/// conflicts with ours is the user's to remove.
pub fn install(names: &[&str]) -> Result<()> {
    if executable_in_path("apt-get").is_none() {
        bail!(
            "this is not a Debian or Ubuntu system; install what they call {} in its own way",
            names.join(", ")
        );
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(names);
    let Err(error) = workspace::run(&mut get(&arguments)) else {
        return Ok(());
    };
    // Part of the same may be installed already, from where newer ones are.
    let Some(backports) = backports() else {
        return Err(error);
    };
    println!("Trying once more with {}.", backports.suite);
    let list = format!("Dir::Etc::sourcelist={}", backports.list.display());
    let with = ["-o", &list, "--target-release", &backports.suite];
    workspace::run(&mut get(&[&with[..2], &["update"]].concat()))?;
    workspace::run(&mut get(&[&with[..], &arguments].concat()))
}

/// Where a release of Debian has newer packages than it came with.
struct Backports {
    suite: String,
    /// A list of sources that has them, beside those of this machine.
    list: PathBuf,
}

/// `None` if this is no release of Debian, or if it cannot be told where its packages are.
fn backports() -> Option<Backports> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let value = |key: &str| {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        release.lines().find_map(value)
    };
    if value("ID")? != "debian" {
        return None;
    }
    let codename = value("VERSION_CODENAME")?;
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(CODENAME) $(COMPONENT) $(REPO_URI)",
        ])
        .output()
        .ok()?;
    let targets = String::from_utf8(targets.stdout).ok()?;
    let main = format!("{codename} main ");
    let mirror = targets.lines().find_map(|line| line.strip_prefix(&main))?;
    let suite = format!("{codename}-backports");
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let list = workspace::target_dir().join("backports.list");
    fs::create_dir_all(workspace::target_dir()).ok()?;
    fs::write(&list, format!("{own}\ndeb {mirror} {suite} main\n")).ok()?;
    Some(Backports { suite, list })
}

/// A call of apt-get as root, which asks nothing.
pub fn get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    as_root(command)
}
