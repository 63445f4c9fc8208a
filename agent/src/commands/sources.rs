//! Reading what verbs are told by: settings, country data, policy.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Failure;
use crate::{
    bounded,
    geo::Geo,
    kernel::{KernelError, PinDir},
    monitor::Compilation,
    owner::users::OfHost,
    policy::{self, Geography, Image, LinkLocal, Place, Problems, Surroundings},
    settings::Settings,
};

/// The policy where none was written yet: nothing is approved but what is local.
const NO_POLICY: &str = "mode = \"report\"\n";

/// Says why records cannot go to this file, and what to do.
pub fn no_records(file: &Path, error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; the service may write below /var/log/trefoil, and elsewhere with ReadWritePaths= \
             in a drop-in of its unit"
        }
        io::ErrorKind::NotFound => "; make its directory, or name a file below /var/log/trefoil",
        _ => "",
    };
    format!("open {} for records: {error}{next}", file.display())
}

/// The settings file, or defaults where there is none and none was named.
pub fn settings(file: Option<&Path>) -> Result<Settings, Failure> {
    Settings::load(file).map_err(|error| Failure::Configuration(error.to_string()))
}

/// Country data: the files named on the command line, else those of the settings,
/// else Debian's.
pub fn geo(named: &[PathBuf], settings: &Settings) -> Result<Geo, Failure> {
    let files = if named.is_empty() {
        &settings.geo[..]
    } else {
        named
    };
    Geo::load(files).map_err(|error| Failure::Configuration(crate::kernel::with_causes(&error)))
}

/// The generation of a policy that is in force nowhere yet.
const FIRST_GENERATION: u32 = 1;

/// A policy as text, and what to call it.
pub struct PolicyText {
    /// The text.
    pub text: String,
    /// Its file, or what stands for it.
    pub source: String,
}

/// The policy file, or the empty policy where there is none and none was named.
pub fn policy_text(settings: &Settings) -> Result<PolicyText, Failure> {
    let file = &settings.policy;
    match bounded::read_text(file, bounded::MAX_POLICY) {
        Ok(text) => Ok(PolicyText {
            text,
            source: file.display().to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !settings.policy_is_named => {
            Ok(PolicyText {
                text: NO_POLICY.to_owned(),
                source: "built in (empty)".to_owned(),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(
            Failure::NotPermitted(format!("read policy {}: {error}", file.display())),
        ),
        Err(error) => Err(Failure::Configuration(format!(
            "read policy {}: {error}; name a readable file",
            file.display()
        ))),
    }
}

/// Parses and compiles a policy, for the first generation.
pub fn compile(
    text: &PolicyText,
    geo: &dyn Geography,
    own_addresses: &[IpAddr],
    link_local: LinkLocal,
) -> Result<Compilation, Problems> {
    let surroundings = Surroundings {
        geography: geo,
        users: &OfHost,
        own_addresses,
        link_local,
    };
    let compiled = policy::load(&text.text, &text.source, &surroundings, FIRST_GENERATION)?;
    let image = Image::new(&compiled)
        .map_err(|fault| Problems::new(&text.source, vec![fault.at(Place::START, "")]))?;
    Ok(Compilation {
        compiled,
        image,
        source: text.source.clone(),
    })
}

/// Everything that a policy's tables are made from. A change of any of it makes
/// another generation, so that no decision outlives what it was made from.
pub struct Origins {
    /// The policy.
    pub text: PolicyText,
    /// Country data.
    pub geo: Arc<Geo>,
    /// As in [`own_addresses`].
    pub own_addresses: Vec<IpAddr>,
    /// Treatment of unicast to the link's scope.
    pub link_local: LinkLocal,
}

impl Origins {
    /// Reads all of it.
    pub fn read(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            text: policy_text(settings)?,
            geo: Arc::new(geo(&[], settings)?),
            own_addresses: own_addresses(),
            link_local: settings.link_local,
        })
    }

    /// Makes the tables, for the first generation.
    pub fn compile(&self) -> Result<Compilation, Problems> {
        compile(&self.text, &*self.geo, &self.own_addresses, self.link_local)
    }
}

/// The pins to look at. Whoever may not look must not be told that there are none.
pub fn pins(dir: &Path) -> Result<PinDir, Failure> {
    let pins = PinDir::new(dir);
    match fs::metadata(pins.maps()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Failure::NotPermitted(format!(
                "look into {}: not permitted; run as root",
                dir.display()
            )))
        }
        _ => Ok(pins),
    }
}

/// Finds the control group to watch.
pub fn cgroup(settings: &Settings) -> Result<PathBuf, Failure> {
    if let Some(dir) = &settings.cgroup {
        return match statfs(dir) {
            Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(dir.clone()),
            Ok(_) => Err(Failure::Configuration(format!(
                "control group {} is not a directory of the cgroup v2 hierarchy; give another \
                 --cgroup, or none at all for the root",
                dir.display()
            ))),
            Err(error) => Err(Failure::Configuration(format!(
                "open control group {}: {}; give another --cgroup, or none at all for the root",
                dir.display(),
                io::Error::from(error)
            ))),
        };
    }
    crate::kernel::cgroup2_root().ok_or_else(|| {
        Failure::from(KernelError::failed(
            "find the cgroup v2 hierarchy in /proc/self/mountinfo",
            "it is not mounted; mount it (mount -t cgroup2 none DIR) or give --cgroup",
        ))
    })
}

/// Addresses of this host's interfaces, in the network namespace of the caller:
/// traffic to them is local. Those of link scope are left out, since they are
/// local on every host.
pub fn own_addresses() -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
