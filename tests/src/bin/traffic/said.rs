//! A process that tells the kernel which file it was executed from: in a user namespace of its own, a user may.

use std::ffi::c_void;
use std::fs::{File, read_to_string};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, copy_nonoverlapping};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap_anonymous, mprotect, mremap};
use nix::sys::socket::{SockaddrStorage, connect};

use crate::arguments::Arguments;
use crate::udp::family;
use crate::{Answer, Failure, Named, Sent, tcp, told_to_proceed};

/// `traffic say-executed`
pub fn say_executed(arguments: &mut Arguments) -> Answer {
    let path: PathBuf = arguments.word("a path")?.into();
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    arguments.done()?;
    unshare(CloneFlags::CLONE_NEWUSER).named("unshare")?;
    leave_own_file()?;
    set_executable(&path)?;
    Sent::default().tell();
    told_to_proceed();
    let socket = tcp::open(family(peer.ip()), None)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")?;
    Sent::default().tell();
    Ok(())
}

/// Has memory of the same contents in the place of what is mapped of the own file: while that is mapped, it
/// stays the executable.
fn leave_own_file() -> Result<(), Failure> {
    let own = std::env::current_exe().named("readlink")?;
    let own = own.to_str().unwrap_or_default();
    let maps = read_to_string("/proc/self/maps").named("read")?;
    for line in maps.lines().filter(|line| line.ends_with(own)) {
        let mut words = line.split(' ');
        let (range, access) = (words.next().unwrap_or_default(), words.next());
        let (start, end) = range.split_once('-').unwrap_or_default();
        let [start, end] = [start, end].map(|it| usize::from_str_radix(it, 16).unwrap_or_default());
        let mut wanted = ProtFlags::empty();
        for (letter, flag) in [
            ('r', ProtFlags::PROT_READ),
            ('w', ProtFlags::PROT_WRITE),
            ('x', ProtFlags::PROT_EXEC),
        ] {
            if access.is_some_and(|access| access.contains(letter)) {
                wanted |= flag;
            }
        }
        move_to_memory(start, end - start, wanted)?;
    }
    Ok(())
}

fn move_to_memory(start: usize, length: usize, wanted: ProtFlags) -> Result<(), Failure> {
    let (Some(size), Some(place)) = (
        NonZeroUsize::new(length),
        NonNull::new(start as *mut c_void),
    ) else {
        return Err(Failure::Usage("a mapping without a place".into()));
    };
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE;
    // SAFETY: new memory, at no place in particular.
    let memory = unsafe { mmap_anonymous(None, size, both, flags) }.named("mmap")?;
    // SAFETY: it may be read besides, for a moment.
    unsafe { mprotect(place, length, wanted | ProtFlags::PROT_READ) }.named("mprotect")?;
    // SAFETY: both are as long as that.
    unsafe { copy_nonoverlapping(place.as_ptr().cast::<u8>(), memory.as_ptr().cast(), length) };
    // SAFETY: nobody refers to the new memory.
    unsafe { mprotect(memory, length, wanted) }.named("mprotect")?;
    let moves = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
    // SAFETY: the same contents come into that place, in one step.
    unsafe { mremap(memory, length, length, moves, Some(place)) }.named("mremap")?;
    Ok(())
}

/// `struct prctl_mm_map`
#[repr(C)]
struct Map {
    places: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

fn set_executable(path: &Path) -> Result<(), Failure> {
    /// Numbers of fields in proc_pid_stat(5): start and end of code and data, `start_brk`; then that of the stack,
    /// and arguments and environment.
    const FIELDS: [usize; 5] = [26, 27, 45, 46, 47];
    const REST: [usize; 5] = [28, 48, 49, 50, 51];
    let stat = read_to_string("/proc/self/stat").named("read")?;
    let behind_name = stat.rsplit(") ").next().unwrap_or_default();
    let words: Vec<u64> = behind_name
        .split_whitespace()
        .map(|word| word.parse().unwrap_or_default())
        .collect();
    // The third field is the first behind the name.
    let field = |number: usize| words.get(number - 3).copied().unwrap_or_default();
    // SAFETY: asks where the heap ends.
    let heap_end = unsafe { libc::sbrk(0) } as u64;
    let mut places = [heap_end; 11];
    places[..5].copy_from_slice(&FIELDS.map(field));
    places[6..].copy_from_slice(&REST.map(field));
    let file = File::open(path).named("open")?;
    let map = Map {
        places,
        auxv: 0,
        auxv_size: 0,
        exe_fd: file.as_raw_fd() as u32,
    };
    // SAFETY: a structure of the size that is said, which lives as long as the call.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const map,
            size_of::<Map>(),
            0,
        )
    };
    Errno::result(result).named("prctl")?;
    Ok(())
}
