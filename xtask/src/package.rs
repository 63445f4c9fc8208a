//! `package`: the Debian package in target/debian, and a tarball of the same files
//! for other distributions in target/package; and the package of the verifier.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    docs,
    setup::{self, Part},
    workspace,
};

mod changelog;
mod notices;

/// Arguments of `package`.
#[derive(Args)]
pub struct Package {}

impl Package {
    /// Builds the release agent and the verifier and packs them; what goes where stands in
    /// agent/Cargo.toml and agent/verify/Cargo.toml.
    pub fn run(self) -> Result<()> {
        let package = debian_package(None)?;
        println!("{}", package.display());
        println!("{}", tarball(&package)?.display());
        println!("{}", verifier_package()?.display());
        Ok(())
    }
}

/// Makes the Debian package, with another version than the workspace's if one is
/// given, and returns its path.
pub fn debian_package(version: Option<&str>) -> Result<PathBuf> {
    setup::ensure(&[Part::Bpf, Part::CountryData, Part::Package])?;
    let beside = beside();
    fs::create_dir_all(&beside).with_context(|| format!("make {}", beside.display()))?;
    // Both at once: the agent is compiled a single time for the two.
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release"]);
    cargo.args(["--package", "trefoil", "--package", "trefoil-manual"]);
    workspace::run(&mut cargo)?;
    docs::completions(&beside.join("completions"))?;
    fs::write(beside.join("THIRD-PARTY-LICENSES"), notices::notices()?)
        .context("write the licences of the dependencies")?;
    write_changelog("trefoil", version)?;
    for file in setup::COUNTRY_DATA {
        let name = Path::new(file).file_name().context("a file has a name")?;
        fs::copy(file, beside.join(name)).with_context(|| format!("copy {file}"))?;
    }
    // Another version has the same in it.
    pack("trefoil", version, version.is_none(), &[])
}

/// Makes the package of the verifier, and returns its path. An auditor's machine may be of any age, so
/// its program is linked statically.
pub fn verifier_package() -> Result<PathBuf> {
    const NAME: &str = "trefoil-verify";
    setup::ensure(&[Part::Package])?;
    fs::create_dir_all(beside()).with_context(|| format!("make {}", beside().display()))?;
    let target = format!("{ARCH}-unknown-linux-gnu");
    let mut cargo = workspace::cargo();
    // With a target named, these flags are not for what runs while it is built.
    cargo.args(["build", "--release", "--package", NAME, "--target", &target]);
    cargo.env(
        "RUSTFLAGS",
        "-C target-feature=+crt-static -C strip=symbols",
    );
    workspace::run(&mut cargo)?;
    let built = workspace::target_dir()
        .join(target)
        .join("release")
        .join(NAME);
    if asks_for_a_loader(&built)? {
        bail!("{} is not linked statically", built.display());
    }
    fs::copy(&built, beside().join(NAME)).with_context(|| format!("copy {}", built.display()))?;
    fs::write(beside().join("THIRD-PARTY-LICENSES"), notices::notices()?)
        .context("write the licences of the dependencies")?;
    write_changelog(NAME, None)?;
    pack(
        NAME,
        None,
        true,
        &[
            "statically-linked-binary",
            "shared-library-lacks-prerequisites",
        ],
    )
}

/// True if a program of 64 bits names another that loads it (`PT_INTERP`).
fn asks_for_a_loader(program: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let elf = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let number = |at: usize, size: usize| -> Result<usize> {
        let bytes = elf.get(at..at + size).context("it is no program")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    };
    let (headers, size, n) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut kinds = (0..n).map(|index| number(headers + index * size, 4));
    Ok(kinds.any(|kind| kind.is_ok_and(|kind| kind as u32 == PT_INTERP)))
}

/// Writes the changelog of a package to where it is packed from.
fn write_changelog(package: &str, version: Option<&str>) -> Result<()> {
    let path = beside().join(format!("{package}.changelog"));
    fs::write(&path, changelog::changelog(package, version)?)
        .with_context(|| format!("write {}", path.display()))
}

