//! Every map: who writes it, who reads it, how large it is, what happens when
//! it is full.
//!
//! Sizes given here are defaults; the agent sets what its settings say.

use core::{mem::offset_of, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_sk_storage_get},
    macros::btf_map,
};
use trefoil_ebpf::abi::*;

use crate::{
    atomic, globals,
    in_flight::{InFlight, N_PACKETS},
    packet::Ends,
    remembered::{Remembered, RememberedKey},
    tables::Chunks,
};

/// Written by the agent, read by every hook first. One entry.
#[btf_map]
pub static CONTROL: Array<ControlPage, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Written by hook `task` (pid 1), read when an executable is named. One entry.
#[btf_map]
pub static HOST_ROOT: Array<HostRoot, 1> = Array::new();

/// Secret with which executables are hashed, so that nobody can construct two files that are
/// taken for one. Written by the agent that makes the map, and kept, so that those after it
/// know the same executables by the same numbers. One entry.
#[btf_map]
pub static EXECUTABLE_KEY: Array<ExecutableKey, 1> = Array::new();

/// Socket tags. Written by the hooks; read by the hooks and, through an
/// iterator, by the agent. As large as there are sockets; without memory for a
/// tag a packet is judged and counted in `TOTALS`, with `tags-failed`.
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Socket,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: placeholders that the loader replaces; never dereferenced.
unsafe impl Sync for SocketStorage {}

