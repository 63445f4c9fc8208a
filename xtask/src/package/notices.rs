//! The licence texts of the crates that are linked into the binary.
//!
//! Most of their licences ask that the text goes with every copy.

use std::{
    collections::{BTreeMap, BTreeSet},
    env::consts::ARCH,
    fmt::Write,
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{bpf_toolchain::BPF_TARGET, workspace};

/// The licence texts of all crates in the agent and in its kernel programs:
/// each text once, below the crates that it stands for.
pub fn notices() -> Result<String> {
    let mut crates_of_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (root, target) in [
        ("trefoil", format!("{ARCH}-unknown-linux-gnu")),
        ("trefoil-ebpf", BPF_TARGET.to_owned()),
    ] {
        let metadata = workspace::metadata(&["--filter-platform", &target])?;
        for package in linked_into(root, &metadata) {
            let name = format!(
                "{} {} ({})",
                text(&package["name"]),
                text(&package["version"]),
                text(&package["license"])
            );
            for licence in licence_texts(text(&package["manifest_path"]))? {
                crates_of_text
                    .entry(licence)
                    .or_default()
                    .insert(name.clone());
            }
        }
    }
    let mut all = String::from("Trefoil contains these crates, under these licences.\n");
    for (licence, crates) in crates_of_text {
        let names: Vec<&str> = crates.iter().map(String::as_str).collect();
        write!(
            all,
            "\n{:=<79}\n{}\n\n{}\n",
            "",
            names.join("\n"),
            licence.trim_end()
        )?;
    }
    Ok(all)
}

/// The packages from the registry that are reached from this one of the
/// workspace over normal dependencies.
fn linked_into<'a>(root: &str, metadata: &'a Value) -> Vec<&'a Value> {
    let by_id = |list: &'a Value| -> BTreeMap<&'a str, &'a Value> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|entry| (text(&entry["id"]), entry))
            .collect()
    };
    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);

    let is_root = |package: &Value| package["source"].is_null() && text(&package["name"]) == root;
    let mut open: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| is_root(package))
        .map(|(id, _)| *id)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.into_iter().any(|kind| kind["kind"].is_null()) {
                open.push(text(&dependency["pkg"]));
            }
        }
    }
    let reached = seen.into_iter().filter_map(|id| packages.get(id).copied());
    reached
        .filter(|package| !package["source"].is_null())
        .collect()
}

/// The texts that a crate brings beside its manifest.
fn licence_texts(manifest: &str) -> Result<Vec<String>> {
    const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];
    let dir = Path::new(manifest)
        .parent()
        .context("a manifest lies in a directory")?;
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        if path.is_file() && NAMES.iter().any(|known| name.starts_with(known)) {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(texts)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
