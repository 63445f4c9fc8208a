//! Control groups that are older than the agent.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use trefoil_ebpf::abi::{CGROUP_PATH, CGROUP_REMOVED, CGROUP_TRUNCATED, Cgroup, ClassCache, ROOT};

/// Where the cgroup v2 hierarchy is mounted.
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    cgroup2_mounts(&mounts)
        .find_map(|(root, mount_point)| (root == "/").then(|| mount_point.into()))
}

/// The path of a control group in the hierarchy, as /proc/PID/cgroup has it, from
/// its directory. `None` if it is no directory of the v2 hierarchy.
pub fn cgroup_path(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    path_in(&mounts, dir.to_str()?)
}

/// Where the hierarchies of version 1 are mounted; most hosts have none.
pub fn cgroup1_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let whole = mounts_of(&mounts, "cgroup").filter(|(root, _)| root == "/");
    whole.map(|(_, mount_point)| mount_point.into()).collect()
}

fn path_in(mounts: &str, dir: &str) -> Option<String> {
    let below = cgroup2_mounts(mounts).filter_map(|(root, mount_point)| {
        let rest = dir.strip_prefix(mount_point.as_str())?;
        let path = format!("{}{rest}", root.trim_end_matches('/'));
        (rest.is_empty() || rest.starts_with('/')).then_some((mount_point.len(), path))
    });
    // The innermost mount is what one sees there.
    let (_, path) = below.max_by_key(|(depth, _)| *depth)?;
    Some(if path.is_empty() {
        "/".to_owned()
    } else {
        path
    })
}

/// Root within the hierarchy, and mount point, of each mount of it.
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = (String, String)> {
    mounts_of(mountinfo, "cgroup2")
}

/// The same of all hierarchies of a kind.
fn mounts_of(mountinfo: &str, kind: &str) -> impl Iterator<Item = (String, String)> {
    mountinfo.lines().filter_map(move |line| {
        // 30 23 0:26 / /sys/fs/cgroup rw,... shared:4 - cgroup2 cgroup2 rw
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let is_of_it = after.split(' ').next() == Some(kind);
        is_of_it.then(|| (unescaped(root), unescaped(mount_point)))
    })
}

/// A name as it is: the kernel writes blanks and the like in octal, as in `\040`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let octal = rest.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &rest[3..];
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Visits control groups from the root on, with their ids; those nearest to it first. Groups below
/// a directory that somebody else than root owns are charged to that directory, as it was
/// delegated.
///
/// `adopt` returns whether to go on below: who has made more groups than he has room for must not
/// have the agent look at all of them. Nor are more than `most` looked at in a directory of his.
///
/// One that is made or removed meanwhile is the `cgroup_mkdir` hook's.
pub fn visit<E>(
    root: &Path,
    most: u32,
    mut adopt: impl FnMut(u64, Cgroup) -> Result<bool, E>,
) -> Result<(), E> {
    let mut todo = VecDeque::from([(root.to_owned(), ROOT)]);
    while let Some((dir, mut charged)) = todo.pop_front() {
        let Ok(metadata) = fs::metadata(&dir) else {
            continue;
        };
        if charged == ROOT {
            charged = metadata.uid();
        }
        let path = format!("/{}", dir.strip_prefix(root).unwrap_or(&dir).display());
        if !adopt(metadata.ino(), entry(&path, charged))? {
            continue;
        }
        let Ok(children) = fs::read_dir(&dir) else {
            continue;
        };
        let children = children
            .flatten()
            .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|child| (child.path(), charged));
        match charged {
            ROOT => todo.extend(children),
            _ => todo.extend(children.take(most as usize)),
        }
    }
    Ok(())
}

/// True if this is the first group of the hierarchy, and not that of a cgroup namespace: hooks know
/// groups by their paths from there.
pub fn is_first(root: &Path) -> bool {
    const FIRST: u64 = 1;
    fs::metadata(root).is_ok_and(|root| root.ino() == FIRST)
}

/// True if a control group that was there is not any more, though no hook has seen it go.
pub fn is_gone(root: &Path, id: u64, cgroup: &Cgroup) -> bool {
    let path = cgroup.path.get(1..usize::from(cgroup.path_len));
    let path = path.map(OsStr::from_bytes);
    cgroup.flags & (CGROUP_TRUNCATED | CGROUP_REMOVED) == 0
        && path.is_some_and(|path| {
            fs::metadata(root.join(path)).map_or_else(
                |error| error.kind() == ErrorKind::NotFound,
                |found| found.ino() != id,
            )
        })
}

/// The entry that `cgroup_mkdir` would have made.
pub fn entry(path: &str, charged: u32) -> Cgroup {
    let mut cgroup = Cgroup {
        class: ClassCache::default(),
        path_len: 0,
        flags: 0,
        charged,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_may_be_mounted_where_a_name_has_blanks_and_backslashes() {
        let mounts = r"31 30 0:27 / /mnt/a\040b\134c\011 rw shared:5 - cgroup2 cgroup2 rw";
        let found: Vec<_> = cgroup2_mounts(mounts).collect();
        assert_eq!(found, [("/".to_owned(), "/mnt/a b\\c\t".to_owned())]);
        let dir = "/mnt/a b\\c\t/x.slice";
        assert_eq!(path_in(mounts, dir).as_deref(), Some("/x.slice"));
        assert_eq!(unescaped(r"a\x2d\9\04"), r"a\x2d\9\04");
    }

    #[test]
    fn a_directory_is_a_path_in_the_hierarchy() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory
33 23 0:27 /machine.slice /mnt rw - cgroup2 cgroup2 rw
";
        for (dir, path) in [
            ("/sys/fs/cgroup/unified", Some("/")),
            ("/sys/fs/cgroup/unified/x.slice/y", Some("/x.slice/y")),
            ("/mnt", Some("/machine.slice")),
            ("/mnt/a.service", Some("/machine.slice/a.service")),
            ("/sys/fs/cgroup/unified-not", None),
            ("/sys/fs/cgroup/memory/x", None),
            ("/", None),
        ] {
            assert_eq!(path_in(mounts, dir).as_deref(), path, "{dir}");
        }
    }
}
