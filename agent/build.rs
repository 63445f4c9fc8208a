//! Builds the kernel programs and leaves the objects where the agent embeds them.
//!
//! `$OUT_DIR/trefoil.o` are the programs that decide, `$OUT_DIR/trace.o` those of `trefoil trace`,
//! from the same sources. This script must not install anything
//! and must not touch the directory in which the outer cargo builds.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

// xtask uses the rest of the file.
#[allow(dead_code, reason = "included by two programs that each use a part")]
#[path = "../xtask/src/bpf_toolchain.rs"]
mod bpf_toolchain;

use bpf_toolchain::Object;

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let workspace = manifest_dir
        .parent()
        .expect("the agent lies in the workspace");

    for input in [
        "agent-ebpf/src",
        "agent-ebpf/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
        "xtask/src/bpf_toolchain.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }

    let toolchain = match bpf_toolchain::find(workspace) {
        Ok(toolchain) => toolchain,
        Err(missing) => stop(&format!(
            "{missing}. Run `cargo xtask setup`, which installs it"
        )),
    };
    println!("cargo::rerun-if-changed={}", toolchain.linker().display());
    let mut target_dir = bpf_target_dir(&out_dir);
    let mut features = Vec::new();
    if env::var_os("CARGO_FEATURE_OTHER_LAYOUT").is_some() {
        target_dir.push("other-layout");
        features.extend(["--features", "other-layout"]);
    }
    for (object, name) in [
        (Object::Deciding, "trefoil.o"),
        (Object::Tracing, "trace.o"),
    ] {
        let embedded = out_dir.join(name);
        match toolchain.build(workspace, &target_dir, object, &features) {
            Ok(object) => {
                if let Err(error) = fs::copy(&object, &embedded) {
                    stop(&format!(
                        "copy {} to {}: {error}",
                        object.display(),
                        embedded.display()
                    ));
                }
            }
            Err(error) => stop(&error.to_string()),
        }
    }
}

/// One directory for debug, release and clippy, so that the programs are
/// compiled once; beside the outer build's directories, because those are
/// locked while this script runs.
fn bpf_target_dir(out_dir: &Path) -> PathBuf {
    out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| out_dir.join("bpf"), |target| target.join("bpf"))
}

fn stop(reason: &str) -> ! {
    println!("cargo::error={reason}");
    std::process::exit(1)
}