/// See [`SocketStorage`]. aya-ebpf's own type has no `BPF_F_CLONE`.
#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "SOCKETS")]
pub static SOCKETS: SocketStorage = SocketStorage {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

impl SocketStorage {
    /// The tag of a socket, if it has one.
    ///
    /// `socket` is whatever the hook's variant of the helper takes: a context
    /// (`sock_create`), a `bpf_sock`, or a BTF pointer to a `sock`.
    #[inline(always)]
    pub fn get<T>(&self, socket: *mut T) -> Option<*mut Socket> {
        self.find(socket, 0)
    }

    /// The tag of a socket, zeroed if it is new.
    #[inline(always)]
    pub fn get_or_create<T>(&self, socket: *mut T) -> Option<*mut Socket> {
        if globals::ONLY_LOOKS {
            return self.get(socket);
        }
        let tag = self.find(socket, BPF_SK_STORAGE_GET_F_CREATE as u64);
        if tag.is_none() {
            lose(LOSS_TAGS_FAILED, 1);
        }
        tag
    }

    #[inline(always)]
    fn find<T>(&self, socket: *mut T, flags: u64) -> Option<*mut Socket> {
        // SAFETY: the verifier checks that `socket` is what the helper takes.
        let tag = unsafe {
            bpf_sk_storage_get(
                ptr::from_ref(self).cast_mut().cast(),
                socket.cast(),
                ptr::null_mut(),
                flags,
            )
        }
        .cast::<Socket>();
        if tag.is_null() { None } else { Some(tag) }
    }
}

/// Flows of sockets with many peers. Written by `sendmsg` and `egress`; read and
/// emptied by the agent. When full, packets are judged and each is an event of its own,
/// with `flows-full`.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Tracked, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Last states of flows that found the ring buffer full. Written by whatever
/// ends a flow, emptied by the agent. When full, `ended-full` counts flows and
/// `ended-bytes` their bytes.
#[btf_map]
pub static ENDED: HashMap<EndedKey, Tracked, 65536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Flows in whose place another begins at this moment. Written and emptied by whatever does that;
/// when full, it is done with a later packet.
#[btf_map]
pub static CHANGING: HashMap<FlowKey, u32, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Cookies of sockets that the agent is about to cut, and nothing about them. Written
/// and emptied by the agent, which asks for no more at a time than fit; read by `egress`
/// before it drops a packet.
#[btf_map]
pub static CUTS: HashMap<u64, u32, MAX_CUTS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Origins of login sessions, by audit session, which the kernel gives once in a boot. Written by
/// whatever sees who sends, and by the agent for sessions that are older; read by the agent. When
/// full, the session that began first has no origin any more.
#[btf_map]
pub static SESSIONS: LruHashMap<u32, SessionOrigin, MAX_SESSIONS> = LruHashMap::new();

/// The agent's own process. Written by the agent and by `signal_generate`, read by both.
/// One entry.
#[btf_map]
pub static AGENT: Array<Agent, 1> = Array::new();

/// Objects that are looked after, and the process that did something to each last. Entries are
/// made and removed by the agent, and written by `security_bpf` and `security_inode_unlink`. An
/// object without an entry has no process named.
#[btf_map]
pub static DEEDS: HashMap<DeedKey, Deed, 1024> = HashMap::new();

/// Live processes by thread group id. Written by `fork`, `exec`, `exit` and, for
/// processes that no hook has seen, `task`; the agent removes those that have ended unseen. When
/// full, or when its owner has no more room: `processes-full`, and the process's flows have no
/// executable.
#[btf_map]
pub static PROCESSES: HashMap<u32, Process, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// By the last bits of a process's id, a number that moves when such a process begins or
/// executes a file. Written by `fork` and `exec` after `PROCESSES`, so that who has learned
/// something of a process can tell in one look whether that may be another by now. One value.
#[btf_map]
pub static EPOCHS: Array<Epochs, 1> = Array::new();

/// Executables by `exe_id`. Written by `exec` and `task`, read by the judge and
/// the agent, which removes those that nothing refers to any more. When full, or when its owner
/// has no more room: `executables-full`, as above.
#[btf_map]
pub static EXECUTABLES: HashMap<u64, Executable, 16384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Control groups by id. Written by `cgroup_mkdir` and, for those that it has not seen, by the
/// agent, which also removes those that are gone; read by the judge and the agent. When full, or
/// when its owner has no more room: `cgroups-full`, and rules that approve a unit do not match,
/// and rules that deny one do.
#[btf_map]
pub static CGROUPS: HashMap<u64, Cgroup, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Entries of the three tables above by who has caused them. Written by the hooks that make and
/// remove such entries, and by the agent, which counts anew. When full, there is no room for
/// whoever is not in it.
#[btf_map]
pub static CHARGES: HashMap<u32, Charges, MAX_CHARGED, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Refused calls by sender that are no events. Written by `connect` and `sendmsg`; read by the
/// agent, which has made the entries of whoever finds no room here, and takes out those that were
/// not used for a while.
#[btf_map]
pub static REFUSALS: HashMap<
    RefusedSender,
    Refusals,
    MAX_REFUSALS,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// Number that the agent adds to when it has taken in what there was: each sender's calls are
/// events again. One entry.
#[btf_map]
pub static REFUSALS_TURN: Array<u64, 1> = Array::new();

/// Events for the agent. When full: `events-full`; nothing is marked as handed
/// over, so that a later event, `ENDED` or a sweep brings the numbers. Of packets that found
/// no room for a flow nothing else does: `packets-untold` and `untold-bytes`.
#[btf_map]
pub static EVENTS: RingBuf<Event, { 8 << 20 }> = RingBuf::new();

/// Counts by `LOSS_*`. Written by everybody, read by the agent, never reset.
#[btf_map]
pub static LOSSES: PerCpuArray<u64, { N_LOSSES as usize }> = PerCpuArray::new();

/// Sums by verdict. Written by `egress`, `connect`, `sendmsg`; read by the agent.
#[btf_map]
pub static TOTALS: PerCpuArray<Totals, { verdict::N as usize }> = PerCpuArray::new();

/// Of these sums, what no event and no entry of `ENDED` tells of, for want of room. Written by
/// whatever ends a flow; read by the agent, which tells it as lost.
#[btf_map]
pub static UNTOLD: PerCpuArray<Totals, { verdict::N as usize }> = PerCpuArray::new();

/// Interfaces that are watched, by index. Written by the agent before it attaches
/// `uplink_egress`, which reads it; the agent watches no more than fit, and says so.
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, 64> = HashMap::new();

/// Entries of `UPLINKS` that `uplink_egress` has read, at the index's last digits. Written and
/// read by it, and read by `egress`. An entry that another interface has overwritten is read anew.
#[btf_map]
pub static UPLINK_CACHE: Array<CachedUplink, N_CACHED_UPLINKS> = Array::new();

/// Traffic that left by each uplink. Entries are made and removed together with those of
/// `UPLINKS`; written by `uplink_egress`, read by the agent. A frame without an entry counts as
/// `uplinks-unknown`.
#[btf_map]
pub static UPLINK_BOOKS: PerCpuHashMap<u32, UplinkBooks, 64> = PerCpuHashMap::new();

/// Flows of frames that no socket's hooks have judged. Written by `uplink_egress` and
/// `sock_send_length`; read and emptied by the agent. When full, as `FLOWS`.
#[btf_map]
pub static UPLINK_FLOWS: HashMap<UplinkFlowKey, Tracked, 65536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Packets on their way from their socket to an uplink, see [`crate::in_flight`]. Written by
/// `egress`, by `uplink_egress` at the entrance of a tunnel, and by `netif_receive_skb_entry`; read by `uplink_egress`. A packet
/// overwrites what is at its index; one that is not found is judged as what it is.
#[btf_map]
pub static IN_FLIGHT: Array<InFlight, N_PACKETS> = Array::new();

/// Owners of the packets in flight, at the same index: of each flow only its cookie and its far
/// end.
#[btf_map]
pub static IN_FLIGHT_OWNERS: Array<Tracked, N_PACKETS> = Array::new();

/// Datagrams that may be cut into fragments before they come to an uplink without their socket,
/// see [`crate::remembered`]. Written by `egress`, read by `uplink_egress`. The kernel drops what
/// was not used for longest; without memory for an entry `remembered-full` counts, and what is not
/// found is judged as what it is.
#[btf_map]
pub static LARGE_DATAGRAMS: LruHashMap<RememberedKey, Tracked, 4096> = LruHashMap::new();

/// Room in which `uplink_egress` keeps what a frame's headers say. Its runs do not nest.
#[btf_map]
pub static FRAME_ENDS: PerCpuArray<Ends, 1> = PerCpuArray::new();

/// Room for what `__dev_direct_xmit` knows of a frame. The kernel skips a run of it within
/// another on the same processor.
#[btf_map]
pub static DIRECT: PerCpuArray<DirectFrame, 1> = PerCpuArray::new();

/// Decisions about the beginning of a datagram, for the rest of it, and about connections of TCP
/// that are over, in whose name the kernel still answers, see [`crate::remembered`]. Written by
/// `uplink_egress` and what ends a flow, read by `egress` and `uplink_egress`. The
/// kernel drops what was not used for longest; without memory for an entry `remembered-full`
/// counts, and what is not found is judged as what it is.
#[btf_map]
pub static REMEMBERED: LruHashMap<RememberedKey, Remembered, 65536> = LruHashMap::new();

/// Descriptions of the two policy generations, for the agent's verbs. This and the tables below
/// are written by the agent in the slot that is not in force.
#[btf_map]
pub static POLICIES: Array<Policy, 2> = Array::new();

/// All tables of each of the two generations, see [`CHUNK_BYTES`]; read by the judge.
#[btf_map]
pub static TABLES: Chunks = Chunks::new();

/// Bytes that have left by the rules that count. Entries are given out and taken back by the
/// agent, which refuses a policy that would need more; written by the judge.
#[btf_map]
pub static BUDGETS: Array<Budget, MAX_BUDGETS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// An empty flow, source of inserts: a value of this size does not belong on
/// the stack. Never written.
#[btf_map]
pub static EMPTY: Array<Tracked, 1> = Array::new();

/// The same for entries of `REFUSALS`.
#[btf_map]
pub static EMPTY_REFUSALS: Array<Refusals, 1> = Array::new();

/// Room in which `exec` and `task` build an executable's entry: index 0 and 1,
/// so that each program has its own. Programs of this kind do not nest.
#[btf_map]
pub static EXECUTABLE_SCRATCH: PerCpuArray<ExecutableScratch, 2> = PerCpuArray::new();

/// Room in which `cgroup_mkdir` builds an entry.
#[btf_map]
pub static CGROUP_SCRATCH: PerCpuArray<Cgroup, 1> = PerCpuArray::new();

/// See [`EXECUTABLE_SCRATCH`].
#[repr(C)]
pub struct ExecutableScratch {
    /// The path grows downwards from the middle; the upper half is slack that
    /// lets the verifier see that a name of up to 255 bytes fits.
    pub walk: [u8; 2 * EXECUTABLE_PATH],
    /// The finished entry.
    pub executable: Executable,
}

/// See [`DIRECT`].
pub struct DirectFrame {
    pub ends: Ends,
    /// Of the socket that sends it; 0 if it has no tag.
    pub cookie: u64,
    pub owner: Owner,
}

/// Entries of `UPLINK_CACHE`.
const N_CACHED_UPLINKS: usize = 256;

/// See [`UPLINK_CACHE`]. One word, so that it is read and written as a whole.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct CachedUplink {
    /// Index of the interface; 0 for none.
    pub interface: u32,
    /// As in [`Uplink`].
    pub header_bytes: u16,
    /// As in [`Uplink`].
    pub flags: u16,
}

