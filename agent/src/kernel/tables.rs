//! Putting a compiled policy into the kernel's tables.

use std::{fs::File, mem::offset_of, os::fd::AsFd};

use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use trefoil_ebpf::abi::{
    CHUNK_BYTES, Control, ControlPage, ENFORCE_ALWAYS, ENFORCE_NEVER, ExecutableKey, MAX_CHUNKS,
    Policy, chunk_index,
};

use super::{
    KernelError, bpf_syscall,
    budgets::{Budgets, Places},
    mapped::Mapped,
    pins::PinDir,
    reader::failed,
    wire::Wire,
};
use crate::{
    clock::{BootClock, since_boot_ns},
    policy::Image,
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Until when a policy blocks what it does not approve; from then on it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// It only reports.
    Never,
    /// Until this many nanoseconds after boot, agent alive or dead.
    Until(u64),
    /// Without an end.
    Always,
}

impl Enforcement {
    /// True at this moment, in nanoseconds since boot.
    #[must_use]
    pub fn holds_at(self, now_ns: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Until(until_ns) => now_ns < until_ns,
            Self::Always => true,
        }
    }

    fn word(self) -> u64 {
        match self {
            Self::Never => ENFORCE_NEVER,
            Self::Until(until_ns) => until_ns.clamp(ENFORCE_NEVER + 1, ENFORCE_ALWAYS - 1),
            Self::Always => ENFORCE_ALWAYS,
        }
    }

    fn of_word(word: u64) -> Self {
        match word {
            ENFORCE_NEVER => Self::Never,
            ENFORCE_ALWAYS => Self::Always,
            until_ns => Self::Until(until_ns),
        }
    }
}

/// The words that say which policy and which set of programs is in force.
pub struct ControlWords {
    mapped: Mapped,
}

impl ControlWords {
    /// Maps the pinned page.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        Self::map(&pins.open_map("CONTROL")?)
    }

    /// Maps the page.
    pub(super) fn map(map: &MapData) -> Result<Self, KernelError> {
        let mapped = Mapped::new(map.fd().as_fd(), size_of::<ControlPage>())
            .map_err(|error| KernelError::failed("map CONTROL", error))?;
        Ok(Self { mapped })
    }

    /// Returns the control word in force.
    pub fn get(&self) -> Control {
        let word = self.mapped.word(offset_of!(ControlPage, control));
        super::wire::value_of(&word.to_ne_bytes()).unwrap_or_default()
    }

    /// Puts it in force, in one piece.
    pub fn set(&self, control: Control) {
        let offset = offset_of!(ControlPage, control);
        self.mapped.set_word(offset, word_of(control));
    }

    /// Puts it in force if `from` is so still. Returns whether it was.
    pub fn change(&self, from: Control, to: Control) -> bool {
        let offset = offset_of!(ControlPage, control);
        self.mapped.change_word(offset, word_of(from), word_of(to))
    }

    /// Until when the policy in force is enforced.
    pub fn enforcement(&self) -> Enforcement {
        Enforcement::of_word(self.mapped.word(enforce_offset(self.get().generation)))
    }

    /// Says of a slot that nobody reads yet when its policy came into force, which is now,
    /// and until when it is enforced.
    pub fn prepare(&self, generation: u32, enforcement: Enforcement) {
        self.set_enforcement(generation, enforcement);
        let since = offset_of!(ControlPage, since_ns) + slot_offset(generation);
        self.mapped.set_word(since, since_boot_ns());
    }

    /// Sets until when the policy of this generation is enforced.
    pub fn set_enforcement(&self, generation: u32, enforcement: Enforcement) {
        self.mapped
            .set_word(enforce_offset(generation), enforcement.word());
    }
}

fn word_of(control: Control) -> u64 {
    let bytes: [u8; 8] = super::wire::bytes_of(&control)
        .try_into()
        .expect("the control word has 8 bytes");
    u64::from_ne_bytes(bytes)
}

/// Policy and chunks as written for a generation, to be compared with those that are there
/// later.
#[derive(Clone)]
pub struct Written {
    policy: Policy,
    /// Ids of the maps that are its chunks, in order.
    chunks: Vec<u32>,
}

impl Written {
    /// True if this is what the slot of its generation holds.
    pub fn is_there(&self, pins: &PinDir) -> Result<bool, KernelError> {
        let slot = self.policy.generation & 1;
        let Wire(policy) = policies(pins)?
            .get(&slot, 0)
            .map_err(|error| KernelError::failed("read map POLICIES", error))?;
        let tables = pins.open_map("TABLES")?;
        for number in 0..MAX_CHUNKS {
            let there =
                bpf_syscall::inner_map(tables.fd().as_fd(), chunk_index(slot, number as u32))
                    .map_err(|error| KernelError::failed("read map TABLES", error))?;
            if there != self.chunks.get(number).copied() {
                return Ok(false);
            }
        }
        Ok(policy == self.policy)
    }
}

/// Where the word about a generation's slot is.
fn enforce_offset(generation: u32) -> usize {
    offset_of!(ControlPage, enforce_until_ns) + slot_offset(generation)
}

