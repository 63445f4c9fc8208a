//! Room in the tables that anybody can cause entries in: what is gone leaves, each owner is charged
//! with what is there, and what found no room before is looked for again.
//!
//! It must not take out what something refers to that may still send or be told of.

use std::collections::{BTreeMap, HashMap, HashSet};

use nix::{errno::Errno, sys::signal, unistd::Pid};
use trefoil_ebpf::abi::{CGROUP_REMOVED, Executable, Tracked};

use super::Monitor;
use crate::kernel::{ChargedTables, Contents, KernelError, PinDir};

/// How often.
const INTERVAL_NS: u64 = 2_000_000_000;

/// How long a control group that was removed is kept for packets that nothing refers to any more.
const CGROUP_KEPT_NS: u64 = 5_000_000_000;

/// How often what found no room is looked for: it takes a look at all processes and control groups.
const SEARCH_NS: u64 = 10_000_000_000;

/// How long an executable is kept after it was executed last.
const EXECUTABLE_KEPT_NS: u64 = 10_000_000_000;

/// Counters of what found no room, or was looked for in vain.
const MISSES: [&str; 5] = [
    "processes-full",
    "processes-unknown",
    "executables-full",
    "cgroups-full",
    "cgroups-unknown",
];

/// Executables and control groups that sockets and flows refer to.
#[derive(Default)]
pub(super) struct InUse {
    executables: HashSet<u64>,
    cgroups: HashSet<u64>,
}

impl InUse {
    /// Adds those of a socket or flow.
    pub(super) fn add(&mut self, tracked: &Tracked) {
        let owner = &tracked.owner;
        self.executables.extend([owner.exe_id, owner.parent_exe_id]);
        self.cgroups.insert(owner.cgroup_id);
    }
}

/// Entries that are about to leave, and those that have left.
pub(super) struct Room {
    tables: ChargedTables,
    looked_ns: u64,
    /// Control groups that are gone, and since when that is known.
    removed_cgroups: HashMap<u64, u64>,
    /// Processes that had ended at the last look, with their start.
    ended: HashMap<u32, u64>,
    /// Executables that left at the last look.
    taken: Vec<(u64, Executable)>,
    /// Misses when it was searched last, and whether something has left since.
    n_misses: u64,
    has_room: bool,
    searched_ns: u64,
}