/// The interface with this index, if frames have left by it and it is watched.
#[inline(always)]
fn cached_uplink(interface: u32) -> Option<CachedUplink> {
    let entry = UPLINK_CACHE.get_ptr(interface % N_CACHED_UPLINKS as u32)?;
    // SAFETY: a map value of eight bytes, aligned; one volatile read sees one state.
    let cached = unsafe { ptr::read_volatile(entry) };
    (cached.interface == interface).then_some(cached)
}

/// The interface with this index, if it is watched.
#[inline(always)]
pub fn uplink(interface: u32) -> Option<CachedUplink> {
    if let Some(cached) = cached_uplink(interface) {
        return Some(cached);
    }
    // SAFETY: an entry is removed only when its interface is gone.
    let uplink = unsafe { UPLINKS.get(&interface) }?;
    let cached = CachedUplink {
        interface,
        header_bytes: uplink.header_bytes as u16,
        flags: uplink.flags as u16,
    };
    if let Some(entry) = UPLINK_CACHE.get_ptr_mut(interface % N_CACHED_UPLINKS as u32) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(entry, cached) };
    }
    Some(cached)
}

/// True if what leaves by this interface of the agent's own namespace comes to an uplink's hook
/// next.
#[inline(always)]
pub fn is_uplink(interface: u32) -> bool {
    match cached_uplink(interface) {
        Some(uplink) => u32::from(uplink.flags) & UPLINK_IS_TUNNEL == 0,
        None => is_uplink_new(interface) != 0,
    }
}

