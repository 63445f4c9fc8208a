//! Where the workspace is, and how the verbs start other programs.

use std::{
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Error, Result, bail};

/// The directory of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds for the host.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that started this program, in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns the output of `cargo metadata` with these arguments.
pub fn metadata(arguments: &[&str]) -> Result<serde_json::Value> {
    let mut command = cargo();
    command
        .args(["metadata", "--format-version", "1"])
        .args(arguments)
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .with_context(|| format!("start {}", shown(&command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", shown(&command), output.status);
    }
    serde_json::from_slice(&output.stdout).context("understand what cargo metadata says")
}

/// The same program, started through sudo when this one is not root's.
pub fn as_root(command: Command) -> Command {
    if is_root() {
        return command;
    }
    let mut sudo = Command::new("sudo");
    // Variables that the caller put into the command's own environment have to
    // be named: sudo passes on only its own.
    sudo.arg("--preserve-env").arg("env");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let mut assignment = name.to_owned();
            assignment.push("=");
            assignment.push(value);
            sudo.arg(assignment);
        }
    }
    sudo.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        sudo.current_dir(dir);
    }
    sudo
}

/// Whether this program runs as root.
pub fn is_root() -> bool {
    // /proc/self belongs to the effective user, as long as the process is
    // dumpable; asking the kernel directly would need unsafe code or a crate.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Runs a command to its end, and fails when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Becomes the command, so that its signals and exit code are the caller's.
pub fn become_program(command: &mut Command) -> Error {
    let error = command.exec();
    Error::new(error).context(format!("start {}", shown(command)))
}

/// A command as one would type it, without its environment.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![
        program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy(),
    ];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy()),
    );
    words.join(" ")
}
