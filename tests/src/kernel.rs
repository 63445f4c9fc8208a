//! Objects of the agent in the kernel, found from outside: the BPF objects that
//! its descriptors name, and whether they still exist.
//!
//! On a machine that others use, ids are asked for one by one and never compared
//! as sets. Where nobody else is, [`names`] lists all there is.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::wait::wait_for;

/// Commands of bpf(2) that name the id after another.
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;
/// Writes what is known about an open object.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Begins to count how programs run.
const BPF_ENABLE_STATS: libc::c_int = 32;
/// Takes a link's program from where it is attached.
const BPF_LINK_DETACH: libc::c_int = 34;
/// Makes a map.
const BPF_MAP_CREATE: libc::c_int = 0;
/// Read, write and remove an element of a map.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
/// Gives an object a name.
const BPF_OBJ_PIN: libc::c_int = 6;
/// Opens what is pinned.
const BPF_OBJ_GET: libc::c_int = 7;
/// Commands of bpf(2) that open an object by its id.
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
pub(crate) const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;

/// Ids of BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// Returns the objects that process `pid` holds descriptors of.
    pub fn held_by(pid: u32) -> Result<Self> {
        let mut objects = Self::default();
        let directory = format!("/proc/{pid}/fdinfo");
        for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
            // A descriptor that was closed meanwhile is of no interest.
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| -> Option<u32> {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            // The descriptor of a link names its program, too.
            objects.links.extend(field("link_id:"));
            objects.programs.extend(field("prog_id:"));
            objects.maps.extend(field("map_id:"));
        }
        Ok(objects)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those of them that are in the kernel now.
    pub fn alive(&self) -> Result<Self> {
        let filter = |ids: &BTreeSet<u32>, command| -> Result<BTreeSet<u32>> {
            let mut alive = BTreeSet::new();
            for id in ids {
                if exists(command, *id)? {
                    alive.insert(*id);
                }
            }
            Ok(alive)
        };
        Ok(Self {
            programs: filter(&self.programs, BPF_PROG_GET_FD_BY_ID)?,
            maps: filter(&self.maps, BPF_MAP_GET_FD_BY_ID)?,
            links: filter(&self.links, BPF_LINK_GET_FD_BY_ID)?,
        })
    }

    /// Waits until none of them is left. The kernel frees them after a grace
    /// period, not at once.
    pub fn wait_until_gone(&self) -> Result<()> {
        let mut left = self.clone();
        wait_for("BPF objects are freed", || {
            left = left.alive()?;
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("left in the kernel: {left:?}"))
    }
}

/// How often programs have run, and for how long altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Nanoseconds, those of reading the clock included.
    pub ns: u64,
    /// How often.
    pub count: u64,
}

impl Runs {
    /// Of the programs among these objects that are called so.
    pub fn of(objects: &Objects, name: &str) -> Result<Self> {
        let mut runs = Self::default();
        for id in &objects.programs {
            let Some(program) = open_program(*id)? else {
                continue;
            };
            let info = ProgramInfo::read(&program)?;
            if info.name == name {
                runs.ns += info.runs.ns;
                runs.count += info.runs.count;
            }
        }
        Ok(runs)
    }

    /// Returns the runs since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ns: self.ns - earlier.ns,
            count: self.count - earlier.count,
        }
    }
}

/// Information of the kernel about a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Number of the program.
    pub id: u32,
    /// Its first 15 letters.
    pub name: String,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Instructions that the verifier went through (Linux 5.16).
    pub verified: u32,
    /// While anybody has the kernel count them.
    pub runs: Runs,
}

impl ProgramInfo {
    /// Of an open program.
    pub fn read(program: &OwnedFd) -> Result<Self> {
        // struct bpf_prog_info
        const JITED_LEN: usize = 16;
        const NAME: usize = 64;
        const RUN_TIME_NS: usize = 192;
        const RUN_COUNT: usize = 200;
        const VERIFIED: usize = 216;
        let info = info::<224>(program)?;
        let wide = |at: usize| {
            let bytes = info.get(at..).and_then(|rest| rest.first_chunk()).copied();
            bytes.map(u64::from_ne_bytes).unwrap_or_default()
        };
        Ok(Self {
            id: (wide(0) >> 32) as u32,
            name: name_of(program, NAME)?,
            jited_bytes: wide(JITED_LEN) as u32,
            verified: wide(VERIFIED) as u32,
            runs: Runs {
                ns: wide(RUN_TIME_NS),
                count: wide(RUN_COUNT),
            },
        })
    }

    /// Of all programs among these objects.
    pub fn of(objects: &Objects) -> Result<Vec<Self>> {
        let open = |id: &u32| open_program(*id).transpose();
        let programs = objects.programs.iter().filter_map(open);
        programs.map(|program| Self::read(&program?)).collect()
    }
}

/// Information of the kernel about a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// Its first 15 letters.
    pub name: String,
    /// Number of the map.
    pub id: u32,
    /// Bytes of one of its values.
    pub value_bytes: u32,
}

