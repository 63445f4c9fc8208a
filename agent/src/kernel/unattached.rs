//! The kernel side alone, for tests and benchmarks that ask the judge.
//!
//! Programs and tables are loaded and nothing is attached, so nothing that happens on
//! the machine is seen or judged.

use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use trefoil_ebpf::abi::{Address, Peer};

use super::{Enforcement, Kernel, KernelError, LoadSettings, TableSizes, cgroup2_root, detach};
use crate::{
    clock::BootClock,
    policy::{Compiled, Image, Mode},
};

/// A [`Kernel`] with pins of its own. Dropping it takes everything out again.
pub struct Unattached(Kernel);

impl Unattached {
    /// Loads it. `n_names` is how many executables can be added to its tables, and as
    /// many control groups.
    pub fn load(n_names: u32) -> Result<Self, KernelError> {
        // Tests of one process run beside each other.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        Kernel::load(&LoadSettings {
            pin_dir: PathBuf::from(format!("/sys/fs/bpf/trefoil-test-{pid}-{number}")),
            // Only attaching would look there.
            cgroup: cgroup2_root().unwrap_or_default(),
            tables: TableSizes {
                events_bytes: 1 << 16,
                flows: 1,
                uplink_flows: 1,
                remembered: 1,
                uplinks: 1,
                ended: 1,
                processes: 1,
                executables: n_names,
                cgroups: n_names,
            },
            local_flows: false,
            watches_uplinks: false,
        })
        .map(Self)
    }

    /// Puts a policy in force that was compiled for the
    /// [next generation](Kernel::next_generation).
    ///
    /// Its moments are those of `clock`.
    pub fn judge_by(&self, policy: &Compiled, clock: &BootClock) -> Result<(), KernelError> {
        let image = Image::new(policy)
            .map_err(|fault| KernelError::failed("lay out a policy", fault.message))?;
        self.write_policy(&image, clock)?;
        let enforcement = match policy.mode() {
            Mode::Report => Enforcement::Never,
            Mode::Enforce => Enforcement::Always,
        };
        self.begin(policy.header.generation, enforcement);
        Ok(())
    }
}

impl Deref for Unattached {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        &self.0
    }
}

impl DerefMut for Unattached {
    fn deref_mut(&mut self) -> &mut Kernel {
        &mut self.0
    }
}

impl Drop for Unattached {
    fn drop(&mut self) {
        if let Err(error) = detach(self.pins()) {
            eprintln!("{error}");
        }
    }
}

/// The far end of a flow, as the kernel's tables have it.
#[must_use]
pub fn peer(address: IpAddr, port: u16, protocol: u8) -> Peer {
    Peer {
        address: match address {
            IpAddr::V4(v4) => Address::v4(v4.to_bits()),
            IpAddr::V6(v6) => Address(v6.octets()),
        },
        port,
        protocol,
        pad: [0; 5],
    }
}
