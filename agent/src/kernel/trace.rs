//! The programs of `trefoil trace`: loading them beside those that decide, and reading their lines.
//!
//! They look at the pinned tables, and have everything that they write for themselves. Their links
//! are not pinned, so that nothing is left of them when the tracing process is gone, however it
//! ended. The meaning of a line is not this file's business.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray},
    programs::{Program, ProgramFd},
};
use aya_log::EbpfLogger;
use nix::fcntl::{FcntlArg, fcntl};
use trefoil_ebpf::abi::trace::{TraceCounts, TraceFilter};

use super::{
    KernelError, UplinkTable, attach,
    bpf_syscall::{self, Target},
    offsets,
    pins::{MapLayout, PinDir},
    tables::ControlWords,
    wire::{Wire, bytes_of},
};
use crate::state::State;

/// The object with the programs that trace.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/trace.o"));

/// Tables of those that decide, which the programs read. All others in the object are their own.
const SHARED: [&str; 14] = [
    "CONTROL",
    "TABLES",
    "BUDGETS",
    "SOCKETS",
    "FLOWS",
    "UPLINK_FLOWS",
    "PROCESSES",
    "EXECUTABLES",
    "CGROUPS",
    "UPLINKS",
    "IN_FLIGHT",
    "IN_FLIGHT_OWNERS",
    "LARGE_DATAGRAMS",
    "REMEMBERED",
];

/// Tables that nothing here needs, as small as they can be.
const UNUSED: [(&str, u32); 2] = [("EVENTS", 4096), ("ENDED", 1)];

/// Programs in control groups, and the hook that each stands beside.
const IN_CGROUP: [(&str, &str); 5] = [
    ("trace_connect4", "connect4"),
    ("trace_connect6", "connect6"),
    ("trace_sendmsg4", "sendmsg4"),
    ("trace_sendmsg6", "sendmsg6"),
    ("trace_egress", "egress"),
];

/// The program at the exit of uplinks.
const AT_UPLINK: &str = "trace_uplink";

/// Programs that are attached, and what they write.
pub struct Trace {
    logger: EbpfLogger<Lines>,
    lines: Lines,
    counts: PerCpuArray<MapData, Wire<TraceCounts>>,
    links: Vec<OwnedFd>,
    /// The instance whose hooks it stands beside.
    pub instance: u32,
    /// Hooks and uplinks that are not shown, and why.
    pub unseen: Vec<String>,
    // Says which program it is, until it is closed.
    marker: Option<Marker>,
    _ebpf: Ebpf,
}

impl Trace {
    /// Loads the programs and attaches them to a control group, beside the hooks of an agent, alive
    /// or dead, and to its uplinks.
    ///
    /// # Errors
    ///
    /// There are no hooks, or not at this control group; somebody else traces; the kernel refuses
    /// the programs.
    pub fn start(pins: &PinDir, cgroup: &Path, filter: &TraceFilter) -> Result<Self, KernelError> {
        let instance = ControlWords::open(pins)?.get().instance;
        check_cgroup(pins, instance, cgroup)?;
        let mut marker = Marker::new(pins)?;
        let mut ebpf = load(pins, instance, filter)?;
        let failed =
            |error: aya::maps::MapError| KernelError::failed("use map TRACE_COUNTS", error);
        let counts = ebpf.take_map("TRACE_COUNTS");
        let counts = counts.ok_or_else(|| missing("TRACE_COUNTS"))?;
        let counts = counts.try_into().map_err(failed)?;
        let lines = Lines::default();
        let logger = EbpfLogger::init_with_logger(&mut ebpf, lines.clone())
            .map_err(|error| KernelError::failed("read what programs log", error))?;
        let mut links = attach_to_cgroup(&ebpf, cgroup)?;
        let mut unseen = Vec::new();
        let uplinks = UplinkTable::open(pins)?.all()?;
        if uplinks.iter().any(|(_, uplink)| !uplink.is_tunnel()) {
            match load_for_uplinks(&mut ebpf) {
                Ok(program) => {
                    marker.set(bpf_syscall::identity(program.as_fd()).map_err(|error| {
                        KernelError::failed(format!("look at program {AT_UPLINK}"), error)
                    })?)?;
                    attach_to_uplinks(program, &uplinks, &mut links, &mut unseen)?;
                }
                Err(error) => {
                    unseen.push(format!("frames at uplinks: {}", super::with_causes(&error)))
                }
            }
        }
        Ok(Self {
            logger,
            lines,
            counts,
            links,
            instance,
            unseen,
            marker: Some(marker),
            _ebpf: ebpf,
        })
    }

