//! Objects that an agent with other layouts has left in the kernel: another version, newer or
//! older.
//!
//! Its tables cannot be read, except for two whose layout is the same in every version: the control
//! word and the sums by verdict. So its programs judge until those of this agent do, beside it; then they stop, and what
//! they have counted and nobody has told is told as lost.

use aya::maps::{Map, MapData, PerCpuArray};
use trefoil_ebpf::abi::{Control, Totals, verdict};

use super::{
    Kernel, KernelError, PinDir,
    reader::{failed, sums},
    tables::{ControlWords, wait_for_programs},
    wire::Wire,
};

/// The kernel part of another version, which does not count any more.
#[derive(Debug)]
pub struct Superseded {
    pins: PinDir,
    /// Number of its map of sums.
    pub counted_by: u64,
    /// Its sums by verdict; `None` if they cannot be read.
    pub totals: Option<[Totals; verdict::N as usize]>,
}

impl Superseded {
    /// Number of its layouts.
    pub fn abi(&self) -> u32 {
        self.pins.abi()
    }

    /// Takes it out of the kernel.
    pub fn remove(&self) -> Result<(), KernelError> {
        self.pins.remove_version()
    }
}

impl Kernel {
    /// The control words of other versions. Without one, nothing of it judges.
    pub(super) fn others(&self) -> Vec<ControlWords> {
        let others = self.pins.others().into_iter();
        others
            .filter_map(|other| ControlWords::open(&other).ok())
            .collect()
    }

    /// From now on these count and judge nothing: this one does.
    pub(super) fn supersede(others: &[ControlWords]) {
        for control in others {
            control.set(Control {
                generation: control.get().generation,
                instance: 0,
            });
        }
    }

    /// Other versions that are still there. To be asked once this agent is in force.
    pub fn superseded(&self) -> Vec<Superseded> {
        let others = self.pins.others();
        if !others.is_empty() {
            wait_for_programs();
        }
        let look = |pins: PinDir| {
            let totals = totals(&pins).ok();
            Superseded {
                counted_by: totals.map_or(0, |(id, _)| id),
                totals: totals.map(|(_, totals)| totals),
                pins,
            }
        };
        others.into_iter().map(look).collect()
    }

    /// Number of the map of sums of this version.
    pub fn counted_by(&self) -> Result<u64, KernelError> {
        totals(&self.pins).map(|(id, _)| id)
    }
}

fn totals(pins: &PinDir) -> Result<(u64, [Totals; verdict::N as usize]), KernelError> {
    const NAME: &str = "TOTALS";
    let map = pins.open_map(NAME)?;
    let info = map.info().map_err(|error| failed(NAME, error))?;
    let is_known = info.value_size() as usize == size_of::<Totals>()
        && info.max_entries() == u32::from(verdict::N);
    if !is_known {
        return Err(KernelError::failed("read sums", "they have another layout"));
    }
    let map: PerCpuArray<MapData, Wire<Totals>> = Map::PerCpuArray(map)
        .try_into()
        .map_err(|error| failed(NAME, error))?;
    Ok((info.id().into(), sums(&map, NAME)?))
}
