//! The table of refused calls by sender, and whose turn it is to be told one by one.

use aya::maps::{Array, Map, MapData, MapError};
use trefoil_ebpf::abi::{NOBODY_CHARGED, Refusals, RefusedSender, verdict};

use super::{
    KernelError,
    charged::add,
    pins::PinDir,
    reader::{Hash, collect, failed, get, hash},
    wire::Wire,
};
use crate::clock;

const BPF_NOEXIST: u64 = 1;
const NAME: &str = "REFUSALS";
const TURN: &str = "REFUSALS_TURN";

/// The pinned tables.
pub struct RefusalTable {
    refusals: Hash<RefusedSender, Refusals>,
    turn: Array<MapData, Wire<u64>>,
    map_id: u32,
}

impl RefusalTable {
    /// Opens the tables of a pin directory, and makes the entries of everybody who finds no room.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        let info = pins.open_map(NAME)?.info();
        let mut refusals = hash(pins, NAME)?;
        for verdict in 0..u32::from(verdict::N) {
            let everybody = RefusedSender {
                user: NOBODY_CHARGED,
                verdict,
                cgroup_id: 0,
            };
            let mut empty = Refusals::default();
            empty.tracked.flow.started_ns = clock::since_boot_ns();
            add(&mut refusals, everybody, &empty, BPF_NOEXIST, NAME)?;
        }
        Ok(Self {
            refusals,
            turn: Map::Array(pins.open_map(TURN)?)
                .try_into()
                .map_err(|error| failed(TURN, error))?,
            map_id: info.map_err(|error| failed(NAME, error))?.id(),
        })
    }

    /// Number of the map: another one counts from zero.
    #[must_use]
    pub fn map_id(&self) -> u32 {
        self.map_id
    }

    /// All senders.
    pub fn all(&self) -> Result<Vec<(RefusedSender, Refusals)>, KernelError> {
        collect(&self.refusals, NAME)
    }

    /// Takes out a sender who has made no call since `last` was read; the next one makes another
    /// entry. False if there was one.
    pub fn forget(&mut self, sender: &RefusedSender, last: &Refusals) -> Result<bool, KernelError> {
        if get(&self.refusals, *sender, NAME)? != Some(*last) {
            return Ok(false);
        }
        match self.refusals.remove(&Wire(*sender)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(true),
            Err(error) => Err(failed(NAME, error)),
        }
    }

    /// Has the calls of each sender told one by one again, for a while.
    pub fn next_turn(&mut self) -> Result<(), KernelError> {
        let turn = self.turn.get(&0, 0).map_err(|error| failed(TURN, error))?;
        let next = Wire(turn.0.wrapping_add(1));
        self.turn
            .set(0, next, 0)
            .map_err(|error| failed(TURN, error))
    }
}
