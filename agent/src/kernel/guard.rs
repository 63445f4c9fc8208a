//! Objects that this agent has in the kernel: held open, and compared with those that are
//! there now.
//!
//! An object that has lost its name on the BPF file system goes on, because it is held, and
//! gets its name back. A program that was taken from where it was attached cannot be put back
//! by an agent that has given up the rights for it. The guard reports to nobody, and looks at
//! no table's contents.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use trefoil_ebpf::abi::{DeedKey, Owner};

use super::{
    Kernel, KernelError, RouteSocket,
    bpf_syscall::{self, Identity},
    clsact,
    deeds::{self, Deeds},
    error::with_causes,
    held,
    hooks::{self, HOOKS},
    load::{lock, map_names},
    pins::PinDir,
    uplink_hook::{FilterPin, is_uplink_pin},
};
use crate::clock;

/// Something that is not as this agent left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Name of the damaged object.
    pub subject: String,
    /// Description of the damage.
    pub reason: String,
    /// False if something is not watched until another agent starts.
    pub is_mended: bool,
    /// Process that may have done it, where the kernel has seen one.
    pub by: Option<Owner>,
}

/// Holds what is pinned.
pub struct Guard {
    pins: PinDir,
    instance: u32,
    /// The control group that is watched.
    cgroup: PathBuf,
    cgroup_id: u64,
    held: Vec<Held>,
    /// Pins that the last look has made again.
    named_again: Vec<PathBuf>,
    /// Of a directory that was made again: that of [`Kernel`] is of the former one.
    lock: Option<File>,
    deeds: Deeds,
    /// The directories of pins.
    directories: Vec<DeedKey>,
    /// When the look before the last began, and the last.
    looks_ns: [u64; 2],
}

/// One thing with a name on the BPF file system.
struct Held {
    /// For people.
    what: String,
    path: PathBuf,
    object: OwnedFd,
    identity: Identity,
    place: Place,
    /// Key under which it is looked after; `None` for an object that nobody can do anything
    /// to but remove it.
    thing: Option<DeedKey>,
}

/// Where it may be taken from.
#[derive(Clone, Copy)]
enum Place {
    /// From nowhere: it is no link, or one to a tracepoint.
    Fixed,
    /// From the control group that is watched.
    Cgroup,
    /// From the exit of this interface, to which there is a link.
    Interface(u32),
    /// From there as well, where a filter of clsact holds it.
    Filter(FilterPin),
}

impl Place {
    fn interface(self) -> Option<u32> {
        match self {
            Self::Fixed | Self::Cgroup => None,
            Self::Interface(index) => Some(index),
            Self::Filter(filter) => Some(filter.interface),
        }
    }
}

impl Kernel {
    /// Holds all that this agent has pinned, apart from what is at uplinks.
    pub fn guard(&self, cgroup: &Path) -> Result<Guard, KernelError> {
        let metadata = fs::metadata(cgroup).map_err(|error| {
            KernelError::failed(format!("look at control group {}", cgroup.display()), error)
        })?;
        let mut guard = Guard {
            pins: self.pins.clone(),
            instance: self.instance,
            cgroup: cgroup.to_owned(),
            cgroup_id: metadata.ino(),
            held: Vec::new(),
            named_again: Vec::new(),
            lock: None,
            deeds: Deeds::open(&self.pins)?,
            directories: Vec::new(),
            looks_ns: [clock::since_boot_ns(); 2],
        };
        guard.deeds.clear()?;
        guard.look_after_directories();
        for (hook, status) in HOOKS.iter().zip(&self.hooks) {
            if hook.is_pinned() && status.attached {
                let path = self.pins.link(self.instance, hook.name);
                let place = match hook.place {
                    hooks::Place::Cgroup => Place::Cgroup,
                    _ => Place::Fixed,
                };
                guard.hold(format!("hook {}", hook.name), path, place)?;
            }
        }
        for name in map_names().chain([held::NAME.to_owned()]) {
            guard.hold(format!("map {name}"), self.pins.map(&name), Place::Fixed)?;
        }
        Ok(guard)
    }
}

