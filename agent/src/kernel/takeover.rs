//! Coming into force: learning who is there, and becoming the instance that counts,
//! without a packet that is judged twice or not at all.
//!
//! Where an instance before is attached at the same places, the kernel puts the programs
//! of this one in the place of its own, one by one. All of them share their maps and judge
//! by what is in force, so any mix of the two is right: also the one that is left if this
//! agent is killed or fails in the middle, and so nothing is ever put back.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use trefoil_ebpf::abi::{Control, LOSS_CGROUPS_FULL, ROOM_OF_CGROUPS, ROOT};

use super::{
    Kernel, KernelError, LoadSettings, PinDir, attach, cgroups,
    error::with_causes,
    former,
    hooks::{HOOKS, Hook, Place},
    iterators,
    tables::{Enforcement, wait_for_programs},
};
use crate::{clock::BootClock, policy::Image};

impl Kernel {
    /// Attaches everything and puts a first policy in force. If that fails, the policy of
    /// before is in force as it was, and nothing else is left; programs of this instance
    /// may apply it where they are in their place already. Returns as
    /// [`write_policy`](Self::write_policy) does.
    ///
    /// `attach_more` attaches what is not attached at a place known from the start; it
    /// belongs to the same instance.
    pub fn come_into_force(
        &mut self,
        load: &LoadSettings,
        policy: &Image,
        clock: &BootClock,
        enforcement: Enforcement,
        attach_more: impl FnOnce(&Self) -> Result<(), KernelError>,
    ) -> Result<Vec<u32>, KernelError> {
        let budgets = self.take_place(load, policy, clock, enforcement, attach_more)?;
        // There is no way back from here. An object that cannot be removed now is removed by the
        // next agent.
        if self.took_over {
            self.keep();
        }
        self.pins.remove_links_except(self.instance)?;
        Ok(budgets)
    }

    fn take_place(
        &mut self,
        load: &LoadSettings,
        policy: &Image,
        clock: &BootClock,
        enforcement: Enforcement,
        attach_more: impl FnOnce(&Self) -> Result<(), KernelError>,
    ) -> Result<Vec<u32>, KernelError> {
        // Tells whose root directory is the host's before any hook wants to know. An agent before
        // has done so, and what it knows of processes is more than can be found out now.
        let has_former = self.has_former();
        if !has_former {
            self.run_iterator("iter_task")?;
        }
        let budgets = self.write_policy(policy, clock)?;
        let cgroup = File::open(&load.cgroup).map_err(|error| {
            let path = load.cgroup.display();
            KernelError::failed(format!("open control group {path}"), error)
        })?;
        let replaces = self.replaces;
        let is_replaced = |hook: &Hook| replaces && hook.place == Place::Cgroup;
        self.attach(cgroup.as_fd(), |hook| !is_replaced(hook))?;
        // From here on the hooks see who comes, be they those of an instance before;
        // these are those who were there.
        if has_former {
            self.carry_over()?;
        }
        self.run_iterator("iter_task")?;
        let n_left = self.adopt_cgroups()?;
        if n_left != 0 {
            self.reader()?.lose(LOSS_CGROUPS_FULL, n_left)?;
        }
        self.run_iterator("iter_task_file")?;
        // Programs that count as soon as they are in place come last.
        self.attach(cgroup.as_fd(), is_replaced)?;
        attach_more(self)?;
        // A program that was replaced and still runs may not have read yet who counts.
        wait_for_programs();
        // Nothing is to be between the two but two stores.
        let others = self.others();
        self.begin(policy.policy.generation, enforcement);
        Self::supersede(&others);
        Ok(budgets)
    }

