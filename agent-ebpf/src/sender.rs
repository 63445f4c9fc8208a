//! Sender on a tagged socket, where the running task is the sender; and whether that sender has
//! become another since.

use trefoil_ebpf::abi::*;

use crate::{
    accounting::{announce_owner, set_state, succeed},
    flows::{ANOTHER, CHANGED, find_for_sender, set_running},
    globals::offset,
    kernel_memory::{Kernel, read},
    maps::PROCESSES,
    named::ESTABLISHED,
    owner::{epoch_of, is_running},
    packet::protocol,
    running::is_of_another,
    seal::{is_whole, sum},
    uplink_flows::attribute_last,
    words::differ,
};

/// A call that sends: by which socket, and whether it has done so.
///
/// One word: the user who made the socket, and bits.
#[derive(Clone, Copy)]
pub struct Call(u64);

impl Call {
    /// Nothing is known of it, or nothing that matters.
    pub const ANY: Self = Self(0);

    /// It has sent.
    const HAS_SENT: u64 = 1;
    /// It is by a stream, which sends its peer all that it was handed before it had one.
    const BY_STREAM: u64 = 2;
    /// Bytes that the socket was handed before may still be in its queue.
    const BEHIND_OTHERS: u64 = 4;
    /// Whoever connected the socket has chosen where it goes: the call names no destination that is
    /// judged as of whom it is by.
    const IS_CHOSEN: u64 = 8;

    /// One that is about to send by this socket, a `struct sock` that the verifier knows the type of.
    #[inline(always)]
    pub fn by(socket: *const u8) -> Self {
        const SOCK_STREAM: u16 = 1;
        const SOCK_DGRAM: u16 = 2;
        const TCP: u16 = protocol::TCP as u16;
        const UDP: u16 = protocol::UDP as u16;
        // SAFETY: loads through a pointer that the verifier knows the type of. So below.
        let byte = |offset: usize| unsafe { socket.add(offset).read() }.into();
        let half = |offset: usize| unsafe { socket.add(offset).cast::<u16>().read() };
        let word = |offset: usize| unsafe { socket.add(offset).cast::<u32>().read() }.into();
        let (kind, protocol) = (half(offset!(sock_type)), half(offset!(sock_protocol)));
        let state: u64 = byte(offset!(sock_state));
        let kernels: u64 = byte(offset!(sock_kern_sock));
        let maker: u64 = word(offset!(sock_uid));
        let unsent: u64 = word(offset!(sock_write_queue_len));
        let queued: u64 = word(offset!(sock_wmem_queued));
        // Without a branch: what comes after would be verified once for each.
        let is_no = |one: u16, other: u16| differ(one.into(), other.into());
        let is_stream = !is_no(kind, SOCK_STREAM);
        // Other streams have queues elsewhere, and of these, what is not acknowledged counts.
        let is_behind = differ(unsent | queued & is_stream & is_no(protocol, TCP), 0);
        let is_chosen =
            is_no(kind, SOCK_DGRAM) | is_no(protocol, UDP) | !differ(state, ESTABLISHED.into());
        // Those that a thread of the kernel made are root's by their number, for whomever that was.
        let is_kernels = (kernels >> (offset!(sock_kern_sock_shift) & 7) & 1).wrapping_neg();
        let is_nobodys = is_kernels & !differ(maker, 0);
        Self(
            (maker | is_nobodys) << 32
                | is_stream & Self::BY_STREAM
                | is_behind & Self::BEHIND_OTHERS
                | is_chosen & Self::IS_CHOSEN,
        )
    }

    /// One that names a peer by a socket for datagrams that may be connected. The kernel names the peer
    /// itself where a process names none.
    #[inline(always)]
    pub fn naming(socket: Kernel, is_judged: bool) -> Self {
        // Without the number, it is nobody's.
        let maker: u32 = read(socket, offset!(sock_uid)).unwrap_or(u32::MAX);
        let state: u8 = read(socket, offset!(sock_state)).unwrap_or(ESTABLISHED as u8);
        let is_chosen = match !is_judged || u32::from(state) == ESTABLISHED {
            true => Self::IS_CHOSEN,
            false => 0,
        };
        Self(u64::from(maker) << 32 | is_chosen)
    }

