//! The uses of bpf(2) that aya does not offer, or not to a thread without the object that
//! the programs are from.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::wire::{Plain, bytes_of};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_ITER_CREATE: libc::c_long = 33;
/// Error of the kernel to a command that a kind of map does not have; libc has no name for it,
/// since it is not meant for user space.
const ENOTSUPP: i32 = 524;
const BPF_TRACE_ITER: u32 = 28;
const BPF_TCX_EGRESS: u32 = 47;

/// Runs bpf(2). Returns its result, which is a file descriptor for some commands.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a live, exclusive struct of the given size; the
    // kernel reads what this file puts there.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes a link. `target` is what it is to, as the attach type has it, and `of_kind` what
/// the kernel wants to know besides.
fn create_link<T>(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
    of_kind: T,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate<T> {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        of_kind: T,
    }
    let mut create = LinkCreate {
        program: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags,
        of_kind,
    };
    bpf(BPF_LINK_CREATE, &mut create).map(owned)
}

/// Starts an iterator, over the elements of `map` if it is one over maps, and
/// returns the file to read its output from.
pub fn iterate(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<File> {
    /// Where `union bpf_iter_link_info` is, and its bytes.
    #[repr(C)]
    struct OfIterator {
        info: u64,
        info_len: u32,
        pad: u32,
    }
    #[repr(C)]
    struct IterCreate {
        link: u32,
        flags: u32,
    }
    // Its first member for maps is the map.
    let info: [u32; 4] = [map.map_or(0, |map| map.as_raw_fd() as u32), 0, 0, 0];
    let of_iterator = OfIterator {
        info: map.map_or(0, |_| info.as_ptr() as u64),
        info_len: map.map_or(0, |_| size_of_val(&info) as u32),
        pad: 0,
    };
    let link = create_link(program, 0, BPF_TRACE_ITER, 0, of_iterator)?;
    let mut create = IterCreate {
        link: link.as_raw_fd() as u32,
        flags: 0,
    };
    Ok(File::from(owned(bpf(BPF_ITER_CREATE, &mut create)?)))
}

/// Attaches a program to a place in a control group, one of `enum bpf_attach_type`
/// (kernel 5.7), beside those that are there, and returns the link.
pub fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    create_link(program, cgroup.as_raw_fd() as u32, attach_type, 0, ())
}

/// Attaches a program behind all others at the exit of an interface (kernel 6.6), and
/// returns the link.
pub fn attach_tcx_egress(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    // Relative to no other program, and whatever the revision.
    create_link(program, interface, BPF_TCX_EGRESS, 0, [0_u64; 2])
}

/// As [`attach_tcx_egress`], before all others.
pub fn attach_tcx_egress_first(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u32 = 1 << 3;
    create_link(program, interface, BPF_TCX_EGRESS, BPF_F_BEFORE, [0_u64; 2])
}

/// Numbers of the programs at the exit of an interface that are attached there without a
/// filter (kernel 6.6), in the order in which they run. Needs CAP_NET_ADMIN.
pub fn tcx_egress_programs(interface: u32) -> io::Result<Vec<u32>> {
    /// The kernel's own limit.
    const MOST: usize = 64;
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        interface: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut programs = [0_u32; MOST];
    let mut query = Query {
        interface,
        attach_type: BPF_TCX_EGRESS,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    match bpf(BPF_PROG_QUERY, &mut query) {
        Ok(_) => Ok(programs[..MOST.min(query.count as usize)].to_vec()),
        // This kernel does not know the place, there is nothing, or no such interface.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Name and tag of a program. Needs CAP_SYS_ADMIN.
pub fn program_name(id: u32) -> io::Result<(String, String)> {
    /// `struct bpf_prog_info`, as far as it is needed here.
    #[repr(C)]
    #[derive(Default)]
    struct ProgramInfo {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        unused: [u64; 6],
        name: [u8; 16],
    }
    let program = owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?);
    let info: ProgramInfo = info(program.as_fd())?;
    let name = info.name.split(|byte| *byte == 0).next();
    let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
    let tag = info.tag.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((name, tag))
}

/// Puts a program in the place of the one that a link holds (kernel 5.7; 6.6 for TCX).
/// The kernel swaps them: whatever passes is seen by one of the two.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct LinkUpdate {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut update = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut update).map(drop)
}

/// `struct bpf_link_info`, as far as it is needed here.
#[repr(C)]
#[derive(Default)]
pub struct LinkInfo {
    kind: u32,
    /// Of the link, while it is there.
    pub id: u32,
    /// Number of its program.
    pub program: u32,
    pad: u32,
    of_kind: u64,
    attach_type: u32,
    pad2: u32,
}

impl LinkInfo {
    /// Returns the place at which a link holds its program; `None` if it is none that the program
    /// can be taken from, or none any more.
    pub fn target(&self) -> Option<Target> {
        const BPF_LINK_TYPE_CGROUP: u32 = 3;
        const BPF_LINK_TYPE_TCX: u32 = 11;
        match (self.kind, self.of_kind) {
            (BPF_LINK_TYPE_CGROUP, 1..) => Some(Target::Cgroup(self.of_kind)),
            (BPF_LINK_TYPE_TCX, of_kind) => {
                // The index is the first of two words.
                let [a, b, c, d, ..] = of_kind.to_ne_bytes();
                let index = u32::from_ne_bytes([a, b, c, d]);
                (index != 0).then_some(Target::Interface(index))
            }
            _ => None,
        }
    }
}

/// Where a link may be detached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A control group, by its id.
    Cgroup(u64),
    /// An interface, by its index.
    Interface(u32),
}

