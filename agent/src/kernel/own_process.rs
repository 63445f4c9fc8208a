//! The agent's own process, as the kernel programs know it: who has stopped or killed it.

use std::{fs, os::unix::fs::MetadataExt as _};

use aya::maps::{Array, Map, MapData};
use trefoil_ebpf::abi::{Agent, Process, Signalled};

use super::{
    KernelError,
    pins::PinDir,
    reader::{failed, get, hash},
    wire::Wire,
};

/// Map `AGENT`.
pub struct OwnProcess {
    agent: Array<MapData, Wire<Agent>>,
}

impl OwnProcess {
    /// Has the calling process watched from now on. Also returns what killed the agent
    /// before, if something did.
    ///
    /// Where process ids are not those of the host, or the table of processes has no room
    /// for this one, nobody is watched.
    pub fn watch(pins: &PinDir) -> Result<(Self, Option<Signalled>), KernelError> {
        let agent = Array::try_from(Map::Array(pins.open_map("AGENT")?))
            .map_err(|error| failed("AGENT", error))?;
        let mut own = Self { agent };
        let killed = own.get()?.killed;
        let pid = std::process::id();
        let process = match is_in_first_pid_namespace() {
            true => get::<u32, Process>(&hash(pins, "PROCESSES")?, pid, "PROCESSES")?,
            false => None,
        };
        own.set(&process.map_or_else(Agent::default, |process| Agent {
            start_ns: process.start_ns,
            pid,
            ..Agent::default()
        }))?;
        Ok((own, some(killed)))
    }

    /// Returns what has stopped this process since the last call.
    pub fn take_stop(&mut self) -> Result<Option<Signalled>, KernelError> {
        let agent = self.get()?;
        let stopped = some(agent.stopped);
        if stopped.is_some() {
            self.set(&Agent {
                stopped: Signalled::default(),
                ..agent
            })?;
        }
        Ok(stopped)
    }

    fn get(&self) -> Result<Agent, KernelError> {
        let agent = self.agent.get(&0, 0);
        agent
            .map(|Wire(agent)| agent)
            .map_err(|error| failed("AGENT", error))
    }

    fn set(&mut self, agent: &Agent) -> Result<(), KernelError> {
        self.agent
            .set(0, Wire(*agent), 0)
            .map_err(|error| failed("AGENT", error))
    }
}

fn some(signalled: Signalled) -> Option<Signalled> {
    (signalled.signal != 0).then_some(signalled)
}

/// True if the calling process knows others by the numbers that the kernel programs do.
pub fn is_in_first_pid_namespace() -> bool {
    // `PROC_PID_INIT_INO`, the same since Linux 3.8.
    const FIRST: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST)
}
