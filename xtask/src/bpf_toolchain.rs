//! Finds a compiler and a linker for the kernel programs, and builds them.
//!
//! Two programs include this file: xtask as a module, and the agent's build
//! script by path. It therefore uses `std` alone. It must not install
//! anything: what is missing it names, and `cargo xtask setup` installs it.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of the kernel programs on a little-endian host.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The package, and the binary in it, that becomes the BPF object.
pub const BPF_PACKAGE: &str = "trefoil-ebpf";

/// The objects that the agent has in it. Each has a directory of its own below that of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The programs that decide.
    Deciding,
    /// Those of `trefoil trace`, from the same sources.
    Tracing,
}

impl Object {
    /// Where cargo puts it, below the directory for all.
    pub fn target_dir(self, all: &Path) -> PathBuf {
        match self {
            Self::Deciding => all.to_owned(),
            Self::Tracing => all.join("trace"),
        }
    }

    /// Returns further arguments for cargo.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Deciding => &[],
            Self::Tracing => &["--features", "trace"],
        }
    }
}

/// Where Debian's packages put a compiler whose `core` for BPF is ready built.
const SYSTEM_BIN: &str = "/usr/bin";

/// One way to compile for BPF that is complete on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfToolchain {
    compiler: Compiler,
    linker: PathBuf,
}

/// A compiler that can produce `core` for BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// rustup's nightly with rust-src: builds `core` itself.
    Nightly,
    /// The distribution's own compiler, with a ready-built `core`.
    System,
}

/// Parts that are missing before the kernel programs can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Neither a nightly with rust-src nor a system compiler with `core` for BPF.
    Compiler,
    /// There is a compiler, but no `bpf-linker` that goes with it.
    Linker(Compiler),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Compiler => write!(
                f,
                "no compiler for {BPF_TARGET}: neither a rustup nightly with rust-src nor \
                 {SYSTEM_BIN}/rustc with a ready-built `core` for it"
            ),
            Missing::Linker(_) => {
                write!(f, "no bpf-linker, neither in target/tools/bin nor in PATH")
            }
        }
    }
}

/// The directory below the workspace into which setup installs its tools.
pub fn tools_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/tools")
}

/// Looks for a complete way to compile for BPF.
///
/// A nightly goes with the bpf-linker that its owner put into PATH, because
/// the linker's LLVM must not be older than the compiler's; the linker that
/// setup built goes with the packaged compiler, whose LLVM it was built with.
pub fn find(workspace: &Path) -> Result<BpfToolchain, Missing> {
    let linker_in_path = executable_in_path("bpf-linker");
    let nightly = nightly_has_rust_src();
    if let (true, Some(linker)) = (nightly, &linker_in_path) {
        return Ok(BpfToolchain {
            compiler: Compiler::Nightly,
            linker: linker.clone(),
        });
    }
    if system_has_core() {
        let built_by_setup = tools_dir(workspace).join("bin/bpf-linker");
        return match Some(built_by_setup)
            .filter(|path| path.is_file())
            .or(linker_in_path)
        {
            Some(linker) => Ok(BpfToolchain {
                compiler: Compiler::System,
                linker,
            }),
            None => Err(Missing::Linker(Compiler::System)),
        };
    }
    Err(if nightly {
        Missing::Linker(Compiler::Nightly)
    } else {
        Missing::Compiler
    })
}

impl BpfToolchain {
    /// Which compiler was found.
    pub fn compiler(&self) -> Compiler {
        self.compiler
    }

    /// The linker that was found.
    pub fn linker(&self) -> &Path {
        &self.linker
    }

