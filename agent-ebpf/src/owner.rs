//! Identity of acting tasks: builds `Owner`, `Process` and `Executable` from them.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
};
use trefoil_ebpf::{abi::*, siphash::SipHash};

use crate::{
    atomic,
    bounds::{clamped, masked},
    globals::{offset, task_readable},
    kernel_memory::{Kernel, follow, read},
    maps::{
        EPOCHS, EXECUTABLE_KEY, EXECUTABLE_SCRATCH, EXECUTABLES, ExecutableScratch, HOST_ROOT,
        PROCESSES, lose,
    },
    room::{BPF_NOEXIST, EEXIST, charge, payer, release},
    running::{Facts, PF_KTHREAD, Running, start_ns_of},
    seal::{is_whole, seal, seal_of, sealed},
    words::differ,
};

/// The number that says whether a process may be another by now.
#[inline(always)]
pub fn epoch_of(pid: u32) -> u32 {
    // SAFETY: a map value; the index is below N_EPOCHS.
    slot(pid).map_or(0, |epoch| unsafe { ptr::read_volatile(epoch) as u32 })
}

/// Has everybody learn anew who this process is. To be called once `PROCESSES` says so.
#[inline(always)]
pub fn begin_epoch(pid: u32) {
    if let Some(epoch) = slot(pid) {
        atomic::add(epoch, 1);
    }
}

#[inline(always)]
fn slot(pid: u32) -> Option<*mut u64> {
    let epochs = EPOCHS.get_ptr_mut(0)?.cast::<u64>();
    let index = masked::<{ N_EPOCHS - 1 }>(pid as usize);
    // SAFETY: a map value of so many words.
    Some(unsafe { epochs.add(index) })
}

/// True if the running task is whom `owner` says, by everything that rules may ask for: no
/// other file was executed since, and user, group, control group and login session are the
/// same.
#[inline(always)]
pub fn is_running(owner: *const Owner) -> bool {
    match task_readable() {
        true => is(owner, Running::now()),
        false => is_running_by_helpers(owner),
    }
}

/// A function of its own for the sake of the stack.
#[inline(never)]
fn is_running_by_helpers(owner: *const Owner) -> bool {
    is(owner, Running::now())
}

#[inline(always)]
fn is(owner: *const Owner, task: Running) -> bool {
    let pid = task.pid();
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe {
        (*owner).pid == pid
            && (*owner).epoch == epoch_of(pid)
            && (*owner).comm[0] != 0
            && u64::from((*owner).gid) << 32 | u64::from((*owner).uid) == task.who()
            && (*owner).cgroup_id == task.cgroup_id()
            && (*owner).session == task.session()
            && is_whole(owner)
    }
}

/// True if both are the same process, and execute the same file.
#[inline(always)]
pub fn is_same_process(a: *const Owner, b: *const Owner) -> bool {
    // SAFETY: map values or the stack; the verifier checks the access.
    let (a, b) = unsafe { (&*a, &*b) };
    differ(a.start_ns, b.start_ns) | differ(a.pid.into(), b.pid.into()) | differ(a.exe_id, b.exe_id)
        == 0
}

/// True if both are the same sender, by everything that rules may ask for.
#[inline(always)]
pub fn is_same(a: *const Owner, b: *const Owner) -> bool {
    let is_one = is_same_process(a, b);
    // SAFETY: the caller's memory; the verifier checks the access.
    let (a, b) = unsafe { (&*a, &*b) };
    let words = |owner: &Owner| u64::from(owner.gid) << 32 | u64::from(owner.uid);
    let differs = differ(a.cgroup_id, b.cgroup_id)
        | differ(words(a), words(b))
        | differ(a.session.into(), b.session.into());
    is_one && differs == 0
}

/// Writes the running task into `owner`, with quality `direct`; a kernel thread is nobody.
///
/// To be called where the running task is the one that acts: socket calls, not
/// packets.
#[inline(never)]
pub fn set_current(owner: *mut Owner) -> u32 {
    let task = Running::now();
    if task.is_of_kernel() {
        return set_kernel(owner);
    }
    let facts = task.facts();
    let seal = set_facts(owner, &facts, quality::DIRECT);
    set_process(owner, facts.pid, set_details(owner, task), seal)
}

