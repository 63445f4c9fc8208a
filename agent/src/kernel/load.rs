//! Loading the programs and their maps, and access to what they do.

use std::{
    cell::RefCell,
    fs::File,
    os::fd::{AsFd as _, AsRawFd},
    path::PathBuf,
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::MapData,
    programs::{Iter, Program, ProgramType, SchedClassifier},
    sys::{BpfHelper, is_helper_supported},
};
use trefoil_ebpf::abi::{
    Cgroup, Control, Executable, Offsets, Owner, Question, ROOM_OF_CGROUPS, ROOM_OF_EXECUTABLES,
    ROOM_OF_PROCESSES, ROOT, Room, Rooms, Tracked,
};

use super::{
    ChargedTables, KernelError, UplinkHook, attach,
    btf::Types,
    cgroups, former,
    hooks::{self, HookStatus, JUDGE_PACKET, JUDGE_QUESTION, UPLINK_EGRESS},
    iterators,
    namespace::network_namespace,
    offsets,
    pins::{MapLayout, PinDir},
    questions,
    reader::Reader,
    resized::{self, Former},
    tables::{self, ControlWords, Written},
    wire::bytes_of,
};
use crate::{clock::BootClock, policy::Image};

/// The object with all kernel programs.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/trefoil.o"));

/// Sizes of the kernel's tables, in entries.
#[derive(Clone, Copy, Debug)]
pub struct TableSizes {
    /// Bytes of the ring buffer; a power of two and at least a page.
    pub events_bytes: u32,
    /// Flows of sockets with many peers.
    pub flows: u32,
    /// Flows at uplinks that no socket's hooks have judged.
    pub uplink_flows: u32,
    /// Decisions that outlive the socket they were made for.
    pub remembered: u32,
    /// Interfaces that are watched.
    pub uplinks: u32,
    /// Final states that wait because the ring buffer was full.
    pub ended: u32,
    /// Live processes.
    pub processes: u32,
    /// Different executables.
    pub executables: u32,
    /// Control groups.
    pub cgroups: u32,
}

/// Settings that the kernel side needs to start.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// Where pins go.
    pub pin_dir: PathBuf,
    /// The control group that is watched; all below it are.
    pub cgroup: PathBuf,
    /// Sizes of tables.
    pub tables: TableSizes,
    /// Flows that stay on the host are told like any other.
    pub local_flows: bool,
    /// Interfaces that lead out are watched, now or when there are any.
    pub watches_uplinks: bool,
}

/// The kernel side of a running agent.
///
/// Programs and maps in the kernel. Pinned objects stay when it is dropped, once it is
/// [kept](Kernel::keep).
pub struct Kernel {
    pub(super) pins: PinDir,
    pub(super) ebpf: Ebpf,
    pub(super) control: ControlWords,
    pub(super) hooks: Vec<HookStatus>,
    pub(super) instance: u32,
    /// The parts of the tables that are for others than root.
    pub(super) rooms: Rooms,
    pub(super) took_over: bool,
    /// Hooks that were found detached, though an agent before had attached them.
    pub(super) found_detached: Vec<(String, Option<Owner>)>,
    /// Its programs are put in the place of those of an instance before.
    pub(super) replaces: bool,
    /// The policy that was written last, which is in force soon afterwards.
    pub(super) written: RefCell<Option<Written>>,
    /// Tables of another size that had the names of this agent's.
    pub(super) made_way: Vec<Former>,
    /// Open for good: somebody may take the pin away.
    sockets: MapData,
    /// True if the objects that it made are to outlive it.
    is_kept: bool,
    _lock: File,
}

impl Drop for Kernel {
    /// A start that fails leaves nothing that it made.
    fn drop(&mut self) {
        if !self.is_kept {
            self.abandon();
        }
    }
}

impl Kernel {
    /// Loads all programs and makes or opens their maps. Nothing is attached,
    /// counted or judged yet.
    pub fn load(settings: &LoadSettings) -> Result<Self, KernelError> {
        let pins = PinDir::new(&settings.pin_dir);
        pins.create()?;
        let lock = lock(&pins)?;
        if pins.others().iter().any(PinDir::has_agent) {
            return Err(KernelError::Busy {
                path: pins.base().to_owned(),
            });
        }
        let took_over = !pins.pinned_links().is_empty();
        let mut made_way = Vec::new();
        let mut loaded =
            Self::load_into(pins.clone(), lock, settings, took_over, true, &mut made_way);
        match &mut loaded {
            Ok(kernel) => kernel.made_way = made_way,
            Err(KernelError::PinMismatch { .. }) => {}
            // Nothing was there before, so nothing is to be left.
            Err(_) if !took_over => drop(pins.remove_version()),
            Err(_) => made_way
                .iter()
                .try_for_each(|former| former.put_back(&pins))?,
        }
        loaded
    }

