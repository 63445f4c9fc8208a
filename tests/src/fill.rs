//! Fill of tables: how many entries each hash map among an agent's objects has.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::{BPF_MAP_GET_FD_BY_ID, Objects, bpf, halves, info, open, pinned};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
/// The types whose fill says something: hashes, also by processor. One that forgets the oldest is
/// full in the end.
const HASHES: [u32; 2] = [1, 5];
/// More keys than any table has entries: a walk over a map that changes may begin again.
const MOST: u64 = 1 << 22;

/// Entries of each hash map among these objects, by its name, without those that forget the oldest.
pub fn entries(objects: &Objects) -> Result<BTreeMap<String, u64>> {
    let mut entries = BTreeMap::new();
    for id in &objects.maps {
        let Some(map) = open(BPF_MAP_GET_FD_BY_ID, *id)? else {
            continue;
        };
        let info = info::<40>(&map)?;
        let word = |at: usize| {
            let bytes = info.get(at..).and_then(|rest| rest.first_chunk()).copied();
            bytes.map(u32::from_ne_bytes).unwrap_or_default()
        };
        if HASHES.contains(&word(0)) {
            let name = info.get(24..).unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0').to_owned();
            *entries.entry(name).or_default() += count(&map, word(8) as usize)?;
        }
    }
    Ok(entries)
}

/// How many entries of a map that is pinned there have these bytes in their value.
pub fn entries_with(pin: &Path, bytes: &[u8]) -> Result<u64> {
    let map = pinned(pin)?;
    let info = info::<16>(&map)?;
    let size = |at: usize| {
        let bytes = info.get(at..).and_then(|rest| rest.first_chunk()).copied();
        bytes.map(u32::from_ne_bytes).unwrap_or_default() as usize
    };
    let mut value = vec![0_u8; size(12)];
    let mut n_found = 0;
    walk(&map, size(8), |key| {
        let ([low, high], [value_low, value_high]) = (
            halves(key.as_ptr() as u64),
            halves(value.as_mut_ptr() as u64),
        );
        let descriptor = map.as_raw_fd() as u32;
        let mut attributes = [descriptor, 0, low, high, value_low, value_high, 0, 0];
        // One that has left meanwhile is none.
        let is_there = bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes).is_ok();
        n_found += u64::from(is_there && value.windows(bytes.len()).any(|it| it == bytes));
    })?;
    Ok(n_found)
}

/// Counts the keys of a map.
fn count(map: &OwnedFd, key_bytes: usize) -> Result<u64> {
    walk(map, key_bytes, |_| ())
}

/// Keys of a map, one after the other. Returns how many there are.
fn walk(map: &OwnedFd, key_bytes: usize, mut look: impl FnMut(&[u8])) -> Result<u64> {
    let mut key = vec![0_u8; key_bytes];
    let mut next = vec![0_u8; key_bytes];
    for number in 0..MOST {
        let from = if number == 0 { 0 } else { key.as_ptr() as u64 };
        let ([low, high], [next_low, next_high]) = (halves(from), halves(next.as_mut_ptr() as u64));
        let descriptor = map.as_raw_fd() as u32;
        let mut attributes = [descriptor, 0, low, high, next_low, next_high];
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => {
                std::mem::swap(&mut key, &mut next);
                look(&key);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(number),
            Err(error) => return Err(error).context("walk over a map"),
        }
    }
    Ok(MOST)
}