impl MapInfo {
    /// Of all maps among these objects.
    pub fn of(objects: &Objects) -> Result<Vec<Self>> {
        const NAME: usize = 24;
        let mut maps = Vec::new();
        for id in &objects.maps {
            let Some(map) = open(BPF_MAP_GET_FD_BY_ID, *id)? else {
                continue;
            };
            let info = info::<24>(&map)?;
            let bytes = info.get(12..).and_then(|rest| rest.first_chunk()).copied();
            maps.push(Self {
                name: name_of(&map, NAME)?,
                id: *id,
                value_bytes: bytes.map(u32::from_ne_bytes).unwrap_or_default(),
            });
        }
        Ok(maps)
    }
}

/// The program with this number, if there is one.
pub fn open_program(id: u32) -> Result<Option<OwnedFd>> {
    open(BPF_PROG_GET_FD_BY_ID, id)
}

/// The link with this number, if there is one.
pub(crate) fn open_link(id: u32) -> Result<Option<OwnedFd>> {
    open(BPF_LINK_GET_FD_BY_ID, id)
}

/// A descriptor that a command of bpf(2) has just returned.
pub(crate) fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the call returned a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Has the kernel count how often programs run, and for how long, until what this returns is
/// dropped.
pub fn count_runs() -> Result<OwnedFd> {
    const RUN_TIME: u32 = 0;
    let stats = bpf(BPF_ENABLE_STATS, &mut [RUN_TIME]).context("count how programs run")?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(stats) })
}

/// Detaches a pinned link, as root might.
pub fn detach_link(pin: &Path) -> Result<()> {
    let link = pinned(pin)?;
    let mut attributes = [link.as_raw_fd() as u32, 0, 0, 0];
    bpf(BPF_LINK_DETACH, &mut attributes).context("detach a link")?;
    Ok(())
}

/// Opens what is pinned there.
pub fn pinned(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let [low, high] = halves(path.as_ptr() as u64);
    let object = bpf(BPF_OBJ_GET, &mut [low, high, 0, 0])
        .with_context(|| format!("open the pin {}", pin.display()))?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Gives an object a name on the BPF file system.
pub fn pin(object: &OwnedFd, pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let [low, high] = halves(path.as_ptr() as u64);
    bpf(BPF_OBJ_PIN, &mut [low, high, object.as_raw_fd() as u32, 0])
        .with_context(|| format!("pin {}", pin.display()))?;
    Ok(())
}

/// The element of an array map. Of a map that has values by processor: of all of them.
pub fn element(map: &OwnedFd, index: u32) -> Result<Vec<u8>> {
    // No map of ours has larger ones that tests want to read.
    let mut value = vec![0u8; 1 << 16];
    let mut attributes = of_element(map, &index, value.as_mut_ptr());
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes).context("read an element of a map")?;
    Ok(value)
}

