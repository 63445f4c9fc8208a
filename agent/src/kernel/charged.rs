//! The tables in which anybody can cause entries, with room by owner: who is charged with what,
//! adding what no hook has seen, and taking out what is gone.
//!
//! It must not decide what is gone.

use std::{collections::HashMap, os::fd::AsFd as _};

use aya::maps::{MapData, MapError};
use trefoil_ebpf::abi::{
    CGROUP_REMOVED, Cgroup, Charges, Executable, Process, ROOM_OF_CGROUPS, ROOM_OF_EXECUTABLES,
    ROOM_OF_PROCESSES, ROOT, Rooms,
};

use super::{
    KernelError, bpf_syscall,
    pins::PinDir,
    reader::{Hash, collect, failed, get, hash},
    wire::{Plain, Wire},
};

/// The tables of processes, executables and control groups.
pub struct ChargedTables {
    processes: Hash<u32, Process>,
    executables: Hash<u64, Executable>,
    /// The same map, for what aya's type does not offer.
    executables_map: MapData,
    cgroups: Hash<u64, Cgroup>,
    charges: Hash<u32, Charges>,
}

/// Their entries.
#[derive(Default)]
pub struct Contents {
    /// By thread group id.
    pub processes: Vec<(u32, Process)>,
    /// By id.
    pub executables: Vec<(u64, Executable)>,
    /// By id.
    pub cgroups: Vec<(u64, Cgroup)>,
}

impl Contents {
    /// The charges of each user.
    #[must_use]
    pub fn charges(&self) -> Counted {
        let mut counted = Counted::default();
        for (_, process) in &self.processes {
            counted.add(process.charged, ROOM_OF_PROCESSES);
        }
        for (_, executable) in &self.executables {
            counted.add(executable.charged, ROOM_OF_EXECUTABLES);
        }
        for (_, cgroup) in &self.cgroups {
            counted.add(cgroup.charged, ROOM_OF_CGROUPS);
        }
        counted
    }
}

/// Entries by user and table, counted one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted(HashMap<u32, Charges>);

impl Counted {
    fn add(&mut self, charged: u32, table: u32) {
        if charged != ROOT {
            for user in [charged, ROOT] {
                self.0.entry(user).or_default().entries[table as usize] += 1;
            }
        }
    }

    /// Charges an entry; false if there is no room for it.
    pub(super) fn charge(&mut self, charged: u32, table: u32, rooms: &Rooms) -> bool {
        let room = rooms.rooms[table as usize];
        let of = |user| {
            let charges: Option<&Charges> = self.0.get(&user);
            charges.map_or(0, |charges| charges.entries[table as usize])
        };
        let has_room =
            charged == ROOT || of(charged) < i64::from(room.one) && of(ROOT) < i64::from(room.all);
        if has_room {
            self.add(charged, table);
        }
        has_room
    }
}

