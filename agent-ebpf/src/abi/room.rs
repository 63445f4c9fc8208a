//! Room by owner: how much of a table one user may take, and how much all of them may.
//!
//! Anybody can make processes, executables and control groups. So an entry of their tables is
//! charged to whoever has caused it, and what one cannot get he has used up himself.

/// User to whom nothing is charged: root of the host.
pub const ROOT: u32 = 0;

/// User to whom an entry is charged if nobody can be read.
pub const NOBODY_CHARGED: u32 = u32::MAX;

/// Index of map `PROCESSES` in [`Charges::entries`] and [`Rooms`].
pub const ROOM_OF_PROCESSES: u32 = 0;
/// Index of map `EXECUTABLES`.
pub const ROOM_OF_EXECUTABLES: u32 = 1;
/// Index of map `CGROUPS`.
pub const ROOM_OF_CGROUPS: u32 = 2;
/// Number of indexes, a power of two; the last one is of no table.
pub const N_ROOMS: usize = 4;

/// Entries of map `CHARGES`. A container may have 65,536 users.
pub const MAX_CHARGED: usize = 1 << 17;

/// Entries that are charged to one user, in map `CHARGES` by user id; under [`ROOT`], those that
/// are charged to all others together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charges {
    /// By the index of the table. A sum that several processors add to and take from, so less than
    /// zero for a moment.
    pub entries: [i64; N_ROOMS],
}

/// The part of a table that is for others than root.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Entries that may be charged to one user.
    pub one: u32,
    /// Entries that may be charged to all of them together.
    pub all: u32,
}

impl Room {
    /// In a table with so many entries: an eighth for each user, three quarters for all.
    #[must_use]
    pub const fn of(entries: u32) -> Self {
        const fn or_one(share: u32) -> u32 {
            if share == 0 { 1 } else { share }
        }
        Self {
            one: or_one(entries / 8),
            all: or_one(entries / 4 * 3),
        }
    }
}

/// The rooms of all tables, by their index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    /// By [`ROOM_OF_PROCESSES`] and so on.
    pub rooms: [Room; N_ROOMS],
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<Charges>() == 32);
    assert!(size_of::<Rooms>() == 32);
    assert!(N_ROOMS.is_power_of_two());
};
