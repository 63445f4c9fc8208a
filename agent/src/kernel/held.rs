//! Sums that the agent holds and the kernel has given up: a page in the kernel that outlives the
//! agent and its spool.
//!
//! The map `HELD` has one element, which no program reads, in two copies. One word says which of
//! them counts: an agent that is killed while it writes the other leaves this one. As long as nobody takes
//! the spool away, all of it is in there as well.

use std::os::fd::AsFd as _;

use aya::maps::MapData;
use trefoil_ebpf::abi::verdict;

use super::{KernelError, Position, bpf_syscall, mapped::Mapped, pins::PinDir};

pub(super) const NAME: &str = "HELD";

/// Bytes and packets, by verdict.
pub type Sums = [(u64, u64); verdict::N as usize];

/// All that is said at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Number of the batch in the spool; 0 if there was none.
    pub batch: u64,
    /// Number of the next record.
    pub next: u64,
    /// How far the ring buffer was read: map and bytes.
    pub read: (u32, u64),
    /// Sums of final records, and of rollups that are being filled, that no sink has.
    pub sums: Sums,
    /// Sums that were told of packets for which the programs found no room.
    pub untold: Sums,
}

/// Words of a copy.
const WORDS: usize = 4 + 4 * verdict::N as usize;
const WORD: usize = size_of::<u64>();
const BYTES: usize = WORD * (1 + 2 * WORDS);

impl Held {
    /// How far the ring buffer was read.
    pub fn position(&self) -> Position {
        let (map_id, bytes) = self.read;
        Position { map_id, bytes }
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let (map_id, bytes) = self.read;
        let sums = self.sums.into_iter().chain(self.untold);
        let sums = sums.flat_map(|(bytes, packets)| [bytes, packets]);
        [self.batch, self.next, map_id.into(), bytes]
            .into_iter()
            .chain(sums)
    }

    fn of(mut words: impl Iterator<Item = u64>) -> Self {
        let mut word = || words.next().unwrap_or_default();
        let (batch, next, map_id, bytes) = (word(), word(), word(), word());
        let mut sums = || std::array::from_fn(|_| (word(), word()));
        Self {
            batch,
            next,
            // It was one.
            read: (map_id as u32, bytes),
            sums: sums(),
            untold: sums(),
        }
    }
}

/// The map.
pub struct HeldPage {
    page: Mapped,
}

impl HeldPage {
    /// Opens it, or makes it with nothing in it.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        let failed = |error| KernelError::failed(format!("map {NAME} into memory"), error);
        let map = match pins.open_map(NAME) {
            Err(KernelError::NothingPinned { .. }) => make(pins)?,
            opened => opened?,
        };
        let page = Mapped::new(map.fd().as_fd(), BYTES).map_err(failed)?;
        Ok(Self { page })
    }

    /// Returns the page as an agent has written it last.
    pub fn get(&self) -> Held {
        let begin = self.begin(self.page.word(0));
        Held::of((0..WORDS).map(|number| self.page.word(begin + number * WORD)))
    }

    /// Says something else, in one piece.
    pub fn set(&self, held: &Held) {
        let next = (self.page.word(0) & 1) ^ 1;
        let begin = self.begin(next);
        for (number, word) in held.words().enumerate() {
            self.page.set_word(begin + number * WORD, word);
        }
        self.page.set_word(0, next);
    }

    fn begin(&self, copy: u64) -> usize {
        match copy & 1 {
            0 => WORD,
            _ => WORD * (1 + WORDS),
        }
    }
}

fn make(pins: &PinDir) -> Result<MapData, KernelError> {
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    let layout = aya_obj::Map::new_from_params(
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        size_of::<u32>() as u32,
        BYTES as u32,
        1,
        BPF_F_MMAPABLE,
    );
    let map = MapData::create(layout, NAME, None)
        .map_err(|error| KernelError::failed(format!("make map {NAME}"), error))?;
    let path = pins.map(NAME);
    bpf_syscall::pin(map.fd().as_fd(), &path)
        .map_err(|error| KernelError::failed(format!("pin map {}", path.display()), error))?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_read_as_it_was_written() {
        let mut held = Held {
            batch: 1,
            next: 7,
            read: (2, 3),
            ..Held::default()
        };
        held.sums[1] = (4, 5);
        held.untold[verdict::N as usize - 1] = (u64::MAX, 6);
        assert_eq!(held.words().count(), WORDS);
        assert_eq!(Held::of(held.words()), held);
    }
}