/// The same of an interface that no packet has left by lately.
///
/// A global function to the kernel, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_uplink_new(interface: u32) -> u32 {
    let is_uplink = |uplink: CachedUplink| u32::from(uplink.flags) & UPLINK_IS_TUNNEL == 0;
    u32::from(uplink(interface).is_some_and(is_uplink))
}

/// Counts a loss.
#[inline(always)]
pub fn lose(loss: u32, amount: u64) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss) {
        // A hook does not migrate, but another one may preempt it on its CPU.
        atomic::add(counter, amount);
    }
}

/// Counts traffic that has left with this verdict and that nothing will tell of.
#[inline(always)]
pub fn lose_traffic(verdict: u8, bytes: u64, packets: u64) {
    let Some(untold) = UNTOLD.get_ptr_mut(u32::from(verdict)) else {
        return;
    };
    // SAFETY: a map value; the verifier checks the access.
    unsafe {
        atomic::add(&raw mut (*untold).bytes_out, bytes);
        atomic::add(&raw mut (*untold).packets_out, packets);
    }
}

/// A policy, and what it does about traffic that it does not approve.
#[derive(Clone, Copy)]
pub struct InForce {
    /// See [`Control::generation`].
    pub generation: u32,
    /// [`DECISION_ENFORCED`] and [`MAY_STAY`], each or not.
    pub flags: u8,
}

