//! Reading the ends of an IP packet.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use core::{ffi::c_void, mem::MaybeUninit, ptr};
use trefoil_ebpf::abi::{Address, Peer, near};

use crate::{
    bounds::masked,
    kernel_memory::{Kernel, read_into},
    words::{load_u8, load_u16, load_u32, load_u64, same_words},
};

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;
}

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// IPv6 extension headers that are followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The beginning, with the ports.
    First,
    /// Another, without ports.
    Later,
}

/// How far the destination of a packet says where it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the destination.
    Direct,
    /// To the destination by way of others, which the packet lists: a routing header with
    /// segments left, a source route that is not finished.
    Listed,
    /// Nobody can say: its headers go on where they cannot be read, so that there may be a
    /// list among them.
    Unread,
}

/// Origin and destination of a packet, by its headers.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Ends {
    /// `address` and `port` are the destination's.
    pub destination: Peer,
    pub source: Address,
    /// Identification of the datagram that it is a fragment of; 0 if it is none.
    pub datagram: u32,
    pub source_port: u16,
    /// Of a datagram that was cut into fragments.
    pub part: Part,
    pub route: Route,
}

impl Ends {
    /// The near end, see [`trefoil_ebpf::abi::near`], of a flow of this direction.
    #[inline(always)]
    pub const fn near(&self, direction: u8) -> u32 {
        near::of(direction, self.destination.protocol, self.source_port)
    }
}

/// True if both are the same far end.
#[inline(always)]
pub fn is_same_peer(a: *const Peer, b: *const Peer) -> bool {
    same_words::<{ size_of::<Peer>() / 8 }>(a.cast(), b.cast())
}

/// Something that has the bytes of a packet.
pub trait Bytes: Copy {
    /// Reads what is at `offset` from where the packet begins: its IP header in a control
    /// group's hook, its link header on an interface. `None` if it does not reach so far.
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()>;

    /// How many there are, as far as they can be loaded.
    fn bytes(self) -> u32;

    /// Where the addresses that are left are of the first source route that is not finished,
    /// among the options from offset `from` on in the IPv4 header of `header_bytes` at `start`:
    /// `first << 8 | end`, as offsets in the header; or [`NO_ROUTE`], or [`UNREAD_ROUTE`].
    fn source_route(self, start: u32, header_bytes: u32, from: u32) -> u32;

    /// As [`Self::load_into`].
    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        self.load_into(offset, &mut value)?;
        // SAFETY: it was filled.
        Some(unsafe { value.assume_init() })
    }
}

/// The context of a program that is given packets.
impl Bytes for *mut __sk_buff {
    #[inline(always)]
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()> {
        // SAFETY: the helper checks the packet's length; the destination is ours.
        let error = unsafe {
            bpf_skb_load_bytes(
                self.cast::<c_void>(),
                offset,
                ptr::from_mut(value).cast::<c_void>(),
                size_of::<T>() as u32,
            )
        };
        (error == 0).then_some(())
    }

    #[inline(always)]
    fn bytes(self) -> u32 {
        // SAFETY: a field of the context; the verifier checks the access.
        unsafe { (*self).len }
    }

    #[inline(always)]
    fn source_route(self, start: u32, header_bytes: u32, from: u32) -> u32 {
        source_route_of_packet(self, start, header_bytes, from)
    }
}

/// The part of a packet that is in one piece, where a program has no more of it than its
/// address.
pub struct Piece {
    /// Where it begins.
    pub start: Kernel,
    /// How long it is.
    pub len: u32,
}

impl Bytes for &Piece {
    #[inline(always)]
    fn load_into<T>(self, offset: u32, value: &mut T) -> Option<()> {
        if offset + size_of::<T>() as u32 > self.len {
            return None;
        }
        read_into(self.start, offset as usize, value)
    }

