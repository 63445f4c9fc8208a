//! The lab itself: builds the namespaces and control group, and takes all of it
//! away again.
//!
//! Each instance has names of its own (`trefoil-lab-<pid>-<n>`), so several run
//! side by side. The next instance takes away the remains of a killed one.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::agent::AgentBuilder;
use crate::cgroup;
use crate::journal::{self, Journal};
use crate::link::LinkCounters;
use crate::namespace::{HOST, Namespace};
use crate::places;
use crate::program::Program;
use crate::tap::Tap;
use crate::wait::wait_for;
use crate::wiring::{self, link_name};

/// Control groups of labs are called so, with the instance's numbers between.
/// Ending in `.slice` makes what is below look as systemd lays it out.
const CGROUP_PREFIX: &str = "trefoillab";
const DIRECTORY_PREFIX: &str = "trefoil-lab-";

/// A small world. Gone when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Files of this instance; programs may be put here.
    pub directory: PathBuf,
    /// The control group that the agent is attached to, and nothing above it.
    pub cgroup: PathBuf,
    /// The host under test.
    pub host: Namespace,
    /// The approved way out.
    pub gateway: Namespace,
    /// An approved destination.
    pub peer: Namespace,
    /// Everywhere else.
    pub foreign: Namespace,
    name: String,
    mounts: Vec<PathBuf>,
    journal: OnceLock<Journal>,
    closed: bool,
}

impl Lab {
    /// Builds a lab. Needs root.
    pub fn new() -> Result<Self> {
        Self::build(|_| Ok(())).map(|(lab, ())| lab)
    }

    /// Builds a lab, and a tap at the foreign place that is there before the first frame: it has
    /// seen as many as have been sent, once all have arrived.
    pub fn with_tap() -> Result<(Self, Tap)> {
        Self::build(|lab| Tap::new(&lab.foreign))
    }

    /// `prepare` is called before there is a link.
    fn build<T>(prepare: impl FnOnce(&Self) -> Result<T>) -> Result<(Self, T)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = Instance {
            pid: std::process::id(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        };
        if instance.number == 0 {
            sweep_abandoned();
        }
        let directory = instance.directory();
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        // Programs of other users are started from here.
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
        let mut lab = Self {
            name: instance.name(),
            cgroup: PathBuf::new(),
            host: Namespace::new(HOST)?,
            gateway: Namespace::new("gateway")?,
            peer: Namespace::new("peer")?,
            foreign: Namespace::new("foreign")?,
            mounts: Vec::new(),
            journal: OnceLock::new(),
            closed: false,
            directory,
        };
        lab.mount("bpf", "bpf", None)?;
        let root = match cgroup::version2_root()? {
            Some(root) => root,
            None => lab.mount("cgroup", "cgroup2", None)?,
        };
        lab.cgroup = root.join(instance.cgroup());
        fs::create_dir(&lab.cgroup).with_context(|| format!("create {}", lab.cgroup.display()))?;
        let prepared = prepare(&lab)?;
        wiring::connect(&lab.host, [&lab.gateway, &lab.peer, &lab.foreign])?;
        fs::write(lab.file("geoip"), places::country_file_v4())?;
        fs::write(lab.file("geoip6"), places::country_file_v6())?;
        Ok((lab, prepared))
    }

    /// A path in the lab's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Directories of what agents of this lab have left for the next one outside of the kernel.
    pub fn agent_state(&self) -> Vec<PathBuf> {
        agent_state(&self.directory)
    }

    /// Removes what agents of this lab have left for the next one outside of the kernel.
    pub fn remove_agent_state(&self) -> Result<()> {
        remove_agent_state(&self.directory)
    }

    /// Where the agent pins what is to outlive it.
    pub fn pins(&self) -> PathBuf {
        self.directory.join("bpf/trefoil")
    }

