//! Other kernels for the image than its own, each from the release of Debian that has it.
//!
//! Such a kernel finds the modules that it gets in its initrd, which loads them all, and
//! none on the disk. So the disk is the same for every kernel, and stays what Debian 12
//! installs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::image::SUITE;
use crate::{
    apt,
    workspace::{self, as_root},
};

/// The names that scenarios have for them, and where the newest of each is. A suite's newest kernel
/// changes: it is the one of the day on which the image is made.
const KERNELS: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.12", "trixie"), ("newest", "sid")];

/// Package that depends on the newest kernel of a suite, and the flavour of it that is meant.
const PACKAGE: &str = "linux-image-cloud-amd64";
const FLAVOUR: &str = "-cloud-amd64";

/// For the machine's devices and disk, for systemd, for the uplinks of scenarios, and what a
/// kernel would load by itself for the agent: filters at uplinks, and cutting connections.
/// Some are built into some kernels.
const MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "autofs4",
    "veth",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
];

/// Run as root, with the root directory of the image, the directory of the kernel's modules,
/// where the initrd is to be, and the names of the modules. All kernels of Debian's unpack what
/// gzip has packed; mkinitramfs wants to read that in a place where not all of them say it.
const MAKE_INITRD: &str = r#"set -eu
root=$1 modules=$2 initrd=$3
shift 3
version=${modules##*/}
cp --recursive "$modules" "$root/usr/lib/modules/"
cp --recursive "$root/etc/initramfs-tools" "$root/tmp/settings"
printf "MODULES=list\nCOMPRESS=gzip\n" >"$root/tmp/settings/conf.d/modules"
printf '%s\n' "$@" >"$root/tmp/settings/modules"
echo CONFIG_RD_GZIP=y >"$root/boot/config-$version"
chroot "$root" depmod "$version"
chroot "$root" mkinitramfs -d /tmp/settings -o /tmp/initrd "$version"
install --mode=644 "$root/tmp/initrd" "$initrd"
rm --recursive "$root/tmp/initrd" "$root/tmp/settings" "$root/boot/config-$version" \
    "$root/usr/lib/modules/$version"
"#;

/// All that decides what they are, except what the archive has today.
pub fn recipe() -> String {
    format!("{KERNELS:?} {PACKAGE} {FLAVOUR} {MODULES:?} {MAKE_INITRD}")
}

/// Makes `vmlinuz` and `initrd` of each kernel, in a directory of its name in `directory`.
/// `root` is where the image has been installed, and is as before afterwards.
pub fn make(directory: &Path, root: &Path) -> Result<()> {
    let sources = root.join("etc/apt/sources.list");
    let sources =
        fs::read_to_string(&sources).with_context(|| format!("read {}", sources.display()))?;
    let keys = root.join("etc/apt/trusted.gpg.d");
    for (name, suite) in KERNELS {
        let kernel = directory.join(name);
        let fetched = kernel.join("fetched");
        fs::create_dir_all(&fetched).with_context(|| format!("make {}", fetched.display()))?;
        let sources = sources_of(suite, &sources);
        apt::download(&sources, &keys, &fetched, PACKAGE, is_of_a_kernel)
            .with_context(|| format!("fetch the kernel of {suite}"))?;
        let files = unpack(&fetched)?;
        let modules = modules(&files)?;
        fs::copy(vmlinuz(&files, &modules)?, kernel.join("vmlinuz")).context("keep a kernel")?;
        let mut make = Command::new("sh");
        make.args(["-c", MAKE_INITRD, "sh"])
            .args([root, &modules, &kernel.join("initrd")])
            .args(MODULES);
        workspace::run(&mut as_root(make))?;
        fs::remove_dir_all(&fetched).with_context(|| format!("remove {}", fetched.display()))?;
    }
    Ok(())
}

/// Whether a package has parts of a kernel in it. Those without a release in their name,
/// as in `linux-image-6.12.107+deb13-cloud-amd64`, have nothing in them.
fn is_of_a_kernel(package: &str) -> bool {
    let parts = package.strip_prefix("linux-");
    let release = parts.and_then(|rest| rest.split_once('-'));
    package.ends_with(FLAVOUR)
        && release.is_some_and(|(_, release)| release.starts_with(|c: char| c.is_ascii_digit()))
}

/// Where another suite's packages are: where the image's are. The one that is not released
/// has no updates for security, and is updated itself.
fn sources_of(suite: &str, sources: &str) -> String {
    let (own_security, security) = (format!("{SUITE}-security"), format!("{suite}-security"));
    let mut text = String::new();
    for line in sources.lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let is_wanted = |word: &str| word == SUITE || (word == own_security && suite != "sid");
        let Some(at) = words.iter().position(|word| is_wanted(word)) else {
            continue;
        };
        words[at] = if words[at] == SUITE { suite } else { &security };
        text += &words.join(" ");
        text.push('\n');
    }
    text
}

/// Unpacks all packages of a directory, next to them.
fn unpack(packages: &Path) -> Result<PathBuf> {
    let files = packages.join("files");
    for entry in fs::read_dir(packages).with_context(|| format!("list {}", packages.display()))? {
        let package = entry?.path();
        if package
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            let mut dpkg = Command::new("dpkg-deb");
            workspace::run(dpkg.arg("--extract").args([&package, &files]))?;
        }
    }
    Ok(files)
}

/// The directory with the modules of the only kernel; its name is the kernel's release.
/// Before Debian 13 it was not in /usr.
fn modules(files: &Path) -> Result<PathBuf> {
    let of_all = ["usr/lib/modules", "lib/modules"].map(|path| files.join(path));
    let found = of_all.iter().find_map(|path| fs::read_dir(path).ok());
    let found: Vec<_> = found.into_iter().flatten().flatten().collect();
    ensure!(found.len() == 1, "no kernel, or several: {found:?}");
    Ok(found[0].path())
}

/// In /boot, or beside its modules since Debian 14.
fn vmlinuz(files: &Path, modules: &Path) -> Result<PathBuf> {
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    let places = [
        files.join("boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let place = places.iter().find(|path| path.is_file());
    place
        .cloned()
        .with_context(|| format!("none of {places:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_kernel_has_its_release() {
        for package in [
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ] {
            assert!(is_of_a_kernel(package), "{package}");
        }
        for package in [PACKAGE, "linux-image-5.10.0-46-amd64", "kmod", "linux-base"] {
            assert!(!is_of_a_kernel(package), "{package}");
        }
    }

    #[test]
    fn a_suite_is_where_the_images_own_is() {
        let own = "deb http://a.example/bookworm bookworm main\n\
                   deb http://a.example/bookworm bookworm-updates main\n\
                   deb [x=y] http://b.example/security bookworm-security main\n";
        assert_eq!(
            sources_of("trixie", own),
            "deb http://a.example/bookworm trixie main\n\
             deb [x=y] http://b.example/security trixie-security main\n"
        );
        assert_eq!(
            sources_of("sid", own),
            "deb http://a.example/bookworm sid main\n"
        );
    }
}