/// Writes what no rule asks for, and returns when the process has started.
#[inline(always)]
fn set_details(owner: *mut Owner, task: Running) -> u64 {
    let start_ns = task.start_ns();
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*owner).start_ns = start_ns;
        (*owner).loginuid = task.loginuid();
        bpf_get_current_comm((&raw mut (*owner).comm).cast::<c_void>(), 16);
    }
    start_ns
}

/// As [`set_current`], where somebody else has a part in what is sent: it is told which process sends,
/// with quality `inferred`, and by what rules ask for, nobody is known.
#[inline(never)]
pub fn set_one_of_several(owner: *mut Owner) -> u32 {
    let task = Running::now();
    let facts = Facts {
        pid: task.pid(),
        // None's: the session is not known either.
        session: 0,
        who: u64::MAX,
        cgroup_id: 0,
    };
    let seal = set_facts(owner, &facts, quality::INFERRED);
    set_details(owner, task);
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*owner).parent_exe_id = 0;
        (*owner).ppid = 0;
        (*owner).exe_id = 0;
        (*owner).seal = seal;
    }
    0
}

/// As [`set_current`], where `owner` may be that task already: then only the name of the thread is
/// another.
#[inline(never)]
pub fn acts(owner: *mut Owner) -> u32 {
    // SAFETY: a map value; the verifier checks the access. So below.
    if unsafe { (*owner).quality } != quality::DIRECT || !is_running(owner) {
        return set_current(owner);
    }
    unsafe { bpf_get_current_comm((&raw mut (*owner).comm).cast::<c_void>(), 16) as u32 }
}

/// Writes another task than the running one into `owner`, with quality `inferred`.
#[inline(never)]
pub fn set_holder(owner: *mut Owner, task: Kernel) -> u32 {
    if read::<u32>(task, offset!(task_flags)).unwrap_or(0) & PF_KTHREAD != 0 {
        return set_kernel(owner);
    }
    let cred = follow(task, offset!(task_cred)).unwrap_or(0);
    let uid = read::<u32>(cred, offset!(cred_uid)).unwrap_or(u32::MAX);
    let gid = read::<u32>(cred, offset!(cred_gid)).unwrap_or(u32::MAX);
    let facts = Facts {
        pid: read(task, offset!(task_tgid)).unwrap_or(0),
        session: read(task, offset!(task_sessionid)).unwrap_or(NOBODY_LOGGED_IN),
        who: u64::from(gid) << 32 | u64::from(uid),
        cgroup_id: cgroup_of(task).unwrap_or(0),
    };
    let seal = set_facts(owner, &facts, quality::INFERRED);
    let start_ns = start_ns_of(task);
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*owner).start_ns = start_ns;
        (*owner).loginuid = read(task, offset!(task_loginuid)).unwrap_or(NOBODY_LOGGED_IN);
        bpf_probe_read_kernel(
            (&raw mut (*owner).comm).cast::<c_void>(),
            16,
            (task + offset!(task_comm) as u64) as *const c_void,
        );
    }
    set_process(owner, facts.pid, start_ns, seal)
}

/// As [`set_current`], where the helpers that it uses are not to be had.
#[inline(always)]
pub fn set_acting(owner: *mut Owner) {
    // SAFETY: a helper without arguments.
    set_holder(owner, unsafe { bpf_get_current_task() });
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe {
        if (*owner).quality == quality::INFERRED {
            (*owner).quality = quality::DIRECT;
        }
    }
}

/// Says of an empty owner that nobody is known.
#[inline(always)]
pub fn set_nobody(owner: *mut Owner) {
    // SAFETY: the caller's memory; the verifier checks the access.
    unsafe {
        (*owner).uid = u32::MAX;
        (*owner).gid = u32::MAX;
        (*owner).loginuid = NOBODY_LOGGED_IN;
        (*owner).session = NOBODY_LOGGED_IN;
    }
    seal(owner);
}

/// Writes a thread of the kernel into `owner`: for whom it acts is not known, and it is nobody's that
/// it is root's.
#[inline(always)]
fn set_kernel(owner: *mut Owner) -> u32 {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        (*owner).pid = 0;
        (*owner).start_ns = 0;
        (*owner).exe_id = 0;
        (*owner).cgroup_id = 0;
        (*owner).uid = u32::MAX;
        (*owner).gid = u32::MAX;
        (*owner).loginuid = NOBODY_LOGGED_IN;
        (*owner).session = NOBODY_LOGGED_IN;
        (*owner).quality = quality::NONE;
        (*owner).seal = seal_of(0, 0, u64::MAX, NOBODY_LOGGED_IN);
    }
    0
}

