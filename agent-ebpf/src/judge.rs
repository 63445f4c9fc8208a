//! The judge: what the policy in force says about one flow.
//!
//! A constant number of look-ups, whatever the number of rules and prefixes.
//! See [`trefoil_ebpf::abi::policy`] for the tables.
//!
//! The functions that are `extern "C"` here take and return numbers only, and
//! are global functions to the kernel (5.6): the verifier checks each once per
//! program, and not once for every way in which a caller can arrive there.

use trefoil_ebpf::abi::*;

use crate::accounting::now_ns;
use crate::bounds::masked;
use crate::budget::is_within;
use crate::maps::{InForce, lose};
use crate::packet::protocol;
use crate::source::{Source, group_class, near_class};
use crate::tables::{Tables, entry, in_chunk};
use crate::tree::{find_number, find128};

/// Judges under the policy in force, which the caller read from `CONTROL` once, and
/// charges a packet of `bytes` to the budget it needs, if it may leave. Before there is
/// a packet, `bytes` is 0. `near` is the near end, see [`trefoil_ebpf::abi::near`].
///
/// Without a complete policy the answer is `undetermined`, and never a guess;
/// nothing is blocked then, since no policy said to enforce.
#[inline(always)]
pub fn judge(in_force: InForce, source: &Source, near: u32, peer: &Peer, bytes: u32) -> Decision {
    let asked = Asked::new(in_force, source, near, peer, bytes);
    let (high, low) = peer.address.halves();
    let mut decision = judge_address(&asked, high, low);
    decision.flags |= asked.limited;
    in_force.flagged(decision)
}

/// Question about any address that a packet may go to.
#[derive(Clone, Copy)]
pub struct Asked {
    /// `generation << 32` with the classes of [`Source::paths`].
    pub policy: u64,
    /// `class of the group << 32 | user`.
    pub who: u64,
    /// `bytes << 44 | class of the near end << 28 | enforced << 27 | may stay << 26
    /// | protocol << 16 | port`.
    pub packet: u64,
    /// [`DECISION_LIMITED`] if another near end may be decided about otherwise, and the socket
    /// has no port yet, or if another origin of the session may, and it has none yet; else 0.
    pub limited: u8,
}

impl Asked {
    /// About a packet of `bytes`.
    #[inline(always)]
    pub fn new(in_force: InForce, source: &Source, near: u32, peer: &Peer, bytes: u32) -> Self {
        let generation = in_force.generation;
        let paths = source.paths(generation);
        let group = group_class(generation, source.gid, source.session);
        let near = near_class(generation, near);
        Self {
            policy: u64::from(generation) << 32 | u64::from(paths),
            who: u64::from(group as u16) << 32 | u64::from(source.uid),
            packet: u64::from(bytes.min(MOST_BYTES)) << BYTES_SHIFT
                | u64::from(near as u16) << NEAR_SHIFT
                | u64::from(in_force.flags & MAY_STAY) << MAY_STAY_SHIFT
                | u64::from(peer.protocol) << 16
                | u64::from(peer.port),
            limited: ((near | group) >> 16) as u8,
        }
    }
}

/// Judges one address, by its halves, and what it embeds. The answer is as of a policy that
/// enforces.
#[inline(always)]
pub fn judge_address(asked: &Asked, high: u64, low: u64) -> Decision {
    let Asked {
        policy,
        who,
        packet,
        ..
    } = *asked;
    let mut decision = Decision::from_word(judge_flow(policy, high, low, who, packet));
    if decision.flags & EMBEDS != 0 {
        // Each may have a budget, and all are charged.
        let inner = Decision::from_word(judge_embedded(policy, high, low, who, packet));
        decision = decision.or_stricter(inner);
    }
    decision.flags &= !EMBEDS;
    decision
}

/// True for a destination of a scope that no router forwards: what goes there does not leave
/// the link, by whatever interface.
#[inline(always)]
pub fn is_local(generation: u32, peer: &Peer) -> bool {
    let (high, low) = peer.address.halves();
    fallback(destination(generation, high, low)) == verdict::LOCAL
}

/// True for an address of this host, by its halves.
#[inline(always)]
pub fn is_own(generation: u32, high: u64, low: u64) -> bool {
    destination(generation, high, low) & Branch::OWN != 0
}

/// The decision about a packet that cannot be read.
#[inline(always)]
pub const fn undetermined(in_force: InForce) -> Decision {
    Decision {
        generation: in_force.generation,
        rule: NO_RULE,
        verdict: verdict::UNDETERMINED,
        flags: in_force.flags & DECISION_ENFORCED,
    }
}

