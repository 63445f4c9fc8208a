//! Budgets: what has left by a rule, and whether there is room for more.
//!
//! Counts, and does not know what a rule is; what a verdict becomes is the judge's.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::{accounting::now_ns, atomic, globals::ONLY_LOOKS, maps::BUDGETS};

/// Charges a packet to a budget, and says whether it is within `limit_bytes`.
#[inline(always)]
pub fn is_within(index: u32, limit_bytes: u64, bytes: u64) -> bool {
    charge_budget(index, limit_bytes, bytes) == 0
}

/// Returns 1 when the packet is over the budget, as is all when there is none.
///
/// Several CPUs may charge one budget at once. Each adds first and looks then, so
/// together they may refuse what would just have fitted, and never let pass what does
/// not. A packet that does not fit is charged with what there was left, so that it is the
/// budget that is used up, and not one size of packets after the other. So it is in report mode,
/// where the packet leaves: there is room again when there would be if it had been dropped.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn charge_budget(index: u32, limit_bytes: u64, bytes: u64) -> u32 {
    if ONLY_LOOKS {
        return would_exceed(index, limit_bytes, bytes);
    }
    let Some(budget) = BUDGETS.get_ptr_mut(index) else {
        return 1;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let used = unsafe { &raw mut (*budget).used_bytes };
    let step_ns = unsafe { ptr::read_volatile(&raw const (*budget).step_ns) };
    let mark = match step_ns {
        0 => 0,
        _ => {
            // Read before the step is: whoever has entered a new step has written its
            // marks before it charges, so what is read here is never too much.
            let used_before = unsafe { ptr::read_volatile(used) };
            let step = now_ns() / step_ns;
            let marks = unsafe { (&raw mut (*budget).marks).cast::<u64>() };
            let last = unsafe { ptr::read_volatile(&raw const (*budget).step) };
            if last < step {
                let passed = step - last;
                for back in 0..BUDGET_MARKS as u64 {
                    if back >= passed {
                        break;
                    }
                    let at = (step - back) as usize & (BUDGET_MARKS - 1);
                    unsafe { ptr::write_volatile(marks.add(at), used_before) };
                }
                unsafe { ptr::write_volatile(&raw mut (*budget).step, step) };
            }
            let first = step.saturating_sub(BUDGET_STEPS) as usize & (BUDGET_MARKS - 1);
            unsafe { ptr::read_volatile(marks.add(first)) }
        }
    };
    if bytes == 0 {
        // Before there is a packet, it must have room for one.
        let window = unsafe { ptr::read_volatile(used) }.wrapping_sub(mark);
        return u32::from(window >= limit_bytes);
    }
    atomic::add(used, bytes);
    let window = unsafe { ptr::read_volatile(used) }.wrapping_sub(mark);
    if window <= limit_bytes {
        atomic::add(unsafe { &raw mut (*budget).used_packets }, 1);
        return 0;
    }
    let excess = (window - limit_bytes).min(bytes);
    atomic::add(used, excess.wrapping_neg());
    1
}

/// As [`charge_budget`], and nothing is charged.
#[inline(always)]
fn would_exceed(index: u32, limit_bytes: u64, bytes: u64) -> u32 {
    let Some(budget) = BUDGETS.get_ptr(index) else {
        return 1;
    };
    // SAFETY: a map value; the verifier checks the access. So below.
    let (used, step_ns, last) = unsafe {
        (
            ptr::read_volatile(&raw const (*budget).used_bytes),
            ptr::read_volatile(&raw const (*budget).step_ns),
            ptr::read_volatile(&raw const (*budget).step),
        )
    };
    let mark = match step_ns {
        0 => 0,
        _ => {
            let first = (now_ns() / step_ns).saturating_sub(BUDGET_STEPS);
            match first > last {
                // All marks since are what has been used until now.
                true => used,
                false => {
                    let marks = unsafe { (&raw const (*budget).marks).cast::<u64>() };
                    let at = first as usize & (BUDGET_MARKS - 1);
                    unsafe { ptr::read_volatile(marks.add(at)) }
                }
            }
        }
    };
    let window = used.wrapping_sub(mark);
    u32::from(match bytes {
        0 => window >= limit_bytes,
        _ => window + bytes > limit_bytes,
    })
}
