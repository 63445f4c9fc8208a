//! `setup`: installs what building, running, testing and checking need.
//!
//! It says what is missing and why before it installs anything, and asks the
//! distribution for it; what no package has is built into target/tools. It
//! must stay fast when nothing is missing, because other verbs call it first,
//! and must work where only cargo, git and a C compiler exist.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    apt,
    bpf_toolchain::{self, BpfToolchain, Compiler, Missing},
    workspace::{self, as_root},
};

/// Arguments of `setup`.
#[derive(Args)]
pub struct Setup {
    /// Only these parts; without any, all but `package`, which takes minutes, `bench` and `fuzz`
    parts: Vec<Part>,
}

/// Part that a verb may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The compiler and the linker of the kernel programs
    Bpf,
    /// The default country data
    CountryData,
    /// The lab and the end-to-end tests
    Lab,
    /// Formatting and lints
    Lints,
    /// Formatting the manual pages, and trying the completions
    Manual,
    /// The benchmarks
    Bench,
    /// Fuzzing
    Fuzz,
    /// The Debian package
    Package,
    /// The virtual machines
    Vm,
}

/// One thing that has to be there.
struct Need {
    part: Part,
    what: &'static str,
    why: &'static str,
    /// How to see that it is there; cheap.
    present: fn(&Result<BpfToolchain, Missing>) -> bool,
    source: Source,
}

/// Where a missing thing comes from.
enum Source {
    /// These packages of the distribution.
    Packages(&'static [&'static str]),
    /// See [`install_bpf_linker`].
    BpfLinker,
    /// See [`install_country_data`].
    CountryData,
    /// A component of the Rust toolchain in use.
    RustupComponent(&'static str),
    /// A program from the crate registry, built into target/tools.
    Crate {
        name: &'static str,
        version: &'static str,
    },
}

/// In the order in which they are installed: bpf-linker is built for the
/// compiler that goes before it.
const NEEDS: &[Need] = &[
    Need {
        part: Part::Bpf,
        what: "a compiler for BPF",
        why: "the kernel programs are written in Rust; this one has `core` for BPF ready built",
        present: |bpf| matches!(bpf, Ok(_) | Err(Missing::Linker(Compiler::System))),
        source: Source::Packages(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]),
    },
    Need {
        part: Part::Bpf,
        what: "bpf-linker",
        why: "links the kernel programs into one BPF object; built once, with the compiler's LLVM",
        present: |bpf| bpf.is_ok() || tool("bpf-linker").is_file(),
        source: Source::BpfLinker,
    },
    Need {
        part: Part::CountryData,
        what: "the data of tor-geoipdb",
        why: "the default country data: which addresses are assigned in which country",
        present: |_| COUNTRY_DATA.iter().all(|file| Path::new(file).is_file()),
        source: Source::CountryData,
    },
    Need {
        part: Part::Lab,
        what: "ip",
        why: "the lab is made of network namespaces and veth pairs",
        present: |_| in_path("ip"),
        source: Source::Packages(&["iproute2"]),
    },
    Need {
        part: Part::Lab,
        what: "nft",
        why: "the lab counts and filters with nftables",
        present: |_| in_path("nft"),
        source: Source::Packages(&["nftables"]),
    },
    Need {
        part: Part::Lab,
        what: "openssl",
        why: "another program than the project's own checks its signatures",
        present: |_| in_path("openssl"),
        source: Source::Packages(&["openssl"]),
    },
    Need {
        part: Part::Lab,
        what: "systemd-journald and journalctl",
        why: "the tests read the agent's records back from a private journal",
        present: |_| {
            let journald = [
                "/usr/lib/systemd/systemd-journald",
                "/lib/systemd/systemd-journald",
            ];
            in_path("journalctl") && journald.iter().any(|path| Path::new(path).exists())
        },
        source: Source::Packages(&["systemd"]),
    },
    Need {
        part: Part::Lints,
        what: "rustfmt",
        why: "formats the sources",
        present: |_| cargo_has("fmt"),
        source: Source::RustupComponent("rustfmt"),
    },
    Need {
        part: Part::Lints,
        what: "clippy",
        why: "lints the agent",
        present: |_| cargo_has("clippy"),
        source: Source::RustupComponent("clippy"),
    },
    Need {
        part: Part::Lints,
        what: "clippy for BPF",
        why: "lints the kernel programs; it must be of the compiler that compiles them",
        // A nightly's components are its owner's business: `check` fails and
        // names the one that is missing.
        present: |bpf| {
            bpf.as_ref()
                .is_ok_and(|toolchain| toolchain.compiler() == Compiler::Nightly)
                || Path::new("/usr/bin/cargo-clippy").is_file()
        },
        source: Source::Packages(&["rust-web-clippy"]),
    },
    Need {
        part: Part::Manual,
        what: "man",
        why: "formats the manual pages, and warns about what is wrong with them",
        present: |_| in_path("man") && in_path("groff"),
        source: Source::Packages(&["man-db", "groff-base"]),
    },
    Need {
        part: Part::Manual,
        what: "mandoc",
        why: "formats them too, and warns about more",
        present: |_| in_path("mandoc"),
        source: Source::Packages(&["mandoc"]),
    },
    Need {
        part: Part::Manual,
        what: "zsh",
        why: "the tests try the completions in it",
        present: |_| in_path("zsh"),
        source: Source::Packages(&["zsh"]),
    },
    Need {
        part: Part::Manual,
        what: "fish",
        why: "the tests try the completions in it",
        present: |_| in_path("fish"),
        source: Source::Packages(&["fish"]),
    },
    Need {
        part: Part::Bench,
        what: "npm",
        why: "fetches a country table of the whole Internet for the benchmark of policies",
        present: |_| in_path("npm"),
        source: Source::Packages(&["npm"]),
    },
    Need {
        part: Part::Fuzz,
        what: "a C++ compiler",
        why: "libFuzzer is written in C++ and built from its sources",
        present: |_| in_path("c++"),
        source: Source::Packages(&["g++"]),
    },
    Need {
        part: Part::Package,
        what: "lintian",
        why: "checks the package",
        present: |_| in_path("lintian"),
        source: Source::Packages(&["lintian"]),
    },
    Need {
        part: Part::Package,
        what: "dpkg-shlibdeps",
        why: "finds out which libraries the package depends on",
        present: |_| in_path("dpkg-shlibdeps"),
        source: Source::Packages(&["dpkg-dev"]),
    },
    Need {
        part: Part::Package,
        what: "cargo-deb",
        why: "makes the Debian package; built once, in a few minutes",
        present: |_| tool("cargo-deb").is_file(),
        source: Source::Crate {
            name: "cargo-deb",
            version: "3.8.0",
        },
    },
    Need {
        part: Part::Vm,
        what: "qemu-system-x86_64",
        why: "runs virtual machines by emulation, without KVM",
        present: |_| in_path("qemu-system-x86_64"),
        source: Source::Packages(&["qemu-system-x86"]),
    },
    Need {
        part: Part::Vm,
        what: "qemu-img",
        why: "makes the layer that takes what a virtual machine writes to its disk",
        present: |_| in_path("qemu-img"),
        source: Source::Packages(&["qemu-utils"]),
    },
    Need {
        part: Part::Vm,
        what: "mmdebstrap",
        why: "installs the Debian that virtual machines run into a directory",
        present: |_| in_path("mmdebstrap"),
        source: Source::Packages(&["mmdebstrap"]),
    },
    Need {
        part: Part::Vm,
        what: "mke2fs",
        why: "makes a disk of that directory",
        present: |_| in_path("mke2fs"),
        source: Source::Packages(&["e2fsprogs"]),
    },
];

