//! The processes that hold sockets, and what /proc says about each.
//!
//! A fact that a policy may ask of a process is read the way the kernel programs
//! read it. Where the two could differ, this side trusts less: a connection that
//! is announced as cut and is not is a question, one that is cut unannounced may
//! be the caller's own session.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use trefoil_ebpf::abi::{CGROUP_PATH, EXECUTABLE_PATH};

use crate::owner::process::logged_in;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its name for itself.
    pub comm: String,
    /// Real user id; that of the socket counts if it is not known.
    pub uid: Option<u32>,
    /// Real group id; `None` if it is not known.
    pub gid: Option<u32>,
    /// Whether somebody logged in to start it; `None` if it is not known.
    pub interactive: Option<bool>,
    /// Audit session, if somebody logged in to start it.
    pub session: Option<u32>,
    /// Executable that it runs; none if it may not be read.
    pub executable: Option<Executable>,
    /// Path of its control group in the v2 hierarchy.
    pub cgroup: Option<String>,
}

/// A program file as a process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its path.
    pub path: PathBuf,
    /// The path is seen from another root directory or through a mount namespace
    /// that an unprivileged user may have made, so it names no file of the host.
    pub foreign: bool,
}

impl Executable {
    /// The path, unless it is so long that rules take it for one that is not known.
    pub fn for_rules(&self) -> Option<&[u8]> {
        let path = self.path.as_os_str().as_bytes();
        (path.len() <= EXECUTABLE_PATH).then_some(path)
    }
}

impl Holder {
    /// The control group, unless its path is so long that rules take it for one that is not
    /// known.
    pub fn cgroup_for_rules(&self) -> Option<&[u8]> {
        let path = self.cgroup.as_ref()?.as_bytes();
        (path.len() < CGROUP_PATH).then_some(path)
    }

    /// The file name of what it runs, else its name for itself, which it can choose.
    pub fn name(&self) -> String {
        self.executable
            .as_ref()
            .and_then(|executable| executable.path.file_name())
            .map_or_else(
                || self.comm.clone(),
                |name| name.to_string_lossy().into_owned(),
            )
    }

    fn read(proc: &Path, pid: u32, host: &Host) -> Option<Self> {
        let dir = proc.join(pid.to_string());
        let text = |name| fs::read(dir.join(name)).map(|bytes| lossy(&bytes));
        let stat = Stat::parse(&text("stat").ok()?)?;
        let status = text("status").ok();
        Some(Self {
            pid,
            comm: stat.comm,
            uid: status.as_deref().and_then(|text| real_id(text, "Uid:")),
            gid: status.as_deref().and_then(|text| real_id(text, "Gid:")),
            interactive: session_id(&dir).map(|id| logged_in(id).is_some()),
            session: audit_session(&dir),
            executable: executable(&dir, host),
            cgroup: text("cgroup").ok().as_deref().and_then(cgroup),
        })
    }
}

/// Namespaces of the host's own processes, to tell others by.
struct Host {
    root: Option<(u64, u64)>,
    user_namespace: Option<u64>,
    mount_namespace: Option<u64>,
}

impl Host {
    /// Of the first process; of the caller if that is out of reach.
    fn read(proc: &Path) -> Self {
        let of = |dir: PathBuf| Self {
            root: root_of(&dir),
            user_namespace: inode(&dir.join("ns/user")),
            mount_namespace: inode(&dir.join("ns/mnt")),
        };
        let first = of(proc.join("1"));
        if first.root.is_some() {
            first
        } else {
            of(proc.join("self"))
        }
    }
}

fn root_of(dir: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(dir.join("root")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn inode(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.ino())
}

fn executable(dir: &Path, host: &Host) -> Option<Executable> {
    let link = dir.join("exe");
    let path = fs::read_link(&link).ok()?;
    let is_unlinked = fs::metadata(&link).is_ok_and(|metadata| metadata.nlink() == 0);
    // The owner of the mount namespace cannot be read without a system call of
    // its own. A process of another user namespace that has another mount
    // namespace as well is taken for one that made it.
    let has_own_mounts = inode(&dir.join("ns/user")) != host.user_namespace
        && inode(&dir.join("ns/mnt")) != host.mount_namespace;
    Some(Executable {
        path: if is_unlinked {
            without_mark(path)
        } else {
            path
        },
        foreign: has_own_mounts || root_of(dir) != host.root,
    })
}

/// The kernel programs see no mark behind the path of a file that was deleted.
fn without_mark(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => OsStr::from_bytes(path).into(),
        None => path,
    }
}

/// All processes.
pub fn pids(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir(proc)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The holders of each of the `wanted` sockets, lowest process id first, and the
/// number of processes that may not be looked into, or that come after that time.
pub fn find(
    proc: &Path,
    pids: &[u32],
    wanted: &HashSet<u64>,
    until: Instant,
) -> (HashMap<u64, Vec<Arc<Holder>>>, usize) {
    let host = Host::read(proc);
    let mut found: HashMap<u64, Vec<Arc<Holder>>> = HashMap::new();
    let mut n_unread = 0;
    for (index, pid) in pids.iter().enumerate() {
        if Instant::now() > until {
            n_unread += pids.len() - index;
            break;
        }
        let dir = proc.join(pid.to_string());
        let sockets = match sockets(&dir) {
            Ok(sockets) => sockets,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let stat = fs::read(dir.join("stat")).unwrap_or_default();
                let is_process = Stat::parse(&lossy(&stat)).is_some_and(|stat| stat.is_process());
                n_unread += usize::from(is_process);
                continue;
            }
            // It has ended.
            Err(_) => continue,
        };
        let mut held = sockets.intersection(wanted).peekable();
        if held.peek().is_none() {
            continue;
        }
        let Some(holder) = Holder::read(proc, *pid, &host).map(Arc::new) else {
            continue;
        };
        for inode in held {
            found.entry(*inode).or_default().push(Arc::clone(&holder));
        }
    }
    for holders in found.values_mut() {
        holders.sort_by_key(|holder| holder.pid);
    }
    (found, n_unread)
}