    /// Lines since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        self.logger.flush();
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines)
    }

    /// Detaches the programs. Lines that they have written can still be read.
    pub fn detach(&mut self) {
        self.links.clear();
        self.marker = None;
        // A program that is running may be about to write.
        super::tables::wait_for_programs();
    }

    /// Returns the counts of the programs so far.
    pub fn counts(&self) -> Result<TraceCounts, KernelError> {
        let each = self
            .counts
            .get(&0, 0)
            .map_err(|error| KernelError::failed("use map TRACE_COUNTS", error))?;
        Ok(each
            .iter()
            .fold(TraceCounts::default(), |sum, Wire(it)| TraceCounts {
                told: sum.told + it.told,
                over_rate: sum.over_rate + it.over_rate,
                nested: sum.nested + it.nested,
                ..sum
            }))
    }
}

impl AsFd for Trace {
    /// Readable when there are lines.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.logger.as_fd()
    }
}

/// Where lines of the programs go.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(record.args().to_string());
    }

    fn flush(&self) {}
}

fn missing(name: &str) -> KernelError {
    KernelError::failed(
        format!("find {name} in the embedded object"),
        "the build is incomplete",
    )
}

/// Fails unless the hooks of the instance that decides are at this control group.
fn check_cgroup(pins: &PinDir, instance: u32, cgroup: &Path) -> Result<(), KernelError> {
    let pin = pins.link(instance, "egress");
    if instance == 0 || !pin.exists() {
        return Err(KernelError::NothingPinned {
            path: pins.base().to_owned(),
        });
    }
    let failed =
        |error: io::Error| KernelError::failed(format!("look at {}", cgroup.display()), error);
    let directory = fs::metadata(cgroup).map_err(failed)?;
    let link = bpf_syscall::open_pin(&pin).and_then(|link| bpf_syscall::link_info(link.as_fd()));
    let link = link.map_err(|error| {
        KernelError::failed(format!("open pinned link {}", pin.display()), error)
    })?;
    match link.target() {
        Some(Target::Cgroup(id)) if id == directory.ino() => Ok(()),
        _ => Err(failed(io::Error::other(
            "the hooks are not at this control group; start `trefoil run` again, or name its \
             settings with --config",
        ))),
    }
}

/// Loads the programs for control groups. Maps that are shared are those that are pinned.
fn load(pins: &PinDir, instance: u32, filter: &TraceFilter) -> Result<Ebpf, KernelError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| KernelError::failed("read the embedded object", error))?;
    for name in SHARED {
        let map = object.maps.get(name).ok_or_else(|| missing(name))?;
        let wanted = MapLayout {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
        };
        if pins.check_map(name, &wanted)?.is_none() {
            return Err(KernelError::NothingPinned {
                path: pins.base().to_owned(),
            });
        }
    }
    let kernel_offsets = offsets::resolve()?;
    let knows_answers = u32::from(offsets::open()?.has_function("bpf_get_retval"));
    let filter = TraceFilter {
        knows_answers,
        ..*filter
    };
    let log_bytes = log_bytes(filter.per_second);
    let paths: Vec<(&str, PathBuf)> = SHARED.map(|name| (name, pins.map(name))).into();
    let mut loader = EbpfLoader::new();
    loader
        .override_global("INSTANCE", &instance, true)
        .override_global("REPLACES", &instance, true)
        .override_global("TRACE_FILTER", bytes_of(&filter), true)
        .override_global("OFFSETS", bytes_of(&kernel_offsets), true);
    loader.map_max_entries("AYA_LOGS", log_bytes);
    for (name, entries) in UNUSED {
        loader.map_max_entries(name, entries);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| KernelError::failed("load the maps of programs that trace", error))?;
    for (name, _) in IN_CGROUP {
        let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        match program {
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(missing(name)),
        }
        .map_err(|error| KernelError::failed(format!("load program {name}"), error))?;
    }
    Ok(ebpf)
}

/// Bytes of the ring buffer for lines: those of a second, which may all come at once.
fn log_bytes(per_second: u32) -> u32 {
    /// Most bytes of a line.
    const LINE: usize = 1024;
    const LEAST: usize = 1 << 17;
    const MOST: usize = 1 << 24;
    let n_processors = aya::util::nr_cpus().unwrap_or(1);
    let bytes = LINE
        .saturating_mul(n_processors)
        .saturating_mul(per_second as usize);
    bytes.clamp(LEAST, MOST).next_power_of_two() as u32
}