/// Writes what a task says of itself into `owner`. Returns its seal without the executable: all is
/// sealed as it is known here, whatever others write meanwhile.
#[inline(always)]
fn set_facts(owner: *mut Owner, facts: &Facts, known: u8) -> u64 {
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        // Before its executable is looked up: one that it executes meanwhile is learned anew.
        (*owner).epoch = epoch_of(facts.pid);
        (*owner).pid = facts.pid;
        (*owner).session = facts.session;
        (*owner).uid = facts.who as u32;
        (*owner).gid = (facts.who >> 32) as u32;
        (*owner).cgroup_id = facts.cgroup_id;
        (*owner).quality = known;
    }
    seal_of(0, facts.cgroup_id, facts.who, facts.session)
}

/// Writes what is known of a process into `owner`, and seals it. `seal` is as of [`set_facts`].
#[inline(always)]
fn set_process(owner: *mut Owner, pid: u32, start_ns: u64, seal: u64) -> u32 {
    let mut exe_id = 0;
    // SAFETY: a map value that its writers only replace as a whole. So below.
    match unsafe { PROCESSES.get(&pid) } {
        // The start time tells a process from an earlier one with its id.
        Some(process) if process.start_ns == start_ns => unsafe {
            exe_id = process.exe_id;
            (*owner).parent_exe_id = process.parent_exe_id;
            (*owner).ppid = process.ppid;
        },
        _ => {
            lose(LOSS_PROCESSES_UNKNOWN, 1);
            unsafe {
                (*owner).parent_exe_id = 0;
                (*owner).ppid = 0;
            }
        }
    }
    unsafe {
        (*owner).exe_id = exe_id;
        (*owner).seal = sealed(seal, exe_id);
    }
    pid
}

/// The cgroup v2 id of a task.
#[inline(always)]
fn cgroup_of(task: Kernel) -> Option<u64> {
    let css_set = follow(task, offset!(task_cgroups))?;
    let cgroup = follow(css_set, offset!(css_set_dfl_cgrp))?;
    cgroup_id(cgroup)
}

/// The id of a control group: the inode number of its directory.
#[inline(always)]
pub fn cgroup_id(cgroup: Kernel) -> Option<u64> {
    let node = follow(cgroup, offset!(cgroup_kn))?;
    read::<u64>(node, offset!(kernfs_node_id))
}

/// Records that `task` has executed another file.
///
/// `scratch` is the calling program's index in `EXECUTABLE_SCRATCH`.
#[inline(always)]
pub fn record_process(task: Kernel, scratch: u32) -> Option<()> {
    let pid = read::<u32>(task, offset!(task_tgid))?;
    let charged = payer(task);
    let process = Process {
        exe_id: record_executable(task, scratch, charged, false).unwrap_or(0),
        ..describe(task, pid, charged)?
    };
    // SAFETY: a map value that its writers only replace as a whole.
    let is_charged = unsafe { PROCESSES.get(&pid) }.is_some_and(|before| {
        differ(before.start_ns, process.start_ns) | differ(before.charged.into(), charged.into())
            == 0
    });
    let is_recorded = match is_charged {
        true => PROCESSES.insert(&pid, &process, 0).ok(),
        false => add_process(pid, &process),
    };
    if is_recorded.is_none() {
        lose(LOSS_PROCESSES_FULL, 1);
    }
    begin_epoch(pid);
    Some(())
}