/// The sockets among a process's descriptors.
fn sockets(dir: &Path) -> io::Result<HashSet<u64>> {
    Ok(fs::read_dir(dir.join("fd"))?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| socket_inode(link.to_str()?))
        .collect())
}

/// `socket:[1527]`
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The parents of a process, its own first, without the first process of all:
/// everybody descends from that one.
pub fn ancestors(proc: &Path, pid: u32) -> Vec<u32> {
    let mut line = Vec::new();
    let mut pid = pid;
    while let Ok(stat) = fs::read(proc.join(pid.to_string()).join("stat"))
        && let Some(stat) = Stat::parse(&lossy(&stat))
        && stat.ppid > 1
        // Processes come and go meanwhile; a number that is used anew must not
        // lead in a circle.
        && !line.contains(&stat.ppid)
    {
        pid = stat.ppid;
        line.push(pid);
    }
    line
}

/// The audit session of the process with this directory.
pub fn audit_session(dir: &Path) -> Option<u32> {
    session_id(dir).and_then(logged_in)
}

/// Reads the session id that the kernel has for it.
fn session_id(dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(dir.join("sessionid")).ok()?;
    text.trim_end().parse().ok()
}

/// `stat` of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: String,
    ppid: u32,
    flags: u32,
}

impl Stat {
    /// `4711 (curl) S 4700 ...`: a name may have blanks and parentheses in it.
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(')')?;
        let (_, comm) = before.split_once('(')?;
        let mut words = after.split_ascii_whitespace().skip(1);
        let ppid = words.next()?.parse().ok()?;
        // Between them: process group, session, terminal, its process group.
        let flags = words.nth(4)?.parse().ok()?;
        Some(Self {
            comm: comm.to_owned(),
            ppid,
            flags,
        })
    }

    /// False for threads of the kernel, which hold no files.
    fn is_process(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD == 0
    }
}

/// From `status`: `Uid:` real, effective, saved, of the file system.
fn real_id(text: &str, key: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// From `cgroup`: that of the v2 hierarchy, `0::/system.slice/nginx.service`.
fn cgroup(text: &str) -> Option<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_names_itself_as_it_likes() {
        let stat = |name: &str| {
            Stat::parse(&format!(
                "4711 ({name}) S 4700 4711 4711 34816 4711 4194304 120 0 0 0"
            ))
        };
        for name in ["curl", "a b", "(sd-pam)", "x) S 1 (y", ""] {
            let stat = stat(name).unwrap();
            assert_eq!((stat.comm.as_str(), stat.ppid), (name, 4700));
            assert!(stat.is_process());
        }
        let kernel = Stat::parse("14 (kworker/0:1) I 2 0 0 0 -1 69238880 0").unwrap();
        assert!(!kernel.is_process());
        assert_eq!(Stat::parse("4711 (curl"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn the_real_user_and_the_unified_hierarchy_count() {
        assert_eq!(
            real_id("Name:\tsu\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t6\t6\n", "Uid:"),
            Some(1000)
        );
        assert_eq!(real_id("Uid:\t1000\nGid:\t5\t6\t6\t6\n", "Gid:"), Some(5));
        assert_eq!(real_id("Name:\tsu\n", "Uid:"), None);
        let mixed = "9:name=systemd:/a\n4:memory:/b\n0::/system.slice/nginx.service\n";
        assert_eq!(
            cgroup(mixed).as_deref(),
            Some("/system.slice/nginx.service")
        );
        assert_eq!(cgroup("9:name=systemd:/a\n"), None);
    }

    #[test]
    fn only_sockets_are_sockets() {
        assert_eq!(socket_inode("socket:[1527]"), Some(1527));
        for other in ["pipe:[1527]", "/dev/null", "socket:[]", "/tmp/socket:[1]"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_has_holder_and_ancestors() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&listener)
        ))
        .unwrap()
        .ino();
        let own = std::process::id();
        let until = Instant::now() + std::time::Duration::from_secs(600);
        let (found, _) = find(
            Path::new("/proc"),
            &[own],
            &HashSet::from([inode, 0]),
            until,
        );
        assert_eq!(found.len(), 1);
        let holder = &found[&inode][0];
        assert_eq!(holder.pid, own);
        assert_eq!(holder.uid, Some(nix::unistd::getuid().as_raw()));
        let executable = holder.executable.as_ref().unwrap();
        assert_eq!(executable.path, std::env::current_exe().unwrap());
        assert!(executable.for_rules().is_some());

        let line = ancestors(Path::new("/proc"), own);
        assert_eq!(
            line.first().copied(),
            Some(std::os::unix::process::parent_id()).filter(|parent| *parent > 1)
        );
    }

    #[test]
    fn what_rules_may_match() {
        let mut executable = Executable {
            path: "/usr/bin/curl".into(),
            foreign: false,
        };
        assert_eq!(executable.for_rules(), Some(&b"/usr/bin/curl"[..]));
        // Rules that deny go by the path that it shows.
        executable.foreign = true;
        assert_eq!(executable.for_rules(), Some(&b"/usr/bin/curl"[..]));
        let long = Executable {
            path: format!("/{}", "x".repeat(EXECUTABLE_PATH)).into(),
            foreign: false,
        };
        assert_eq!(long.for_rules(), None);
        assert_eq!(
            without_mark("/usr/bin/curl (deleted)".into()),
            Path::new("/usr/bin/curl")
        );
    }
}