impl InForce {
    /// A decision of the judge, with the flags that it has while this is in force.
    #[inline(always)]
    pub fn flagged(&self, decision: Decision) -> Decision {
        Decision {
            flags: decision.flags & (self.flags & !MAY_STAY | DECISION_LIMITED),
            ..decision
        }
    }

    /// The same, where the packet may still stay on this host.
    #[inline(always)]
    pub const fn may_stay(self) -> Self {
        Self {
            flags: self.flags | MAY_STAY,
            ..self
        }
    }

    /// True if a decision was made under this and holds. The verdict local holds for as long as a
    /// packet may stay.
    #[inline(always)]
    pub fn made(&self, decision: &Decision) -> bool {
        // One that is limited has a flag of its own, so it is never the same.
        decision.generation == self.generation
            && decision.flags == self.flags & !MAY_STAY
            && (decision.verdict != verdict::LOCAL || self.flags & MAY_STAY != 0)
    }
}

/// Returns the policy in force, for hooks that judge; `None` as for [`in_place`].
#[inline(always)]
pub fn in_force() -> Option<InForce> {
    let generation = in_place()?.generation;
    Some(InForce {
        generation,
        flags: enforcement(generation),
    })
}

/// The control word, if this instance is the one that counts and judges. For hooks at
/// places where programs of two instances stand beside each other.
#[inline(always)]
pub fn active() -> Option<Control> {
    control().filter(|control| control.instance == globals::instance())
}

/// The control word, if this instance counts and judges, or the one before whose program
/// has had to make way for this one: then nobody else does so here.
#[inline(always)]
pub fn in_place() -> Option<Control> {
    control().filter(|control| {
        control.instance == globals::instance() || control.instance == globals::replaces()
    })
}

#[inline(always)]
fn control() -> Option<Control> {
    let word = CONTROL.get_ptr(0)?.cast::<u64>();
    // SAFETY: a map value, 8-byte aligned; one volatile read sees one state.
    let word = unsafe { ptr::read_volatile(word) };
    // SAFETY: `Control` is two u32 in 8 bytes.
    Some(unsafe { core::mem::transmute::<u64, Control>(word) })
}

/// True in the first so many nanoseconds in which the policy of this generation is in force.
#[inline(always)]
pub fn is_new(generation: u32, for_ns: u64) -> bool {
    let since_ns = of_slot(generation, offset_of!(ControlPage, since_ns));
    // SAFETY: the helper has no conditions.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    now_ns < since_ns + for_ns
}

/// One of the words, at this offset, that the page has for the slot of a generation; 0 if it
/// cannot be read.
#[inline(always)]
fn of_slot(generation: u32, offset: usize) -> u64 {
    let Some(page) = CONTROL.get_ptr(0) else {
        return 0;
    };
    let slot = (generation & 1) as usize;
    // SAFETY: a map value; the slot is 0 or 1.
    unsafe {
        let words = page.byte_add(offset).cast::<u64>();
        ptr::read_volatile(words.add(slot))
    }
}

/// Flags of decisions under the policy of this generation, at this moment.
#[inline(always)]
pub fn enforcement(generation: u32) -> u8 {
    let until_ns = of_slot(generation, offset_of!(ControlPage, enforce_until_ns));
    let enforces = match until_ns {
        ENFORCE_NEVER => false,
        ENFORCE_ALWAYS => true,
        // The clock is read only while enforcement is on trial.
        // SAFETY: the helper has no conditions.
        _ => until_ns > unsafe { bpf_ktime_get_boot_ns() },
    };
    if enforces { DECISION_ENFORCED } else { 0 }
}