/// Reads what the kernel says of a link (kernel 5.8).
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// Type and id of a link, a program or a map: what begins the information about each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    kind: u32,
    /// Unique among objects of its sort that exist.
    pub id: u32,
}

/// Reads the identity of an object. Two descriptors with the same answer are of one object, if
/// they are of the same sort.
pub fn identity(object: BorrowedFd<'_>) -> io::Result<Identity> {
    info(object)
}

fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct InfoByFd {
        object: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = T::default();
    let mut ask = InfoByFd {
        object: object.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut ask)?;
    Ok(info)
}

/// Makes a map read-only for user space, for good (kernel 5.2). It must not be mapped
/// writable.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_MAP_FREEZE, &mut [map.as_raw_fd() as u32]).map(drop)
}

/// Id of the map that is in a slot of an array of maps; `None` if there is none.
pub fn inner_map(array: BorrowedFd<'_>, slot: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut element = Element {
        map: array.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(&slot) as u64,
        value: std::ptr::from_mut(&mut id) as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Pinned {
    path: u64,
    object: u32,
    flags: u32,
}

/// Gives a link or a program a name on the BPF file system; it may have several.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pinned {
        path: path.as_ptr() as u64,
        object: object.as_raw_fd() as u32,
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut pin).map(drop)
}

/// Opens what has a name there.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pinned {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    bpf(BPF_OBJ_GET, &mut pin).map(owned)
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads all entries of a hash map, many with each call (kernel 5.6). Entries that come or go
/// meanwhile may be missed.
pub fn entries<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// More than the kernel keeps in one bucket, which it hands out as a whole.
    const A_CALL: usize = 4_096;
    let mut keys: Vec<K> = Vec::with_capacity(A_CALL);
    let mut values: Vec<V> = Vec::with_capacity(A_CALL);
    // Where the kernel goes on, as it says itself.
    let (mut from, mut to) = (0_u32, 0_u32);
    let mut all = Vec::new();
    loop {
        let mut batch = Batch {
            in_batch: match all.is_empty() {
                true => 0,
                false => std::ptr::from_ref(&from) as u64,
            },
            out_batch: std::ptr::from_mut(&mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: A_CALL as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let is_last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let n_read = A_CALL.min(batch.count as usize);
        // SAFETY: the kernel has written so many, and there is room for them.
        unsafe { keys.set_len(n_read) };
        // SAFETY: as above.
        unsafe { values.set_len(n_read) };
        all.extend(keys.drain(..).zip(values.drain(..)));
        if is_last || n_read == 0 {
            return Ok(all);
        }
        from = to;
    }
}

/// Fills entries of a map of maps, in one go: the kernel waits once, and not for each of
/// them, until no program uses what was there (kernel 5.19).
pub fn fill(map: BorrowedFd<'_>, indexes: &[u32], maps: &[BorrowedFd<'_>]) -> io::Result<()> {
    let values: Vec<u32> = maps.iter().map(|map| map.as_raw_fd() as u32).collect();
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: indexes.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: indexes.len().min(values.len()) as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut batch).map(drop)
}

/// Empties an entry of a map of maps, if there is one in it.
pub fn remove(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut element = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(&index) as u64,
        value: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_DELETE_ELEM, &mut element) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes an element out of a hash map; `None` if it is not there. Before Linux 5.14 that takes
/// two calls, and what a program counts between them is lost with the element.
pub fn take<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    take_raw(map, bytes_of(key))
}

/// The same by the bytes of its key, which are as many as the map's keys have.
pub fn take_raw<V: Plain>(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut element = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    let mut taken = bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut element);
    if matches!(&taken, Err(error) if error.raw_os_error() == Some(ENOTSUPP)) {
        taken = bpf(BPF_MAP_LOOKUP_ELEM, &mut element);
        if taken.is_ok() {
            element.value = 0;
            taken = bpf(BPF_MAP_DELETE_ELEM, &mut element);
        }
    }
    match taken {
        // SAFETY: the kernel filled all of it.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes of a key and of a value of a map.
fn sizes(map: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    /// `struct bpf_map_info`, as far as it is needed here.
    #[repr(C)]
    #[derive(Default)]
    struct MapInfo {
        kind: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
    }
    let info: MapInfo = info(map)?;
    Ok((info.key_size as usize, info.value_size as usize))
}

/// The key after this one, or the first; `None` behind the last. Of a hash map, if the key is not
/// there any more, it is the first.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0; sizes(map)?.0];
    let mut element = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_GET_NEXT_KEY, &mut element) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies the entries of a hash map into another with keys and values of the same sizes. Entries
/// that come or go meanwhile may be missed.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut value = vec![0_u8; sizes(from)?.1];
    let mut key = next_key(from, None)?;
    while let Some(found) = key {
        let mut element = Element {
            map: from.as_raw_fd() as u32,
            pad: 0,
            key: found.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut element) {
            Ok(_) => {
                element.map = to.as_raw_fd() as u32;
                bpf(BPF_MAP_UPDATE_ELEM, &mut element)?;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        key = next_key(from, Some(&found))?;
    }
    Ok(())
}
