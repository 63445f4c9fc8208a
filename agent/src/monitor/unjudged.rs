//! Sockets of families that no hook judges: of which there is something to say.
//!
//! A process is told of once for each family, however many sockets it opens.

use std::{collections::HashSet, path::Path};

use trefoil_ebpf::abi::{Owner, unseen};

use crate::{kernel::cgroup_path, report::FlowFacts};

/// Which were told of.
pub(super) struct UnjudgedSockets {
    /// Path in the hierarchy of the control group that is watched; `None` if that is not known.
    cgroup: Option<String>,
    /// Process id, its start, and the way out.
    told: HashSet<(u32, u64, u16)>,
}

impl UnjudgedSockets {
    /// Processes that are remembered. Beyond, some are told of once more.
    const MOST: usize = 65_536;

    pub(super) fn new(cgroup: &Path) -> Self {
        Self {
            cgroup: cgroup_path(cgroup),
            told: HashSet::new(),
        }
    }

    /// False if it was told that this process has such a socket. True of any other way out.
    pub(super) fn is_news(&mut self, way: u16, owner: &Owner) -> bool {
        if way < unseen::FAMILY {
            return true;
        }
        if self.told.len() >= Self::MOST {
            self.told.clear();
        }
        self.told.insert((owner.pid, owner.start_ns, way))
    }

    /// False if the process is in another control group than those that are watched: the hook
    /// sees the whole host. True of any other way out, and where that is not known.
    pub(super) fn is_watched(&self, way: u16, facts: &FlowFacts) -> bool {
        match (&self.cgroup, &facts.cgroup) {
            (Some(watched), Some(cgroup)) if way >= unseen::FAMILY => {
                Path::new(&**cgroup).starts_with(watched)
            }
            _ => true,
        }
    }
}
