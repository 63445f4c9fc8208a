//! Tells aya which types may be copied to and from the kernel byte by byte.

use trefoil_ebpf::abi;

/// A value as it lies in a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wire<T>(pub T);

/// Types without padding, pointers, or forbidden bit patterns.
///
/// # Safety
///
/// Every bit pattern of the type's size is a value, and it has no implicit
/// padding.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: `Plain` says so, and `Wire` is transparent.
unsafe impl<T: Plain> aya::Pod for Wire<T> {}

macro_rules! plain {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, integers only, explicit padding; the layout is
            // asserted where the type is defined.
            unsafe impl Plain for $name {}
        )+
    };
}

plain!(
    u32,
    u64,
    abi::Address,
    abi::Agent,
    abi::Budget,
    abi::Cgroup,
    abi::Charges,
    abi::Control,
    abi::ControlPage,
    abi::Deed,
    abi::DeedKey,
    abi::EndedKey,
    abi::Event,
    abi::Executable,
    abi::ExecutableKey,
    abi::FlowKey,
    abi::Header,
    abi::HostRoot,
    abi::Offsets,
    abi::Policy,
    abi::Process,
    abi::Question,
    abi::Refusals,
    abi::RefusedSender,
    abi::Rooms,
    abi::SessionOrigin,
    abi::Totals,
    abi::Tracked,
    abi::Peer,
    abi::Uplink,
    abi::UplinkBooks,
    abi::UplinkFlowKey,
    abi::WayOut,
    abi::trace::TraceCounts,
    abi::trace::TraceFilter,
);

/// The bytes of a value.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value in these bytes, if there are enough of them.
pub fn value_of<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, and any bytes are a value; the source may be unaligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
