//! Everything that speaks to the kernel's BPF: the only place that names aya,
//! and the only one with unsafe code.
//!
//! It loads, attaches, pins, takes over and detaches; it writes policy tables
//! and reads flows. It must not decide what any of it means.

#![expect(unsafe_code, reason = "system calls, shared memory, and aya's Pod")]

mod attach;
mod bpf_syscall;
mod btf;
mod budgets;
mod cgroups;
mod charged;
mod clsact;
mod deeds;
mod error;
mod events;
mod former;
mod guard;
mod held;
mod hooks;
mod iterators;
mod load;
mod mapped;
mod memory;
mod namespace;
mod netlink;
mod offsets;
mod others;
mod own_process;
mod pins;
mod questions;
mod reader;
mod refusals;
mod resized;
mod rtnetlink;
mod sock_diag;
mod superseded;
mod support;
mod tables;
mod takeover;
mod trace;
#[cfg(any(test, feature = "testing"))]
mod unattached;
mod uplink_books;
mod uplink_hook;
mod ways_out;
mod wire;

pub use budgets::Budgets;
pub use cgroups::{cgroup_path, cgroup1_roots, cgroup2_root};
pub use charged::{ChargedTables, Contents};
pub use error::KernelError;
pub(crate) use error::with_causes;
pub use events::{Events, Position};
pub use guard::{Damage, Guard};
pub use held::{Held, HeldPage, Sums};
pub use hooks::{DEV_DIRECT_XMIT, HOOKS, HookStatus};
pub use load::{Kernel, LoadSettings, TableSizes};
pub use memory::give_back_free_memory;
pub use namespace::{InNamespace, network_namespace};
pub use others::Others;
pub use own_process::{OwnProcess, is_in_first_pid_namespace};
pub use pins::{PinDir, detach};
#[cfg(any(test, feature = "testing"))]
pub use questions::ask;
pub use reader::Reader;
pub use refusals::RefusalTable;
pub use resized::{Remain, Remains};
pub use rtnetlink::{Change, Changes, RouteSocket, TxCounters};
pub use sock_diag::SockDiag;
pub use superseded::Superseded;
pub use support::{HookSupport, support, tried_support};
pub use tables::Enforcement;
pub use trace::Trace;
#[cfg(any(test, feature = "testing"))]
pub use unattached::{Unattached, peer};
pub use uplink_books::UplinkTable;
pub use uplink_hook::{UplinkHook, is_uplink_pin};
pub use ways_out::WayOut;