/// Beside the flags of what [`judge_flow`] returns, and in no decision: the address embeds
/// others. Where the packet stays here, whatever is embedded stays as well.
pub const EMBEDS: u8 = 1 << 4;

/// In what [`embedded`] returns: there is no such address.
const NO_MORE: u64 = 1 << 32;
/// In what [`embedded`] returns: nothing can go to the address, so it is not the one of
/// several that is meant.
const NOWHERE: u64 = 1 << 33;

/// As [`judge_flow`], of the addresses that are embedded in one: the strictest, and no stricter
/// than any if there are none.
///
/// A function of its own, so that what it keeps is on no hook's stack where nothing is
/// embedded.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_embedded(policy: u64, high: u64, low: u64, who: u64, packet: u64) -> u64 {
    let mut strictest = Decision {
        generation: (policy >> 32) as u32,
        rule: NO_RULE,
        verdict: verdict::GATEWAY,
        flags: 0,
    };
    for nth in 0..layout::MOST {
        match embedded_address(policy, high, low, nth) {
            Embedded::NoMore => break,
            Embedded::Nowhere => {}
            Embedded::At(high, low) => {
                let inner = judge_flow(policy, high, low, who, leaving(packet));
                strictest = strictest.or_stricter(Decision::from_word(inner));
            }
        }
    }
    strictest.to_word()
}

/// The last argument of [`judge_flow`] for a packet that is on its way elsewhere, as it is to
/// what an address embeds.
#[inline(always)]
pub fn leaving(packet: u64) -> u64 {
    packet & !(u64::from(MAY_STAY) << MAY_STAY_SHIFT)
}

/// One of the addresses that another embeds.
pub enum Embedded {
    NoMore,
    /// Nothing can go there.
    Nowhere,
    /// By its halves.
    At(u64, u64),
}

/// The nth address that is embedded in a destination, under the policy of [`judge_flow`].
#[inline(always)]
pub fn embedded_address(policy: u64, high: u64, low: u64, nth: u32) -> Embedded {
    let found = embedded((policy >> 32) as u32, high, low, nth);
    if found & NO_MORE != 0 {
        return Embedded::NoMore;
    }
    if found & NOWHERE != 0 {
        return Embedded::Nowhere;
    }
    let (high, low) = Address::v4(found as u32).halves();
    Embedded::At(high, low)
}

/// The nth IPv4 address that is embedded in a destination.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn embedded(generation: u32, high: u64, low: u64, nth: u32) -> u64 {
    let Some(tables) = Tables::of(generation & 1) else {
        return NO_MORE;
    };
    let layouts = tables.header().layouts.as_ptr();
    let index = masked::<{ layout::N_SETS - 1 }>(Branch::embeds(class_of(&tables, high, low)));
    // SAFETY: the index is masked, which the compiler cannot see.
    let layouts = u32::from(unsafe { *layouts.add(index) });
    let layout = layouts >> ((nth * layout::BITS) & 15) & ((1 << layout::BITS) - 1);
    if layout as u16 == layout::NONE {
        return NO_MORE;
    }
    let v4 = Address::from_halves(high, low).embedded_v4(layout as u16);
    // See RFC 791: this network.
    let is_nowhere = layouts >> layout::BITS != 0 && v4 >> 24 == 0;
    u64::from(v4) | if is_nowhere { NOWHERE } else { 0 }
}

/// Where the packet's bytes are in the last argument of [`judge_flow`], and how many there is room
/// for. The kernel makes none of more than half as many.
const BYTES_SHIFT: u32 = 44;
const MOST_BYTES: u32 = (1 << (u64::BITS - BYTES_SHIFT)) - 1;
/// Where the class of the near end is there.
const NEAR_SHIFT: u32 = 28;
/// How far [`MAY_STAY`] is shifted there.
const MAY_STAY_SHIFT: u32 = 23;
const _: () = assert!((MAY_STAY as u32) << MAY_STAY_SHIFT == 1 << 26);

/// Judges by [`Asked::policy`], by the halves of the address, by [`Asked::who`], and by
/// [`Asked::packet`]. Returns a `Decision`, as of a policy that enforces, with [`EMBEDS`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_flow(policy: u64, high: u64, low: u64, who: u64, packet: u64) -> u64 {
    let decided = decide(policy, high, low, who, packet).unwrap_or_else(|| {
        lose(LOSS_POLICY_MISSING, 1);
        Decision {
            generation: (policy >> 32) as u32,
            rule: NO_RULE,
            verdict: verdict::UNDETERMINED,
            flags: 0,
        }
    });
    decided.to_word()
}

