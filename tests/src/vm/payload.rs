//! The second disk of every machine: the programs and packages under test, as
//! a file system of its own. So they can change without another image, and are
//! no files of the system that the tests compare.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Programs of this crate that guests have in /guest.
const PROGRAMS: [&str; 2] = ["trefoil-guest", "traffic"];

/// Makes the file system in `directory` from this crate's programs and all
/// files of `packages`.
pub fn make(directory: &Path, packages: &Path) -> Result<PathBuf> {
    let content = directory.join("content");
    fs::create_dir_all(&content).with_context(|| format!("make {}", content.display()))?;
    for name in PROGRAMS {
        let program = beside_this_program(name)?;
        fs::copy(&program, content.join(name))
            .with_context(|| format!("copy {}", program.display()))?;
    }
    for entry in fs::read_dir(packages).with_context(|| format!("list {}", packages.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), content.join(entry.file_name()))
            .with_context(|| format!("copy {}", entry.path().display()))?;
    }

    let disk = directory.join("payload.ext4");
    let output = Command::new(mke2fs())
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&content, &disk])
        .arg("256M")
        .output()
        .context("start mke2fs (`cargo xtask setup vm` installs it)")?;
    ensure!(
        output.status.success(),
        "mke2fs {}: {}",
        disk.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::remove_dir_all(&content).context("remove what is in the file system now")?;
    Ok(disk)
}

fn beside_this_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} near {}: run `cargo xtask vm`", own.display()))
}

/// Not every user's PATH leads to where it is.
fn mke2fs() -> PathBuf {
    ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .unwrap_or_else(|| "mke2fs".into())
}
