//! Owners of flows: processes, executables and control groups.

/// Longest executable path that is kept, in bytes. A longer one is marked
/// [`EXECUTABLE_TRUNCATED`], and rules take it for one that is not known.
pub const EXECUTABLE_PATH: usize = 256;

/// Longest control group path that is kept, in bytes. A longer one is marked
/// [`CGROUP_TRUNCATED`], and rules take it for one that is not known.
pub const CGROUP_PATH: usize = match cfg!(feature = "other-layout") {
    false => 512,
    true => 256,
};

/// `loginuid` and `session` of a task that nobody logged in to start.
pub const NOBODY_LOGGED_IN: u32 = u32::MAX;

/// How an [`Owner`] came to be known.
pub mod quality {
    /// No process is known. Unit and user may be, from the socket itself.
    pub const NONE: u8 = 0;
    /// Derived afterwards: holder of a socket that is older than the agent, the
    /// listener that an accepted socket came from, or one of several processes
    /// that used the socket.
    pub const INFERRED: u8 = 1;
    /// The kernel saw this process act on this socket.
    pub const DIRECT: u8 = 2;
    /// No process: the kernel sent this by itself.
    pub const KERNEL: u8 = 3;
    /// No process of this host: it came in by another interface.
    pub const FORWARDED: u8 = 4;

    /// True if a process of this host is named.
    #[must_use]
    pub const fn names_a_process(quality: u8) -> bool {
        matches!(quality, INFERRED | DIRECT)
    }
}

/// The process that a flow is attributed to, as it was when it acted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Start of the thread group's leader, nanoseconds since boot (suspend
    /// included). With `pid` it names a process for good.
    pub start_ns: u64,
    /// Key into `EXECUTABLES`; 0 when not known.
    pub exe_id: u64,
    /// The parent's executable when this process was forked; 0 when not known.
    pub parent_exe_id: u64,
    /// Key into `CGROUPS`, the cgroup v2 id (inode of its directory); 0 when not known.
    pub cgroup_id: u64,
    /// Thread group id in the initial pid namespace; 0 when no process is known.
    pub pid: u32,
    /// Thread group id of the parent.
    pub ppid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Audit login uid, or [`NOBODY_LOGGED_IN`].
    pub loginuid: u32,
    /// Audit session, or [`NOBODY_LOGGED_IN`].
    pub session: u32,
    /// Name of the thread that acted, padded with zeros.
    pub comm: [u8; 16],
    /// One of [`quality`].
    pub quality: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Of the process in map `EPOCHS`, before anything here was learned.
    pub epoch: u32,
    /// Sum of what rules may ask for: what two processors have written at once is nobody's.
    pub seal: u64,
}

/// Entries of map `EPOCHS`; a power of two.
pub const N_EPOCHS: usize = 1 << 16;

/// The only value of map `EPOCHS`: by the last bits of a process's id, how often such a process
/// has begun or has executed another file.
#[repr(C)]
pub struct Epochs(pub [u64; N_EPOCHS]);

/// A live process, keyed by thread group id in map `PROCESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// As [`Owner::start_ns`].
    pub start_ns: u64,
    /// As [`Owner::exe_id`].
    pub exe_id: u64,
    /// As [`Owner::parent_exe_id`].
    pub parent_exe_id: u64,
    /// As [`Owner::ppid`].
    pub ppid: u32,
    /// User id that this entry is charged to, see [`super::room`].
    pub charged: u32,
}

/// The path did not fit and was cut at the front: the last bytes are kept.
pub const EXECUTABLE_TRUNCATED: u16 = 1;
/// The file was executed from a mount that says nothing about the host's files: one that is in
/// a mount namespace of a user's making, attached nowhere, or not below the host's root
/// directory; or it is only a user's word that it was executed. It matches rules that deny it, and
/// none that approves.
pub const EXECUTABLE_FOREIGN: u16 = 2;
/// The file had no name left when it was executed (deleted, or a memfd).
pub const EXECUTABLE_UNLINKED: u16 = 4;

/// A program file that was executed, keyed by `exe_id` in map `EXECUTABLES`.
///
/// The key is a keyed hash over path, device, inode and flags: the same file
/// under the same name has the same key until everything is taken out of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Class of the path under one policy generation, see [`super::ClassCache`].
    pub class: super::ClassCache,
    /// When a process was last seen to execute it, nanoseconds since boot (suspend included).
    pub used_ns: u64,
    /// Inode number.
    pub inode: u64,
    /// Device in the kernel's encoding, `major << 20 | minor`.
    pub device: u32,
    /// Bytes of `path` in use.
    pub path_len: u16,
    /// `EXECUTABLE_*` bits.
    pub flags: u16,
    /// As [`Process::charged`].
    pub charged: u32,
    /// Zero.
    pub pad: u32,
    /// Absolute path in the mount namespace that the file was executed from, not terminated.
    pub path: [u8; EXECUTABLE_PATH],
}

/// The only entry of map `EXECUTABLE_KEY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutableKey {
    /// Of SipHash; zeros before there is one.
    pub words: [u64; 2],
}

/// The path did not fit: the first bytes are kept.
pub const CGROUP_TRUNCATED: u16 = 1;
/// The directory is gone; sockets made in it may live on.
pub const CGROUP_REMOVED: u16 = 2;

/// A control group, keyed by its id in map `CGROUPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Class of the path under one policy generation, see [`super::ClassCache`].
    pub class: super::ClassCache,
    /// Bytes of `path` in use.
    pub path_len: u16,
    /// `CGROUP_*` bits.
    pub flags: u16,
    /// As [`Process::charged`].
    pub charged: u32,
    /// Path from the root of the cgroup v2 hierarchy, with a leading `/`.
    pub path: [u8; CGROUP_PATH],
}

/// The only entry of map `AGENT`: which process the agent is, and who has stopped or killed
/// it. The agent writes who it is and takes out what it has reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// As [`Owner::start_ns`].
    pub start_ns: u64,
    /// Thread group id in the initial pid namespace; 0 if it is not known.
    pub pid: u32,
    /// Zero.
    pub pad: u32,
    /// The first signal that stopped it since the last report.
    pub stopped: Signalled,
    /// The first one that killed it.
    pub killed: Signalled,
}

/// A signal to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signalled {
    /// When it was sent, nanoseconds since boot (suspend included).
    pub time_ns: u64,
    /// Its number; 0 if there was none.
    pub signal: u32,
    /// Zero.
    pub pad: u32,
    /// Sender of the signal; without a process if the kernel sent it by itself.
    pub sender: Owner,
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<Signalled>() == 104);
    assert!(size_of::<Agent>() == 224);
    assert!(size_of::<Owner>() == 88);
    assert!(size_of::<Process>() == 32);
    assert!(size_of::<Executable>() == 40 + EXECUTABLE_PATH);
    assert!(size_of::<Cgroup>() == 16 + CGROUP_PATH);
};