    /// Removes all pins, also if the agent puts some back meanwhile.
    pub fn remove_pins(&self) -> Result<()> {
        wait_for("all pins are removed", || {
            match fs::remove_dir_all(self.pins()) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(None),
                removed => Ok(Some(removed?)),
            }
        })
    }

    /// A settings file that says to every verb what the lab's agent was told by
    /// flags.
    pub fn settings(&self) -> Result<PathBuf> {
        let path = |name: &str| format!("{:?}", self.file(name));
        let text = format!(
            "policy = {}\ngeo = [{}, {}]\ncgroup = {:?}\nuplinks = \"none\"\n\
             pin_dir = {:?}\njournal = {:?}\n",
            path("policy.toml"),
            path("geoip"),
            path("geoip6"),
            self.cgroup,
            self.pins(),
            self.journal()?.socket(),
        );
        let settings = self.file("lab.toml");
        fs::write(&settings, text).context("write the lab's settings")?;
        Ok(settings)
    }

    /// The lab's journald, started when first asked for.
    pub fn journal(&self) -> Result<&Journal> {
        if let Some(journal) = self.journal.get() {
            return Ok(journal);
        }
        let journal = Journal::start(&self.name)?;
        Ok(self.journal.get_or_init(|| journal))
    }

    /// The control group of a service, made if it is not there, as systemd would
    /// lay it out.
    pub fn unit(&self, name: &str) -> Result<PathBuf> {
        let directory = self.cgroup.join("system.slice").join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        Ok(directory)
    }

    /// `executable` on the host under test, in service `lab.service`.
    pub fn program(&self, executable: impl AsRef<Path>) -> Result<Program> {
        self.program_in("lab.service", executable)
    }

    /// `executable` on the host under test, in service `unit`.
    pub fn program_in(&self, unit: &str, executable: impl AsRef<Path>) -> Result<Program> {
        Program::new(
            executable.as_ref(),
            &self.host,
            Some(&self.unit(unit)?),
            None,
        )
    }

    /// `executable` on the host under test, in service `lab.service`, as a user.
    pub fn program_as(&self, uid: u32, executable: impl AsRef<Path>) -> Result<Program> {
        let unit = self.unit("lab.service")?;
        Program::new(executable.as_ref(), &self.host, Some(&unit), Some(uid))
    }

    /// An agent to be set up and started.
    pub fn agent(&self) -> AgentBuilder<'_> {
        AgentBuilder::new(self)
    }

    /// Reads the counters of the host's link towards `place`.
    pub fn link_to(&self, place: &Namespace) -> Result<LinkCounters> {
        LinkCounters::read(&self.host, &link_name(place))
    }

    /// A copy of `executable` in the lab's directory, under a path of its own. Another
    /// process writes it: what is started in this one meanwhile would inherit the file
    /// open for writing, and until that has become another program the kernel starts no
    /// program from the file (ETXTBSY).
    pub fn copy_program(&self, executable: impl AsRef<Path>, path: &str) -> Result<PathBuf> {
        let copy = self.file(path);
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut cp = Command::new("cp");
        let status = cp.args([executable.as_ref(), &copy]).status();
        let status = status.with_context(|| format!("start cp to copy to {path}"))?;
        ensure!(status.success(), "copy to {path}: cp ended with {status}");
        Ok(copy)
    }

    /// Lists the agent's pins, directories included.
    pub fn pinned(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory.join("bpf")];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                // The file system brings two files along, progs.debug and maps.debug.
                if entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "debug")
                {
                    continue;
                }
                if entry.path().is_dir() {
                    directories.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found
    }

    /// Lists all that exists of this lab. Empty after [`close`](Self::close).
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let cgroups = self.cgroup.exists() && !self.cgroup.as_os_str().is_empty();
        if cgroups {
            found.push(format!("control group {}", self.cgroup.display()));
            for pid in cgroup::processes(&self.cgroup)? {
                found.push(format!("process {pid} in {}", self.cgroup.display()));
            }
        }
        for place in [&self.host, &self.gateway, &self.peer, &self.foreign] {
            for pid in processes_in(place)? {
                found.push(format!("process {pid} in namespace {}", place.name));
            }
        }
        found.extend(
            self.pinned()
                .iter()
                .map(|path| format!("pin {}", path.display())),
        );
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let inside = format!(" {}", self.directory.display());
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&inside))
                .map(|line| format!("mount {line}")),
        );
        found.extend(
            journal::traces(&self.name)?
                .iter()
                .map(|path| format!("journal {}", path.display())),
        );
        found.extend(
            agent_state(&self.directory)
                .iter()
                .map(|path| format!("state {}", path.display())),
        );
        if self.directory.exists() {
            found.push(format!("directory {}", self.directory.display()));
        }
        Ok(found)
    }

    /// Takes the lab away, and fails if the agent had left anything in it or if
    /// anything of it is left afterwards. Tests end with this.
    pub fn close(mut self) -> Result<()> {
        let pins = self.pinned();
        self.take_away()?;
        let left = self.leftovers()?;
        if !pins.is_empty() {
            bail!("the agent left pins: {pins:?}");
        }
        if !left.is_empty() {
            bail!("the lab left: {left:?}");
        }
        Ok(())
    }

    fn take_away(&mut self) -> Result<()> {
        self.closed = true;
        self.journal.take();
        cgroup::remove(&self.cgroup)?;
        for mounted in self.mounts.drain(..).rev() {
            umount2(&mounted, MntFlags::MNT_DETACH)
                .with_context(|| format!("unmount {}", mounted.display()))?;
        }
        remove_agent_state(&self.directory)?;
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("remove {}", self.directory.display()))
    }

    /// A file system of one megabyte in the lab's directory.
    pub fn small_disk(&mut self) -> Result<PathBuf> {
        self.mount("disk", "tmpfs", Some("size=1m"))
    }

    fn mount(&mut self, name: &str, kind: &str, options: Option<&str>) -> Result<PathBuf> {
        let target = self.directory.join(name);
        fs::create_dir(&target)?;
        mount(Some(kind), &target, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount a {kind} file system on {}", target.display()))?;
        self.mounts.push(target.clone());
        Ok(target)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.closed
            && let Err(error) = self.take_away()
        {
            eprintln!("taking away {}: {error:#}", self.name);
        }
    }
}

