//! `package`: the Debian package in target/debian, and a tarball of the same files
//! for other distributions in target/package.

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
    /// Builds the release agent and packs it; what goes where stands in
    /// agent/Cargo.toml.
    pub fn run(self) -> Result<()> {
        let package = debian_package(None)?;
        println!("{}", package.display());
        println!("{}", tarball(&package)?.display());
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
    fs::write(beside.join("changelog"), changelog::changelog(version)?)
        .context("write the changelog in Debian's form")?;
    for file in setup::COUNTRY_DATA {
        let name = Path::new(file).file_name().context("a file has a name")?;
        fs::copy(file, beside.join(name)).with_context(|| format!("copy {file}"))?;
    }
    let mut cargo_deb = Command::new(setup::tool("cargo-deb"));
    cargo_deb
        .args(["--no-build", "--package", "trefoil"])
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
    // Another version has the same in it.
    if version.is_none() {
        lint(&package)?;
    }
    Ok(package)
}

/// Shows what lintian has against the package, and fails on errors.
fn lint(package: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    // A first upload to Debian closes a bug there; this is no such upload.
    lintian.args(["--fail-on", "error", "--suppress-tags"]);
    lintian.arg("initial-upload-closes-no-bugs");
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
