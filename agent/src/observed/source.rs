//! Owners of flows, as their records name them.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use trefoil_ebpf::abi::{CGROUP_PATH, quality};

use super::Target;
use crate::{
    policy::Question,
    report::{Field, Record, words},
};

/// Stands for bytes that were no UTF-8: what a name with it was is not known.
const REPLACED: char = '\u{fffd}';

/// An owner. A fact that the records do not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Unit of the system's manager.
    pub unit: Option<Arc<str>>,
    /// Unit of a user's manager.
    pub user_unit: Option<Arc<str>>,
    /// Container.
    pub container: Option<Arc<str>>,
    /// Path of the control group.
    pub cgroup: Option<Arc<str>>,
    /// Path of the executable.
    pub exe: Option<Arc<str>>,
    /// Why `exe` is not plainly that of a file of the host.
    pub exe_note: Option<Arc<str>>,
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// Name of the user.
    pub user: Option<Arc<str>>,
    /// Whether somebody logged in to start the process.
    pub interactive: Option<bool>,
    /// Address that he logged in from, as far as the kernel saw it.
    pub session_addr: Option<IpAddr>,
    /// The kernel knew nothing of it: it could be anybody.
    pub is_anybody: bool,
}

/// A fact that rules ask for, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    /// The records say it.
    Known(T),
    /// The records say that the kernel could not know it, or not trust it: no rule approves
    /// by it, whatever it is.
    Distrusted,
    /// The records do not say it.
    Missing,
}

impl Source {
    /// The owner that a record of flows names.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let text = |field| record.text(field).map(Arc::from);
        Self {
            unit: text(Field::Unit),
            user_unit: text(Field::UserUnit),
            container: text(Field::Container),
            cgroup: text(Field::Cgroup),
            exe: text(Field::Exe),
            exe_note: text(Field::ExeNote),
            uid: record
                .number(Field::Uid)
                .and_then(|uid| u32::try_from(uid).ok()),
            gid: record
                .number(Field::Gid)
                .and_then(|gid| u32::try_from(gid).ok()),
            user: text(Field::User),
            // A process has a session, or nobody logged in to start it.
            interactive: record
                .number(Field::Pid)
                .map(|_| record.number(Field::Session).is_some()),
            session_addr: session_addr(record),
            is_anybody: is_anybodys(record),
        }
    }

    /// This owner with the facts of an older record of the same process that this one
    /// lacks; `None` if that adds nothing.
    #[must_use]
    pub(super) fn filled_from(&self, older: &Self) -> Option<Self> {
        let either = |own: &Option<Arc<str>>, other: &Option<Arc<str>>| {
            own.as_ref().or(other.as_ref()).map(Arc::clone)
        };
        let exe = if self.exe.is_some() { self } else { older };
        let filled = Self {
            unit: either(&self.unit, &older.unit),
            user_unit: either(&self.user_unit, &older.user_unit),
            container: either(&self.container, &older.container),
            cgroup: either(&self.cgroup, &older.cgroup),
            exe: exe.exe.clone(),
            exe_note: exe.exe_note.clone(),
            uid: self.uid.or(older.uid),
            gid: self.gid.or(older.gid),
            user: either(&self.user, &older.user),
            interactive: self.interactive.or(older.interactive),
            session_addr: self.session_addr.or(older.session_addr),
            is_anybody: self.is_anybody,
        };
        (filled != *self).then_some(filled)
    }

    /// The control group as rules see it. One whose path was cut is not known.
    #[must_use]
    pub fn cgroup_for_rules(&self) -> Fact<&str> {
        match self.cgroup.as_deref() {
            None => Fact::Missing,
            Some(path) if path.ends_with("...") && path.len() >= CGROUP_PATH => Fact::Distrusted,
            Some(path) if path.contains(REPLACED) => Fact::Missing,
            Some(path) => Fact::Known(path),
        }
    }

    /// The executable as rules see it. One whose path was cut is not known, and one that is
    /// no file of the host is denied by the path that it shows, which a file in memory lacks.
    #[must_use]
    pub fn exe_for_rules(&self) -> Fact<&str> {
        match (self.exe.as_deref(), self.exe_note.as_deref()) {
            (_, Some("truncated")) => Fact::Distrusted,
            (None, Some("foreign")) => Fact::Distrusted,
            (Some(path), Some("foreign")) if !path.contains(REPLACED) => Fact::Distrusted,
            (None, _) => Fact::Missing,
            (Some(path), _) if path.contains(REPLACED) => Fact::Missing,
            (Some(path), _) => Fact::Known(path),
        }
    }

    /// The user as rules see it.
    #[must_use]
    pub fn uid_for_rules(&self) -> Fact<u32> {
        self.uid.map_or(Fact::Missing, Fact::Known)
    }

    /// The question to a policy about a flow of this owner to an address, as one of this target, at
    /// this moment, in microseconds since 1970. An unknown fact matches no rule that approves by
    /// it, and all that deny.
    #[must_use]
    pub fn asks(&self, destination: IpAddr, target: &Target, time_us: u64) -> Question<'_> {
        let is_foreign = self.exe_note.as_deref() == Some("foreign");
        let executable = match self.exe_for_rules() {
            Fact::Distrusted if is_foreign => Some(self.exe.as_deref().unwrap_or_default()),
            executable => executable.known(),
        };
        Question {
            cgroup: self.cgroup_for_rules().known().map(str::as_bytes),
            executable: executable.map(str::as_bytes),
            is_foreign,
            // The last number is no user's.
            uid: self.uid.unwrap_or(u32::MAX),
            gid: self.gid,
            interactive: self.interactive,
            origin: self.session_addr,
            direction: target.way.direction(),
            near_port: Some(target.near_port),
            destination,
            // It left.
            may_stay: false,
            protocol: target.protocol.map_or(0, |protocol| protocol.0),
            port: target.port,
            time_us,
        }
    }

    /// The name of the program, or nothing.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        let exe = self.exe.as_deref()?;
        Some(exe.rsplit('/').next().unwrap_or(exe))
    }
}