    /// The same, once it has sent.
    #[inline(always)]
    pub fn sent(self) -> Self {
        Self(self.0 | Self::HAS_SENT)
    }

    /// True if it is by a stream.
    #[inline(always)]
    pub fn is_by_stream(self) -> bool {
        self.has(Self::BY_STREAM)
    }

    #[inline(always)]
    fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    fn maker(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// 1 if another user has made the socket of a call and chosen where it goes. Of a session that was
/// accepted, the far end has chosen to come.
///
/// `bits` are those of a call. A function of its own to the verifier too, as those of the judge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_chosen_by_another(maker: u32, bits: u32, is_accepted: u32) -> u32 {
    let is_chosen = bits & Call::IS_CHOSEN as u32 != 0 && is_accepted == 0;
    u32::from(is_chosen && is_of_another(maker))
}

/// Takes in that the running process has sent, or is about to.
///
/// A function of its own, so that what comes after it is not verified once for each that it can be.
#[inline(never)]
pub fn sends(tag: *mut Socket, call: Call) -> u32 {
    take_in(tag, call);
    0
}

/// Takes in that the running process is about to send on a connection: on an accepted one, the packet
/// that makes its tag a session's may leave at any moment, and by then whoever sends has acted.
#[inline(always)]
pub fn begins(tag: *mut Socket) {
    // SAFETY: map values; the verifier checks the access. So below.
    if unsafe { (*tag).flags } & SOCKET_LISTENS != 0 {
        set_state(unsafe { &raw mut (*tag).tracked }, FLOW_SENT);
    }
}

#[inline(always)]
fn take_in(tag: *mut Socket, call: Call) -> Option<()> {
    // SAFETY: map values; the verifier checks the access. So below.
    let tracked = unsafe { &raw mut (*tag).tracked };
    let (owner, flow) = unsafe { (&raw mut (*tracked).owner, &raw mut (*tracked).flow) };
    let (flags, state) = unsafe { ((*tag).flags, (*flow).state) };
    let is_certain = unsafe { (*owner).quality } == quality::DIRECT || state & FLOW_SHARED != 0;
    let is_of_frames = flags & SOCKET_OF_FRAMES != 0;
    let maker = call.maker();
    let is_anothers =
        differ(maker.into(), 0) & differ(maker.into(), unsafe { (*owner).uid }.into());
    // A process that has changed since is another sender, too.
    let change = match is_certain && is_anothers == 0 && is_running(owner) {
        true => 0,
        false => {
            let direction = unsafe { (*flow).direction };
            // Where somebody else than the host's root rules the network, who comes can be made up.
            let is_accepted = flags & SOCKET_OWN_NAMESPACE != 0
                && (flags & SOCKET_LISTENS != 0 || direction == direction::ACCEPTED);
            let by_another = is_chosen_by_another(maker, call.0 as u32, is_accepted.into());
            set_running(tag, by_another != 0)
        }
    };
    let has_peer = flags & SOCKET_HAS_PEER != 0 || call.is_by_stream();
    if is_certain && change == 0 {
        if has_peer {
            if state & FLOW_SENT == 0 {
                set_state(tracked, FLOW_SENT);
            }
            if state & FLOW_SHARED != 0 {
                unsafe { (*owner).quality = quality::INFERRED };
            }
        }
        return None;
    }
    if call.has(Call::HAS_SENT) && is_of_frames {
        attribute_last(tag);
    }
    // Rules may say something else about this sender. Also if there is no peer as yet: it may be
    // named at this moment, by another.
    unsafe { (*flow).decision.generation = 0 };
    let is_behind = call.has(Call::BEHIND_OTHERS);
    if !has_peer {
        if is_behind && change != 0 {
            share_named(tag);
        }
        return None;
    }
    // A process that has connected and handed the socket on without a word has sent nothing.
    let is_other = change == ANOTHER || change == CHANGED && is_behind;
    // Nobody knows who did before the agent was there.
    let is_unknown = !is_certain && is_behind && !call.has(Call::HAS_SENT);
    // Of one that is accepted, it is who sends now, see `begins`.
    let has_sent = is_certain
        && is_other
        && state & (FLOW_SENT | FLOW_SHARED) != 0
        && flags & SOCKET_LISTENS == 0;
    let is_shared = has_sent || is_unknown;
    if is_shared {
        // Two senders, one flow: whose bytes are whose is not known.
        set_state(tracked, FLOW_SHARED);
        unsafe { (*owner).quality = quality::INFERRED };
    }
    set_state(tracked, FLOW_SENT);
    // Once: two senders in turn would fill the ring buffer.
    let is_announced = unsafe { (*flow).state } & FLOW_ANNOUNCED != 0;
    if is_announced && state & FLOW_SHARED == 0 {
        announce_owner(tracked);
    }
    Some(())
}

/// Takes in that the running process goes on with a datagram that another has begun, or the same as
/// another sender, on a socket without a peer.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
fn share_named(tag: *mut Socket) -> u32 {
    // SAFETY: map values; the verifier checks the access. So below.
    let is_translated = unsafe { (*tag).translated.protocol } != 0;
    let key = unsafe {
        FlowKey {
            cookie: (*tag).tracked.flow.cookie,
            peer: match is_translated {
                true => (*tag).translated,
                false => (*tag).named,
            },
        }
    };
    let owner = unsafe { &raw const (*tag).tracked.owner };
    if let Some(flow) = find_for_sender(&key, owner) {
        set_state(flow, FLOW_SHARED);
        unsafe { (*flow).owner.quality = quality::INFERRED };
    }
    0
}

/// True unless who sent on a flow may be another by now: one look into an array.
#[inline(always)]
pub fn is_current(tracked: *const Tracked) -> bool {
    // SAFETY: a map value; the verifier checks the access.
    let (pid, epoch) = unsafe { ((*tracked).owner.pid, (*tracked).owner.epoch) };
    pid == 0 || epoch == epoch_of(pid)
}

/// Takes in what the process that sent on a flow executes now, if it is another file: what
/// leaves from here on may be of either, and is judged as the later.
///
/// For hooks where anybody's task may run. A function of its own for the sake of the stack.
#[inline(never)]
pub fn refresh(tracked: *mut Tracked) -> u32 {
    // SAFETY: map values; the verifier checks the access. So below.
    let (owner, flow) = unsafe { (&raw mut (*tracked).owner, &raw mut (*tracked).flow) };
    let (pid, start_ns, exe_id) = unsafe { ((*owner).pid, (*owner).start_ns, (*owner).exe_id) };
    let known = unsafe { *owner };
    let epoch = epoch_of(pid);
    // Of one that has ended nothing changes any more, though its id may be another's; and one of
    // several senders stays nobody.
    if let Some(process) = unsafe { PROCESSES.get(&pid) }
        && process.start_ns == start_ns
        && process.exe_id != exe_id
        && is_whole(&raw const known)
        && known.uid != u32::MAX
    {
        succeed(tracked, owner);
        let state = unsafe { (*flow).state };
        unsafe {
            (*owner).exe_id = process.exe_id;
            (*owner).parent_exe_id = process.parent_exe_id;
            (*owner).quality = quality::INFERRED;
            // Not known here, and not what it was.
            (*owner).comm = [0; 16];
            (*flow).decision.generation = 0;
        }
        let sealed = Owner {
            exe_id: process.exe_id,
            ..known
        };
        unsafe { (*owner).seal = sum(&sealed) };
        if state & (FLOW_SENT | FLOW_SHARED) != 0 {
            set_state(tracked, FLOW_SHARED);
            if state & (FLOW_ANNOUNCED | FLOW_SHARED) == FLOW_ANNOUNCED {
                announce_owner(tracked);
            }
        }
    }
    unsafe { (*owner).epoch = epoch };
    0
}
