//! The consumer side of the ring buffer `EVENTS`.
//!
//! Events are read first and released later, once what they amount to is kept: the kernel has
//! them until then, and an agent that is killed in between leaves them to the next one. aya's
//! own type releases each event when it has been read.

use std::{fmt, os::fd::AsFd};

use aya::maps::MapData;
use nix::unistd::{SysconfVar, sysconf};
use trefoil_ebpf::abi::Event;

use super::{KernelError, mapped::Mapped, pins::PinDir};

const NAME: &str = "EVENTS";

/// In the first word of an entry: a program is about to fill it in.
const BUSY: u32 = 1 << 31;
/// It never will be filled in.
const DISCARDED: u32 = 1 << 30;
/// Bytes before an entry's content.
const HEADER: usize = 8;

/// How far an agent has read in which ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of the map within the boot.
    pub map_id: u32,
    /// Bytes since it was made.
    pub bytes: u64,
}

/// Reads the ring buffer. Only one may do so.
pub struct Events {
    /// One page that begins with how far events are released.
    consumer: Mapped,
    /// One page that begins with how far events are reserved, and the events, twice: so none is
    /// in two parts.
    producer: Mapped,
    page: usize,
    size: u64,
    at: Position,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn open(pins: &PinDir) -> Result<Self, KernelError> {
        Self::of(&pins.open_map(NAME)?)
    }

    /// As [`open`](Self::open), of a table that was set aside.
    pub(super) fn of(map: &MapData) -> Result<Self, KernelError> {
        let failed = |error| KernelError::failed(format!("map {NAME} into memory"), error);
        let info = map
            .info()
            .map_err(|error| KernelError::failed(format!("ask about map {NAME}"), error))?;
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|it| usize::try_from(it).ok()).unwrap_or(4096);
        let size = info.max_entries() as usize;
        let fd = map.fd().as_fd();
        let consumer = Mapped::new(fd, page).map_err(failed)?;
        let producer = Mapped::read_only(fd, page, page + 2 * size).map_err(failed)?;
        let at = Position {
            map_id: info.id(),
            bytes: consumer.word(0),
        };
        Ok(Self {
            consumer,
            producer,
            page,
            size: size as u64,
            at,
        })
    }

    /// The next event; `None` when there is none now.
    ///
    /// A record of another size than this version's is counted by the caller as
    /// `Some(None)`.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that has ended stays so; here the next event may come later"
    )]
    pub fn next(&mut self) -> Option<Option<Event>> {
        while self.at.bytes != self.producer.word(0) {
            let entry = self.page + (self.at.bytes & (self.size - 1)) as usize;
            let header = self.producer.half_word(entry);
            if header & BUSY != 0 {
                return None;
            }
            let len = (header & !DISCARDED) as usize;
            self.at.bytes += (HEADER + len).next_multiple_of(8) as u64;
            if header & DISCARDED == 0 {
                let is_known = len == size_of::<Event>();
                return Some(is_known.then(|| self.producer.read(entry + HEADER)));
            }
        }
        None
    }

    /// How far events are there, or about to be, in bytes as of [`Position`].
    pub fn end(&self) -> u64 {
        self.producer.word(0)
    }

    /// How far has been read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Gives what has been read back to the kernel.
    pub fn release(&mut self) {
        if self.consumer.word(0) != self.at.bytes {
            self.consumer.set_word(0, self.at.bytes);
        }
    }

    /// Leaves out what an agent before has read up to here, and did not come to release.
    pub fn skip_to(&mut self, position: Position) {
        let waiting = self.at.bytes..=self.producer.word(0);
        if position.map_id == self.at.map_id && waiting.contains(&position.bytes) {
            self.at = position;
            self.release();
        }
    }
}