fn processes_in(place: &Namespace) -> Result<Vec<u32>> {
    use std::os::unix::fs::MetadataExt;
    let inode = place.file().metadata()?.ino();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        if let Ok(namespace) = fs::metadata(entry.path().join("ns/net"))
            && namespace.ino() == inode
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Where agents of this lab keep what has to outlive them but not the boot: they
/// name it after the directory of their pins.
fn agent_state(directory: &Path) -> Vec<PathBuf> {
    let Some(lab) = directory.file_name() else {
        return Vec::new();
    };
    // As systemd-escape writes paths.
    let lab = format!("{}-", lab.to_string_lossy().replace('-', "\\x2d"));
    ["/run/trefoil", "/var/lib/trefoil"]
        .into_iter()
        .filter_map(|base| fs::read_dir(base).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().contains(&lab))
        .collect()
}

fn remove_agent_state(directory: &Path) -> Result<()> {
    for path in agent_state(directory) {
        // A test that was killed may have left a file system on it.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// The numbers that tell labs apart.
struct Instance {
    pid: u32,
    number: u32,
}

impl Instance {
    fn name(&self) -> String {
        format!("{CGROUP_PREFIX}{}n{}", self.pid, self.number)
    }

    fn cgroup(&self) -> String {
        format!("{}.slice", self.name())
    }

    fn directory(&self) -> PathBuf {
        // Not below /run, which may be mounted noexec.
        std::env::temp_dir().join(format!("{DIRECTORY_PREFIX}{}-{}", self.pid, self.number))
    }

    /// From the name of a directory of a lab.
    fn from_directory(name: &str) -> Option<Self> {
        let (pid, number) = name.strip_prefix(DIRECTORY_PREFIX)?.split_once('-')?;
        Some(Self {
            pid: pid.parse().ok()?,
            number: number.parse().ok()?,
        })
    }
}

/// Takes away the remains of labs that were killed. The first lab of a process
/// does this. Failures are left to the next lab: they must not keep this one
/// from being built.
pub fn sweep_abandoned() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(instance) = Instance::from_directory(&name) else {
            continue;
        };
        if Path::new(&format!("/proc/{}", instance.pid)).exists() {
            continue;
        }
        if let Err(error) = sweep(&instance) {
            eprintln!("{name} was left by a killed process and resists: {error:#}");
        }
    }
}

fn sweep(instance: &Instance) -> Result<()> {
    if let Some(root) = cgroup::version2_root()? {
        cgroup::remove(&root.join(instance.cgroup()))?;
    }
    journal::clean(&instance.name())?;
    let directory = instance.directory();
    remove_agent_state(&directory)?;
    for mounted in ["bpf", "cgroup"] {
        // Not mounted any more is fine.
        let _ = umount2(&directory.join(mounted), MntFlags::MNT_DETACH);
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
