//! Control groups of the lab, below the root of the version 2 hierarchy.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::wait::wait_for;

/// Where the version 2 hierarchy is mounted: /sys/fs/cgroup on most systems,
/// /sys/fs/cgroup/unified beside version 1.
pub fn version2_root() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let directory = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(directory))
    }))
}

/// Kills what runs in `directory` and below, and removes it. A control group
/// that is not there is fine.
pub fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    kill(directory)?;
    wait_for(
        &format!("the last process of {} is gone", directory.display()),
        || {
            let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
            Ok((!events.contains("populated 1")).then_some(()))
        },
    )?;
    remove_empty(directory)
}

/// Process ids in `directory` and below.
pub fn processes(directory: &Path) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in below(directory)? {
        all.extend(processes(&entry)?);
    }
    let own = match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(own) => own,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
        Err(error) => {
            return Err(error).with_context(|| format!("list {}", directory.display()));
        }
    };
    all.extend(own.lines().filter_map(|line| line.parse::<u32>().ok()));
    Ok(all)
}

fn kill(directory: &Path) -> Result<()> {
    // cgroup.kill came with 5.14.
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for pid in processes(directory)? {
        // One that is gone already is fine.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    Ok(())
}

fn remove_empty(directory: &Path) -> Result<()> {
    for entry in below(directory)? {
        remove_empty(&entry)?;
    }
    wait_for(&format!("{} can be removed", directory.display()), || {
        match fs::remove_dir(directory) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
            // A process that was just killed is counted until it is reaped.
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
            Err(error) => bail!("remove {}: {error}", directory.display()),
        }
    })
}

fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("list {}", directory.display()));
        }
    };
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect())
}
