//! Tables of an agent before that had another size than this agent wants.
//!
//! They get another name, `<pin-dir>/v<ABI>/maps/<MAP>-former-<n>`, and new ones are made. Programs
//! that are attached go on with theirs until this agent's are in their place. Then what has to
//! outlast that is copied, and what is to be told is told from there, until nothing is left; if
//! this agent is killed before, by the next one.

use std::{
    collections::VecDeque,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData};
use trefoil_ebpf::abi::{
    Cgroup, Event, Executable, LOSS_CGROUPS_FULL, LOSS_EXECUTABLES_FULL, LOSS_PROCESSES_FULL,
    Process, ROOM_OF_CGROUPS, ROOM_OF_EXECUTABLES, ROOM_OF_PROCESSES, ROOT, Tracked,
};

use super::{
    Events, Kernel, KernelError, Position, bpf_syscall,
    pins::{self, PinDir, open_map},
    reader::{Hash, collect, failed},
    tables::wait_for_programs,
    wire::Plain,
};

/// Tables that flows are told from to the end, in this order.
const FLOWS: [&str; 3] = ["ENDED", "FLOWS", "UPLINK_FLOWS"];

/// Between the name of a map and a number.
const FORMER: &str = "-former-";

/// A table that has made way.
#[derive(Clone, Debug)]
pub(super) struct Former {
    name: String,
    path: PathBuf,
}

impl Former {
    fn map(&self) -> Result<MapData, KernelError> {
        open_map(&self.path)
    }

    /// Gives it its name back, in the place of what was made for it and that nobody has used.
    pub(super) fn put_back(&self, pins: &PinDir) -> Result<(), KernelError> {
        rename(&self.path, &pins.map(&self.name))
    }

    /// The same, where programs may have begun to use what was made for it: flows in there are
    /// still to be told.
    pub(super) fn swap_back(&self, pins: &PinDir) -> Result<(), KernelError> {
        set_aside(pins, &self.name)?;
        self.put_back(pins)
    }
}

/// All that have made way and are still there, those that did first before others.
fn all(pins: &PinDir) -> Vec<Former> {
    let pinned = fs::read_dir(pins.maps()).into_iter().flatten().flatten();
    let mut all: Vec<(u32, Former)> = pinned
        .filter_map(|entry| {
            let pin = entry.file_name().into_string().ok()?;
            let (name, number) = pin.split_once(FORMER)?;
            let former = Former {
                name: name.to_owned(),
                path: entry.path(),
            };
            Some((number.parse().ok()?, former))
        })
        .collect();
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, former)| former).collect()
}

/// Gives the map of this name another one.
pub(super) fn set_aside(pins: &PinDir, name: &str) -> Result<Former, KernelError> {
    let path = (0..)
        .map(|number| pins.map(&format!("{name}{FORMER}{number}")))
        .find(|path| !path.exists())
        .expect("there are more numbers than pins");
    rename(&pins.map(name), &path)?;
    let name = name.to_owned();
    Ok(Former { name, path })
}

fn rename(from: &Path, to: &Path) -> Result<(), KernelError> {
    fs::rename(from, to)
        .map_err(|error| KernelError::failed(format!("rename pin {}", from.display()), error))
}

impl Kernel {
    /// True if there are tables of another size than this agent's.
    pub(super) fn has_former(&self) -> bool {
        !all(&self.pins).is_empty()
    }

    /// Copies what decisions refer to. To be done once this agent's programs learn who comes and
    /// goes: what they have learned stays.
    pub(super) fn carry_over(&self) -> Result<(), KernelError> {
        let mut tables = self.charged()?;
        let mut counted = tables.contents()?.charges();
        let mut has_room = |charged, table| counted.charge(charged, table, &self.rooms);
        let mut n_left = [0; 3];
        for (pid, process) in self.entries::<u32, Process>("PROCESSES", |it| it.charged)? {
            let is_added = has_room(process.charged, ROOM_OF_PROCESSES)
                && tables.add_process(pid, &process)?;
            n_left[0] += u64::from(!is_added);
        }
        for (id, executable) in self.entries::<u64, Executable>("EXECUTABLES", |it| it.charged)? {
            let is_added = has_room(executable.charged, ROOM_OF_EXECUTABLES)
                && tables.add_executable(id, &executable)?;
            n_left[1] += u64::from(!is_added);
        }
        for (id, cgroup) in self.entries::<u64, Cgroup>("CGROUPS", |it| it.charged)? {
            let is_added =
                has_room(cgroup.charged, ROOM_OF_CGROUPS) && tables.add_cgroup(id, &cgroup)?;
            n_left[2] += u64::from(!is_added);
        }
        tables.settle(&tables.contents()?.charges())?;
        let losses = [
            LOSS_PROCESSES_FULL,
            LOSS_EXECUTABLES_FULL,
            LOSS_CGROUPS_FULL,
        ];
        for (loss, n_left) in losses.into_iter().zip(n_left) {
            if n_left != 0 {
                self.reader()?.lose(loss, n_left)?;
            }
        }
        // The kernel makes room in it by itself.
        let remembered = self.pins.open_map("REMEMBERED")?;
        for former in self.former("REMEMBERED") {
            bpf_syscall::copy(former.map()?.fd().as_fd(), remembered.fd().as_fd())
                .map_err(|error| KernelError::failed("copy map REMEMBERED", error))?;
        }
        Ok(())
    }

