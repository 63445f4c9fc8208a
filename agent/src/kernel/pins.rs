//! Objects that stay in the kernel when the agent is gone: pinned maps and links.
//!
//! `<pin-dir>/v<ABI>/maps/<MAP>` and `<pin-dir>/v<ABI>/links/<instance>-<hook>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use trefoil_ebpf::abi::{ABI_VERSION, Control};

use super::{
    KernelError, RouteSocket, UplinkTable, clsact, tables::ControlWords, uplink_hook::FilterPin,
};

/// A directory on a BPF file system that belongs to one agent.
#[derive(Clone, Debug)]
pub struct PinDir {
    /// As given with `--pin-dir`.
    base: PathBuf,
    /// Version of the layouts.
    abi: u32,
}

impl PinDir {
    /// Where the pins of this version are; nothing is touched.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            abi: ABI_VERSION,
        }
    }

    /// Number of the version, `v` and which names its directory.
    pub fn abi(&self) -> u32 {
        self.abi
    }

    /// The pins of other versions in this directory.
    pub fn others(&self) -> Vec<Self> {
        let versions = fs::read_dir(&self.base).into_iter().flatten().flatten();
        let number = |dir: fs::DirEntry| {
            let name = dir.file_name();
            name.to_str()?.strip_prefix('v')?.parse::<u32>().ok()
        };
        let others = versions.filter_map(number).filter(|abi| *abi != self.abi);
        others
            .map(|abi| Self {
                abi,
                base: self.base.clone(),
            })
            .collect()
    }

    /// As given with `--pin-dir`.
    pub fn base(&self) -> &Path {
        &self.base
    }

    fn version(&self) -> PathBuf {
        self.base.join(format!("v{}", self.abi))
    }

    /// Directory of the pinned maps.
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Directory of the pinned links.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Pin of one map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Pin of one link.
    pub fn link(&self, instance: u32, hook: &str) -> PathBuf {
        self.links().join(format!("{instance}-{hook}"))
    }

    /// Makes the directories, and mounts the BPF file system at its usual place
    /// if the directory is below it and nothing is mounted there.
    pub fn create(&self) -> Result<(), KernelError> {
        const USUAL: &str = USUAL_BPFFS;
        if self.base.starts_with(USUAL) && !is_bpffs(Path::new(USUAL)) {
            nix::mount::mount(
                Some("bpf"),
                USUAL,
                Some("bpf"),
                nix::mount::MsFlags::empty(),
                Some("mode=0700"),
            )
            .map_err(|error| {
                KernelError::failed(format!("mount bpf at {USUAL}"), io::Error::from(error))
            })?;
        }
        for dir in [self.maps(), self.links()] {
            check_is_bpffs(&dir)?;
            fs::create_dir_all(&dir).map_err(|error| {
                KernelError::failed(format!("make directory {}", dir.display()), error)
            })?;
        }
        Ok(())
    }

    /// Looks whether there could be pins here, without making anything.
    pub fn check_place(&self) -> Result<(), KernelError> {
        // There, it would be mounted.
        let usual = Path::new(USUAL_BPFFS);
        match self.base.starts_with(usual) && !is_bpffs(usual) {
            true => Ok(()),
            false => check_is_bpffs(&self.base),
        }
    }

    /// Removes the directories in which nothing is.
    pub fn remove_if_empty(&self) {
        for dir in [self.links(), self.maps(), self.version(), self.base.clone()] {
            // One in which there is something hurts nobody.
            let _ = fs::remove_dir(dir);
        }
    }

    /// Takes everything of this version out of the kernel.
    pub(super) fn remove_version(&self) -> Result<(), KernelError> {
        if let Ok(control) = ControlWords::open(self) {
            control.set(Control {
                generation: control.get().generation,
                instance: 0,
            });
        }
        self.remove_filters()?;
        remove_pins(&self.links(), |_| true)?;
        remove_pins(&self.maps(), |_| true)?;
        self.remove_if_empty();
        Ok(())
    }

    /// True if an agent runs that uses this directory.
    pub fn has_agent(&self) -> bool {
        matches!(super::load::lock(self), Err(KernelError::Busy { .. }))
    }

    /// Names of the pinned links, `(instance, hook)`.
    pub fn pinned_links(&self) -> Vec<(u32, String)> {
        let Ok(entries) = fs::read_dir(self.links()) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                parse_link(&name).map(|(instance, hook)| (instance, hook.to_owned()))
            })
            .collect()
    }

    /// Opens a pinned map.
    pub fn open_map(&self, name: &str) -> Result<MapData, KernelError> {
        let path = self.map(name);
        if !path.exists() {
            return Err(KernelError::NothingPinned {
                path: self.base.clone(),
            });
        }
        open_map(&path)
    }

    /// Compares a pinned map with what the agent is about to use. Returns how many entries it has,
    /// if it is there.
    pub fn check_map(&self, name: &str, wanted: &MapLayout) -> Result<Option<u32>, KernelError> {
        let path = self.map(name);
        if !path.exists() {
            return Ok(None);
        }
        let info = MapInfo::from_pin(&path).map_err(|error| {
            KernelError::failed(format!("open pinned map {}", path.display()), error)
        })?;
        let found = MapLayout {
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key_size: info.key_size(),
            value_size: info.value_size(),
        };
        if found == *wanted {
            return Ok(Some(info.max_entries()));
        }
        Err(KernelError::PinMismatch {
            path,
            pin_dir: self.base.clone(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        })
    }

    /// Takes links of one instance out of the kernel.
    pub fn remove_links_of(&self, instance: u32) -> Result<(), KernelError> {
        for (of, hook) in self.pinned_links() {
            if of == instance {
                self.remove_link(of, &hook)?;
            }
        }
        Ok(())
    }

    /// Takes links of all other instances out of the kernel.
    pub fn remove_links_except(&self, instance: u32) -> Result<(), KernelError> {
        for (other, hook) in self.pinned_links() {
            if other != instance {
                self.remove_link(other, &hook)?;
            }
        }
        Ok(())
    }

    /// Takes one link out of the kernel.
    pub fn remove_link(&self, instance: u32, hook: &str) -> Result<(), KernelError> {
        let path = self.link(instance, hook);
        if path.exists() {
            self.remove_filter(instance, hook, false)?;
        }
        remove(&path)
    }

    /// Takes the filter out of the kernel that a pin stands for, if it does.
    fn remove_filter(&self, instance: u32, hook: &str, is_last: bool) -> Result<(), KernelError> {
        let Some(FilterPin { interface, handle }) = FilterPin::parse(hook) else {
            return Ok(());
        };
        // Another instance's program is in it now, or still.
        let pins = self.pinned_links();
        if pins
            .iter()
            .any(|(of, name)| *of != instance && name == hook)
        {
            return Ok(());
        }
        // Of another version, or of nobody: then the qdisc stays.
        let uplink = UplinkTable::open(self).and_then(|table| table.get(interface));
        let made_qdisc = uplink.is_ok_and(|uplink| uplink.is_some_and(|it| it.made_qdisc()));
        clsact::remove(
            &mut RouteSocket::open()?,
            interface,
            handle,
            is_last && made_qdisc,
        )
    }

    /// Takes all filters out of the kernel that pins stand for. Takes CAP_NET_ADMIN,
    /// other than all else that a [`detach`] does. Returns how many there were.
    pub fn remove_filters(&self) -> Result<usize, KernelError> {
        let mut n_removed = 0;
        for (instance, hook) in self.pinned_links() {
            if FilterPin::parse(&hook).is_some() {
                self.remove_filter(instance, &hook, true)?;
                remove(&self.link(instance, &hook))?;
                n_removed += 1;
            }
        }
        Ok(n_removed)
    }
}

