//! The table of budgets: who has which entry, and how much has left by each.
//!
//! The kernel programs count; what is given out, taken back and remembered is
//! decided here.

use std::os::fd::AsFd;

use trefoil_ebpf::abi::{BUDGET_STEPS, Budget, MAX_BUDGETS};

use super::{KernelError, mapped::Mapped, pins::PinDir, wire::value_of};
use crate::{clock, policy};

/// The table, as memory.
pub struct Budgets {
    mapped: Mapped,
}

/// Which entry has which budget, in the order of a policy's budgets.
pub type Places = Vec<u32>;

impl Budgets {
    /// Maps the pinned table.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        let map = pins.open_map("BUDGETS")?;
        let mapped = Mapped::new(map.fd().as_fd(), MAX_BUDGETS * size_of::<Budget>())
            .map_err(|error| KernelError::failed("map BUDGETS", error))?;
        Ok(Self { mapped })
    }

    /// An entry, as it is now; its words may be of different moments.
    pub fn get(&self, place: u32) -> Budget {
        let start = place as usize * size_of::<Budget>();
        let bytes: Vec<u8> = (start..start + size_of::<Budget>())
            .step_by(size_of::<u64>())
            .flat_map(|offset| self.mapped.word(offset).to_ne_bytes())
            .collect();
        value_of(&bytes).expect("an entry has this size")
    }

    /// Gives each budget the entry that it has, or a new one.
    ///
    /// An entry is taken away only from a budget of no policy by which nothing has left
    /// within its window, so nothing is forgotten. The entry of a budget whose window has
    /// another length now is left to the policy before, and what has left by it is held
    /// against the new window as if it had left just now.
    pub fn allot(&self, budgets: &[policy::Budget]) -> Result<Places, KernelError> {
        let now_ns = clock::since_boot_ns();
        let mut places = Vec::with_capacity(budgets.len());
        for budget in budgets {
            let step_ns = budget.per_ns.div_ceil(BUDGET_STEPS);
            let known = (0..MAX_BUDGETS as u32).find(|&place| self.id(place) == budget.id);
            let place = match known {
                Some(place) if self.step_ns(place) == step_ns => place,
                known => {
                    let used = known.map_or(0, |place| self.get(place).window_bytes(now_ns));
                    let place = self.free(budgets, now_ns)?;
                    self.begin(place, budget.id, step_ns, used, now_ns);
                    if let Some(before) = known {
                        self.set(before, ID, 0);
                    }
                    place
                }
            };
            places.push(place);
        }
        Ok(places)
    }

    /// An entry that nobody has, or that says nothing any more.
    fn free(&self, wanted: &[policy::Budget], now_ns: u64) -> Result<u32, KernelError> {
        let mut all = 0..MAX_BUDGETS as u32;
        let is_idle = |place: u32| {
            let budget = self.get(place);
            budget.window_bytes(now_ns) == 0 && wanted.iter().all(|own| own.id != budget.id)
        };
        all.clone()
            .find(|&place| self.id(place) == 0)
            .or_else(|| all.find(|&place| is_idle(place)))
            .ok_or_else(|| {
                KernelError::failed(
                    "find an entry of map BUDGETS",
                    "all are in use by budgets and exceptions of policies before; `trefoil \
                     detach` forgets what was counted",
                )
            })
    }

    fn begin(&self, place: u32, id: u64, step_ns: u64, used_bytes: u64, now_ns: u64) {
        let step = now_ns.checked_div(step_ns).unwrap_or(0);
        for offset in (0..size_of::<Budget>()).step_by(size_of::<u64>()) {
            self.set(place, offset, 0);
        }
        self.set(place, STEP_NS, step_ns);
        self.set(place, STEP, step);
        self.set(place, USED_BYTES, used_bytes);
        self.set(place, ID, id);
    }

    fn id(&self, place: u32) -> u64 {
        self.mapped.word(offset(place, ID))
    }

    fn step_ns(&self, place: u32) -> u64 {
        self.mapped.word(offset(place, STEP_NS))
    }

    fn set(&self, place: u32, field: usize, word: u64) {
        self.mapped.set_word(offset(place, field), word);
    }
}

const ID: usize = std::mem::offset_of!(Budget, id);
const STEP_NS: usize = std::mem::offset_of!(Budget, step_ns);
const STEP: usize = std::mem::offset_of!(Budget, step);
const USED_BYTES: usize = std::mem::offset_of!(Budget, used_bytes);

fn offset(place: u32, field: usize) -> usize {
    place as usize * size_of::<Budget>() + field
}