/// Writes it. There may be more bytes than a value has.
pub fn set_element(map: &OwnedFd, index: u32, value: &mut [u8]) -> std::io::Result<()> {
    let mut attributes = of_element(map, &index, value.as_mut_ptr());
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Removes an element of a map whose keys are as large as this.
pub fn remove_element(map: &OwnedFd, key: u32) -> Result<()> {
    let mut attributes = of_element(map, &key, std::ptr::null_mut());
    bpf(BPF_MAP_DELETE_ELEM, &mut attributes).context("remove an element of a map")?;
    Ok(())
}

/// The map that is in a slot of an array of maps.
pub fn inner_map(maps: &OwnedFd, slot: u32) -> Result<OwnedFd> {
    let id = element(maps, slot)?;
    let id = id.first_chunk().copied().map(u32::from_ne_bytes);
    open(BPF_MAP_GET_FD_BY_ID, id.unwrap_or_default())?.context("no map in the slot")
}

/// Makes an array map like another one.
pub fn map_like(other: &OwnedFd) -> Result<OwnedFd> {
    // struct bpf_map_info: type, id, size of a key, of a value, entries, flags.
    let info = info::<24>(other)?;
    let word = |at: usize| {
        let bytes = info.get(at..).and_then(|rest| rest.first_chunk()).copied();
        bytes.map(u32::from_ne_bytes).unwrap_or_default()
    };
    let mut attributes = [word(0), word(8), word(12), word(16), word(20), 0, 0, 0];
    let map = bpf(BPF_MAP_CREATE, &mut attributes).context("make a map")?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

fn of_element(map: &OwnedFd, index: &u32, value: *mut u8) -> [u32; 8] {
    let [key_low, key_high] = halves(std::ptr::from_ref(index) as u64);
    let [low, high] = halves(value as u64);
    [
        map.as_raw_fd() as u32,
        0,
        key_low,
        key_high,
        low,
        high,
        0,
        0,
    ]
}

pub(crate) fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// Whether there is an object with this id.
fn exists(command: libc::c_int, id: u32) -> Result<bool> {
    Ok(open(command, id)?.is_some())
}

/// The object with this id, if there is one. A link that is being made has an id and
/// cannot be opened yet.
pub(crate) fn open(command: libc::c_int, id: u32) -> Result<Option<OwnedFd>> {
    // The part of union bpf_attr that these commands read: id, next id, flags.
    let mut attributes: [u32; 4] = [id, 0, 0, 0];
    match bpf(command, &mut attributes) {
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("open BPF object {id}")),
    }
}

/// One line for each BPF object in the kernel, sorted: its kind, and its name if
/// its kind has one.
pub fn names() -> Result<Vec<String>> {
    // Where struct bpf_prog_info and struct bpf_map_info have the name.
    let kinds = [
        (
            "program",
            BPF_PROG_GET_NEXT_ID,
            BPF_PROG_GET_FD_BY_ID,
            Some(64),
        ),
        ("map", BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, Some(24)),
        ("link", BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, None),
    ];
    let mut names = Vec::new();
    for (kind, next, by_id, name_offset) in kinds {
        let mut id = 0;
        while let Some(next_id) = next_after(next, id)? {
            id = next_id;
            let Some(object) = open(by_id, id)? else {
                continue;
            };
            let name = match name_offset {
                Some(offset) => name_of(&object, offset)?,
                None => String::new(),
            };
            names.push(format!("{kind} {name}").trim_end().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The id after this one.
fn next_after(command: libc::c_int, id: u32) -> Result<Option<u32>> {
    let mut attributes: [u32; 4] = [id, 0, 0, 0];
    match bpf(command, &mut attributes) {
        Ok(_) => Ok(Some(attributes[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).context("list BPF objects"),
    }
}

fn name_of(object: &OwnedFd, offset: usize) -> Result<String> {
    const NAME: usize = 16;
    let info = info::<80>(object)?;
    let name = info.get(offset..offset + NAME).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    Ok(name.trim_end_matches('\0').to_owned())
}

/// The beginning of what the kernel says of an object.
pub(crate) fn info<const N: usize>(object: &OwnedFd) -> Result<[u8; N]> {
    let mut info = [0u8; N];
    let [low, high] = halves(info.as_mut_ptr() as u64);
    let mut attributes = [object.as_raw_fd() as u32, N as u32, low, high];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).context("ask about a BPF object")?;
    Ok(info)
}

/// A program at the exit of an interface of this thread's network namespace, behind those that
/// are there; it lets pass what comes. Gone when what is returned is closed (kernel 6.6).
pub fn stand_at_exit(interface: &str) -> Result<OwnedFd> {
    /// `r0 = -1`, which asks the next program; `exit`.
    const PROGRAM: [[u32; 2]; 2] = [[0xb7, u32::MAX], [0x95, 0]];
    run_at_exit(interface, &PROGRAM)
}

/// As [`stand_at_exit`], and writes another destination into each packet of IPv4.
pub fn rewrite_at_exit(interface: &str, to: Ipv4Addr) -> Result<OwnedFd> {
    /// Behind the addresses and the ethertype of a frame.
    const DESTINATION: u32 = 14 + 16;
    const SKB_STORE_BYTES: u32 = 9;
    let program = [
        // `*(u32 *)(r10 - 4) = to`
        [0xfffc_0a62, u32::from_ne_bytes(to.octets())],
        // `r2 = DESTINATION; r3 = r10; r3 += -4; r4 = 4; r5 = 0`
        [0x02b7, DESTINATION],
        [0xa3bf, 0],
        [0x0307, (-4_i32).cast_unsigned()],
        [0x04b7, 4],
        [0x05b7, 0],
        // `call SKB_STORE_BYTES; r0 = -1; exit`
        [0x85, SKB_STORE_BYTES],
        [0xb7, u32::MAX],
        [0x95, 0],
    ];
    run_at_exit(interface, &program)
}

fn run_at_exit(interface: &str, instructions: &[[u32; 2]]) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_LINK_CREATE: libc::c_int = 28;
    const SCHED_CLS: u32 = 3;
    const TCX_EGRESS: u32 = 47;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let [program_low, program_high] = halves(instructions.as_ptr() as u64);
    let [licence_low, licence_high] = halves(c"GPL".as_ptr() as u64);
    let mut load = [0; 16];
    load[..6].copy_from_slice(&[
        SCHED_CLS,
        instructions.len() as u32,
        program_low,
        program_high,
        licence_low,
        licence_high,
    ]);
    // Its name, 48 bytes into the attributes.
    load[12] = u32::from_ne_bytes(*b"othe");
    load[13] = u32::from_ne_bytes(*b"r\0\0\0");
    let program = bpf(BPF_PROG_LOAD, &mut load).context("load a program")?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let mut create = [0; 8];
    create[..3].copy_from_slice(&[program.as_raw_fd() as u32, index, TCX_EGRESS]);
    let link = bpf(BPF_LINK_CREATE, &mut create).context("attach a program")?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// bpf(2), with the beginning of union bpf_attr.
pub(crate) fn bpf(command: libc::c_int, attributes: &mut [u32]) -> std::io::Result<i32> {
    // SAFETY: the kernel reads and writes `attributes`, whose size is passed, and what
    // they name: for BPF_OBJ_GET_INFO_BY_FD an array with its size, for BPF_OBJ_GET and
    // BPF_OBJ_PIN a path that ends in zero, for elements of maps a key and a value that is
    // large enough.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes) as libc::c_uint,
        )
    };
    if answer < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(answer as i32)
}