    #[inline(always)]
    fn bytes(self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn source_route(self, start: u32, header_bytes: u32, from: u32) -> u32 {
        source_route_of_piece(self.start, self.len, start, header_bytes, from)
    }
}

const EMPTY: Ends = Ends {
    destination: Peer {
        address: Address([0; 16]),
        port: 0,
        protocol: 0,
        pad: [0; 5],
    },
    source: Address([0; 16]),
    datagram: 0,
    source_port: 0,
    part: Part::Whole,
    route: Route::Direct,
};

/// The ends of an ordinary packet whose IP header is at `start`, below 256: without options,
/// extension headers or fragments, and in one piece as far as its ports. `None` for any other,
/// and for what cannot be read at all: see [`ends_at`].
///
/// No call to the kernel, so that it costs next to nothing.
#[inline(always)]
pub fn plain_ends_at(skb: *mut __sk_buff, start: u32) -> Option<Ends> {
    const V4: usize = 24;
    const V6: usize = 44;
    let mut ends = EMPTY;
    // SAFETY: fields of the context; the verifier checks the access. So below.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let packet = data + masked::<0xff>(start as usize);
    if packet + V4 > end {
        return None;
    }
    let packet = packet as *const u8;
    let destination = &raw mut ends.destination;
    let first = load_u8::<0>(packet);
    if first == 0x45 {
        // More fragments, or not the first.
        if load_u16::<6>(packet) & 0x3fff_u16.to_be() != 0 {
            return None;
        }
        let mapped = |address: u32| u64::from(address) << 32 | u64::from(u32::from_be(0xffff));
        let (source, target) = (load_u32::<12>(packet), load_u32::<16>(packet));
        // SAFETY: on our own stack, at multiples of eight bytes. So below.
        unsafe {
            (&raw mut ends.source)
                .cast::<u64>()
                .add(1)
                .write(mapped(source));
            destination.cast::<u64>().add(1).write(mapped(target));
        }
        ends.destination.protocol = load_u8::<9>(packet);
        if has_ports(ends.destination.protocol) {
            ends.source_port = u16::from_be(load_u16::<20>(packet));
            ends.destination.port = u16::from_be(load_u16::<22>(packet));
        }
        return Some(ends);
    }
    if first >> 4 != 6 || packet as usize + V6 > end {
        return None;
    }
    ends.destination.protocol = load_u8::<6>(packet);
    if is_extension(ends.destination.protocol) {
        return None;
    }
    unsafe {
        let source = (&raw mut ends.source).cast::<u64>();
        source.write(load_u64::<8>(packet));
        source.add(1).write(load_u64::<16>(packet));
        destination.cast::<u64>().write(load_u64::<24>(packet));
        destination
            .cast::<u64>()
            .add(1)
            .write(load_u64::<32>(packet));
    }
    if has_ports(ends.destination.protocol) {
        ends.source_port = u16::from_be(load_u16::<40>(packet));
        ends.destination.port = u16::from_be(load_u16::<42>(packet));
    }
    Some(ends)
}

/// True for protocols whose packets begin with two ports.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE
    )
}

#[inline(always)]
pub const fn is_extension(header: u8) -> bool {
    matches!(
        header,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HOST_IDENTITY
            | SHIM6
    )
}

/// Reads the IP header and, where there are any, the ports.
///
/// `None` if not even the addresses can be read. A header that ends early, a
/// later fragment, or more extension headers than are followed leave the ports
/// 0: such a packet is judged by address and protocol, and no rule that names a
/// port approves it.
#[inline(always)]
pub fn ends(skb: *mut __sk_buff) -> Option<Ends> {
    ends_at(skb, 0)
}

/// As [`ends`], of a packet whose IP header is at `start`.
#[inline(always)]
pub fn ends_at(packet: impl Bytes, start: u32) -> Option<Ends> {
    let mut ends = EMPTY;
    if fill(packet, start, &mut ends) {
        Some(ends)
    } else {
        None
    }
}

/// Stands in [`Peer::protocol`] for a frame that carries no IP.
pub use trefoil_ebpf::abi::NO_IP;

impl Ends {
    /// Of a frame that carries no IP: no address, and its kind instead of a port.
    #[inline(always)]
    pub const fn of_frame(kind: u16) -> Self {
        Self {
            destination: Peer {
                address: Address([0; 16]),
                port: kind,
                protocol: NO_IP,
                pad: [0; 5],
            },
            // It is not to be judged by an address.
            route: Route::Unread,
            ..EMPTY
        }
    }
}

/// Not inlined, so that its share of the stack is free again when the judge needs
/// some: there are 512 bytes for both, and kernels before 6.9 count those of each
/// function in steps of 32.
#[inline(never)]
fn fill(packet: impl Bytes, start: u32, ends: &mut Ends) -> bool {
    let filled = match packet.load::<u8>(start) {
        Some(first) if first >> 4 == 4 => fill_v4(packet, start, ends),
        Some(first) if first >> 4 == 6 => fill_v6(packet, start, ends),
        _ => None,
    };
    filled.is_some()
}

