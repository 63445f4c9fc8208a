//! Containers that are in control groups of version 1 alone.
//!
//! The kernel programs go by the hierarchy of version 2. On a host that has both, an engine may put its
//! containers into groups of version 1 only: then their processes are in the group of their engine, and
//! this says so.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::Monitor;
use crate::{
    clock,
    kernel::{cgroup1_roots, cgroup2_root},
    owner::cgroup::claimed_container,
    report::{Coverage, Record},
};

/// Levels of groups at which engines put their containers.
const DEPTH: usize = 5;
/// Groups of a hierarchy that are looked at: a host has fewer, or its user makes them.
const MOST: usize = 4096;

const WHY: &str = "it is in control groups of version 1 alone, so it has the unit and control group of \
                   its engine, and no rule on containers knows it; have its engine use version 2";

impl Monitor {
    /// Tells of each of these containers once.
    pub(super) fn report_legacy_containers(&mut self) {
        let found = containers(&cgroup1_roots(), cgroup2_root().as_deref());
        let time_us = clock::unix_us();
        for container in found.difference(&self.legacy_containers) {
            let subject = format!("container {container}");
            let record = Record::coverage(&subject, Coverage::Partly, Some(WHY), time_us);
            self.reporter.emit(record);
        }
        self.legacy_containers = found;
    }
}

/// The containers below these roots of hierarchies of which the hierarchy of version 2 has no group.
fn containers(roots: &[PathBuf], unified: Option<&Path>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in roots {
        let Ok(owner) = fs::metadata(root).map(|it| it.uid()) else {
            continue;
        };
        let (mut todo, mut n_seen) = (vec![(root.clone(), 1)], 0);
        while let Some((dir, depth)) = todo.pop() {
            for path in groups_in(&dir, owner).take(MOST - n_seen) {
                n_seen += 1;
                let below = path.strip_prefix(root).unwrap_or(&path);
                match claimed_container(&format!("/{}", below.display())) {
                    Some(_) if unified.is_some_and(|unified| unified.join(below).exists()) => {}
                    Some(container) => {
                        found.insert(container.to_string());
                    }
                    None if depth < DEPTH => todo.push((path, depth + 1)),
                    None => {}
                }
            }
        }
    }
    found
}

/// The groups in a group that this user owns: whoever owns one calls those in it as he likes.
fn groups_in(dir: &Path, owner: u32) -> impl Iterator<Item = PathBuf> {
    let children = fs::read_dir(dir).into_iter().flatten().flatten();
    let groups = children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
    let own = groups.filter(move |group| group.metadata().is_ok_and(|it| it.uid() == owner));
    own.map(|group| group.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_version_1_alone_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (legacy, unified) = (dir.path().join("pids"), dir.path().join("unified"));
        let id = |digit: &str| digit.repeat(64);
        for group in [
            legacy.join("docker").join(id("a")).join("below"),
            legacy.join(format!("system.slice/docker-{}.scope", id("b"))),
            unified.join(format!("system.slice/docker-{}.scope", id("b"))),
            legacy
                .join("user.slice/deep/deeper/deepest/docker")
                .join(id("c")),
            legacy.join("docker/short"),
        ] {
            fs::create_dir_all(group).unwrap();
        }
        let found = containers(&[legacy, dir.path().join("nothing")], Some(&unified));
        assert_eq!(found, BTreeSet::from([format!("docker:{}", id("a"))]));
    }
}
