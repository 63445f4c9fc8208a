//! The image of a stock Debian 12 that virtual machines start from.
//!
//! It is made once and kept in target/vm/image, together with the recipe it
//! was made by, until that changes. Nothing of Trefoil is in it: a change of the
//! agent or of the tests makes no other image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::kernels;
use crate::workspace::{self, as_root};

/// The release of Debian that it is.
pub const SUITE: &str = "bookworm";

/// Packages installed beside the essential ones. No network tools but `ip`, `wg`, `nft` and
/// `ssh`, a web server, no compiler, no Python: a host that has little must be enough.
const PACKAGES: [&str; 15] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "wireguard-tools",
    "bash-completion",
    "openssh-server",
    "openssh-client",
    "sudo",
    "screen",
    "nginx-light",
    "nftables",
    "linux-image-cloud-amd64",
];

/// Files that the image has and Debian does not: the way for the tests to give
/// commands. Each with its path.
const FILES: [(&str, &str); 4] = [
    (
        "/etc/systemd/system/trefoil-guest.service",
        include_str!("trefoil-guest.service"),
    ),
    ("/etc/fstab", "/dev/vdb /guest ext4 ro,nofail 0 0\n"),
    ("/etc/hostname", "dc-host\n"),
    ("/etc/hosts", "127.0.0.1 localhost dc-host\n::1 localhost\n"),
];

/// Run as root, with the image's root directory as `$1`. The timers would do
/// their work in the middle of a test, and servers are started by the one that needs them.
const FINISH: &str = r#"set -eu
mkdir "$1/guest"
rm -f "$1/etc/resolv.conf"
systemctl --root="$1" --quiet enable trefoil-guest.service
systemctl --root="$1" --quiet disable ssh.service nginx.service
systemctl --root="$1" --quiet mask apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
"#;

/// Sparse: what a guest does not use is no space.
const DISK_SIZE: &str = "2G";

/// Makes the image unless it is there: `disk.raw`, `vmlinuz` and `initrd`, and those two of
/// other kernels in `kernels/`.
pub fn ensure(directory: &Path) -> Result<()> {
    let recipe = recipe();
    let kept = directory.join("recipe");
    if fs::read_to_string(&kept).is_ok_and(|text| text == recipe) {
        return Ok(());
    }
    println!(
        "Making the image of a Debian 12 in {}; this takes about two minutes.",
        directory.display()
    );
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let root = directory.join("root");
    let made = install(directory, &root)
        .and_then(|()| kernels::make(&directory.join("kernels"), &root))
        .and_then(|()| pack(directory, &root));
    // The root directory belongs to root, whoever runs this.
    let mut remove = Command::new("rm");
    remove
        .args(["--recursive", "--force", "--one-file-system"])
        .arg(&root);
    workspace::run(&mut as_root(remove))?;
    made?;
    fs::write(&kept, recipe).context("keep the recipe")
}

/// All that decides what the image is, except what the archive has today.
fn recipe() -> String {
    let kernels = kernels::recipe();
    format!("{SUITE} {PACKAGES:?} {FILES:?} {FINISH} {DISK_SIZE} {kernels}\n")
}

/// Installs a Debian into `root`.
fn install(directory: &Path, root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=minbase", "--architectures=amd64"]);
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
    for (number, (path, text)) in FILES.iter().enumerate() {
        let file = directory.join(format!("file-{number}"));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        mmdebstrap.arg(format!(
            "--customize-hook=upload '{}' {path}",
            file.display()
        ));
    }
    let finish = directory.join("finish");
    fs::write(&finish, FINISH).context("write the last steps")?;
    mmdebstrap.arg(format!("--customize-hook=sh '{}' \"$1\"", finish.display()));
    mmdebstrap.arg(SUITE).arg(root).args(archives()?);
    workspace::run(&mut as_root(mmdebstrap))
}

/// Where this machine gets Debian packages of the suite from. Empty if it is
/// another system; mmdebstrap has a default then.
fn archives() -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(RELEASE)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
        ])
        .args(["Created-By: Packages", "Origin: Debian"])
        .output()
        .context("ask apt-get where packages come from")?;
    if !output.status.success() {
        bail!(
            "apt-get indextargets: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('|'))
        .filter(|(release, _)| release.split('-').next() == Some(SUITE))
        .map(|(_, archive)| archive.to_owned())
        .collect())
}

/// Makes a disk of `root`, and takes the kernel out of it, which QEMU starts
/// without a boot loader.
fn pack(directory: &Path, root: &Path) -> Result<()> {
    let disk = directory.join("disk.raw");
    // The user who runs this has to read it all later.
    let user = format!("--reference={}", directory.display());
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([root, &disk])
        .arg(DISK_SIZE);
    workspace::run(&mut as_root(mke2fs))?;
    let mut files = vec![disk];
    for name in ["vmlinuz", "initrd"] {
        let file = directory.join(name);
        let mut copy = Command::new("cp");
        copy.args([boot_file(root, name)?, file.clone()]);
        workspace::run(&mut as_root(copy))?;
        files.push(file);
    }
    let mut chown = Command::new("chown");
    chown.arg(user).args(&files);
    workspace::run(&mut as_root(chown))
}

/// The file in /boot whose name begins with this.
fn boot_file(root: &Path, name: &str) -> Result<PathBuf> {
    let boot = root.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("list {}", boot.display()))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(name))
        .map(|entry| entry.path())
        .with_context(|| format!("no {name} in {}", boot.display()))
}
