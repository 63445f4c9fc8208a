//! The tables about uplinks: which are watched, and what left by each.

use aya::maps::{Map, MapError, PerCpuHashMap, PerCpuValues};
use trefoil_ebpf::abi::{Uplink, UplinkBooks, UplinkTotals};

use super::{
    KernelError, RouteSocket,
    pins::PinDir,
    reader::{Hash, collect, failed, get, hash},
    wire::Wire,
};
use crate::uplinks::Look;

/// Maps `UPLINKS` and `UPLINK_BOOKS`.
pub struct UplinkTable {
    uplinks: Hash<u32, Uplink>,
    room: u32,
    books: PerCpuHashMap<aya::maps::MapData, Wire<u32>, Wire<UplinkBooks>>,
}

impl UplinkTable {
    /// Opens the tables of a pin directory.
    pub fn open(pins: &PinDir) -> Result<Self, KernelError> {
        let room = pins
            .open_map("UPLINKS")?
            .info()
            .map_err(|error| failed("UPLINKS", error))?
            .max_entries();
        Ok(Self {
            uplinks: hash(pins, "UPLINKS")?,
            room,
            books: Map::PerCpuHashMap(pins.open_map("UPLINK_BOOKS")?)
                .try_into()
                .map_err(|error| failed("UPLINK_BOOKS", error))?,
        })
    }

    /// How many interfaces can have books.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// All interfaces that have books, by index.
    pub fn all(&self) -> Result<Vec<(u32, Uplink)>, KernelError> {
        collect(&self.uplinks, "UPLINKS")
    }

    /// Returns the entry of one interface in `UPLINKS`.
    pub fn get(&self, index: u32) -> Result<Option<Uplink>, KernelError> {
        get(&self.uplinks, index, "UPLINKS")
    }

    /// Opens books for an interface, with nothing in them.
    pub fn begin(&mut self, index: u32, uplink: &Uplink) -> Result<(), KernelError> {
        let n_cpus = aya::util::nr_cpus()
            .map_err(|(file, error)| KernelError::failed(format!("read {file}"), error))?;
        let empty = vec![Wire(UplinkBooks::default()); n_cpus];
        let empty = PerCpuValues::try_from(empty)
            .map_err(|error| KernelError::failed("make books for each processor", error))?;
        self.books
            .insert(Wire(index), empty, 0)
            .map_err(|error| failed("UPLINK_BOOKS", error))?;
        self.set(index, uplink)
    }

    /// Notes what is known of an interface.
    pub fn set(&mut self, index: u32, uplink: &Uplink) -> Result<(), KernelError> {
        self.uplinks
            .insert(Wire(index), Wire(*uplink), 0)
            .map_err(|error| failed("UPLINKS", error))
    }

    /// Closes the books of an interface that is gone.
    pub fn end(&mut self, index: u32) -> Result<(), KernelError> {
        match self.uplinks.remove(&Wire(index)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed("UPLINKS", error)),
        }
        match self.books.remove(&Wire(index)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed("UPLINK_BOOKS", error)),
        }
    }

    /// The books of an interface, over all CPUs; `None` if it has none.
    pub fn books(&self, index: u32) -> Result<Option<UplinkBooks>, KernelError> {
        let values = match self.books.get(&Wire(index), 0) {
            Ok(values) => values,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(failed("UPLINK_BOOKS", error)),
        };
        let mut sum = UplinkBooks::default();
        for Wire(value) in values.iter() {
            add(&mut sum.judged, &value.judged);
            add(&mut sum.unjudged, &value.unjudged);
            add(&mut sum.dropped, &value.dropped);
        }
        Ok(Some(sum))
    }

    /// The books between two looks at the interface's counter; `None` if either is not
    /// there (any more).
    pub fn look(&self, index: u32, routes: &mut RouteSocket) -> Result<Option<Look>, KernelError> {
        let Some(before) = routes.counters(index)? else {
            return Ok(None);
        };
        let Some(books) = self.books(index)? else {
            return Ok(None);
        };
        Ok(routes.counters(index)?.map(|after| Look {
            before_bytes: before.bytes,
            books,
            after_bytes: after.bytes,
        }))
    }
}

fn add(sums: &mut [UplinkTotals], values: &[UplinkTotals]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        sum.bytes += value.bytes;
        sum.wire_bytes += value.wire_bytes;
        sum.frames += value.frames;
    }
}
