//! Devices that the kernel hands over to a process, and that may send by themselves.

use trefoil_ebpf::abi::unseen;

/// As in the kernel's list of devices.
const MISC: u32 = 10;
const MISC_VFIO: u32 = 196;
const INFINIBAND: u32 = 231;
const INFINIBAND_FIRST_VERBS: u32 = 192;

/// Which way out a character device is, one of [`unseen`]; `None` if it is none.
#[inline(always)]
pub fn way_out(major: u32, minor: u32) -> Option<u16> {
    match (major, minor) {
        (MISC, MISC_VFIO) => Some(unseen::VFIO),
        (INFINIBAND, INFINIBAND_FIRST_VERBS..) => Some(unseen::RDMA),
        _ => None,
    }
}