    /// Attaches some of the hooks, or puts their programs in the place of those of an
    /// instance before. Those that learn who is there begin to; those that count and
    /// judge wait for [`begin`](Self::begin), unless they replace others.
    ///
    /// Attached links are pinned, so that what is in force outlives the agent.
    fn attach(
        &mut self,
        cgroup: BorrowedFd<'_>,
        is_wanted: impl Fn(&Hook) -> bool,
    ) -> Result<(), KernelError> {
        for (hook, status) in HOOKS.iter().zip(&mut self.hooks) {
            if !status.attached || !is_wanted(hook) {
                continue;
            }
            if self.replaces && hook.place == Place::Cgroup {
                let program = attach::program(&self.ebpf, hook)?;
                if former::replace(&self.pins, self.instance, hook.name, program)? {
                    continue;
                }
            }
            let link = |hook: &Hook| self.pins.link(self.instance, hook.name);
            match attach::attach(&mut self.ebpf, hook, cgroup, link) {
                // So that `trefoil flows` can run it, agent alive or dead.
                Ok(false) if hook.is_pinned() => {
                    pin_program(&self.pins, self.instance, &mut self.ebpf, hook)?;
                }
                Ok(_) => {}
                Err(error) if hook.without.is_some() => {
                    status.attached = false;
                    status.why = Some(with_causes(&error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Looks for processes, executables and control groups that are not in the tables, where there
    /// may be room for them by now.
    pub fn search(&self) -> Result<(), KernelError> {
        self.run_iterator("iter_task")?;
        self.adopt_cgroups().map(drop)
    }

    /// Finds control groups that no hook has seen. Returns for how many there was no room.
    fn adopt_cgroups(&self) -> Result<u64, KernelError> {
        let Some(root) = cgroups::cgroup2_root() else {
            return Ok(0);
        };
        let mut tables = self.charged()?;
        let contents = tables.contents()?;
        let known: HashSet<u64> = contents.cgroups.iter().map(|(id, _)| *id).collect();
        let mut counted = contents.charges();
        // Those nearest to the root come first: what belongs to the system has its room.
        let mut n_left = 0;
        let mut seen = HashSet::new();
        let room = self.rooms.rooms[ROOM_OF_CGROUPS as usize];
        cgroups::visit(&root, room.one + 1, |id, cgroup| {
            let is_added = known.contains(&id)
                || counted.charge(cgroup.charged, ROOM_OF_CGROUPS, &self.rooms)
                    && tables.add_cgroup(id, &cgroup)?;
            n_left += u64::from(!is_added);
            seen.insert(id);
            Ok::<_, KernelError>(is_added || cgroup.charged == ROOT)
        })?;
        tables.settle(&counted)?;
        let sees_all = cgroups::is_first(&root);
        for (id, cgroup) in contents.cgroups {
            if sees_all && !seen.contains(&id) && cgroups::is_gone(&root, id, &cgroup) {
                tables.mark_removed(id)?;
            }
        }
        Ok(n_left)
    }

    fn run_iterator(&self, name: &str) -> Result<(), KernelError> {
        self.iterator(name)
            .map_or(Ok(()), |program| iterators::run(program, name))
    }

    /// Puts the first policy in force, in one piece: these programs begin to count and
    /// judge, and those of an agent before end.
    pub fn begin(&self, generation: u32, enforcement: Enforcement) {
        self.control.prepare(generation, enforcement);
        self.control.set(Control {
            generation,
            instance: self.instance,
        });
    }

    /// Puts a policy that was written in force, in one piece, unless somebody has run
    /// `trefoil detach`: that is not undone. Returns whether it is in force.
    #[must_use = "it may have been refused"]
    pub fn put_in_force(&self, generation: u32, enforcement: Enforcement) -> bool {
        let wanted = Control {
            generation,
            instance: self.instance,
        };
        self.control.prepare(generation, enforcement);
        loop {
            let found = self.control.get();
            if found.instance == 0 {
                return false;
            }
            if self.control.change(found, wanted) {
                return true;
            }
        }
    }

    /// Until when the policy in force is enforced. Somebody may have confirmed it.
    pub fn enforcement(&self) -> Enforcement {
        self.control.enforcement()
    }

    /// From now on nothing is counted or judged; what was counted can be read.
    pub fn stop_counting(&self) {
        self.control.set(Control {
            generation: self.control.get().generation,
            instance: 0,
        });
    }

    /// Reads the control word in force.
    pub fn control(&self) -> Control {
        self.control.get()
    }

    /// The number of this instance.
    pub fn instance(&self) -> u32 {
        self.instance
    }

    /// True if the tables hold the policy that was written last. Also if their pins have just
    /// been removed, so that nobody can tell: they are put back, and looked at the next time.
    pub fn holds_what_was_written(&self) -> Result<bool, KernelError> {
        let written = self.written.borrow();
        let written = written.as_ref();
        match written.map_or(Ok(true), |written| written.is_there(&self.pins)) {
            Err(KernelError::NothingPinned { .. }) => Ok(true),
            looked => looked,
        }
    }

    /// True once `trefoil detach` has said that nothing is in force any more.
    pub fn was_detached(&self) -> bool {
        self.control.get().instance == 0
    }

    /// False when the links that this agent pinned are gone.
    pub fn is_attached(&self) -> bool {
        let links = self.pins.pinned_links();
        HOOKS
            .iter()
            .zip(&self.hooks)
            .filter(|(hook, status)| hook.is_pinned() && status.attached)
            .all(|(hook, _)| {
                links
                    .iter()
                    .any(|(instance, name)| *instance == self.instance && name == hook.name)
            })
    }

    /// Takes out what this instance has attached; with nothing of an earlier one in the kernel,
    /// its tables as well. Objects of another version are left alone.
    pub(super) fn abandon(&self) {
        let done = if self.took_over {
            let made_way = self.made_way.iter();
            let swapped = made_way.map(|former| former.swap_back(&self.pins));
            let swapped: Result<(), KernelError> = swapped.collect();
            self.pins.remove_links_of(self.instance).and(swapped)
        } else {
            self.pins.remove_version()
        };
        if let Err(error) = done {
            tracing::error!("{error}");
        }
    }
}

fn pin_program(
    pins: &PinDir,
    instance: u32,
    ebpf: &mut Ebpf,
    hook: &Hook,
) -> Result<(), KernelError> {
    let path = pins.link(instance, hook.name);
    for name in hook.programs() {
        let Some(program) = ebpf.program_mut(name) else {
            continue;
        };
        if program.fd().is_ok() {
            return program.pin(&path).map_err(|error| {
                KernelError::failed(format!("pin program {}", path.display()), error)
            });
        }
    }
    Ok(())
}
