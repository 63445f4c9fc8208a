//! Reading the tables, by the running agent and by verbs that look in from
//! outside, agent alive or dead.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    os::fd::AsFd,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use trefoil_ebpf::abi::{
    Cgroup, Control, EndedKey, Executable, FlowKey, LOSSES, Policy, SessionOrigin, Totals, Tracked,
    UplinkFlowKey, verdict,
};

use super::{
    KernelError, bpf_syscall,
    events::Events,
    hooks::{SOCKET_FILES, SOCKETS},
    pins::PinDir,
    tables::{ControlWords, Enforcement, wait_for_programs},
    wire::Wire,
};

pub(super) type Hash<K, V> = HashMap<MapData, Wire<K>, Wire<V>>;

/// The pinned tables.
pub struct Reader {
    flows: Hash<FlowKey, Tracked>,
    /// The same map, for what aya's type does not offer.
    flows_map: MapData,
    uplink_flows: Hash<UplinkFlowKey, Tracked>,
    /// As `flows_map`.
    uplink_flows_map: MapData,
    ended: Hash<EndedKey, Tracked>,
    executables: Hash<u64, Executable>,
    cgroups: Hash<u64, Cgroup>,
    cuts: Hash<u64, u32>,
    sessions: Hash<u32, SessionOrigin>,
    losses: PerCpuArray<MapData, Wire<u64>>,
    totals: PerCpuArray<MapData, Wire<Totals>>,
    untold: PerCpuArray<MapData, Wire<Totals>>,
    policies: Array<MapData, Wire<Policy>>,
    control: ControlWords,
    pins: PinDir,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the tables of a pin directory.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        Ok(Self {
            flows: hash(pins, "FLOWS")?,
            flows_map: pins.open_map("FLOWS")?,
            uplink_flows: hash(pins, "UPLINK_FLOWS")?,
            uplink_flows_map: pins.open_map("UPLINK_FLOWS")?,
            ended: hash(pins, "ENDED")?,
            executables: hash(pins, "EXECUTABLES")?,
            cgroups: hash(pins, "CGROUPS")?,
            cuts: hash(pins, "CUTS")?,
            sessions: hash(pins, "SESSIONS")?,
            losses: Map::PerCpuArray(pins.open_map("LOSSES")?)
                .try_into()
                .map_err(|error| failed("LOSSES", error))?,
            totals: Map::PerCpuArray(pins.open_map("TOTALS")?)
                .try_into()
                .map_err(|error| failed("TOTALS", error))?,
            untold: Map::PerCpuArray(pins.open_map("UNTOLD")?)
                .try_into()
                .map_err(|error| failed("UNTOLD", error))?,
            policies: Map::Array(pins.open_map("POLICIES")?)
                .try_into()
                .map_err(|error| failed("POLICIES", error))?,
            control: ControlWords::open(pins)?,
            pins: pins.clone(),
        })
    }

    /// The ring buffer of events. Only one reader may drain it.
    pub fn events(&self) -> Result<Events, KernelError> {
        Events::open(&self.pins)
    }

    /// The header of the policy in force; `None` before there was one.
    pub fn policy(&self) -> Result<Option<Policy>, KernelError> {
        let generation = self.control.get().generation;
        if generation == 0 {
            return Ok(None);
        }
        let policy = self
            .policies
            .get(&(generation & 1), 0)
            .map_err(|error| failed("POLICIES", error))?;
        Ok(Some(policy.0))
    }

    /// Until when it is enforced.
    pub fn enforcement(&self) -> Enforcement {
        self.control.enforcement()
    }

    /// Lets what is on trial go on without an end.
    pub fn confirm_enforcement(&self) {
        let generation = self.control.get().generation;
        self.control
            .set_enforcement(generation, Enforcement::Always);
    }

    /// Number of the set of programs that is active.
    pub fn instance(&self) -> u32 {
        self.control.get().instance
    }

    /// From now on nothing is counted or judged; what was counted can be read, and moves no more.
    pub fn stop_counting(&self) {
        self.control.set(Control {
            generation: self.control.get().generation,
            instance: 0,
        });
        wait_for_programs();
    }

    /// Where the tables are pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Links that are pinned: `(instance, hook)`.
    pub fn links(&self) -> Vec<(u32, String)> {
        self.pins.pinned_links()
    }

    /// All flows of sockets with many peers.
    pub fn many_peer_flows(&self) -> Result<Vec<(FlowKey, Tracked)>, KernelError> {
        entries(&self.flows_map, "FLOWS")
    }

    /// Flows that a socket with one peer holds, through the pinned iterator.
    pub fn socket_flows(&self) -> Result<Vec<Tracked>, KernelError> {
        self.socket_flows_of(self.instance())
    }

    /// The same, through the iterator of this instance, which may count no more.
    pub fn socket_flows_of(&self, instance: u32) -> Result<Vec<Tracked>, KernelError> {
        let path = self.pins.link(instance, SOCKETS);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let failed =
            |error| KernelError::failed(format!("open pinned program {}", path.display()), error);
        let info = aya::programs::ProgramInfo::from_pin(&path).map_err(failed)?;
        let program = info.fd().map_err(failed)?;
        // The kernel keeps 15 bytes of a name.
        let is_over_files = info
            .name_as_str()
            .is_some_and(|name| name.len() > SOCKETS.len() && SOCKET_FILES.starts_with(name));
        let sockets = self.pins.open_map("SOCKETS")?;
        let map = (!is_over_files).then(|| sockets.fd().as_fd());
        super::iterators::flows_of(program.as_fd(), SOCKETS, map)
    }

    /// A flow of a socket with many peers.
    pub fn many_peer_flow(&self, key: &FlowKey) -> Result<Option<Tracked>, KernelError> {
        get(&self.flows, *key, "FLOWS")
    }

    /// Takes a flow out of the table of sockets with many peers.
    pub fn take_flow(&self, key: &FlowKey) -> Result<Option<Tracked>, KernelError> {
        bpf_syscall::take(self.flows_map.fd().as_fd(), key)
            .map_err(|error| KernelError::failed("take from map FLOWS", error))
    }

    /// All flows of frames that no socket's hooks have judged.
    pub fn uplink_flows(&self) -> Result<Vec<(UplinkFlowKey, Tracked)>, KernelError> {
        entries(&self.uplink_flows_map, "UPLINK_FLOWS")
    }

    /// A flow of the table of uplinks.
    pub fn uplink_flow(&self, key: &UplinkFlowKey) -> Result<Option<Tracked>, KernelError> {
        get(&self.uplink_flows, *key, "UPLINK_FLOWS")
    }

    /// Takes a flow out of the table of uplinks.
    pub fn take_uplink_flow(&self, key: &UplinkFlowKey) -> Result<Option<Tracked>, KernelError> {
        bpf_syscall::take(self.uplink_flows_map.fd().as_fd(), key)
            .map_err(|error| KernelError::failed("take from map UPLINK_FLOWS", error))
    }

    /// Final states that found the ring buffer full, at most so many.
    pub fn ended(&self, max: usize) -> Result<Vec<(EndedKey, Tracked)>, KernelError> {
        let mut ended = collect_some(&self.ended, max, "ENDED")?;
        for (key, tracked) in &mut ended {
            // The hook that ended it may not have written that yet.
            tracked.flow.started_ns = key.started_ns;
        }
        Ok(ended)
    }

    /// Removes one of them.
    pub fn remove_ended(&mut self, key: &EndedKey) -> Result<(), KernelError> {
        match self.ended.remove(&Wire(*key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed("ENDED", error)),
        }
    }

    /// The executable with this id.
    pub fn executable(&self, exe_id: u64) -> Result<Option<Executable>, KernelError> {
        get(&self.executables, exe_id, "EXECUTABLES")
    }

    /// The control group with this id.
    pub fn cgroup(&self, id: u64) -> Result<Option<Cgroup>, KernelError> {
        get(&self.cgroups, id, "CGROUPS")
    }

    /// The origin of the login session with this audit session.
    pub fn session(&self, session: u32) -> Result<Option<SessionOrigin>, KernelError> {
        get(&self.sessions, session, "SESSIONS")
    }

    /// Adds the origin of a session of which the kernel programs have seen none.
    pub fn add_session(&mut self, session: u32, origin: SessionOrigin) -> Result<(), KernelError> {
        const BPF_NOEXIST: u64 = 1;
        let added = self
            .sessions
            .insert(Wire(session), Wire(origin), BPF_NOEXIST);
        match added {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            added => added.map_err(|error| failed("SESSIONS", error)),
        }
    }

    /// Lets the resets of these sockets leave, and of no others.
    pub fn set_cuts(&mut self, cookies: &HashSet<u64>) -> Result<(), KernelError> {
        for (cookie, _) in collect(&self.cuts, "CUTS")? {
            match self.cuts.remove(&Wire(cookie)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed("CUTS", error)),
            }
        }
        for cookie in cookies {
            self.cuts
                .insert(Wire(*cookie), Wire(0), 0)
                .map_err(|error| failed("CUTS", error))?;
        }
        Ok(())
    }

    /// Counts losses that the agent has seen and no program, at its start.
    pub fn lose(&self, loss: u32, amount: u64) -> Result<(), KernelError> {
        let mut losses: PerCpuArray<MapData, Wire<u64>> =
            Map::PerCpuArray(self.pins.open_map("LOSSES")?)
                .try_into()
                .map_err(|error| failed("LOSSES", error))?;
        let known = losses
            .get(&loss, 0)
            .map_err(|error| failed("LOSSES", error))?;
        let mut counts: Vec<_> = known.iter().copied().collect();
        if let Some(count) = counts.first_mut() {
            count.0 += amount;
        }
        PerCpuValues::try_from(counts)
            .map_err(|error| KernelError::failed("use map LOSSES", error))
            .and_then(|counts| {
                losses
                    .set(loss, counts, 0)
                    .map_err(|error| failed("LOSSES", error))
            })
    }

    /// Reads the losses so far, by the names of [`LOSSES`]; zeros included.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>, KernelError> {
        LOSSES
            .iter()
            .zip(0u32..)
            .map(|(name, index)| {
                let counts = self
                    .losses
                    .get(&index, 0)
                    .map_err(|error| failed("LOSSES", error))?;
                Ok((*name, counts.iter().map(|count| count.0).sum()))
            })
            .collect()
    }

    /// Number of the map that counts losses: another one counts from zero.
    pub fn counted_by(&self) -> Result<u64, KernelError> {
        let map = self.pins.open_map("LOSSES")?;
        let info = map.info().map_err(|error| failed("LOSSES", error))?;
        Ok(info.id().into())
    }

    /// Sums by verdict, indexed by verdict.
    pub fn totals(&self) -> Result<[Totals; verdict::N as usize], KernelError> {
        sums(&self.totals, "TOTALS")
    }

    /// Of them, what the programs found no room to tell of.
    pub fn untold(&self) -> Result<[Totals; verdict::N as usize], KernelError> {
        sums(&self.untold, "UNTOLD")
    }
}

