//! Packages of the distribution, for [`setup`](crate::setup) and [`vm`](crate::vm).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

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

/// Downloads a package and all that it needs into `directory`, from other sources than this
/// machine's, which must be signed with one of `keys`. Packages installed on this machine,
/// and its lists of packages, are neither used nor changed.
pub fn download(
    sources: &str,
    keys: &Path,
    directory: &Path,
    package: &str,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let own = directory.join("apt");
    for part in ["state/lists/partial", "cache/archives/partial"] {
        let part = own.join(part);
        fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    let list = own.join("sources.list");
    fs::write(&list, sources).with_context(|| format!("write {}", list.display()))?;
    let none = Path::new("/dev/null");
    let settings = [
        ("Dir::Etc::sourcelist", &*list),
        ("Dir::Etc::sourceparts", none),
        ("Dir::Etc::preferences", none),
        ("Dir::Etc::preferencesparts", none),
        ("Dir::Etc::trusted", none),
        ("Dir::Etc::trustedparts", keys),
        ("Dir::State", &own.join("state")),
        ("Dir::State::status", none),
        ("Dir::Cache", &own.join("cache")),
    ];
    let apt = |program: &str| {
        let mut command = Command::new(program);
        for (name, path) in settings {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        // No other user may write into this directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command.current_dir(directory).stdin(Stdio::null());
        command
    };
    workspace::run(apt("apt-get").args(["update", "--error-on=any"]))?;
    let mut ask = apt("apt-cache");
    ask.args(["depends", "--recurse", "--important", package]);
    let output = ask.output().context("ask apt-cache what it needs")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A package stands at the beginning of a line, and what it needs is indented below it.
    let mut names: Vec<_> = text.lines().collect();
    names.retain(|line| !line.starts_with([' ', '<']) && is_wanted(line));
    if names.is_empty() {
        bail!("nothing of {package} in {sources:?}");
    }
    workspace::run(apt("apt-get").arg("download").args(names))
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