    /// `tcp_state_seen` says what the programs are told of `inet_sock_set_state`; tables that make
    /// way for others are added to `made_way`.
    fn load_into(
        pins: PinDir,
        lock: File,
        settings: &LoadSettings,
        took_over: bool,
        tcp_state_seen: bool,
        made_way: &mut Vec<Former>,
    ) -> Result<Self, KernelError> {
        let mut sizes = sizes(&settings.tables);
        let making_way = check_layouts(&pins, &mut sizes)?;
        let before =
            ControlWords::open(&pins).map_or_else(|_| Control::default(), |word| word.get());
        // One that was killed before it came into force has left pins, too.
        let pinned = pins
            .pinned_links()
            .into_iter()
            .map(|(instance, _)| instance);
        let instance = pinned.fold(before.instance, u32::max);
        let instance = instance.wrapping_add(1).max(1);
        let replaces = before.instance != 0 && former::can_be_replaced(&pins, &settings.cgroup);
        let replaced = if replaces { before.instance } else { instance };

        let types = offsets::open()?;
        let globals = Globals {
            instance,
            replaces: replaced,
            local_flows: settings.local_flows.into(),
            uplinks_watched: settings.watches_uplinks.into(),
            rooms: rooms(&settings.tables),
            ..Globals::of_this_kernel(&types, tcp_state_seen)?
        };
        let paths: Vec<_> = map_names()
            .map(|name| (name.clone(), pins.map(&name)))
            .collect();
        let mut loader = EbpfLoader::new();
        globals.set(&mut loader);
        for (name, size) in &sizes {
            loader.map_max_entries(name, *size);
        }
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        for name in making_way {
            made_way.push(resized::set_aside(&pins, name)?);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| KernelError::failed("load the kernel programs' maps", error))?;
        tables::set_executable_key(&pins)?;

        let btf = kernel_types()?;
        let Some(loaded) = attach::load_all(&mut ebpf, &btf, &types, tcp_state_seen) else {
            // Only now is it known, and the constants of what is loaded say otherwise.
            drop(ebpf);
            return Self::load_into(pins, lock, settings, took_over, false, made_way);
        };
        let mut statuses = Vec::new();
        for (status, error) in loaded {
            match error {
                Some(error) if status.without.is_none() => return Err(error),
                _ => statuses.push(status),
            }
        }
        let control = ControlWords::open(&pins)?;
        let sockets = pins.open_map("SOCKETS")?;
        Ok(Self {
            found_detached: former::detached(&pins, before.instance),
            pins,
            ebpf,
            control,
            hooks: statuses,
            instance,
            rooms: globals.rooms,
            took_over,
            replaces,
            written: RefCell::new(None),
            made_way: Vec::new(),
            sockets,
            is_kept: false,
            _lock: lock,
        })
    }

    /// From here on, what it has made stays in the kernel when it is dropped.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// The generation in force; 0 before there was one.
    pub fn generation(&self) -> u32 {
        self.control.get().generation
    }

    /// The generation that the next policy should have.
    pub fn next_generation(&self) -> u32 {
        // Generation 0 means "none" to the programs.
        self.control.get().generation.wrapping_add(1).max(1)
    }

    /// Writes a policy where it is not in force yet. Its times are told by `clock`;
    /// returns where each of its budgets is counted.
    pub fn write_policy(&self, policy: &Image, clock: &BootClock) -> Result<Vec<u32>, KernelError> {
        let (places, written) = tables::write(&self.pins, policy, clock)?;
        self.written.replace(Some(written));
        Ok(places)
    }

    /// Where the pins are.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// True if programs of an earlier agent were attached when this one started.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// Hooks that were found detached, though an agent before had attached them; with who may
    /// have done it.
    pub fn found_detached(&self) -> &[(String, Option<Owner>)] {
        &self.found_detached
    }

