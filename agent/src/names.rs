//! From the ids in a flow to the facts in its record: executables, control
//! groups, users, rules, countries. Cached, since a busy host asks for the same
//! few thousand names again and again.
//!
//! A name that cannot be had is absent; none is ever guessed.

use std::{collections::HashMap, sync::Arc};

use trefoil_ebpf::abi::{
    EXECUTABLE_FOREIGN, EXECUTABLE_TRUNCATED, EXECUTABLE_UNLINKED, Executable, Owner, Tracked,
    quality,
};

use crate::{
    flow::ip_address,
    geo::Geo,
    kernel::{KernelError, Reader},
    owner::{
        cgroup::Placement,
        executable::{Hashes, Running},
        process::{cgroup_path, executable_path, logged_in, placement},
        users::Logins,
    },
    policy::network::Network,
    report::FlowFacts,
};

mod policies;
mod sessions;

use policies::Policies;
pub use policies::RuleNames;
use sessions::Sessions;

/// Executables and control groups that are remembered. Beyond it all are
/// forgotten and looked up anew: the kernel's tables have them.
const REMEMBERED: usize = 16_384;

/// Looks up names.
pub struct Names {
    executables: HashMap<u64, Arc<Program>>,
    cgroups: HashMap<u64, Arc<Group>>,
    logins: Logins,
    hashes: Option<Hashes>,
    policies: Policies,
    sessions: Sessions,
    geo: Arc<Geo>,
}

struct Program {
    path: Option<Arc<str>>,
    note: Option<&'static str>,
    device: u32,
    inode: u64,
}

struct Group {
    path: Option<Arc<str>>,
    unit: Option<Arc<str>>,
    user_unit: Option<Arc<str>>,
    container: Option<Arc<str>>,
}

impl Names {
    /// `hashes` is what knows the executables' SHA-256, if they are wanted.
    pub fn new(logins: Logins, hashes: Option<Hashes>, geo: Arc<Geo>) -> Self {
        Self {
            executables: HashMap::new(),
            cgroups: HashMap::new(),
            logins,
            hashes,
            policies: Policies::default(),
            sessions: Sessions::default(),
            geo,
        }
    }

    /// Adds the rules of a policy that comes into force.
    pub fn add_policy(&mut self, rules: RuleNames) {
        self.policies.add(rules);
    }

    /// Replaces the networks from which gateways open sessions, with the gateways' names.
    pub fn set_gateways(&mut self, clients: &[(Network, String)]) {
        self.sessions.set_gateways(clients);
    }

    /// Uses other country data from now on.
    pub fn set_geo(&mut self, geo: Arc<Geo>) {
        self.geo = geo;
    }

    /// All that is known about a flow besides its numbers.
    pub fn facts(&mut self, reader: &Reader, tracked: &Tracked) -> Result<FlowFacts, KernelError> {
        let Tracked { owner, flow } = tracked;
        let destination = ip_address(&flow.peer.address);
        let mut facts = FlowFacts {
            country: self.geo.country(destination),
            asn: self.geo.asn(destination),
            ..FlowFacts::default()
        };
        if let Some(program) = self.program(reader, owner.exe_id)? {
            facts.exe.clone_from(&program.path);
            facts.exe_note = program.note;
            facts.exe_sha256 = self.sha256(owner, &program).map(Into::into);
        }
        if let Some(parent) = self.program(reader, owner.parent_exe_id)? {
            facts.parent_exe.clone_from(&parent.path);
        }
        if let Some(group) = self.group(reader, owner.cgroup_id)? {
            facts.cgroup.clone_from(&group.path);
            facts.unit.clone_from(&group.unit);
            facts.user_unit.clone_from(&group.user_unit);
            facts.container.clone_from(&group.container);
        }
        // Without a process the uid is that of the socket, which the kernel
        // may have opened for anybody.
        if quality::names_a_process(owner.quality) {
            facts.user = self.logins.name(owner.uid).map(Into::into);
            facts.login = logged_in(owner.loginuid)
                .and_then(|uid| self.logins.name(uid))
                .map(Into::into);
            facts.session = self.sessions.facts(reader, owner.session)?;
        }
        (facts.rule, facts.policy) = self.policies.names(&flow.decision);
        Ok(facts)
    }

    /// Forgets a control group, after the kernel's table did.
    pub fn forget_cgroup(&mut self, id: u64) {
        self.cgroups.remove(&id);
    }

    fn program(
        &mut self,
        reader: &Reader,
        exe_id: u64,
    ) -> Result<Option<Arc<Program>>, KernelError> {
        if exe_id == 0 {
            return Ok(None);
        }
        if let Some(known) = self.executables.get(&exe_id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(executable) = reader.executable(exe_id)? else {
            return Ok(None);
        };
        let program = Arc::new(Program {
            path: executable_path(&executable).map(Into::into),
            note: note(&executable),
            device: executable.device,
            inode: executable.inode,
        });
        if self.executables.len() >= REMEMBERED {
            self.executables.clear();
        }
        self.executables.insert(exe_id, Arc::clone(&program));
        Ok(Some(program))
    }

    fn group(&mut self, reader: &Reader, id: u64) -> Result<Option<Arc<Group>>, KernelError> {
        if id == 0 {
            return Ok(None);
        }
        if let Some(known) = self.cgroups.get(&id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(cgroup) = reader.cgroup(id)? else {
            return Ok(None);
        };
        let Placement {
            unit,
            user_unit,
            container,
            ..
        } = placement(&cgroup);
        let group = Arc::new(Group {
            path: cgroup_path(&cgroup).map(Into::into),
            unit: unit.map(Into::into),
            user_unit: user_unit.map(Into::into),
            container: container.map(|container| container.to_string().into()),
        });
        if self.cgroups.len() >= REMEMBERED {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, Arc::clone(&group));
        Ok(Some(group))
    }

    fn sha256(&self, owner: &Owner, program: &Program) -> Option<String> {
        self.hashes.as_ref()?.hash(&Running {
            pid: owner.pid,
            start_ns: owner.start_ns,
            device: program.device,
            inode: program.inode,
            path: program.path.as_deref()?.to_owned(),
        })
    }
}

/// Why a path is not plainly that of a file of the host.
fn note(executable: &Executable) -> Option<&'static str> {
    match executable.flags {
        flags if flags & EXECUTABLE_TRUNCATED != 0 => Some("truncated"),
        flags if flags & EXECUTABLE_FOREIGN != 0 => Some("foreign"),
        flags if flags & EXECUTABLE_UNLINKED != 0 => Some("unlinked"),
        _ => None,
    }
}
