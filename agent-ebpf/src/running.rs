//! The running task: which process it is, and by what rules may know it.
//!
//! Since 5.15 the kernel hands its structures to programs of every kind (`bpf_get_current_task_btf`),
//! and a field is one load: a packet's sender is compared in one call. Before, each fact takes a
//! helper or a copy of its own.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_task, bpf_get_current_task_btf},
};
use trefoil_ebpf::abi::NOBODY_LOGGED_IN;

use crate::{
    globals::{offset, task_readable},
    kernel_memory::{Kernel, follow, read},
};

/// `task_struct.flags`: a thread of the kernel, not of a process.
pub const PF_KTHREAD: u32 = 0x0020_0000;

/// A task by what rules may ask for, but for its executable.
pub struct Facts {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Audit session, or [`NOBODY_LOGGED_IN`].
    pub session: u32,
    /// `group << 32 | user`, both real ones.
    pub who: u64,
    /// Its control group; 0 if that is not known.
    pub cgroup_id: u64,
}

/// The running task. A pointer that the verifier knows the type of if [`task_readable`], else an
/// address.
#[derive(Clone, Copy)]
pub struct Running(*const u8);

impl Running {
    /// The one of this moment.
    #[inline(always)]
    pub fn now() -> Self {
        // SAFETY: helpers without arguments.
        Self(match task_readable() {
            true => unsafe { bpf_get_current_task_btf() }.cast_const().cast(),
            false => unsafe { bpf_get_current_task() as *const u8 },
        })
    }

    /// Returns its facts as they are at this moment.
    #[inline(always)]
    pub fn facts(self) -> Facts {
        Facts {
            pid: self.pid(),
            session: self.session(),
            who: self.who(),
            cgroup_id: self.cgroup_id(),
        }
    }

    /// See [`Facts`]; so below.
    #[inline(always)]
    pub fn pid(self) -> u32 {
        match task_readable() {
            true => field(self.0, offset!(task_tgid)),
            false => (bpf_get_current_pid_tgid() >> 32) as u32,
        }
    }

    #[inline(always)]
    pub fn session(self) -> u32 {
        self.read(offset!(task_sessionid), NOBODY_LOGGED_IN)
    }

    #[inline(always)]
    pub fn who(self) -> u64 {
        if !task_readable() {
            return bpf_get_current_uid_gid();
        }
        match pointer(self.0, offset!(task_cred)) {
            Some(cred) => {
                let gid: u32 = field(cred, offset!(cred_gid));
                let uid: u32 = field(cred, offset!(cred_uid));
                u64::from(gid) << 32 | u64::from(uid)
            }
            None => u64::MAX,
        }
    }

    #[inline(always)]
    pub fn cgroup_id(self) -> u64 {
        let found = || {
            let groups = pointer(self.0, offset!(task_cgroups))?;
            let group = pointer(groups, offset!(css_set_dfl_cgrp))?;
            let node = pointer(group, offset!(cgroup_kn))?;
            Some(field(node, offset!(kernfs_node_id)))
        };
        match task_readable() {
            true => found().unwrap_or(0),
            // SAFETY: a helper without arguments.
            false => unsafe { bpf_get_current_cgroup_id() },
        }
    }

    /// The user whose rights it has, by which the kernel calls what it makes his: of a program that is
    /// set to a user, that one.
    #[inline(always)]
    pub fn effective(self) -> u32 {
        let cred = follow(self.0 as Kernel, offset!(task_cred)).unwrap_or(0);
        read(cred, offset!(cred_euid)).unwrap_or(u32::MAX)
    }

    /// The user who is root of its user namespace; the last number if nobody is (user_namespaces(7)).
    #[inline(always)]
    pub fn root(self) -> u32 {
        let outside = || {
            let cred = follow(self.0 as Kernel, offset!(task_cred))?;
            root_of_users(follow(cred, offset!(cred_user_ns))?)
        };
        outside().unwrap_or(u32::MAX)
    }

    /// True for a thread of the kernel, not of a process.
    #[inline(always)]
    pub fn is_of_kernel(self) -> bool {
        self.read::<u32>(offset!(task_flags), 0) & PF_KTHREAD != 0
    }

    /// Audit login uid, or [`NOBODY_LOGGED_IN`].
    #[inline(always)]
    pub fn loginuid(self) -> u32 {
        self.read(offset!(task_loginuid), NOBODY_LOGGED_IN)
    }

    /// Start of its process, nanoseconds since boot (suspend included); 0 if that is not known.
    #[inline(always)]
    pub fn start_ns(self) -> u64 {
        let started = || {
            let leader = pointer(self.0, offset!(task_group_leader))?;
            Some(field(leader, offset!(task_start_boottime)))
        };
        match task_readable() {
            true => started().unwrap_or(0),
            false => start_ns_of(self.0 as Kernel),
        }
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: usize, unknown: T) -> T {
        match task_readable() {
            true => field(self.0, offset),
            false => read(self.0 as Kernel, offset).unwrap_or(unknown),
        }
    }
}

/// True if the running task is not of the user who made a socket, by name or by right, nor is that root,
/// of the host or of the task's user namespace: whoever made it may have chosen where it goes. For whom a
/// thread of the kernel acts is not known anyway.
#[inline(always)]
pub fn is_of_another(maker: u32) -> bool {
    let task = Running::now();
    maker != 0
        && !task.is_of_kernel()
        && maker != task.who() as u32
        && maker != task.effective()
        && maker != task.root()
}

/// The user who is 0 in a user namespace.
#[inline(always)]
fn root_of_users(namespace: Kernel) -> Option<u32> {
    /// `UID_GID_MAP_MAX_BASE_EXTENTS`: more are kept elsewhere, in the order of their first ids.
    const MAX_IN_PLACE: u32 = 5;
    /// `struct uid_gid_extent`: the first id in the namespace, the same outside, how many.
    const EXTENT: usize = 12;
    let n = read::<u32>(namespace, offset!(user_namespace_n_uids))?;
    let (extents, n) = match n > MAX_IN_PLACE {
        true => (follow(namespace, offset!(user_namespace_uids))?, 1),
        false => (namespace + offset!(user_namespace_uids) as u64, n),
    };
    for i in 0..MAX_IN_PLACE {
        if i >= n {
            break;
        }
        let ids = read::<u64>(extents, i as usize * EXTENT)?;
        if ids as u32 == 0 {
            return Some((ids >> 32) as u32);
        }
    }
    None
}

/// As [`Running::start_ns`], of any task.
#[inline(always)]
pub fn start_ns_of(task: Kernel) -> u64 {
    let leader = follow(task, offset!(task_group_leader)).unwrap_or(task);
    read(leader, offset!(task_start_boottime)).unwrap_or(0)
}

/// A pointer in something that the verifier knows the type of. To the verifier it may be null, though
/// it is not.
#[inline(always)]
fn pointer(of: *const u8, offset: usize) -> Option<*const u8> {
    let pointer: *const u8 = field(of, offset);
    (!pointer.is_null()).then_some(pointer)
}

/// A field of something that the verifier knows the type of.
#[inline(always)]
fn field<T: Copy>(of: *const u8, offset: usize) -> T {
    // SAFETY: the verifier checks that a field of this size is there; the load of a bad address
    // gives zeros.
    unsafe { of.byte_add(offset).cast::<T>().read_volatile() }
}