    /// Returns the hook that attaches the program for uplinks to interfaces; `None` if this kernel
    /// does not have it.
    pub fn uplink_hook(&self) -> Result<Option<UplinkHook>, KernelError> {
        let is_loaded = self
            .hooks
            .iter()
            .any(|hook| hook.name == UPLINK_EGRESS && hook.attached);
        match self.ebpf.program(UPLINK_EGRESS) {
            Some(Program::SchedClassifier(program)) if is_loaded => {
                let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
                    KernelError::failed(format!("use program {UPLINK_EGRESS}"), error)
                };
                let fd = program.fd().map_err(|error| failed(error.into()))?;
                let fd = fd.as_fd().try_clone_to_owned();
                let fd = fd.map_err(|error| failed(error.into()))?;
                UplinkHook::new(fd, self.pins.clone(), self.instance, self.replaces).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Every hook with what became of it.
    pub fn hooks(&self) -> &[HookStatus] {
        &self.hooks
    }

    /// True if [`socket_flows`](Self::socket_flows) shows every tagged socket.
    pub fn sees_sockets(&self) -> bool {
        self.iterator(hooks::SOCKETS).is_some() || self.socket_files().is_some()
    }

    /// Tags of all sockets that have one peer or flows in the table of many peers;
    /// for the former with the cumulative state of the flow.
    pub fn socket_flows(&self) -> Result<Vec<Tracked>, KernelError> {
        if let Some(program) = self.iterator(hooks::SOCKETS) {
            return iterators::flows(program, hooks::SOCKETS, Some(self.sockets.fd().as_fd()));
        }
        match self.socket_files() {
            Some(program) => iterators::flows(program, hooks::SOCKET_FILES, None),
            None => Ok(Vec::new()),
        }
    }

    /// Access to the tables with room by owner.
    pub fn charged(&self) -> Result<ChargedTables, KernelError> {
        ChargedTables::open(&self.pins)
    }

    /// Access to the tables.
    pub fn reader(&self) -> Result<Reader, KernelError> {
        Reader::open(&self.pins)
    }

    /// Loads the program that [`ask`](Self::ask) runs, which later takes rights that a
    /// running agent has given up.
    pub fn load_judge(&mut self) -> Result<(), KernelError> {
        self.judge(JUDGE_QUESTION).map(drop)
    }

    fn judge(&mut self, name: &str) -> Result<&SchedClassifier, KernelError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            KernelError::failed(format!("load program {name}"), error)
        };
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| failed("it is not in the object".into()))?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| failed(error.into()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| failed(error.into()))?;
        }
        Ok(program)
    }

    /// Asks the judge in the kernel, under the policy in force.
    ///
    /// Returns `verdict | flags << 8 | rule << 16` for each question, and how long
    /// the program ran for all of them.
    pub fn ask(&mut self, questions: &[Question]) -> Result<(Vec<u32>, Duration), KernelError> {
        questions::ask(self.judge(JUDGE_QUESTION)?, questions)
    }

    /// The decision of the judge in the kernel about a packet of IP, under the policy in force, if
    /// nobody knows who sent it; packed as of [`ask`](Self::ask).
    pub fn judge_packet(&mut self, packet: &[u8]) -> Result<u32, KernelError> {
        questions::judge_packet(self.judge(JUDGE_PACKET)?, packet)
    }

    /// Adds an executable to the kernel's table. For tests and benchmarks.
    pub fn add_executable(&self, exe_id: u64, executable: &Executable) -> Result<(), KernelError> {
        self.charged()?.add_executable(exe_id, executable).map(drop)
    }

    /// Adds a control group to the kernel's table. For tests and benchmarks.
    pub fn add_cgroup(&self, id: u64, path: &str) -> Result<(), KernelError> {
        let cgroup: Cgroup = cgroups::entry(path, ROOT);
        self.charged()?.add_cgroup(id, &cgroup).map(drop)
    }

    pub(super) fn iterator(&self, name: &str) -> Option<&Iter> {
        let is_loaded = self
            .hooks
            .iter()
            .any(|hook| hook.name == name && hook.attached);
        match self.ebpf.program(name) {
            Some(Program::Iter(program)) if is_loaded && program.fd().is_ok() => Some(program),
            _ => None,
        }
    }

    /// The iterator over open files, if it stands in the place of the one over tags.
    fn socket_files(&self) -> Option<&Iter> {
        match self.ebpf.program(hooks::SOCKET_FILES) {
            Some(Program::Iter(program)) if program.fd().is_ok() => Some(program),
            _ => None,
        }
    }
}

/// Constants that the programs get when they are loaded.
pub(super) struct Globals {
    instance: u32,
    replaces: u32,
    tcp_state_seen: u32,
    subflows_known: u32,
    task_readable: u32,
    namespace: u64,
    namespace_inode: u32,
    local_flows: u32,
    uplinks_watched: u32,
    rooms: Rooms,
    offsets: Offsets,
}