/// Packs what is built, by what stands in the crate's Cargo.toml. `but` are tags of lintian's that do
/// not hold for it.
fn pack(crate_name: &str, version: Option<&str>, lints: bool, but: &[&str]) -> Result<PathBuf> {
    let mut cargo_deb = Command::new(setup::tool("cargo-deb"));
    cargo_deb
        .args(["--no-build", "--package", crate_name])
        // A quarter larger than with the strongest compression, and made much faster.
        .arg("--fast")
        .arg("--output")
        .arg(workspace::target_dir().join("debian"))
        .current_dir(workspace::root())
        .stderr(Stdio::inherit());
    if let Some(version) = version {
        cargo_deb.args(["--deb-version", version]);
    }
    let output = cargo_deb
        .output()
        .with_context(|| format!("start {}", workspace::shown(&cargo_deb)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}",
            workspace::shown(&cargo_deb),
            output.status
        );
    }
    // The path of the package is all that it writes there.
    let path = String::from_utf8(output.stdout).context("understand what cargo-deb says")?;
    let package = PathBuf::from(path.trim());
    if lints {
        lint(&package, but)?;
    }
    Ok(package)
}

/// Shows what lintian has against the package, but for these tags, and fails on errors.
fn lint(package: &Path, but: &[&str]) -> Result<()> {
    let mut lintian = Command::new("lintian");
    // A first upload to Debian closes a bug there; this is no such upload.
    lintian.args(["--fail-on", "error", "--suppress-tags"]);
    lintian.arg([&["initial-upload-closes-no-bugs"], but].concat().join(","));
    if workspace::is_root() {
        lintian.arg("--allow-root");
    }
    workspace::run(lintian.arg(package))
}

/// Packs the files of a Debian package with the script that installs them, and returns
/// the path of the tarball.
pub fn tarball(package: &Path) -> Result<PathBuf> {
    let name = format!("trefoil-{}-{ARCH}", env!("CARGO_PKG_VERSION"));
    let tree = beside().join(&name);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    fs::create_dir_all(&tree).with_context(|| format!("make {}", tree.display()))?;
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").args([package, &tree.join("root")]);
    workspace::run(&mut extract)?;
    within_budget(&tree.join("root/usr/bin/trefoil"))?;
    let script = workspace::root().join("packaging/install.sh");
    fs::copy(&script, tree.join("install.sh"))
        .with_context(|| format!("copy {}", script.display()))?;
    let tarball = beside().join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--create", "--gzip", "--file"])
        .arg(&tarball)
        .arg("--directory")
        .arg(beside())
        .arg(&name);
    workspace::run(&mut tar)?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    Ok(tarball)
}

/// Holds the size of the agent, as it is installed, against its line in the budgets.
fn within_budget(agent: &Path) -> Result<()> {
    const FILE: &str = "tests/budgets.txt";
    let text =
        fs::read_to_string(workspace::root().join(FILE)).with_context(|| format!("read {FILE}"))?;
    let limit = budget(&text, "agent.bytes")
        .with_context(|| format!("{FILE} has no number for agent.bytes"))?;
    let bytes = fs::metadata(agent)
        .with_context(|| format!("look at {}", agent.display()))?
        .len();
    if bytes > limit {
        bail!(
            "the agent has {bytes} bytes, above {limit}: make it smaller, or raise agent.bytes \
             in {FILE} and say in the commit what the host gets for it"
        );
    }
    Ok(())
}

fn budget(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, number) = lines.find(|(found, _)| *found == name)?;
    number.trim().parse().ok()
}

/// Where what goes into the package is made.
fn beside() -> PathBuf {
    workspace::root().join("target/package")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_the_number_behind_its_name() {
        let text = "# agent.bytes 1\nagent.bytes 12\nagent.bytes.more 13\n";
        assert_eq!(budget(text, "agent.bytes"), Some(12));
        assert_eq!(budget(text, "tag.bytes"), None);
    }
}