impl Setup {
    /// Installs what is missing, or says that nothing is.
    pub fn run(self) -> Result<()> {
        let mut parts = self.parts;
        if parts.is_empty() {
            parts = Part::value_variants().to_vec();
            parts.retain(|part| !matches!(part, Part::Package | Part::Bench | Part::Fuzz));
        }
        if !ensure(&parts)? {
            println!("Nothing is missing.");
        }
        Ok(())
    }
}

/// Installs what these parts need and this machine has not, and returns
/// whether there was such a thing.
pub fn ensure(parts: &[Part]) -> Result<bool> {
    let bpf = bpf_toolchain::find(workspace::root());
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| parts.contains(&need.part) && !(need.present)(&bpf))
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    println!("Missing on this machine, and installed now:");
    for need in &missing {
        println!("  {}: {} ({})", need.what, need.why, need.source.shown());
    }
    if in_path("apt-get") && missing.iter().any(|need| need.source.is_distribution()) {
        // A failing mirror of something else must not stop the rest: what is
        // really not to be had fails by its name below.
        if workspace::run(&mut apt::get(&["update"])).is_err() {
            println!("The package lists could not all be brought up to date; going on with them.");
        }
    }
    for need in missing {
        need.source.install().with_context(|| {
            format!(
                "install {}{}",
                need.what,
                instead(need.part).unwrap_or_default()
            )
        })?;
    }
    if parts.contains(&Part::Bpf) {
        bpf_toolchain::find(workspace::root())
            .map_err(|missing| anyhow::anyhow!("after all this there is still {missing}"))?;
    }
    Ok(true)
}

