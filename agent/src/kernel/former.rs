//! Attachments of an instance before, and putting other programs in their place.
//!
//! The kernel swaps the program of a link, so each packet is seen by one of the two. It
//! must not decide when: see [`super::takeover`](super::Kernel::come_into_force).

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use trefoil_ebpf::abi::Owner;

use super::{
    KernelError,
    bpf_syscall::{self, Target},
    deeds::{self, Deeds},
    hooks::{HOOKS, Place},
    pins::PinDir,
    uplink_hook::{FilterPin, UPLINK_PIN},
};

/// True if programs can be put in the place of those that are attached now: all of these
/// are at this control group, and one at each place.
///
/// There are two if an agent was killed that had to attach beside another. Then only one
/// of the two counts, and which one a link does not say.
pub fn can_be_replaced(pins: &PinDir, cgroup: &Path) -> bool {
    let Ok(cgroup) = fs::metadata(cgroup) else {
        return false;
    };
    let mut has_cgroup = false;
    // By place, what is there.
    let mut found = BTreeMap::new();
    for (instance, hook) in pins.pinned_links() {
        let (place, what) = if let Some(filter) = FilterPin::parse(&hook) {
            (filter.interface_pin(), filter.handle)
        } else if is_in_cgroup(&hook) || hook.starts_with(UPLINK_PIN) {
            let info = bpf_syscall::open_pin(&pins.link(instance, &hook))
                .and_then(|link| bpf_syscall::link_info(link.as_fd()));
            let Ok(info) = info else {
                return false;
            };
            if info.target().is_none() {
                // Somebody has detached it, so there is nothing in that place.
                continue;
            }
            if is_in_cgroup(&hook) {
                has_cgroup = true;
                if info.target() != Some(Target::Cgroup(cgroup.ino())) {
                    return false;
                }
            }
            (hook, info.id)
        } else {
            continue;
        };
        if *found.entry(place).or_insert(what) != what {
            return false;
        }
    }
    has_cgroup
}

/// Hooks in control groups that an instance has pinned, and that are attached no more; with who
/// may have done it, where the kernel has seen somebody.
pub fn detached(pins: &PinDir, instance: u32) -> Vec<(String, Option<Owner>)> {
    let deeds = Deeds::open(pins).ok();
    let look = |hook: String| {
        let link = bpf_syscall::open_pin(&pins.link(instance, &hook)).ok()?;
        let info = bpf_syscall::link_info(link.as_fd()).ok()?;
        let by = || deeds.as_ref()?.last(&[deeds::link(info.id)], 0);
        info.target().is_none().then(|| (hook, by()))
    };
    let links = pins.pinned_links().into_iter();
    links
        .filter(|(of, hook)| *of == instance && is_in_cgroup(hook))
        .filter_map(|(_, hook)| look(hook))
        .collect()
}

/// Puts a program in the place of what another instance has attached as this hook, and
/// pins the link for this instance, too. False if there is nothing to replace.
pub fn replace(
    pins: &PinDir,
    instance: u32,
    hook: &str,
    program: BorrowedFd<'_>,
) -> Result<bool, KernelError> {
    let failed = |error: io::Error| {
        KernelError::failed(format!("replace the program of hook {hook}"), error)
    };
    let links = pins.pinned_links();
    let Some((of, _)) = links
        .iter()
        .find(|(of, name)| *of != instance && name == hook)
    else {
        return Ok(false);
    };
    let link = bpf_syscall::open_pin(&pins.link(*of, hook)).map_err(failed)?;
    match bpf_syscall::update_link(link.as_fd(), program) {
        Ok(()) => {}
        // It was attached to something that is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => return Ok(false),
        Err(error) => return Err(failed(error)),
    }
    bpf_syscall::pin(link.as_fd(), &pins.link(instance, hook)).map_err(failed)?;
    Ok(true)
}

fn is_in_cgroup(name: &str) -> bool {
    HOOKS
        .iter()
        .any(|hook| hook.name == name && hook.place == Place::Cgroup)
}
