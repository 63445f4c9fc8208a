//! Control groups that are older than the agent.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use trefoil_ebpf::abi::{CGROUP_PATH, CGROUP_TRUNCATED, Cgroup, ClassCache};

/// Where the cgroup v2 hierarchy is mounted.
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        // 30 23 0:26 / /sys/fs/cgroup rw,... shared:4 - cgroup2 cgroup2 rw
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        (after.split(' ').next() == Some("cgroup2") && root == "/").then(|| mount_point.into())
    })
}

/// All control groups below the root, with their ids.
///
/// One that is made or removed meanwhile is the `cgroup_mkdir` hook's.
pub fn existing(root: &Path) -> Vec<(u64, Cgroup)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        if let Ok(metadata) = fs::metadata(&dir) {
            let path = dir.strip_prefix(root).unwrap_or(&dir);
            found.push((metadata.ino(), entry(&format!("/{}", path.display()))));
        }
        let Ok(children) = fs::read_dir(&dir) else {
            continue;
        };
        todo.extend(
            children
                .flatten()
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|child| child.path()),
        );
    }
    found
}

/// The entry that `cgroup_mkdir` would have made.
pub fn entry(path: &str) -> Cgroup {
    let mut cgroup = Cgroup {
        class: ClassCache::default(),
        path_len: 0,
        flags: 0,
        pad: 0,
        path: [0; CGROUP_PATH],
    };
    // One byte less, as the kernel's copy ends with a zero.
    let len = path.len().min(CGROUP_PATH - 1);
    if len < path.len() {
        cgroup.flags = CGROUP_TRUNCATED;
    }
    cgroup.path[..len].copy_from_slice(&path.as_bytes()[..len]);
    cgroup.path_len = len as u16;
    cgroup
}