/// Where it is among such words.
fn slot_offset(generation: u32) -> usize {
    (generation & 1) as usize * size_of::<u64>()
}

/// Writes a policy into the slot of its generation, which must not be the one in
/// force, and puts nothing in force.
///
/// The slot may still be read by a program that started under the generation
/// before the present one, so those are waited for first. Returns where its budgets are.
///
/// User space cannot change the tables afterwards, nor can this: what is left is to put
/// others in their place.
pub fn write(
    pins: &PinDir,
    image: &Image,
    clock: &BootClock,
) -> Result<(Places, Written), KernelError> {
    wait_for_programs();
    let places = Budgets::open(pins)?.allot(&image.budgets)?;
    let slot = image.policy.generation & 1;
    let chunks = write_chunks(pins, image, slot, &image.limits(clock, &places))?;
    policies(pins)?
        .set(slot, Wire(image.policy), 0)
        .map_err(|error| KernelError::failed("write map POLICIES", error))?;
    let written = Written {
        policy: image.policy,
        chunks,
    };
    Ok((places, written))
}

fn policies(pins: &PinDir) -> Result<Array<MapData, Wire<Policy>>, KernelError> {
    Array::try_from(Map::Array(pins.open_map("POLICIES")?))
        .map_err(|error| KernelError::failed("use map POLICIES", error))
}

/// Makes a map of each chunk and puts them into a slot, instead of those that were there:
/// the kernel frees these when no program reads them any more. Returns their ids.
fn write_chunks(
    pins: &PinDir,
    image: &Image,
    slot: u32,
    limits: &[(usize, Vec<u64>)],
) -> Result<Vec<u32>, KernelError> {
    let failed = |error| KernelError::failed("write map TABLES", error);
    let failed_to_freeze = |error| KernelError::failed("freeze map TABLES", error);
    let layout = || {
        aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            CHUNK_BYTES as u32,
            1,
            BPF_F_MMAPABLE,
        )
    };
    let (mut chunks, mut ids) = (Vec::new(), Vec::new());
    for words in image.chunks() {
        let chunk = MapData::create(layout(), "TABLES", None).map_err(failed)?;
        let mut mapped = Mapped::new(chunk.fd().as_fd(), CHUNK_BYTES)
            .map_err(|error| KernelError::failed("map TABLES", error))?;
        mapped.write(words);
        if chunks.is_empty() {
            mapped.write(&[image.header]);
            for (place, words) in limits {
                for (word, place) in words.iter().zip((*place..).step_by(size_of::<u64>())) {
                    mapped.set_word(place, *word);
                }
            }
        }
        // A map that is mapped writable cannot be frozen.
        drop(mapped);
        bpf_syscall::freeze(chunk.fd().as_fd()).map_err(failed_to_freeze)?;
        let identity = bpf_syscall::identity(chunk.fd().as_fd()).map_err(failed_to_freeze)?;
        ids.push(identity.id);
        chunks.push(chunk);
    }
    let indexes: Vec<u32> = (0..MAX_CHUNKS as u32)
        .map(|number| chunk_index(slot, number))
        .collect();
    let (filled, empty) = indexes.split_at(chunks.len());
    let tables = pins.open_map("TABLES")?;
    let maps: Vec<_> = chunks.iter().map(|chunk| chunk.fd().as_fd()).collect();
    if bpf_syscall::fill(tables.fd().as_fd(), filled, &maps).is_err() {
        // Before 5.19, one by one.
        let mut tables =
            ArrayOfMaps::<MapData>::try_from(Map::ArrayOfMaps(pins.open_map("TABLES")?))
                .map_err(failed)?;
        for (&index, chunk) in filled.iter().zip(&chunks) {
            tables.set(index, chunk, 0).map_err(failed)?;
        }
    }
    for &index in empty {
        bpf_syscall::remove(tables.fd().as_fd(), index)
            .map_err(|error| KernelError::failed("empty an entry of map TABLES", error))?;
    }
    Ok(ids)
}

/// Waits until every program that runs now has returned.
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no pointers. It waits for an RCU grace period, which every
    // BPF program that is running delays. Where it is not to be had, replacing
    // the inner maps waits for one as well.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// Makes the secret by which executables are numbered, unless an agent before has.
pub fn set_executable_key(pins: &PinDir) -> Result<(), KernelError> {
    const NAME: &str = "EXECUTABLE_KEY";
    let mut map: Array<MapData, Wire<ExecutableKey>> = Map::Array(pins.open_map(NAME)?)
        .try_into()
        .map_err(|error| failed(NAME, error))?;
    let known = map.get(&0, 0).map_err(|error| failed(NAME, error))?;
    if known.0 != ExecutableKey::default() {
        return Ok(());
    }
    let word = || {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
            .map_err(|error| KernelError::failed("read /dev/urandom", error))?;
        Ok::<_, KernelError>(u64::from_ne_bytes(bytes))
    };
    let key = ExecutableKey {
        words: [word()?, word()?],
    };
    map.set(0, Wire(key), 0)
        .map_err(|error| failed(NAME, error))
}