#[inline(always)]
fn decide(policy: u64, high: u64, low: u64, who: u64, packet: u64) -> Option<Decision> {
    let generation = (policy >> 32) as u32;
    let slot = generation & 1;
    let tables = Tables::of(slot)?;
    let (first, header) = (tables.first, tables.header());
    let found = class_of(&tables, high, low);
    let without_clause = |verdict: u8, limited: u8| Decision {
        generation,
        rule: NO_RULE,
        verdict,
        flags: DECISION_ENFORCED | limited,
    };
    let embeds = match Branch::embeds(found) {
        0 => 0,
        _ => EMBEDS,
    };
    let stays = packet & u64::from(MAY_STAY) << MAY_STAY_SHIFT != 0 && found & Branch::OWN != 0;
    match fallback(found) {
        verdict::NONE => return None,
        verdict::LOCAL => return Some(without_clause(verdict::LOCAL, 0)),
        _ if stays => return Some(without_clause(verdict::LOCAL, 0)),
        _ => {}
    }

    // SAFETY: the index is below N_SMALL.
    let small_class = |table: *const [u16; N_SMALL], number: u64| unsafe {
        let number = masked::<{ N_SMALL - 1 }>(number as usize);
        u64::from(*table.cast::<u16>().wrapping_add(number))
    };
    let number_class = |branch: Branch, number: u32| {
        let value = match branch.kind() {
            Branch::VALUE => branch.0,
            _ => find_number(slot, branch.0, number),
        };
        u64::from(value as u16)
    };
    // SAFETY: parts of the first chunk.
    let (tcp_ports, udp_ports, small_users) = unsafe {
        (
            &raw const (*first).tcp_ports,
            &raw const (*first).udp_ports,
            &raw const (*first).small_users,
        )
    };
    let service = match (packet >> 16) as u8 {
        protocol::TCP => small_class(tcp_ports, packet),
        protocol::UDP => small_class(udp_ports, packet),
        _ => number_class(header.services, packet as u32 & 0xff_ffff),
    };
    let user = match (who as u32) >> N_SMALL.ilog2() {
        0 => small_class(small_users, who),
        _ => number_class(header.users, who as u32),
    };
    let row_bytes = header.row_bytes;
    let row = |dimension: usize, class: u64| {
        header.rows[dimension].wrapping_add((class as u32).wrapping_mul(row_bytes))
    };
    let rows = Rows {
        first,
        slot,
        are_near: header.rows_are_near != 0,
        destination: row(dimension::DESTINATION, u64::from(found as u16)),
        service: row(dimension::SERVICE, service),
        user: row(dimension::USER, user),
        group: row(dimension::GROUP, who >> 32),
        executable: row(dimension::EXECUTABLE, policy >> 16 & 0xffff),
        cgroup: row(dimension::CGROUP, policy & 0xffff),
        packet,
    };
    // Words that can have a clause in common: mostly one or two.
    let mut candidates = rows.common(0) as u32;
    let (mut best, mut flags) = (NO_CLAUSE, embeds);
    for _ in 0..ROW_WORDS {
        if candidates == 0 {
            break;
        }
        let word = u64::from(candidates.trailing_zeros());
        candidates &= candidates - 1;
        let clauses = rows.common((1 + word as u32) * size_of::<u64>() as u32);
        if clauses == 0 {
            continue;
        }
        let mut number = word << 6 | u64::from(clauses.trailing_zeros());
        let mut clause = clause_at(first, number);
        if clause.limits & CLAUSE_TIMED != 0 {
            let found = first_in_time(slot, word as u32, clauses);
            flags |= (found >> FOUND_FLAGS_SHIFT) as u8 & DECISION_LIMITED;
            if found & NONE_IN_TIME != 0 {
                continue;
            }
            number = u64::from(found & (NONE_IN_TIME - 1));
            clause = clause_at(first, number);
        }
        best = best.min(u64::from(clause.rule) << NUMBER_BITS | number);
    }
    if best == NO_CLAUSE {
        return Some(without_clause(fallback(found), flags));
    }
    let clause = clause_at(first, best);
    let mut decision = Decision {
        generation,
        rule: clause.rule,
        verdict: clause.verdict,
        flags: DECISION_ENFORCED | flags,
    };
    if clause.limits & CLAUSE_COUNTED != 0 {
        decision.flags |= DECISION_LIMITED;
        if !is_within(clause.budget, clause.budget_bytes, packet >> BYTES_SHIFT) {
            decision.verdict = verdict::OVER_BUDGET;
        }
    }
    Some(decision)
}

/// While the first clause is searched that matches: its rule, then its number in this many
/// bits.
const NUMBER_BITS: u32 = MAX_CLAUSES.ilog2();
/// None yet.
const NO_CLAUSE: u64 = u64::MAX;