impl Guard {
    /// Holds what watches an interface from now on; `what` is what people call it.
    pub fn hold_uplink(&mut self, index: u32, what: &str) -> Result<(), KernelError> {
        self.forget_uplink(index);
        for (of, pin) in self.pins.pinned_links() {
            if of == self.instance && is_uplink_pin(&pin, index) {
                let filter = FilterPin::parse(&pin);
                let place = filter.map_or(Place::Interface(index), Place::Filter);
                let path = self.pins.link(of, &pin);
                match self.hold(what.to_owned(), path.clone(), place) {
                    // It has gone meanwhile, which is about to be told.
                    Err(_) if !path.exists() => {}
                    held => held?,
                }
            }
        }
        Ok(())
    }

    /// Holds it no more: the interface is gone.
    pub fn forget_uplink(&mut self, index: u32) {
        let is_of_it = |held: &mut Held| held.place.interface() == Some(index);
        for held in self.held.extract_if(.., is_of_it) {
            if let Some(key) = held.thing {
                self.deeds.forget(key);
            }
        }
    }

    fn hold(&mut self, what: String, path: PathBuf, place: Place) -> Result<(), KernelError> {
        let failed = |error: io::Error| {
            KernelError::failed(format!("open what is pinned at {}", path.display()), error)
        };
        let object = bpf_syscall::open_pin(&path).map_err(failed)?;
        let identity = bpf_syscall::identity(object.as_fd()).map_err(failed)?;
        let thing = match place {
            // The pin is the program's.
            Place::Filter(_) => None,
            _ if path.starts_with(self.pins.maps()) => Some(deeds::map(identity.id)),
            _ => Some(deeds::link(identity.id)),
        };
        if let Some(key) = thing {
            self.deeds.look_after(key);
        }
        self.held.push(Held {
            what,
            path,
            object,
            identity,
            place,
            thing,
        });
        Ok(())
    }

    fn look_after_directories(&mut self) {
        for key in self.directories.drain(..) {
            self.deeds.forget(key);
        }
        for path in [self.pins.maps(), self.pins.links()] {
            // One that is gone already is about to be told.
            if let Ok(key) = deeds::directory(&path) {
                self.deeds.look_after(key);
                self.directories.push(key);
            }
        }
    }

    /// Returns the last process that has written to one of these maps since the last look but
    /// one.
    pub fn who_wrote(&self, maps: &[&str]) -> Option<Owner> {
        let is_one = |held: &&Held| {
            let name = held.what.strip_prefix("map ");
            name.is_some_and(|name| maps.contains(&name))
        };
        let keys: Vec<_> = self.held.iter().filter(is_one).collect();
        let keys: Vec<_> = keys.iter().filter_map(|held| held.thing).collect();
        self.who_touched(&keys)
    }

    fn who_touched(&self, things: &[DeedKey]) -> Option<Owner> {
        /// From when it is seen that somebody is about to do something until it is done.
        const MARGIN_NS: u64 = 100_000_000;
        let since_ns = self.looks_ns[0].saturating_sub(MARGIN_NS);
        self.deeds.last(things, since_ns)
    }

    /// Returns the objects that are not as they were left. Gives names again that were taken
    /// away.
    pub fn look(&mut self, routes: &mut RouteSocket) -> Vec<Damage> {
        self.looks_ns = [self.looks_ns[1], clock::since_boot_ns()];
        let mut found = Vec::new();
        let (mut unnamed, mut failure) = (Vec::new(), None);
        self.named_again.clear();
        // Before the directories are made again.
        let who_removed = self.who_touched(&self.directories);
        for index in 0..self.held.len() {
            let held = &self.held[index];
            let is_detached = held.is_detached(routes);
            let is_named = held.is_named();
            if is_detached || !is_named {
                // In this order: an interface that goes takes along what is attached to it.
                if held.is_of_gone_interface(routes) {
                    continue;
                }
                let subject = held.what.clone();
                if is_detached {
                    let by = held.thing.and_then(|thing| self.who_touched(&[thing]));
                    found.push(self.detached(subject, held.place, by));
                } else {
                    unnamed.push(subject);
                    failure = self.name_again(index).err().or(failure);
                }
            }
        }
        found.extend(unpinned(&unnamed, failure.as_ref(), who_removed));
        found
    }

