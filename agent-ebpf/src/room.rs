//! Room by owner in the tables that anybody can cause entries in, see [`trefoil_ebpf::abi::room`].
//!
//! Functions are `extern "C"` for the reason that [`crate::judge`] has.

use core::ptr;

use trefoil_ebpf::abi::*;

use crate::{
    atomic,
    bounds::masked,
    globals::{self, offset},
    kernel_memory::{Kernel, follow, read},
    maps::CHARGES,
};

/// Flag of an insert that replaces nothing.
pub const BPF_NOEXIST: u64 = 1;
/// Answer to one where something is.
pub const EEXIST: i32 = -17;

/// The kernel's limit of user namespaces within each other, and the first.
const MAX_USER_NAMESPACES: usize = 34;

/// Returns the user to charge for what a task causes: the task's own; for a task in a user
/// namespace, the user who made the outermost, since users within are his to name. If root made
/// that namespace, the task's own user is charged, one of those that root gave it.
///
/// The login user id does not count: a user without one may say that he is anybody, root as well.
#[inline(always)]
pub fn payer(task: Kernel) -> u32 {
    follow(task, offset!(task_cred)).map_or(NOBODY_CHARGED, |cred| user_charged(cred))
}

/// The same by a task's credentials.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn user_charged(cred: Kernel) -> u32 {
    let look = || {
        let uid = read::<u32>(cred, offset!(cred_uid))?;
        if uid == ROOT {
            return Some(ROOT);
        }
        let mut users = follow(cred, offset!(cred_user_ns))?;
        for _ in 0..MAX_USER_NAMESPACES {
            match read::<u32>(users, offset!(user_namespace_level))? {
                0 => return Some(uid),
                1 => {
                    let owner = read::<u32>(users, offset!(user_namespace_owner))?;
                    return Some(if owner == ROOT { uid } else { owner });
                }
                _ => users = follow(users, offset!(user_namespace_parent))?,
            }
        }
        None
    };
    look().unwrap_or(NOBODY_CHARGED)
}

/// Charges one entry of a table. 0 if there is no room: an entry is charged before it is made,
/// and nothing is charged for one that is not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn charge(payer: u32, table: u32) -> u32 {
    if payer == ROOT {
        return 1;
    }
    let room = globals::room(table);
    let (Some(own), Some(all)) = (entries(payer, table), entries(ROOT, table)) else {
        return 0;
    };
    // SAFETY: a map value; one volatile read sees one state.
    let (n_own, n_all) = unsafe { (ptr::read_volatile(own), ptr::read_volatile(all)) };
    if n_own >= i64::from(room.one) || n_all >= i64::from(room.all) {
        return 0;
    }
    atomic::add(own.cast(), 1);
    atomic::add(all.cast(), 1);
    1
}

/// Takes back what was charged for an entry that is gone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn release(payer: u32, table: u32) -> u32 {
    if payer != ROOT
        && let (Some(own), Some(all)) = (entries(payer, table), entries(ROOT, table))
    {
        atomic::add(own.cast(), u64::MAX);
        atomic::add(all.cast(), u64::MAX);
    }
    0
}

/// How many entries of a table are charged to somebody.
#[inline(always)]
fn entries(payer: u32, table: u32) -> Option<*mut i64> {
    let charges = match CHARGES.get_ptr_mut(&payer) {
        Some(charges) => charges,
        None => {
            let _ = CHARGES.insert(&payer, &Charges::default(), BPF_NOEXIST);
            CHARGES.get_ptr_mut(&payer)?
        }
    };
    let index = masked::<{ N_ROOMS - 1 }>(table as usize);
    // SAFETY: within the entry.
    Some(unsafe { (&raw mut (*charges).entries).cast::<i64>().add(index) })
}