/// Records the process of `task`, which may be known: that one keeps what a hook has seen. A
/// process that finds no room still has been counted before.
#[inline(always)]
pub fn find_process(task: Kernel, scratch: u32) -> Option<()> {
    let pid = read::<u32>(task, offset!(task_tgid))?;
    let leader = follow(task, offset!(task_group_leader))?;
    let start_ns = read::<u64>(leader, offset!(task_start_boottime))?;
    // Before its executable is read: if it executes another meanwhile, this entry is replaced.
    let known = PROCESSES.get_ptr_mut(&pid);
    // SAFETY: a map value; the verifier checks the access. So below.
    let is_known = known.is_some_and(|known| unsafe { (*known).start_ns == start_ns });
    if is_known && known.is_some_and(|known| unsafe { (*known).exe_id != 0 }) {
        return Some(());
    }
    let charged = payer(task);
    let exe_id = record_executable(task, scratch, charged, true).unwrap_or(0);
    match known {
        Some(known) if is_known => {
            if exe_id == 0 {
                return Some(());
            }
            unsafe {
                if (*known).start_ns == start_ns && (*known).exe_id == 0 {
                    (*known).exe_id = exe_id;
                }
            }
        }
        _ => {
            let process = Process {
                exe_id,
                ..describe(task, pid, charged)?
            };
            if charge(charged, ROOM_OF_PROCESSES) != 0
                && PROCESSES.insert(&pid, &process, BPF_NOEXIST).is_err()
            {
                release(charged, ROOM_OF_PROCESSES);
            }
        }
    }
    begin_epoch(pid);
    Some(())
}

/// The entry of a process, but for its executable.
#[inline(always)]
fn describe(task: Kernel, pid: u32, charged: u32) -> Option<Process> {
    let leader = follow(task, offset!(task_group_leader))?;
    let parent = follow(leader, offset!(task_real_parent))?;
    let ppid = read::<u32>(parent, offset!(task_tgid)).unwrap_or(0);
    // SAFETY: a map value that its writers only replace as a whole. So below.
    let parent_exe_id = match unsafe { PROCESSES.get(&pid) } {
        // An exec keeps the parent, even one that has exited since.
        Some(before) if before.parent_exe_id != 0 => before.parent_exe_id,
        _ => unsafe { PROCESSES.get(&ppid) }.map_or(0, |process| process.exe_id),
    };
    Some(Process {
        start_ns: read::<u64>(leader, offset!(task_start_boottime))?,
        exe_id: 0,
        parent_exe_id,
        ppid,
        charged,
    })
}

/// Adds a process, in the place of what has its id: one whose end nobody has seen, or the same
/// with another user. `None` if there is no room.
#[inline(always)]
pub fn add_process(pid: u32, process: &Process) -> Option<()> {
    remove_process(pid);
    if charge(process.charged, ROOM_OF_PROCESSES) == 0 {
        return None;
    }
    let added = PROCESSES.insert(&pid, process, BPF_NOEXIST);
    if added.is_err() {
        release(process.charged, ROOM_OF_PROCESSES);
    }
    added.ok()
}

/// Removes a process, if it is there.
#[inline(always)]
pub fn remove_process(pid: u32) {
    // SAFETY: a map value that its writers only replace as a whole.
    let charged = unsafe { PROCESSES.get(&pid) }.map(|process| process.charged);
    // Of two that remove it, one does.
    if let Some(charged) = charged
        && PROCESSES.remove(&pid).is_ok()
    {
        release(charged, ROOM_OF_PROCESSES);
    }
}

/// Interns the executable of `task` and returns its id. `found` as in [`read_executable`].
#[inline(always)]
fn record_executable(task: Kernel, scratch: u32, charged: u32, found: bool) -> Option<u64> {
    // A task without memory of its own is the kernel's: no executable, no loss.
    let mm = follow(task, offset!(task_mm))?;
    let number = scratch;
    let scratch = EXECUTABLE_SCRATCH.get_ptr_mut(number)?;
    if read_executable(task, mm, number, scratch, found).is_none() {
        lose(LOSS_EXECUTABLES_UNREAD, 1);
        return None;
    }
    // SAFETY: a map value; the verifier checks the access. So below.
    let executable = unsafe { &raw mut (*scratch).executable };
    let id = hash(executable)?;
    // SAFETY: the helper has no conditions.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(known) = EXECUTABLES.get_ptr_mut(&id) {
        unsafe { (*known).used_ns = now_ns };
        return Some(id);
    }
    unsafe {
        (*executable).used_ns = now_ns;
        (*executable).charged = charged;
    }
    if charge(charged, ROOM_OF_EXECUTABLES) != 0 {
        // SAFETY: the scratch entry is complete and ours.
        match EXECUTABLES.insert(&id, unsafe { &*executable }, BPF_NOEXIST) {
            Ok(()) => return Some(id),
            Err(error) => {
                release(charged, ROOM_OF_EXECUTABLES);
                // Another processor was faster.
                if error == EEXIST {
                    return Some(id);
                }
            }
        }
    }
    if !found {
        lose(LOSS_EXECUTABLES_FULL, 1);
    }
    None
}