/// Loads the program for uplinks, which some kernels may not take.
fn load_for_uplinks(ebpf: &mut Ebpf) -> Result<&ProgramFd, KernelError> {
    match ebpf.program_mut(AT_UPLINK) {
        Some(Program::SchedClassifier(program)) => program
            .load()
            .and_then(|()| program.fd())
            .map_err(|error| KernelError::failed(format!("load program {AT_UPLINK}"), error)),
        _ => Err(missing(AT_UPLINK)),
    }
}

fn attach_to_cgroup(ebpf: &Ebpf, cgroup: &Path) -> Result<Vec<OwnedFd>, KernelError> {
    let directory = File::open(cgroup).map_err(|error| {
        KernelError::failed(format!("open control group {}", cgroup.display()), error)
    })?;
    let attach = |(name, hook): (&str, &str)| {
        let program = match ebpf.program(name) {
            Some(Program::CgroupSkb(program)) => program.fd(),
            Some(Program::CgroupSockAddr(program)) => program.fd(),
            _ => return Err(missing(name)),
        };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            KernelError::failed(format!("attach program {name}"), error)
        };
        let program = program.map_err(|error| failed(error.into()))?;
        let place = attach::attach_type(hook);
        bpf_syscall::attach_to_cgroup(program.as_fd(), directory.as_fd(), place)
            .map_err(|error| failed(error.into()))
    };
    IN_CGROUP.into_iter().map(attach).collect()
}

/// Attaches the program before all others at the exit of each uplink of this network namespace.
fn attach_to_uplinks(
    program: &ProgramFd,
    uplinks: &[(u32, trefoil_ebpf::abi::Uplink)],
    links: &mut Vec<OwnedFd>,
    unseen: &mut Vec<String>,
) -> Result<(), KernelError> {
    for (index, uplink) in uplinks.iter().filter(|(_, uplink)| !uplink.is_tunnel()) {
        let name = uplink.name.split(|byte| *byte == 0).next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let found = nix::net::if_::if_nametoindex(name.as_str());
        if found != Ok(*index) {
            unseen.push(format!(
                "frames at uplink {name}: it is not in this network namespace; run `trefoil trace` \
                 in that of the agent"
            ));
            continue;
        }
        match bpf_syscall::attach_tcx_egress_first(program.as_fd(), *index) {
            Ok(link) => links.push(link),
            // A filter of clsact would stay if this process were killed.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => unseen.push(format!(
                "frames at uplink {name}: this takes Linux 6.6, where programs at an interface go \
                 with the process that attached them"
            )),
            Err(error) => {
                let operation = format!("attach {AT_UPLINK} to {name}");
                return Err(KernelError::failed(operation, error));
            }
        }
    }
    Ok(())
}

/// A file that says which program stands before the hooks of uplinks, locked as long as it does:
/// it lets nothing pass for good, and is nothing to be told of.
struct Marker {
    file: File,
    path: PathBuf,
}

impl Marker {
    fn path(pins: &PinDir) -> PathBuf {
        State::dir(pins.base()).join("trace")
    }

    fn new(pins: &PinDir) -> Result<Self, KernelError> {
        let path = Self::path(pins);
        let failed =
            |error: io::Error| KernelError::failed(format!("open {}", path.display()), error);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).map_err(|error| {
            failed(match error {
                nix::Error::EAGAIN | nix::Error::EACCES => io::Error::other(
                    "another `trefoil trace` runs with this pin directory; wait until it ends",
                ),
                error => error.into(),
            })
        })?;
        Ok(Self { file, path })
    }

    fn set(&mut self, program: bpf_syscall::Identity) -> Result<(), KernelError> {
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.write_all(program.id.to_string().as_bytes()));
        written
            .map_err(|error| KernelError::failed(format!("write {}", self.path.display()), error))
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // One that stays says nothing, since nobody holds it.
        let _ = fs::remove_file(&self.path);
    }
}

/// A lock of a whole file.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Number of the program with which somebody traces at the uplinks of a pin directory.
pub(super) fn running(pins: &PinDir) -> BTreeSet<u32> {
    let Ok(mut file) = File::open(Marker::path(pins)) else {
        return BTreeSet::new();
    };
    // Asks and does not lock, so that whoever begins to trace at this moment can.
    let mut lock = whole_file(libc::F_RDLCK);
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
    if asked.is_err() || lock.l_type == libc::F_UNLCK as i16 {
        return BTreeSet::new();
    }
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) => text.trim().parse().into_iter().collect(),
        Err(_) => BTreeSet::new(),
    }
}
