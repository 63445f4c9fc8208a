//! One packet or call while it is looked at, and the line about it.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use aya_log_ebpf::info;
use trefoil_ebpf::abi::{
    Decision, Owner, Peer, Tracked,
    trace::{TraceCounts, basis, known, outcome},
};

use super::filter;
use crate::{
    accounting::{NOT_JUDGED, now_ns},
    owner::set_nobody,
    packet::Ends,
    words::copy,
};

/// Facts to be told.
#[repr(C)]
pub struct Story {
    pub time_ns: u64,
    pub decision: Decision,
    pub peer: Peer,
    pub owner: Owner,
    pub bytes: u32,
    pub interface: u32,
    pub hook: u8,
    pub basis: u8,
    pub flow: u8,
    pub outcome: u8,
    pub sender: u8,
    /// 1 while a program writes here.
    is_open: u8,
    pad: [u8; 2],
}

/// Room in which a program keeps what it finds.
#[btf_map]
static STORY: PerCpuArray<Story, 1> = PerCpuArray::new();

/// Written by these programs, read by whoever traces.
#[btf_map]
pub static TRACE_COUNTS: PerCpuArray<TraceCounts, 1> = PerCpuArray::new();

/// Begins to tell what a hook sees. `None` while the program that it interrupts tells something:
/// that is counted.
#[inline(always)]
pub fn begin(hook: u8) -> Option<&'static mut Story> {
    // SAFETY: a map value, which this processor writes alone until it is told.
    let story = unsafe { &mut *STORY.get_ptr_mut(0)? };
    if story.is_open != 0 {
        if let Some(counts) = TRACE_COUNTS.get_ptr_mut(0) {
            // SAFETY: a map value; the verifier checks the access.
            unsafe { (*counts).nested += 1 };
        }
        return None;
    }
    story.is_open = 1;
    story.time_ns = now_ns();
    story.decision = NOT_JUDGED;
    story.peer = Peer::new(trefoil_ebpf::abi::Address([0; 16]), 0);
    set_nobody(&mut story.owner);
    story.bytes = 0;
    story.interface = 0;
    story.hook = hook;
    story.basis = basis::JUDGE;
    story.flow = known::NONE;
    story.outcome = outcome::PASSED;
    story.sender = 0;
    Some(story)
}

/// The story that a program has begun.
#[inline(always)]
pub fn open() -> Option<&'static mut Story> {
    // SAFETY: as in `begin`.
    STORY.get_ptr_mut(0).map(|story| unsafe { &mut *story })
}

impl Story {
    /// Takes in where it goes.
    #[inline(always)]
    pub fn set_peer(&mut self, ends: &Ends) {
        self.peer = ends.destination;
    }

    /// Takes in whose it is.
    #[inline(always)]
    pub fn set_owner(&mut self, owner: *const Owner) {
        copy(owner, &raw mut self.owner);
    }
}

/// Writes the line, if it is asked for, and ends the story.
///
/// A global function to the kernel, so that the stack of what was found is free again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell() -> u32 {
    let Some(story) = open() else {
        return 0;
    };
    if filter::wants(story) && filter::has_room(story.time_ns) {
        write(story);
    }
    story.is_open = 0;
    0
}

#[inline(always)]
fn write(story: &Story) {
    let comm = (&raw const story.owner.comm).cast::<u64>();
    // SAFETY: 16 bytes, at a multiple of eight.
    let (first, second) = unsafe { (comm.read(), comm.add(1).read()) };
    info!(
        (),
        "time={} hook={} basis={} flow={} outcome={} sender={} interface={} bytes={} to={:i} \
         port={} protocol={} decision={:x} pid={} start={} exe={} cgroup={} uid={} gid={} \
         quality={} comm={:x},{:x}",
        story.time_ns,
        story.hook,
        story.basis,
        story.flow,
        story.outcome,
        story.sender,
        story.interface,
        story.bytes,
        story.peer.address.0,
        story.peer.port,
        story.peer.protocol,
        story.decision.to_word(),
        story.owner.pid,
        story.owner.start_ns,
        story.owner.exe_id,
        story.owner.cgroup_id,
        story.owner.uid,
        story.owner.gid,
        story.owner.quality,
        first,
        second
    );
}

const _: () = assert!(core::mem::offset_of!(Owner, comm) % 8 == 0);

/// Whether a flow has begun with this packet or call; `n_of_this` is how many packets of it are
/// counted for that.
#[inline(always)]
pub fn age(tracked: *const Tracked, n_of_this: u64) -> u8 {
    // SAFETY: a map value; the verifier checks the access.
    let (counters, base) = unsafe { (&(*tracked).flow.counters, &(*tracked).flow.base) };
    let n = counters
        .packets_out
        .wrapping_add(counters.blocked_packets)
        .wrapping_sub(base.packets_out)
        .wrapping_sub(base.blocked_packets);
    match n <= n_of_this {
        true => known::NEW,
        false => known::KNOWN,
    }
}
