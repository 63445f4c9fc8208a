//! A process opens a device that the kernel hands over to it, and that may send by itself:
//! remote direct memory access, or a device given to a guest. Traffic of such a device is
//! in no counter of this host, so that all that can be said is that it was opened.
//!
//! `BPF_CGROUP_DEVICE`, 4.15, in process context.

use aya_ebpf::{macros::cgroup_device, programs::DeviceContext};

use crate::{accounting::announce_unseen, device::way_out, maps::in_place};

/// Every path lets the device be opened.
const PASS: i32 = 1;

#[cgroup_device]
fn device_open(ctx: DeviceContext) -> i32 {
    const MAKE: u32 = 1;
    // SAFETY: fields of the context; the verifier checks the access.
    let (access, major, minor) = unsafe {
        let device = ctx.device;
        (
            (*device).access_type >> 16,
            (*device).major,
            (*device).minor,
        )
    };
    let Some(way) = way_out(major, minor) else {
        return PASS;
    };
    if access & MAKE == 0 && in_place().is_some() {
        announce_unseen(way, false);
    }
    PASS
}