/// Components and mounts that a path may have.
const MAX_COMPONENTS: usize = 48;

/// Fills the scratch entry, which is that of this number, from `mm->exe_file`. `found` says
/// that nobody has seen the task execute it.
#[inline(always)]
fn read_executable(
    task: Kernel,
    mm: Kernel,
    number: u32,
    scratch: *mut ExecutableScratch,
    found: bool,
) -> Option<()> {
    let file = follow(mm, offset!(mm_exe_file))?;
    let inode = follow(file, offset!(file_inode))?;
    let super_block = follow(inode, offset!(inode_sb))?;
    let path = file + offset!(file_path) as u64;
    let mut flags = 0;
    if read::<u32>(inode, offset!(inode_nlink)) == Some(0) {
        flags |= EXECUTABLE_UNLINKED;
    }

    let dentry = follow(path, offset!(path_dentry))?;
    let mount = follow(path, offset!(path_mnt))? - offset!(mount_mnt) as u64;
    let walked = walk(dentry, mount, number) as usize;
    if walked & WALK_FAILED != 0 {
        return None;
    }
    let is_hosts = walked & WALK_TO_HOST_ROOT != 0 && is_of_host(mount).unwrap_or(false);
    if !is_hosts || found && has_own_users(task) {
        flags |= EXECUTABLE_FOREIGN;
    }
    if walked & WALK_COMPLETE == 0 {
        flags |= EXECUTABLE_TRUNCATED;
    }
    let start = walked & (2 * EXECUTABLE_PATH - 1);
    let len = masked::<{ 2 * EXECUTABLE_PATH - 1 }>(EXECUTABLE_PATH.wrapping_sub(start));
    let len = clamped::<EXECUTABLE_PATH>(len);
    let start = masked::<{ 2 * EXECUTABLE_PATH - 1 }>(start);
    // SAFETY: a map value; the verifier checks every access through it. So below.
    unsafe {
        let executable = &raw mut (*scratch).executable;
        (*executable).class = ClassCache {
            generation: 0,
            class: 0,
        };
        (*executable).inode = read::<u64>(inode, offset!(inode_ino))?;
        (*executable).device = read::<u32>(super_block, offset!(super_block_dev))?;
        (*executable).path_len = len as u16;
        (*executable).flags = flags;
        (*executable).pad = 0;
        // The rest is zero, since the hash covers all of it.
        let words = (&raw mut (*executable).path).cast::<u64>();
        for i in 0..EXECUTABLE_PATH / 8 {
            ptr::write_volatile(words.add(i), 0);
        }
        if start <= EXECUTABLE_PATH {
            let path = (&raw const (*scratch).walk).cast::<u8>();
            bpf_probe_read_kernel(
                (&raw mut (*executable).path).cast::<c_void>(),
                len as u32,
                path.add(start).cast::<c_void>(),
            );
        }
    }
    Some(())
}

/// The path was walked up to the root.
const WALK_COMPLETE: usize = 2 * EXECUTABLE_PATH;
/// The kernel's structures could not be read.
const WALK_FAILED: usize = 4 * EXECUTABLE_PATH;
/// The path begins at the host's root directory.
const WALK_TO_HOST_ROOT: usize = 8 * EXECUTABLE_PATH;

/// Writes the path of an entry of a directory into the scratch entry of this number.
/// Returns where it begins, with [`WALK_COMPLETE`], [`WALK_FAILED`], [`WALK_TO_HOST_ROOT`].
///
/// `bpf_d_path` is not available to these programs, so the path is walked here,
/// from the file up to the root of the mount namespace. A global function, since what
/// follows a loop is verified once for each way to leave each of its rounds.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk(dentry: Kernel, mount: Kernel, scratch: u32) -> u32 {
    let Some(scratch) = EXECUTABLE_SCRATCH.get_ptr_mut(scratch) else {
        return WALK_FAILED as u32;
    };
    walk_up(dentry, mount, scratch).unwrap_or(WALK_FAILED) as u32
}