/// Sums over all processors.
pub(super) fn sums(
    map: &PerCpuArray<MapData, Wire<Totals>>,
    name: &str,
) -> Result<[Totals; verdict::N as usize], KernelError> {
    let mut sums = [Totals::default(); verdict::N as usize];
    for (sum, index) in sums.iter_mut().zip(0u32..) {
        let values = map.get(&index, 0).map_err(|error| failed(name, error))?;
        for Wire(value) in values.iter() {
            sum.bytes_out += value.bytes_out;
            sum.packets_out += value.packets_out;
            sum.blocked_bytes += value.blocked_bytes;
            sum.blocked_packets += value.blocked_packets;
            sum.refused += value.refused;
        }
    }
    Ok(sums)
}

pub(super) fn hash<K: super::wire::Plain, V: super::wire::Plain>(
    pins: &PinDir,
    name: &str,
) -> Result<Hash<K, V>, KernelError> {
    Map::HashMap(pins.open_map(name)?)
        .try_into()
        .map_err(|error| failed(name, error))
}

pub(super) fn get<K: super::wire::Plain, V: super::wire::Plain>(
    map: &Hash<K, V>,
    key: K,
    name: &str,
) -> Result<Option<V>, KernelError> {
    match map.get(&Wire(key), 0) {
        Ok(value) => Ok(Some(value.0)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(name, error)),
    }
}

fn entries<K: super::wire::Plain, V: super::wire::Plain>(
    map: &MapData,
    name: &str,
) -> Result<Vec<(K, V)>, KernelError> {
    bpf_syscall::entries(map.fd().as_fd())
        .map_err(|error| KernelError::failed(format!("read map {name}"), error))
}

pub(super) fn collect<K: super::wire::Plain, V: super::wire::Plain>(
    map: &Hash<K, V>,
    name: &str,
) -> Result<Vec<(K, V)>, KernelError> {
    collect_some(map, usize::MAX, name)
}

fn collect_some<K: super::wire::Plain, V: super::wire::Plain>(
    map: &Hash<K, V>,
    max: usize,
    name: &str,
) -> Result<Vec<(K, V)>, KernelError> {
    map.iter()
        .take(max)
        .map(|entry| {
            entry
                .map(|(key, value)| (key.0, value.0))
                .map_err(|error| failed(name, error))
        })
        .collect()
}

pub(super) fn failed(name: &str, error: MapError) -> KernelError {
    KernelError::failed(format!("use map {name}"), error)
}