/// Instance and hook of a pinned link, by its name.
fn parse_link(name: &str) -> Option<(u32, &str)> {
    let (instance, hook) = name.split_once('-')?;
    Some((instance.parse().ok()?, hook))
}

/// Properties in which an agent and a pinned map have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// `BPF_MAP_TYPE_*`
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
}

impl std::fmt::Display for MapLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            key_size,
            value_size,
        } = self;
        write!(f, "type {kind}, key {key_size} B, value {value_size} B")
    }
}

/// Where the BPF file system usually is.
const USUAL_BPFFS: &str = "/sys/fs/bpf";

fn check_is_bpffs(dir: &Path) -> Result<(), KernelError> {
    let existing = dir.ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(Path::new("/"));
    match is_bpffs(existing) {
        true => Ok(()),
        false => Err(KernelError::NotBpffs {
            path: existing.to_owned(),
        }),
    }
}

fn is_bpffs(path: &Path) -> bool {
    const BPF_FS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0xcafe_4a11);
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn open_map(path: &Path) -> Result<MapData, KernelError> {
    MapData::from_pin(path)
        .map_err(|error| KernelError::failed(format!("open pinned map {}", path.display()), error))
}

pub(super) fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::failed(
            format!("remove pin {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Takes everything that is pinned there out of the kernel, of whatever version.
///
/// Returns how many links and maps there were. Links go first, so that no
/// program runs with half of its maps unpinned.
pub fn detach(pin_dir: &PinDir) -> Result<(usize, usize), KernelError> {
    let (mut n_links, mut n_maps) = (0, 0);
    let versions = match fs::read_dir(pin_dir.base()) {
        Ok(versions) => versions,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => {
            let operation = format!("read {}", pin_dir.base().display());
            return Err(KernelError::failed(operation, error));
        }
    };
    let is_version = |dir: &fs::DirEntry| {
        let name = dir.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix('v'));
        digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
    };
    let versions: Vec<_> = versions.flatten().filter(is_version).collect();
    // Nothing is to be refused any more when the first pin goes: the kernel lets go of a
    // link some time after its last pin is gone, and an agent holds it as well, and looks
    // here. This word is the same in every version.
    for version in &versions {
        let control = open_map(&version.path().join("maps/CONTROL"));
        if let Ok(control) = control.and_then(|map| ControlWords::map(&map)) {
            control.set(Control {
                generation: control.get().generation,
                instance: 0,
            });
        }
    }
    // Filters of interfaces may have to wait for others who change the network, and an agent
    // does not wait long for its links to go once the word says so.
    for version in &versions {
        n_links += remove_pins(&version.path().join("links"), |pin| {
            parse_link(pin).is_none_or(|(_, hook)| FilterPin::parse(hook).is_none())
        })?;
    }
    n_links += pin_dir.remove_filters()?;
    for version in versions {
        let dir = version.path();
        n_links += remove_pins(&dir.join("links"), |_| true)?;
        n_maps += remove_pins(&dir.join("maps"), |_| true)?;
        let _ = fs::remove_dir(dir);
    }
    let _ = fs::remove_dir(pin_dir.base());
    Ok((n_links, n_maps))
}

/// Removes pins by their names, and the directory if it is empty then. Returns how many there
/// were.
fn remove_pins(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<usize, KernelError> {
    let Ok(pins) = fs::read_dir(dir) else {
        return Ok(0);
    };
    let mut n_removed = 0;
    for pin in pins.flatten() {
        if pin.file_name().to_str().is_none_or(&is_wanted) {
            remove(&pin.path())?;
            n_removed += 1;
        }
    }
    // Empty directories hurt nobody if they cannot be removed.
    let _ = fs::remove_dir(dir);
    Ok(n_removed)
}