#[inline(always)]
fn fill_v4(packet: impl Bytes, start: u32, ends: &mut Ends) -> Option<()> {
    let header = packet.load::<[u8; 20]>(start)?;
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    ends.part = part(fragment & 0x1fff, fragment & 0x2000);
    if ends.part != Part::Whole {
        ends.datagram = u32::from(u16::from_be_bytes([header[4], header[5]]));
    }
    ends.source = Address::v4(source);
    ends.destination.address = Address::v4(destination);
    ends.destination.protocol = header[9];
    let header_bytes = u32::from(header[0] & 0x0f) * 4;
    if header_bytes != 20 {
        fill_route_v4(packet, start, header_bytes, ends);
    }
    if ends.part != Part::Later {
        fill_ports(packet, start + header_bytes, ends);
    }
    Some(())
}

/// Reads where the options of an IPv4 header lead.
#[inline(always)]
fn fill_route_v4(packet: impl Bytes, start: u32, header_bytes: u32, ends: &mut Ends) {
    let route = packet.source_route(start, header_bytes, FIRST_OPTION);
    ends.route = match route {
        NO_ROUTE => return,
        UNREAD_ROUTE => Route::Unread,
        _ => match packet.load::<[u8; 4]>(start + (route & 0xff) - 4) {
            Some(last) => {
                ends.destination.address = Address::v4(u32::from_be_bytes(last));
                Route::Listed
            }
            None => Route::Unread,
        },
    };
}

/// Where options begin in an IPv4 header.
pub const FIRST_OPTION: u32 = 20;

/// No source route, or one that is finished.
pub const NO_ROUTE: u32 = 0;
/// Options that cannot be read.
pub const UNREAD_ROUTE: u32 = 1 << 16;

/// See [`Bytes::source_route`].
#[inline(always)]
fn find_source_route(packet: impl Bytes, start: u32, header_bytes: u32, from: u32) -> u32 {
    let mut offset = from;
    for _ in 0..MAX_OPTIONS_V4 {
        if offset >= header_bytes {
            return NO_ROUTE;
        }
        match option_v4(packet, start, offset, header_bytes) {
            OptionV4::End => return NO_ROUTE,
            OptionV4::Other(len) => offset += len,
            OptionV4::Route { first, end } => return first << 8 | end,
            OptionV4::Unread => return UNREAD_ROUTE,
        }
    }
    NO_ROUTE
}

/// See [`Bytes::source_route`]. A global function to the kernel, as those of the judge: what
/// follows its loop would be verified once for each of its rounds.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn source_route_of_packet(
    skb: *mut __sk_buff,
    start: u32,
    header_bytes: u32,
    from: u32,
) -> u32 {
    find_source_route(skb, start, header_bytes, from)
}

/// As [`source_route_of_packet`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn source_route_of_piece(
    data: u64,
    len: u32,
    start: u32,
    header_bytes: u32,
    from: u32,
) -> u32 {
    find_source_route(&Piece { start: data, len }, start, header_bytes, from)
}

/// Options of an IPv4 header that there can be: 40 bytes.
const MAX_OPTIONS_V4: usize = 40;

/// An option of IPv4.
enum OptionV4 {
    /// Nothing follows.
    End,
    /// A source route, loose or strict, that is not finished: addresses that are left, the
    /// first at this offset in the header, and where they end.
    Route { first: u32, end: u32 },
    /// Another, of this length.
    Other(u32),
    /// It cannot be read.
    Unread,
}

/// The option at `offset` in the header of `header_bytes` that is at `start`.
#[inline(always)]
fn option_v4(packet: impl Bytes, start: u32, offset: u32, header_bytes: u32) -> OptionV4 {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    let Some(kind) = packet.load::<u8>(start + offset) else {
        return OptionV4::Unread;
    };
    match kind {
        END => return OptionV4::End,
        NO_OPERATION => return OptionV4::Other(1),
        _ => {}
    }
    let Some([len, pointer]) = packet.load::<[u8; 2]>(start + offset + 1) else {
        return OptionV4::Unread;
    };
    let (len, pointer) = (u32::from(len), u32::from(pointer));
    if len < 2 || offset + len > header_bytes {
        return OptionV4::Unread;
    }
    if matches!(kind, LOOSE_ROUTE | STRICT_ROUTE) && pointer <= len {
        return OptionV4::Route {
            // Counted from 1; the first address is behind three bytes.
            first: offset + if pointer < 4 { 3 } else { pointer - 1 },
            end: offset + len,
        };
    }
    OptionV4::Other(len)
}