    fn detached(&self, subject: String, place: Place, by: Option<Owner>) -> Damage {
        let reason = if matches!(place, Place::Cgroup) && self.is_cgroup_gone() {
            format!(
                "control group {} was removed, and what was attached to it is gone with it",
                self.cgroup.display()
            )
        } else {
            "its program was taken from where it was attached; nothing passes it any more until \
             the next agent has attached it again"
                .to_owned()
        };
        Damage {
            subject,
            reason,
            is_mended: false,
            by,
        }
    }

    fn is_cgroup_gone(&self) -> bool {
        fs::metadata(&self.cgroup).map_or(true, |cgroup| cgroup.ino() != self.cgroup_id)
    }

    /// Gives something its name again.
    fn name_again(&mut self, index: usize) -> Result<(), KernelError> {
        if !self.pins.maps().exists() || !self.pins.links().exists() {
            self.pins.create()?;
            self.look_after_directories();
            // Other agents look at this one.
            if let Some(lock) = lock_again(&self.pins)? {
                self.lock = Some(lock);
            }
        }
        let held = &self.held[index];
        let failed =
            |error: io::Error| KernelError::failed(format!("pin {}", held.path.display()), error);
        match fs::remove_file(&held.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        bpf_syscall::pin(held.object.as_fd(), &held.path).map_err(failed)?;
        self.named_again.push(held.path.clone());
        Ok(())
    }

    /// Takes away the names that the last [`look`](Self::look) has given again.
    pub fn take_back(&mut self) {
        for path in self.named_again.drain(..) {
            // The names may have been taken away once more.
            let _ = fs::remove_file(path);
        }
        self.pins.remove_if_empty();
    }
}

/// `None` if the directory that is there is the one that this agent has locked already.
fn lock_again(pins: &PinDir) -> Result<Option<File>, KernelError> {
    match lock(pins) {
        Ok(lock) => Ok(Some(lock)),
        Err(KernelError::Busy { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes one damage of all names that were taken away, since that is one deed.
fn unpinned(names: &[String], failure: Option<&KernelError>, by: Option<Owner>) -> Option<Damage> {
    let subject = match names {
        [] => return None,
        [one] => one.clone(),
        several => format!("{} pins", several.len()),
    };
    let mut reason = match failure {
        None => "what is pinned was removed or replaced; it went on nevertheless, and is pinned \
                 again"
            .to_owned(),
        Some(error) => format!(
            "what is pinned was removed or replaced, and cannot be pinned again ({}); the next \
             agent attaches what is missing",
            with_causes(error)
        ),
    };
    if names.len() > 1 {
        let _ = write!(reason, ": {}", names.join(", "));
    }
    Some(Damage {
        subject,
        reason,
        is_mended: failure.is_none(),
        by,
    })
}

impl Held {
    fn is_detached(&self, routes: &mut RouteSocket) -> bool {
        // A failed question to the kernel is no reason to say that the object is gone.
        match self.place {
            Place::Fixed => false,
            Place::Cgroup | Place::Interface(_) => bpf_syscall::link_info(self.object.as_fd())
                .is_ok_and(|info| info.target().is_none()),
            Place::Filter(filter) => clsact::is_attached(routes, filter.interface, filter.handle)
                .is_ok_and(|is_attached| !is_attached),
        }
    }

    fn is_named(&self) -> bool {
        bpf_syscall::open_pin(&self.path)
            .and_then(|object| bpf_syscall::identity(object.as_fd()))
            .is_ok_and(|identity| identity == self.identity)
    }

    fn is_of_gone_interface(&self, routes: &mut RouteSocket) -> bool {
        self.place
            .interface()
            .is_some_and(|index| matches!(routes.counters(index), Ok(None)))
    }
}