/// A clause, of the first chunk. A number that there is none of leads to another clause.
#[inline(always)]
fn clause_at(first: *const First, number: u64) -> &'static Clause {
    let number = masked::<{ MAX_CLAUSES - 1 }>(number as usize);
    // SAFETY: the number is masked, which the compiler cannot see, and the entry of an array
    // stays where it is while a program runs.
    unsafe {
        &*(&raw const (*first).clauses)
            .cast::<Clause>()
            .wrapping_add(number)
    }
}

/// In what [`first_in_time`] returns: no clause.
const NONE_IN_TIME: u32 = 1 << 16;
/// In what [`first_in_time`] returns: where flags of the decision are.
const FOUND_FLAGS_SHIFT: u32 = 24;

/// The number of the first of these clauses of a word that is not outside of its time, with
/// [`DECISION_LIMITED`] if it would be another at another time.
///
/// A function of its own, so that the verifier does not go through it once for each word.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_in_time(slot: u32, word: u32, mut clauses: u64) -> u32 {
    let Some(tables) = Tables::of(slot & 1) else {
        return NONE_IN_TIME;
    };
    let now_ns = now_ns();
    let mut flags = 0;
    // Behind all that have a time there may be one that has none.
    for _ in 0..=MAX_TIMED_CLAUSES {
        if clauses == 0 {
            break;
        }
        let number = word << 6 | clauses.trailing_zeros();
        let clause = clause_at(tables.first, u64::from(number));
        if clause.limits & CLAUSE_TIMED == 0 {
            return flags | number;
        }
        if now_ns < clause.expires_ns {
            flags = u32::from(DECISION_LIMITED) << FOUND_FLAGS_SHIFT;
            if now_ns >= clause.starts_ns {
                return flags | number;
            }
        }
        clauses &= clauses - 1;
    }
    flags | NONE_IN_TIME
}

/// Where the rows of a flow's classes are.
struct Rows {
    first: *const First,
    slot: u32,
    are_near: bool,
    destination: u32,
    service: u32,
    user: u32,
    group: u32,
    executable: u32,
    cgroup: u32,
    packet: u64,
}

impl Rows {
    /// Returns the bits that the words at this offset have in common.
    #[inline(always)]
    fn common(&self, offset: u32) -> u64 {
        if self.are_near {
            // SAFETY: within the chunk.
            self.all(|row| unsafe {
                *in_chunk::<u64>(self.first.cast(), u64::from(row.wrapping_add(offset)))
            })
        } else {
            self.all(|row| far_word(self.slot, row.wrapping_add(offset)))
        }
    }

    #[inline(always)]
    fn all(&self, word: impl Fn(u32) -> u64) -> u64 {
        word(self.destination)
            & word(self.service)
            & word(self.user)
            & word(self.group)
            & word(self.executable)
            & word(self.cgroup)
            & word(self.near())
    }

    /// The row of the near end: calculated anew for each word, since there is no room for it on the
    /// stack.
    #[inline(always)]
    fn near(&self) -> u32 {
        let class = (self.packet >> NEAR_SHIFT) as u16;
        // SAFETY: a part of the first chunk; the verifier checks the access. Volatile, or the
        // compiler would keep it.
        let (first_row, row_bytes) = unsafe {
            let header = &raw const (*self.first).header;
            (
                (&raw const (*header).rows[dimension::NEAR_END]).read_volatile(),
                (&raw const (*header).row_bytes).read_volatile(),
            )
        };
        first_row.wrapping_add(u32::from(class).wrapping_mul(row_bytes))
    }
}

/// A word of a row that need not be in the first chunk; of no clauses if it cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn far_word(slot: u32, place: u32) -> u64 {
    entry::<u64>(slot, place).copied().unwrap_or(0)
}

/// The verdict on a destination that no clause matches; none if [`destination`] could
/// not read the tables.
#[inline(always)]
fn fallback(found: u32) -> u8 {
    (found >> 16) as u8
}

/// Class and fallback of an address, as in [`Branch::value`]; 0 if the tables cannot be
/// read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn destination(generation: u32, high: u64, low: u64) -> u32 {
    let Some(tables) = Tables::of(generation & 1) else {
        return 0;
    };
    class_of(&tables, high, low)
}

/// As [`destination`].
#[inline(always)]
fn class_of(tables: &Tables, high: u64, low: u64) -> u32 {
    let header = tables.header();
    match Address::from_halves(high, low).as_v4() {
        Some(v4) => find128(tables, header.v4, u64::from(v4) << 32, 0),
        None => find128(tables, header.v6, high, low),
    }
}