impl Globals {
    /// Of programs that count for nobody. `tcp_state_seen` says what they are told of
    /// `inet_sock_set_state`.
    pub(super) fn of_this_kernel(types: &Types, tcp_state_seen: bool) -> Result<Self, KernelError> {
        Ok(Self {
            // No control word says so.
            instance: u32::MAX,
            replaces: u32::MAX,
            tcp_state_seen: tcp_state_seen.into(),
            subflows_known: types.has_function("bpf_skc_to_mptcp_sock").into(),
            task_readable: task_readable().into(),
            namespace: namespace_cookie(),
            // The kernel has 32 bits for it.
            namespace_inode: network_namespace()? as u32,
            local_flows: 0,
            uplinks_watched: 0,
            rooms: Rooms::default(),
            offsets: offsets::resolve()?,
        })
    }

    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("INSTANCE", &self.instance, true)
            .override_global("REPLACES", &self.replaces, true)
            .override_global("TCP_STATE_SEEN", &self.tcp_state_seen, true)
            .override_global("SUBFLOWS_KNOWN", &self.subflows_known, true)
            .override_global("TASK_READABLE", &self.task_readable, true)
            .override_global("NAMESPACE", &self.namespace, true)
            .override_global("LOCAL_FLOWS", &self.local_flows, true)
            .override_global("UPLINKS_WATCHED", &self.uplinks_watched, true)
            .override_global("NAMESPACE_INODE", &self.namespace_inode, true)
            .override_global("ROOMS", bytes_of(&self.rooms), true)
            .override_global("OFFSETS", bytes_of(&self.offsets), true);
    }
}

/// True if programs of every kind may read the running task's structures. Those for tracing may since
/// 5.11, all others since 5.15.
fn task_readable() -> bool {
    let helper = BpfHelper::BPF_FUNC_get_current_task_btf;
    is_helper_supported(ProgramType::CgroupSockAddr, helper).unwrap_or(false)
}

/// The kernel's type information, for programs that are attached by it.
pub(super) fn kernel_types() -> Result<Btf, KernelError> {
    Btf::from_sys_fs().map_err(|error| KernelError::NoBtf {
        path: offsets::VMLINUX.into(),
        source: error.into(),
    })
}

/// Only one agent may use a pin directory at a time.
pub(super) fn lock(pins: &PinDir) -> Result<File, KernelError> {
    // The BPF file system holds no plain files, but its directories can be locked.
    let dir = pins.maps();
    let file = File::open(&dir)
        .map_err(|error| KernelError::failed(format!("open {}", dir.display()), error))?;
    // SAFETY: an open descriptor; flock touches no memory.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result != 0 {
        return Err(KernelError::Busy {
            path: pins.base().to_owned(),
        });
    }
    Ok(file)
}

pub(super) fn sizes(tables: &TableSizes) -> [(&'static str, u32); 10] {
    [
        ("EVENTS", tables.events_bytes),
        ("FLOWS", tables.flows),
        ("UPLINK_FLOWS", tables.uplink_flows),
        ("REMEMBERED", tables.remembered),
        ("UPLINKS", tables.uplinks),
        ("UPLINK_BOOKS", tables.uplinks),
        ("ENDED", tables.ended),
        ("PROCESSES", tables.processes),
        ("EXECUTABLES", tables.executables),
        ("CGROUPS", tables.cgroups),
    ]
}

/// The parts of the tables that are for others than root.
fn rooms(tables: &TableSizes) -> Rooms {
    let mut rooms = Rooms::default();
    for (table, entries) in [
        (ROOM_OF_PROCESSES, tables.processes),
        (ROOM_OF_EXECUTABLES, tables.executables),
        (ROOM_OF_CGROUPS, tables.cgroups),
    ] {
        rooms.rooms[table as usize] = Room::of(entries);
    }
    rooms
}

/// Names of the maps in the object, except those of its own data.
pub(super) fn map_names() -> impl Iterator<Item = String> {
    object()
        .maps
        .into_keys()
        .filter(|name| !name.starts_with('.'))
}

fn object() -> aya_obj::Object {
    aya_obj::Object::parse(OBJECT).expect("the embedded object was parsed by the build's tests")
}

/// Compares the pinned maps with those of the object, and settles how large each is to be. Returns
/// those that make way for one of another size.
fn check_layouts(
    pins: &PinDir,
    sizes: &mut [(&'static str, u32)],
) -> Result<Vec<&'static str>, KernelError> {
    /// The books of an uplink are sums that are not to begin anew.
    const FIXED: [&str; 2] = ["UPLINKS", "UPLINK_BOOKS"];
    let mut making_way = Vec::new();
    for (name, map) in object().maps {
        if name.starts_with('.') {
            continue;
        }
        let wanted = MapLayout {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
        };
        let found = pins.check_map(&name, &wanted)?;
        let size = sizes.iter_mut().find(|(sized, _)| *sized == name);
        let (Some(found), Some((name, size))) = (found, size) else {
            continue;
        };
        if found != *size && FIXED.contains(name) {
            tracing::warn!("map {name} keeps its {found} entries until `trefoil detach`");
            *size = found;
        } else if found != *size {
            making_way.push(*name);
        }
    }
    Ok(making_way)
}

/// Cookie of the caller's network namespace; 0 before Linux 5.14.
fn namespace_cookie() -> u64 {
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else {
        return 0;
    };
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: an option of eight bytes, and room for as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { cookie } else { 0 }
}