/// Returns what to do by hand where a part cannot be installed from packages.
fn instead(part: Part) -> Option<&'static str> {
    match part {
        Part::Bpf => Some(
            ". Where the distribution has no such packages, install rustup's nightly \
             (`rustup toolchain install nightly --component rust-src,clippy`) and put a bpf-linker \
             whose LLVM is as new as the nightly's into PATH \
             (`cargo install bpf-linker`, or a binary of its project's releases)",
        ),
        Part::CountryData => Some(
            ". Without it, give the agent a country file: `cargo xtask run -- --geo FILE` takes \
             any MMDB with country codes",
        ),
        _ => None,
    }
}

impl Source {
    fn is_distribution(&self) -> bool {
        matches!(
            self,
            Source::Packages(_) | Source::BpfLinker | Source::CountryData
        )
    }

    fn shown(&self) -> String {
        match self {
            Source::Packages(names) => format!("packages {}", names.join(", ")),
            Source::BpfLinker => {
                "crate bpf-linker, built in target/tools; package llvm-*-dev".into()
            }
            Source::CountryData => "package tor-geoipdb, of which only the data goes to /usr/share/tor: it depends on the Tor daemon".into(),
            Source::RustupComponent(name) => format!("rustup component {name}"),
            Source::Crate { name, .. } => format!("crate {name}, built in target/tools"),
        }
    }

    fn install(&self) -> Result<()> {
        match self {
            Source::Packages(names) => apt::install(names),
            Source::BpfLinker => install_bpf_linker(),
            Source::CountryData => install_country_data(),
            Source::RustupComponent(name) => {
                workspace::run(Command::new("rustup").args(["component", "add", name]))
            }
            Source::Crate { name, version } => {
                workspace::run(&mut cargo_install(name, version, &[]))
            }
        }
    }
}

/// Builds bpf-linker against the very LLVM that the packaged compiler uses,
/// so that it understands all that this compiler emits.
fn install_bpf_linker() -> Result<()> {
    let output = Command::new("/usr/bin/rustc")
        .arg("-vV")
        .output()
        .context("ask for its LLVM")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let llvm = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
        .context("/usr/bin/rustc does not say which LLVM it uses")?;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let llvm_dev = format!("llvm-{llvm}-dev");
    let polly_dev = format!("libpolly-{llvm}-dev");
    apt::install(&[&llvm_dev, &polly_dev, "zlib1g-dev", "libzstd-dev", "g++"])?;

    let mut path = vec![prefix.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let feature = format!("llvm-{llvm}");
    let mut cargo = cargo_install(
        "bpf-linker",
        "0.13.0",
        &["--no-default-features", "--features", feature.as_str()],
    );
    cargo
        .env("PATH", env::join_paths(path)?)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    workspace::run(&mut cargo)
}

fn cargo_install(name: &str, version: &str, arguments: &[&str]) -> Command {
    let mut cargo = workspace::cargo();
    // Running these tools takes seconds; optimising them as their authors do takes minutes.
    cargo
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .args(["install", "--locked", "--version", version])
        .args(arguments);
    cargo
        .arg("--root")
        .arg(bpf_toolchain::tools_dir(workspace::root()))
        .arg(name);
    cargo
}

/// Where the agent looks for country data unless it is told otherwise: where
/// tor-geoipdb puts it.
pub const COUNTRY_DATA: [&str; 2] = ["/usr/share/tor/geoip", "/usr/share/tor/geoip6"];

/// Downloads tor-geoipdb and puts its two files where it would. The package
/// itself is not installed, because it depends on the Tor daemon, which would
/// start at once and open connections of its own: not what one wants of an
/// egress monitor. Whoever installs the package later gets its files instead.
fn install_country_data() -> Result<()> {
    if !in_path("apt-get") {
        bail!("this is not a Debian or Ubuntu system, and has no tor-geoipdb to download");
    }
    let download = workspace::root().join("target/country-data");
    fs::create_dir_all(&download).context("make the directory for the download")?;
    // apt may warn that it downloads as root: its own user cannot write here.
    workspace::run(
        Command::new("apt-get")
            .args(["download", "tor-geoipdb"])
            .current_dir(&download),
    )?;
    let package = fs::read_dir(&download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    let unpacked = download.join("unpacked");
    workspace::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&package, &unpacked]),
    )?;
    for file in COUNTRY_DATA {
        let mut install = Command::new("install");
        install.args(["-D", "--mode=0644"]);
        install
            .arg(unpacked.join(file.trim_start_matches('/')))
            .arg(file);
        workspace::run(&mut as_root(install))?;
    }
    fs::remove_dir_all(&download).context("remove the download")
}

/// The path of a tool that setup builds.
pub fn tool(name: &str) -> PathBuf {
    bpf_toolchain::tools_dir(workspace::root())
        .join("bin")
        .join(name)
}

/// Whether a program is in PATH, or where root's PATH would find it.
fn in_path(name: &str) -> bool {
    bpf_toolchain::executable_in_path(name).is_some()
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(name).is_file())
}

fn cargo_has(subcommand: &str) -> bool {
    workspace::cargo()
        .args([subcommand, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