/// Where somebody logged in from whom a record of flows names. The kernel judges by that only if it
/// saw the login.
fn session_addr(record: &Record) -> Option<IpAddr> {
    let said = record.text(Field::SessionAttribution);
    let is_seen = said == Some(words::attribution(quality::DIRECT));
    let address = record.text(Field::SessionAddr).filter(|_| is_seen)?;
    address.parse().ok()
}

/// True for a record of flows of which the kernel knew neither process nor user nor control group.
fn is_anybodys(record: &Record) -> bool {
    const FACTS: [Field; 5] = [
        Field::Pid,
        Field::Exe,
        Field::Cgroup,
        Field::Uid,
        Field::User,
    ];
    let said = record.text(Field::Attribution);
    let is_nobodys = [quality::NONE, quality::KERNEL, quality::FORWARDED]
        .into_iter()
        .any(|quality| said == Some(words::attribution(quality)));
    is_nobodys && FACTS.into_iter().all(|field| record.get(field).is_none())
}

impl<T> Fact<T> {
    /// Returns the fact if it is known.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Distrusted | Self::Missing => None,
        }
    }

    /// True if nobody knows.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

impl fmt::Display for Source {
    /// `curl (shop.service, user www-data)`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.program().unwrap_or("unknown process");
        let mut details: Vec<Cow<'_, str>> = Vec::new();
        if let Some(unit) = self.user_unit.as_ref().or(self.unit.as_ref()) {
            details.push(words::clean(unit));
        }
        match (&self.user, self.uid) {
            (Some(user), _) => details.push(format!("user {}", words::clean(user)).into()),
            (None, Some(uid)) => details.push(format!("uid {uid}").into()),
            (None, None) => {}
        }
        formatter.write_str(&words::clean(program))?;
        match details.is_empty() {
            true => Ok(()),
            false => write!(formatter, " ({})", details.join(", ")),
        }
    }
}