impl ChargedTables {
    /// Opens the tables of a pin directory.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        Ok(Self {
            processes: hash(pins, "PROCESSES")?,
            executables: hash(pins, "EXECUTABLES")?,
            executables_map: pins.open_map("EXECUTABLES")?,
            cgroups: hash(pins, "CGROUPS")?,
            charges: hash(pins, "CHARGES")?,
        })
    }

    /// All that is in them.
    pub fn contents(&self) -> Result<Contents, KernelError> {
        Ok(Contents {
            processes: collect(&self.processes, "PROCESSES")?,
            executables: collect(&self.executables, "EXECUTABLES")?,
            cgroups: collect(&self.cgroups, "CGROUPS")?,
        })
    }

    /// Sets right what is charged to whom. Hooks go on charging meanwhile, so it is as exact as
    /// few of them have between counting and this, until the next time.
    pub fn settle(&mut self, counted: &Counted) -> Result<(), KernelError> {
        let known: HashMap<u32, Charges> = collect(&self.charges, "CHARGES")?.into_iter().collect();
        for user in known.keys().filter(|user| !counted.0.contains_key(user)) {
            gone_or(self.charges.remove(&Wire(*user)), "CHARGES")?;
        }
        for (user, charges) in &counted.0 {
            if known.get(user) != Some(charges) {
                add(&mut self.charges, *user, charges, 0, "CHARGES")?;
            }
        }
        Ok(())
    }

    /// Adds a process unless one with its id is there. False if there is no room.
    pub fn add_process(&mut self, pid: u32, process: &Process) -> Result<bool, KernelError> {
        add(&mut self.processes, pid, process, BPF_NOEXIST, "PROCESSES")
    }

    /// Adds an executable unless it is there. False if there is no room.
    pub fn add_executable(
        &mut self,
        id: u64,
        executable: &Executable,
    ) -> Result<bool, KernelError> {
        let executables = &mut self.executables;
        add(executables, id, executable, BPF_NOEXIST, "EXECUTABLES")
    }

    /// Adds a control group unless it is there. False if there is no room.
    pub fn add_cgroup(&mut self, id: u64, cgroup: &Cgroup) -> Result<bool, KernelError> {
        add(&mut self.cgroups, id, cgroup, BPF_NOEXIST, "CGROUPS")
    }

    /// Removes a process.
    pub fn remove_process(&mut self, pid: u32) -> Result<(), KernelError> {
        gone_or(self.processes.remove(&Wire(pid)), "PROCESSES")
    }

    /// Takes an executable out, as it was at that moment.
    pub fn take_executable(&self, id: u64) -> Result<Option<Executable>, KernelError> {
        bpf_syscall::take(self.executables_map.fd().as_fd(), &id)
            .map_err(|error| KernelError::failed("take from map EXECUTABLES", error))
    }

    /// Notes that a control group is gone, as `cgroup_rmdir` would have.
    pub fn mark_removed(&mut self, id: u64) -> Result<(), KernelError> {
        if let Some(mut cgroup) = get(&self.cgroups, id, "CGROUPS")? {
            cgroup.flags |= CGROUP_REMOVED;
            add(&mut self.cgroups, id, &cgroup, BPF_EXIST, "CGROUPS")?;
        }
        Ok(())
    }

    /// Removes a control group.
    pub fn remove_cgroup(&mut self, id: u64) -> Result<(), KernelError> {
        gone_or(self.cgroups.remove(&Wire(id)), "CGROUPS")
    }
}

const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// False if there was no room. Where the flags say that something must be there or must not, and it
/// is otherwise, that is left alone.
pub(super) fn add<K: Plain, V: Plain>(
    map: &mut Hash<K, V>,
    key: K,
    value: &V,
    flags: u64,
    name: &str,
) -> Result<bool, KernelError> {
    match map.insert(Wire(key), Wire(*value), flags) {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(error)) => match error.io_error.raw_os_error() {
            Some(libc::EEXIST | libc::ENOENT) => Ok(true),
            Some(libc::E2BIG) => Ok(false),
            _ => Err(failed(name, MapError::SyscallError(error))),
        },
        Err(error) => Err(failed(name, error)),
    }
}

fn gone_or(removed: Result<(), MapError>, name: &str) -> Result<(), KernelError> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => Err(failed(name, error)),
    }
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::Room;

    use super::*;

    const USER: u32 = 1000;

    #[test]
    fn one_user_has_an_eighth_all_have_three_quarters_and_root_has_room() {
        let mut rooms = Rooms::default();
        rooms.rooms[ROOM_OF_CGROUPS as usize] = Room::of(64);
        let mut counted = Counted::default();
        let mut fill = |user| {
            let charged = (0..100).filter(|_| counted.charge(user, ROOM_OF_CGROUPS, &rooms));
            charged.count()
        };
        for user in USER..USER + 6 {
            assert_eq!(fill(user), 8);
        }
        assert_eq!(fill(USER + 6), 0);
        assert_eq!(fill(ROOT), 100);
        // Of another table nothing is used up.
        rooms.rooms[ROOM_OF_PROCESSES as usize] = Room::of(1);
        assert!(counted.charge(USER, ROOM_OF_PROCESSES, &rooms));
        assert!(!counted.charge(USER, ROOM_OF_PROCESSES, &rooms));
    }
}