    fn former(&self, name: &str) -> impl Iterator<Item = Former> {
        let name = name.to_owned();
        let all = all(&self.pins).into_iter();
        all.filter(move |former| former.name == name)
    }

    /// The entries of tables that have made way, those of root first.
    fn entries<K: Plain, V: Plain>(
        &self,
        name: &str,
        charged: impl Fn(&V) -> u32,
    ) -> Result<Vec<(K, V)>, KernelError> {
        let mut entries = Vec::new();
        for former in self.former(name) {
            let map: Hash<K, V> = Map::HashMap(former.map()?)
                .try_into()
                .map_err(|error| failed(name, error))?;
            entries.extend(collect(&map, name)?);
        }
        entries.sort_by_key(|(_, entry)| charged(entry) != ROOT);
        Ok(entries)
    }

    /// All that is to be told from tables that have made way. To be asked once this instance is in
    /// force: nobody writes there any more.
    pub fn remains(&self) -> Result<Remains, KernelError> {
        if self.has_former() {
            wait_for_programs();
        }
        Remains::of(&self.pins)
    }
}

/// See [`Kernel::remains`].
#[derive(Default)]
pub struct Remains {
    events: VecDeque<Events>,
    /// With the key to go on after.
    flows: VecDeque<(MapData, Option<Vec<u8>>)>,
    pins: Vec<PathBuf>,
}

/// Something that an agent before did not tell.
pub enum Remain {
    /// An event; `None` if it is of another size than this version's.
    Event(Option<Event>),
    /// A flow of a table that nobody counts in any more.
    Flow(Tracked),
}

impl Remains {
    /// The same, where no program counts any more.
    pub fn of(pins: &PinDir) -> Result<Self, KernelError> {
        let mut remains = Self::default();
        let former = all(pins);
        for name in FLOWS {
            for former in former.iter().filter(|former| former.name == name) {
                remains.flows.push_back((former.map()?, None));
            }
        }
        for former in former {
            if former.name == "EVENTS" {
                remains.events.push_back(Events::of(&former.map()?)?);
            }
            remains.pins.push(former.path);
        }
        Ok(remains)
    }

    /// Leaves out what an agent before has read and kept up to here, and did not come to release.
    pub fn skip_to(&mut self, position: Position) {
        self.events
            .iter_mut()
            .for_each(|events| events.skip_to(position));
    }

    /// Takes the next one out; `None` once there is nothing, and then the tables are gone.
    #[expect(
        clippy::should_implement_trait,
        reason = "it may fail, and the caller goes on later"
    )]
    pub fn next(&mut self) -> Result<Option<Remain>, KernelError> {
        while let Some(events) = self.events.front_mut() {
            // The event that was taken before is kept by now.
            events.release();
            if let Some(event) = events.next() {
                return Ok(Some(Remain::Event(event)));
            }
            self.events.pop_front();
        }
        while let Some((map, last)) = self.flows.front_mut() {
            let failed = |error| KernelError::failed("take from a table of another size", error);
            let map = map.fd().as_fd();
            // Before the entry is gone that it comes after.
            let key = match last.take() {
                Some(key) => Some(key),
                None => bpf_syscall::next_key(map, None).map_err(failed)?,
            };
            let Some(key) = key else {
                self.flows.pop_front();
                continue;
            };
            let next = bpf_syscall::next_key(map, Some(&key)).map_err(failed)?;
            let taken = bpf_syscall::take_raw::<Tracked>(map, &key).map_err(failed)?;
            match next {
                Some(_) => *last = next,
                None => drop(self.flows.pop_front()),
            }
            if let Some(flow) = taken {
                return Ok(Some(Remain::Flow(flow)));
            }
        }
        while let Some(pin) = self.pins.last() {
            // Whoever detaches meanwhile removes them as well.
            pins::remove(pin)?;
            self.pins.pop();
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever detaches takes all pins away, also while an agent reads what is left behind them.
    #[test]
    fn a_pin_that_somebody_else_has_removed_is_gone() {
        let mut remains = Remains {
            pins: vec![PathBuf::from("/nonexistent/maps/REMEMBERED-former-0")],
            ..Remains::default()
        };
        assert!(matches!(remains.next(), Ok(None)));
    }
}