impl Room {
    pub(super) fn new(pins: &PinDir) -> Result<Self, KernelError> {
        Ok(Self {
            tables: ChargedTables::open(pins)?,
            looked_ns: 0,
            removed_cgroups: HashMap::new(),
            ended: HashMap::new(),
            taken: Vec::new(),
            n_misses: 0,
            has_room: false,
            searched_ns: 0,
        })
    }

    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.looked_ns + INTERVAL_NS <= now_ns
    }

    /// Takes out processes whose end no hook has seen: those that were not there at the last look
    /// either, since a hook may just be about to.
    fn forget_processes(&mut self, contents: &mut Contents) -> Result<(), KernelError> {
        let mut ended = HashMap::new();
        for (pid, process) in &contents.processes {
            // Asks only whether there is one.
            if signal::kill(Pid::from_raw(*pid as i32), None) == Err(Errno::ESRCH) {
                ended.insert(*pid, process.start_ns);
            }
        }
        let before = std::mem::replace(&mut self.ended, ended);
        let is_gone = |pid: &u32, start_ns: u64| {
            before.get(pid) == Some(&start_ns) && self.ended.contains_key(pid)
        };
        for (pid, process) in &contents.processes {
            if is_gone(pid, process.start_ns) {
                self.tables.remove_process(*pid)?;
            }
        }
        contents
            .processes
            .retain(|(pid, process)| !is_gone(pid, process.start_ns));
        Ok(())
    }

    /// Takes out executables that no process executes and nothing else refers to.
    fn forget_executables(
        &mut self,
        contents: &mut Contents,
        in_use: &InUse,
        now_ns: u64,
    ) -> Result<(), KernelError> {
        let executed: HashSet<u64> = contents
            .processes
            .iter()
            .flat_map(|(_, process)| [process.exe_id, process.parent_exe_id])
            .collect();
        // Executed at the very moment at which it was taken out.
        for (id, executable) in std::mem::take(&mut self.taken) {
            if executed.contains(&id) {
                self.tables.add_executable(id, &executable)?;
            }
        }
        let is_needed = |id: &u64, executable: &Executable| {
            executed.contains(id)
                || in_use.executables.contains(id)
                || executable.used_ns + EXECUTABLE_KEPT_NS > now_ns
        };
        let mut kept = Vec::new();
        for (id, executable) in std::mem::take(&mut contents.executables) {
            if is_needed(&id, &executable) {
                kept.push((id, executable));
                continue;
            }
            match self.tables.take_executable(id)? {
                Some(taken) if taken.used_ns != executable.used_ns => {
                    self.tables.add_executable(id, &taken)?;
                    kept.push((id, taken));
                }
                Some(taken) => self.taken.push((id, taken)),
                None => {}
            }
        }
        contents.executables = kept;
        Ok(())
    }

    /// Takes out control groups that are gone and that nothing refers to; returns which.
    fn forget_cgroups(
        &mut self,
        contents: &mut Contents,
        in_use: &InUse,
        now_ns: u64,
    ) -> Result<Vec<u64>, KernelError> {
        let mut removed = HashMap::new();
        for (id, cgroup) in &contents.cgroups {
            if cgroup.flags & CGROUP_REMOVED != 0 {
                let since_ns = self.removed_cgroups.get(id).copied().unwrap_or(now_ns);
                removed.insert(*id, since_ns);
            }
        }
        self.removed_cgroups = removed;
        let is_gone = |id: &u64| {
            let since_ns = self.removed_cgroups.get(id);
            since_ns.is_some_and(|since_ns| since_ns + CGROUP_KEPT_NS <= now_ns)
                && !in_use.cgroups.contains(id)
        };
        let mut gone = Vec::new();
        for (id, _) in &contents.cgroups {
            if is_gone(id) {
                self.tables.remove_cgroup(*id)?;
                gone.push(*id);
            }
        }
        contents.cgroups.retain(|(id, _)| !is_gone(id));
        Ok(gone)
    }
}

impl Monitor {
    /// Has leave what is gone. `in_use` is what sockets and flows in the kernel refer to, and
    /// `losses` what was lost so far.
    pub(super) fn make_room(
        &mut self,
        mut in_use: InUse,
        losses: &BTreeMap<&'static str, u64>,
        now_ns: u64,
    ) -> Result<(), KernelError> {
        self.room.looked_ns = now_ns;
        for tracked in self.table.open().chain(self.table.rolled_up()) {
            in_use.add(tracked);
        }
        let mut contents = self.room.tables.contents()?;
        if self.sees_processes {
            self.room.forget_processes(&mut contents)?;
        }
        if self.kernel.sees_sockets() {
            self.room
                .forget_executables(&mut contents, &in_use, now_ns)?;
        }
        let gone = self.room.forget_cgroups(&mut contents, &in_use, now_ns)?;
        self.room.tables.settle(&contents.charges())?;
        for id in &gone {
            self.names.forget_cgroup(*id);
        }
        // Others may have found no room, or may find some now.
        let n_misses = MISSES.iter().filter_map(|miss| losses.get(miss)).sum();
        let room = &mut self.room;
        room.has_room |= !gone.is_empty() || !room.taken.is_empty();
        let is_worth = n_misses != room.n_misses || n_misses != 0 && room.has_room;
        if is_worth && room.searched_ns + SEARCH_NS <= now_ns {
            (room.n_misses, room.has_room, room.searched_ns) = (n_misses, false, now_ns);
            self.kernel.search()?;
        }
        Ok(())
    }
}