#[inline(always)]
fn walk_up(
    mut dentry: Kernel,
    mut mount: Kernel,
    scratch: *mut ExecutableScratch,
) -> Option<usize> {
    // SAFETY: a map value; the verifier checks every access through it. So below.
    let walk = unsafe { (&raw mut (*scratch).walk).cast::<u8>() };
    let mut start = EXECUTABLE_PATH;
    // Root of the lowest mount that the path begins at so far: others, such as the initial
    // file system, may be below the host's root.
    let mut top = 0;
    for _ in 0..MAX_COMPONENTS {
        let mount_root = follow(mount, offset!(mount_mnt) + offset!(vfsmount_root))?;
        let parent = follow(dentry, offset!(dentry_parent))?;
        if dentry == mount_root {
            if top == 0 {
                top = dentry;
            }
            let above = follow(mount, offset!(mount_parent))?;
            if above == mount {
                let is_hosts = HOST_ROOT.get(0)?.dentry == top;
                let root = if is_hosts { WALK_TO_HOST_ROOT } else { 0 };
                return Some(start | WALK_COMPLETE | root);
            }
            dentry = follow(mount, offset!(mount_mountpoint))?;
            mount = above;
            continue;
        }
        if dentry == parent {
            // Out of reach: a directory that was moved out of what is mounted.
            return Some(start | WALK_COMPLETE);
        }
        top = 0;
        let name = follow(dentry, offset!(dentry_name))?;
        let len = read::<u32>(dentry, offset!(dentry_name_len))? as usize & (EXECUTABLE_PATH - 1);
        if len + 1 > start {
            break;
        }
        start = (start - len) & (EXECUTABLE_PATH - 1);
        // SAFETY: start <= 255 and len <= 255, within the 512 bytes of `walk`.
        let error = unsafe {
            bpf_probe_read_kernel(
                walk.add(start).cast::<c_void>(),
                len as u32,
                name as *const c_void,
            )
        };
        if error != 0 || start == 0 {
            break;
        }
        start = masked::<{ EXECUTABLE_PATH - 1 }>(start - 1);
        // SAFETY: start <= 254.
        unsafe { *walk.add(start) = b'/' };
        dentry = parent;
    }
    Some(start)
}

/// True if only who has the host's privileges can have made this mount: it is in a mount
/// namespace that belongs to the host's user namespace.
///
/// None for a mount of no namespace: a detached one, or one of the kernel's own, such as that
/// of memfd.
#[inline(always)]
fn is_of_host(mount: Kernel) -> Option<bool> {
    let namespace = follow(mount, offset!(mount_mnt_ns))?;
    let number = offset!(mnt_namespace_number);
    // Without a number: of a tree that is attached nowhere.
    if number != 0 && read::<u64>(namespace, number)? == 0 {
        return Some(false);
    }
    let users = follow(namespace, offset!(mnt_namespace_user_ns))?;
    Some(read::<u32>(users, offset!(user_namespace_level))? == 0)
}

/// True if a task is in a user namespace of its own, where a user without privileges may say
/// which file his process was executed from (`PR_SET_MM_MAP`).
#[inline(always)]
fn has_own_users(task: Kernel) -> bool {
    let level = || {
        let cred = follow(task, offset!(task_cred))?;
        let users = follow(cred, offset!(cred_user_ns))?;
        read::<u32>(users, offset!(user_namespace_level))
    };
    level() != Some(0)
}

/// The root directory of a task.
#[inline(always)]
pub fn root_of(task: Kernel) -> Option<HostRoot> {
    let fs = follow(task, offset!(task_fs))?;
    Some(HostRoot {
        dentry: follow(fs, offset!(fs_root) + offset!(path_dentry))?,
    })
}

/// The key of an executable; never 0.
#[inline(always)]
fn hash(executable: *const Executable) -> Option<u64> {
    const MESSAGE: u64 = (16 + EXECUTABLE_PATH) as u64;
    let mut hash = SipHash::new(EXECUTABLE_KEY.get(0)?.words);
    // SAFETY: a map value; the verifier checks the access.
    let (inode, device, flags, words) = unsafe {
        (
            (*executable).inode,
            (*executable).device,
            (*executable).flags,
            (&raw const (*executable).path).cast::<u64>(),
        )
    };
    hash.word(inode);
    hash.word(u64::from(device) << 16 | u64::from(flags));
    for i in 0..EXECUTABLE_PATH / 8 {
        // SAFETY: within the path.
        hash.word(unsafe { ptr::read_volatile(words.add(i)) });
    }
    Some(hash.finish(MESSAGE << 56) | 1)
}