    /// A command that runs `cargo VERB` on the kernel programs, with
    /// artifacts in `target_dir`.
    ///
    /// `target_dir` must not be the directory in which an outer cargo builds:
    /// that one is locked for as long as the build script runs.
    pub fn cargo(&self, verb: &str, workspace: &Path, target_dir: &Path) -> Command {
        let mut command = match self.compiler {
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", verb, "-Z", "build-std=core"]);
                command
            }
            // Clippy is called by its path: cargo looks for a subcommand in
            // its home first, where rustup keeps one for another compiler.
            Compiler::System if verb == "clippy" => {
                let mut command = Command::new(format!("{SYSTEM_BIN}/cargo-clippy"));
                command.arg("clippy");
                command
            }
            Compiler::System => {
                let mut command = Command::new(format!("{SYSTEM_BIN}/cargo"));
                command.arg(verb);
                command
            }
        };
        scrub(&mut command);
        if self.compiler == Compiler::System {
            command.env("CARGO", format!("{SYSTEM_BIN}/cargo"));
            command.env("RUSTC", format!("{SYSTEM_BIN}/rustc"));
            // aya-ebpf uses `asm_experimental_arch`, and the packaged
            // compiler is a stable one.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        let flags = [
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.display()),
        ];
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .args(["--package", BPF_PACKAGE, "--bin", BPF_PACKAGE, "--release"])
            .args(["--target", BPF_TARGET, "--target-dir"])
            .arg(target_dir)
            .current_dir(workspace);
        command
    }

    /// Builds a BPF object, with artifacts below `all` and further arguments for cargo, and returns
    /// its path. The compiler's own words go to standard error.
    pub fn build(
        &self,
        workspace: &Path,
        all: &Path,
        object: Object,
        arguments: &[&str],
    ) -> io::Result<PathBuf> {
        let target_dir = object.target_dir(all);
        let mut command = self.cargo("build", workspace, &target_dir);
        command.args(object.arguments()).args(arguments);
        let status = command.status().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {command:?}: {error}"))
        })?;
        if !status.success() {
            let compiler = match self.compiler {
                Compiler::Nightly => "rustup's nightly",
                Compiler::System => "/usr/bin/rustc",
            };
            return Err(io::Error::other(format!(
                "the kernel programs do not build ({compiler}, {status}); the reason is in what \
                 the compiler printed"
            )));
        }
        let object = target_dir
            .join(BPF_TARGET)
            .join("release")
            .join(BPF_PACKAGE);
        fs::metadata(&object).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("no object at {}: {error}", object.display()),
            )
        })?;
        Ok(object)
    }
}

/// Takes away what an outer cargo, rustup or clippy told its children about
/// the host build; another compiler for another target would obey it.
fn scrub(command: &mut Command) {
    const ABOUT_THIS_BUILD: [&str; 12] = [
        "CARGO",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CLIPPY_",
        "RUSTC",
        "RUSTFLAGS",
    ];
    const WHOLE_NAMES: [&str; 9] = [
        "RUSTUP_TOOLCHAIN",
        "RUSTDOCFLAGS",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let about_this_build = ABOUT_THIS_BUILD
            .iter()
            .any(|known| match known.strip_suffix('_') {
                Some(_) => name.starts_with(known),
                None => name == *known || (*known == "RUSTC" && name.starts_with("RUSTC_")),
            });
        if about_this_build || WHOLE_NAMES.contains(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether rustup has a nightly with the sources of `core`.
fn nightly_has_rust_src() -> bool {
    first_line_of(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                .is_file()
        })
}

/// Whether the distribution's compiler comes with `core` for BPF.
fn system_has_core() -> bool {
    if !Path::new(SYSTEM_BIN).join("cargo").is_file() {
        return false;
    }
    let mut rustc = Command::new(format!("{SYSTEM_BIN}/rustc"));
    rustc.args(["--print", "target-libdir", "--target", BPF_TARGET]);
    let Some(libraries) = first_line_of(&mut rustc) else {
        return false;
    };
    let Ok(entries) = fs::read_dir(libraries) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The first line that a command prints, or nothing if it fails.
fn first_line_of(command: &mut Command) -> Option<String> {
    scrub(command);
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The first file of this name in PATH.
pub fn executable_in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}
