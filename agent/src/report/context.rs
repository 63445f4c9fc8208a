//! Facts that every record has: boot, host, instance, mode, policy and country data.
//!
//! It reads those of the host, and knows nothing of how records are handed over.

use std::{fs, io, path::Path, sync::Arc};

use super::{Field, Record};
use crate::settings::DEFAULT_PIN_DIR;

/// Facts that belong into every record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Boot, 32 hex digits.
    pub boot_id: Arc<str>,
    /// Name of the host.
    pub host: Arc<str>,
    /// Pin directory, if it is not the usual one: two agents on one host have numbers of
    /// their own.
    pub instance: Option<Arc<str>>,
    /// Contents of /etc/machine-id, if there is one.
    pub machine_id: Option<Arc<str>>,
    /// `report` or `enforce`.
    pub mode: Option<Arc<str>>,
    /// The policy in force.
    pub policy: Option<Arc<str>>,
    /// Build of the country data.
    pub geo: Option<Arc<str>>,
}

impl Context {
    /// The context of the agent with this pin directory.
    #[must_use]
    pub fn of_instance(self, pin_dir: &Path) -> Self {
        let is_usual = pin_dir == Path::new(DEFAULT_PIN_DIR);
        let instance = (!is_usual).then(|| pin_dir.to_string_lossy().into());
        Self { instance, ..self }
    }

    /// The context of this host, with no policy and no country data.
    ///
    /// # Errors
    ///
    /// When /proc is not there.
    pub fn of_this_host() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let machine_id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let machine_id = machine_id.trim();
        let is_id = machine_id.len() == 32 && machine_id.bytes().all(|it| it.is_ascii_hexdigit());
        Ok(Self {
            machine_id: is_id.then(|| machine_id.into()),
            boot_id: boot_id.trim().replace('-', "").into(),
            host: host.trim().into(),
            ..Self::default()
        })
    }

    /// Name of this agent's log of digests: one for each installation, over all boots.
    #[must_use]
    pub fn log_name(&self) -> String {
        let host = self.machine_id.as_ref().unwrap_or(&self.host);
        let instance = self.instance.as_deref().unwrap_or_default();
        let name = format!("trefoil/{host}{instance}");
        // A key cannot have them in its name.
        name.replace(|c: char| c == '+' || c.is_whitespace(), "_")
    }

    /// Adds these facts to a record that does not have them.
    pub(super) fn add_to(&self, record: &mut Record) {
        let Self {
            boot_id,
            host,
            instance,
            machine_id,
            mode,
            policy,
            geo,
        } = self.clone();
        record.set_default(Field::BootId, Some(boot_id));
        record.set_default(Field::Instance, instance);
        record.set_default(Field::MachineId, machine_id);
        record.set_default(Field::Host, Some(host));
        record.set_default(Field::Mode, mode);
        record.set_default(Field::Policy, policy);
        record.set_default(Field::Geo, geo);
    }
}