/// One of the headers behind that of IPv6.
pub enum Header {
    /// Goes on with this header, at this offset.
    Next(u8, u32),
    /// A fragment's: goes on likewise, unless it is a later one.
    Fragment(u8, u32, [u8; 8]),
    /// Leads to further addresses: a routing header with segments left. Goes on likewise.
    Route(u8, u32, Segments),
    /// Not a header that other headers follow.
    Last,
    /// It cannot be read.
    Unread,
}

/// The addresses of a routing header.
#[derive(Clone, Copy)]
pub struct Segments {
    /// Where the first is.
    pub first: u32,
    /// How many there are.
    pub n: u32,
    /// Where the one is that the packet goes to in the end.
    pub last: u32,
    /// The type is one of which that is known.
    pub is_known: bool,
}

impl Segments {
    /// Of a header of this type at `offset`, which is of `len` times eight bytes more than
    /// eight: source route (0), Mobile IPv6 (2), segment routing (4, which lists them backwards).
    #[inline(always)]
    fn new(kind: u8, offset: u32, len: u32) -> Self {
        let n = len / 2;
        let first = offset + 8;
        let last = match kind {
            4 => first,
            _ => first + 16 * n.saturating_sub(1),
        };
        Self {
            first,
            n,
            last,
            is_known: matches!(kind, 0 | 2 | 4),
        }
    }
}

/// The header of kind `kind` at `offset`.
#[inline(always)]
pub fn header_v6(packet: impl Bytes, kind: u8, offset: u32) -> Header {
    if !is_extension(kind) {
        return Header::Last;
    }
    let Some(bytes) = packet.load::<[u8; 8]>(offset) else {
        return Header::Unread;
    };
    let [next, len, route, left, ..] = bytes;
    let len = u32::from(len);
    match kind {
        FRAGMENT => Header::Fragment(next, offset + 8, bytes),
        AUTHENTICATION => Header::Next(next, offset + (len + 2) * 4),
        ROUTING if left != 0 => {
            let segments = Segments::new(route, offset, len);
            Header::Route(next, offset + (len + 1) * 8, segments)
        }
        _ => Header::Next(next, offset + (len + 1) * 8),
    }
}

#[inline(always)]
fn fill_v6(packet: impl Bytes, start: u32, ends: &mut Ends) -> Option<()> {
    packet.load_into(start + 8, &mut ends.source.0)?;
    packet.load_into(start + 24, &mut ends.destination.address.0)?;
    let mut protocol = packet.load::<u8>(start + 6)?;
    let mut offset = start + 40;
    for _ in 0..MAX_EXTENSIONS {
        match header_v6(packet, protocol, offset) {
            Header::Next(next, at) => (protocol, offset) = (next, at),
            Header::Route(next, at, segments) => {
                (protocol, offset) = (next, at);
                let last = &mut ends.destination.address.0;
                let is_read = segments.n != 0
                    && packet.load_into(segments.last, last).is_some()
                    && segments.is_known;
                if !is_read {
                    ends.route = Route::Unread;
                } else if ends.route == Route::Direct {
                    ends.route = Route::Listed;
                }
            }
            Header::Fragment(next, at, [_, _, high, low, id @ ..]) => {
                (protocol, offset) = (next, at);
                let fragment = u16::from_be_bytes([high, low]);
                ends.part = part(fragment & 0xfff8, fragment & 1);
                ends.datagram = u32::from_be_bytes(id);
                if ends.part == Part::Later {
                    break;
                }
            }
            Header::Last | Header::Unread => break,
        }
    }
    if ends.part != Part::Later && is_extension(protocol) {
        // More headers than are followed, or not to be read: another list may be among them.
        ends.route = Route::Unread;
    }
    ends.destination.protocol = protocol;
    if ends.part != Part::Later {
        fill_ports(packet, offset, ends);
    }
    Some(())
}

/// By where a fragment is in its datagram, and whether there are more behind it.
#[inline(always)]
fn part(offset: u16, more: u16) -> Part {
    match (offset, more) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    }
}

/// Source and destination port, in host byte order; 0 where there are none.
#[inline(always)]
fn fill_ports(packet: impl Bytes, offset: u32, ends: &mut Ends) {
    if has_ports(ends.destination.protocol)
        && let Some([a, b, c, d]) = packet.load::<[u8; 4]>(offset)
    {
        ends.source_port = u16::from_be_bytes([a, b]);
        ends.destination.port = u16::from_be_bytes([c, d]);
    }
}
